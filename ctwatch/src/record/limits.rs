//! What reading a recording may cost at most, and what its numbers may be. It may come from anybody: none of its values is
//! used to reckon with, or to reserve memory, before it was found to be one that a recorder can write.

use std::ffi::{CStr, c_void};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::ffi;
use rusqlite::limits::Limit;

use super::fault::ReadError;
use super::stop::is_stopped;
use crate::foreign::Foreign;
use crate::model::LAST_US;

/// The longest text of a row but for those that say so.
pub(super) const TEXT: usize = 64 << 10;
/// A machine's facts as JSON.
pub(super) const FACTS: usize = 4 << 20;
/// The longest name: of a host, a netns, a container, a version.
pub(super) const NAME: usize = 4 << 10;
/// The longest value of a setting that a recorder keeps: numbers, and lists of ports.
pub(super) const VALUE: usize = 4 << 10;
/// The longest text of a notice that a recorder keeps.
pub(super) const NOTICE: usize = 16 << 10;
/// What a rule set is compressed to at most.
pub(super) const PACKED: usize = 32 << 20;
/// The longest row of all, and the longest of those without a rule set.
const LONGEST: i32 = PACKED as i32 + (1 << 20);
const LONG: i32 = FACTS as i32 + (1 << 20);
/// What all rows that are held at once may take.
pub(super) const HELD: usize = 64 << 20;
/// Slots of a run: of those beyond, a recorder writes sums only.
pub const SLOTS: usize = 128 << 10;
/// Namespaces of a run, likewise.
pub const NETNS: usize = 128 << 10;
/// Runs of a file: one that is restarted every ten seconds makes as many in a week.
pub(super) const RUNS: usize = (64 << 10) - 1;
/// A number of a tick.
const TICK: i64 = 1 << 53;
/// All that moved in a run: ten million times a second for half a year. As many runs as there may be don't overflow a sum.
const MOVED: i64 = 1 << 47;
/// What all ticks of a run may last, so that sums over runs fit, too: 35 years.
const LASTED_US: i64 = 1 << 50;

/// Memory that SQLite may take. Its own cache is 2 MB, and a rule set passes through twice.
const HEAP: i64 = 128 << 20;
/// Steps of SQLite's virtual machine between two looks at what was used.
const LOOK_EVERY: i32 = 256;
/// Steps that any file may take.
const STEPS: u64 = 5_000_000;
/// Steps for each byte of the file: a report takes 0.65, which is most of all readers.
const STEPS_PER_BYTE: u64 = 16;
/// Pages that any file may have looked at, each as often as it is: one step can read a value of thousands, and many values
/// can be of the same pages.
const PAGES: u64 = 50_000;
/// Bytes of texts and other values that are read of any file, each as often as it is.
const VALUES: u64 = 8 << 20;
/// Bytes of them for each byte of the file.
const VALUES_PER_BYTE: u64 = 8;
/// Pages for each KiB of the file: all readers look at 13 or fewer.
const PAGES_PER_KIB: u64 = 128;

/// Ticks that were read in this process.
static TICKS_READ: AtomicU64 = AtomicU64::new(0);

/// How many ticks were read so far in this process, from whatever recording.
#[must_use]
pub fn ticks_read() -> u64 {
    TICKS_READ.load(Ordering::Relaxed)
}

/// So many more ticks were read.
pub(super) fn count_ticks(ticks: usize) {
    TICKS_READ.fetch_add(ticks as u64, Ordering::Relaxed);
}

/// Nothing in a file runs: no view, trigger or function of its schema; no value is longer than any that we write, and all
/// that is held takes no more memory than it may. Reads nothing of the file.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, LONGEST),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 << 10),
        (Limit::SQLITE_LIMIT_COLUMN, 100),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 50),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 8),
        (Limit::SQLITE_LIMIT_VDBE_OP, 25_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 8),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 64),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 64),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, most)?;
    }
    // Of the whole process: a recorder has no more.
    connection.pragma_update(None, "hard_heap_limit", HEAP)?;
    // Damaged pages are to be noticed early.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Mapped pages of a file that somebody shortens meanwhile would be a SIGBUS.
    connection.pragma_update(None, "mmap_size", 0)
}

/// Ends what takes more steps or pages than a file of so many bytes can need, and everything once reading is to stop. Before
/// anything of the file is read; and as one step may read a whole table (`count(*)`), no query may ask for such.
pub(super) fn watch(connection: &mut Connection, bytes: u64) -> rusqlite::Result<()> {
    let mut left = (STEPS + bytes.saturating_mul(STEPS_PER_BYTE)) / LOOK_EVERY as u64;
    let most = PAGES + (bytes >> 10).saturating_mul(PAGES_PER_KIB);
    let pages = PagesLookedAt::of(connection);
    ValuesLeft::set(connection, VALUES + bytes.saturating_mul(VALUES_PER_BYTE));
    connection.progress_handler(
        LOOK_EVERY,
        Some(move || {
            left = left.saturating_sub(1);
            left == 0 || pages.until_now() > most || is_stopped()
        }),
    )
}

/// For one who may: his own files have no limit.
pub(super) fn unwatch(connection: &mut Connection) -> rusqlite::Result<()> {
    ValuesLeft::forget(connection);
    connection.progress_handler(0, None::<fn() -> bool>)
}

/// How many bytes of values may still be read over a connection; kept by the connection itself.
pub(super) struct ValuesLeft(AtomicU64);

impl ValuesLeft {
    const NAME: &CStr = c"ctwatch values left";

    fn set(connection: &Connection, bytes: u64) {
        extern "C" fn free(left: *mut c_void) {
            // SAFETY: it was made by `into_raw` below, and SQLite frees it once.
            drop(unsafe { Box::from_raw(left.cast::<ValuesLeft>()) });
        }
        let left = Box::into_raw(Box::new(Self(AtomicU64::new(bytes))));
        // SAFETY: SQLite keeps the pointer until the connection is closed or gets another one, and frees it then.
        unsafe {
            let database = connection.handle();
            ffi::sqlite3_set_clientdata(database, Self::NAME.as_ptr(), left.cast(), Some(free));
        }
    }

    fn forget(connection: &mut Connection) {
        // SAFETY: with no pointer the one that was kept is freed.
        unsafe {
            let database = connection.handle();
            ffi::sqlite3_set_clientdata(database, Self::NAME.as_ptr(), std::ptr::null_mut(), None);
        }
    }

    /// Of this connection, if it has a limit.
    pub fn of(connection: &Connection) -> Option<&Self> {
        // SAFETY: what has this name is of this type, and lives as long as the connection or until `forget`, which takes
        // the connection for itself alone.
        unsafe {
            let left = ffi::sqlite3_get_clientdata(connection.handle(), Self::NAME.as_ptr());
            left.cast::<Self>().as_ref()
        }
    }

    /// Whether so many more may be read.
    pub fn take(&self, bytes: usize) -> bool {
        let less = |left: u64| left.checked_sub(bytes as u64);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// Values that are longer than the rest of a recording's are read meanwhile.
pub(super) fn with_long_values<T>(
    connection: &Connection,
    read: impl FnOnce() -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let before = connection.limit(Limit::SQLITE_LIMIT_LENGTH)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST)?;
    let found = read();
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, before)?;
    found
}

/// For readers: only [`with_long_values`] there are any.
pub(super) fn shorten_values(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONG).map(drop)
}

/// Counts the pages that a connection looked at.
struct PagesLookedAt(*mut ffi::sqlite3);

// SAFETY: it is only used by the progress handler of the connection, which is called by whoever uses that.
unsafe impl Send for PagesLookedAt {}

impl PagesLookedAt {
    /// For the progress handler of this connection, and for nobody else.
    fn of(connection: &Connection) -> Self {
        // SAFETY: the connection is not closed by it, and its handler ends with it at the latest.
        Self(unsafe { connection.handle() })
    }

    fn until_now(&self) -> u64 {
        let count = |what| {
            let (mut now, mut most) = (0, 0);
            // SAFETY: the connection is there as long as its handler is called, both places are live, and without the last
            // flag nothing of it is changed.
            unsafe { ffi::sqlite3_db_status64(self.0, what, &raw mut now, &raw mut most, 0) };
            now.cast_unsigned()
        };
        count(ffi::SQLITE_DBSTATUS_CACHE_HIT).saturating_add(count(ffi::SQLITE_DBSTATUS_CACHE_MISS))
    }
}

/// What a file really takes: holes in it are no reason to read for longer.
pub(super) fn bytes_of(about: &Metadata) -> u64 {
    /// Of `st_blocks`, whatever the file system's are.
    const BLOCK: u64 = 512;
    match about.blocks() {
        // Some file systems don't say.
        0 => about.len(),
        blocks => about.len().min(blocks.saturating_mul(BLOCK)),
    }
}

/// A wall clock's time in microseconds, if a kernel's clock can show it.
pub(super) fn time(us: i64) -> Option<Timestamp> {
    is_clock(us).then(|| Timestamp::from_microsecond(us).ok())?
}

/// Whether a kernel's clock can show this time, or so long a span.
pub(super) const fn is_clock(us: i64) -> bool {
    us >= 0 && us <= LAST_US
}

/// Whether a name, where there is one, is no longer than any.
pub(super) fn is_name(name: Option<&Foreign>) -> bool {
    name.is_none_or(|name| name.size() <= NAME)
}

/// Whether a tick can have this number.
pub(super) const fn is_tick(number: i64) -> bool {
    number >= 0 && number <= TICK
}

/// Whether a counter can have moved so far.
pub(super) const fn is_count(count: i64) -> bool {
    count.unsigned_abs() <= MOVED.unsigned_abs()
}

/// What the ticks of a run add up to: sums of theirs stay far from where an integer ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    moved: i64,
    lasted_us: i64,
}

impl Totals {
    /// Adds what moved in a tick, and its length; false if it is more than there can be.
    pub fn add(&mut self, counts: impl IntoIterator<Item = i64>, lasted_us: i64) -> bool {
        for count in counts {
            if !is_count(count) {
                return false;
            }
            // Neither is more than 2^48.
            self.moved += count.abs();
            if self.moved > MOVED {
                return false;
            }
        }
        if !is_clock(lasted_us) {
            return false;
        }
        self.lasted_us = self.lasted_us.saturating_add(lasted_us);
        self.lasted_us <= LASTED_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_that_a_kernel_can_show() {
        assert_eq!(time(0), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(time(LAST_US).unwrap().to_string(), "2262-04-11T23:47:16.854775Z");
        for bad in [-1, i64::MIN, LAST_US + 1, i64::MAX] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn sums_stop_far_from_where_an_integer_ends() {
        let mut totals = Totals::default();
        assert!(totals.add([MOVED - 1, -1, 0], LASTED_US) && !totals.add([1], 0));
        for bad in [i64::MIN, i64::MAX, MOVED + 1, -MOVED - 1] {
            assert!(!Totals::default().add([bad], 0), "{bad}");
        }
        for bad in [i64::MIN, -1, LASTED_US + 1, i64::MAX] {
            assert!(!Totals::default().add([], bad), "{bad}");
        }
        assert!(MOVED.checked_mul(RUNS as i64).is_some() && LASTED_US.checked_mul(4096).is_some());
    }
}
