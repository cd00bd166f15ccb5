//! Recordings that no recorder made, each from one that was.

use std::path::Path;

use ctwatch::record::Writer;
use ctwatch::record::rows::{MachineSnapshot, SnapshotReason};
use ctwatch::record::writer::Batch;
use ctwatch::testing;
use rusqlite::{Connection, params};

/// Bytes of the text that every reader once took in.
const LONG: usize = 150 << 20;

/// What is run on the file, and what is said of it then.
pub const SCRIPTS: &[(&str, &str, &str)] = &[
    (
        "a view without an end in a table's place",
        "DROP TABLE notice; CREATE VIEW notice AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) \
         SELECT id, 1 AS run, 1 AS wall_us, 1 AS mono_us, 'a' AS code, 'b' AS text, 1 AS crc FROM n",
        "\"notice\"",
    ),
    (
        "a view that multiplies",
        "ALTER TABLE tick RENAME TO t; CREATE VIEW tick AS SELECT a.* FROM t a, t b, t c, t d",
        "\"t",
    ),
    (
        "a view that takes memory",
        "DROP TABLE setting; CREATE VIEW setting AS SELECT 1 AS id, 1 AS run, 1 AS wall_us, 1 AS mono_us, \
         hex(zeroblob(900000000)) AS name, '' AS value, '' AS before, 1 AS crc",
        "\"setting\"",
    ),
    ("a view more", "CREATE VIEW more AS SELECT randomblob(1000000000)", "\"more\""),
    ("a trigger", "CREATE TRIGGER more AFTER INSERT ON run BEGIN DELETE FROM tick; END", "trigger"),
    ("a generated column", "ALTER TABLE notice ADD COLUMN more AS (hex(zeroblob(100000000)))", "\"notice\""),
    ("a column more", "ALTER TABLE tick ADD COLUMN more TEXT", "\"tick\""),
    ("a default that runs", "CREATE TABLE more (a DEFAULT (randomblob(1000000)))", "\"more\""),
    ("a check", "CREATE TABLE more (a CHECK (abs(a) > 1))", "\"more\""),
    ("an index over an expression", "CREATE INDEX more ON tick (hex(zeroblob(1000)))", "index"),
    ("a partial index", "CREATE INDEX more ON tick (id) WHERE id > 1", "index"),
    ("a virtual table", "CREATE VIRTUAL TABLE more USING fts5(a)", "more"),
    ("statistics that mislead", "ANALYZE; UPDATE sqlite_stat1 SET stat = '1 1'", "sqlite_stat"),
    (
        "a table without its key",
        "DROP TABLE tick_loss; CREATE TABLE tick_loss (tick, slot, losses)",
        "tick_loss",
    ),
    ("a table less", "DROP TABLE census", "no table census"),
    ("text for numbers", "UPDATE tick SET wall_us = 'long ago' WHERE id = 3", "damaged"),
    ("a number that is none", "UPDATE tick SET interval_us = 9e999 WHERE id = 3", "damaged"),
    ("text that is none", "UPDATE run SET host = CAST(x'FFFE' AS TEXT)", "damaged"),
];

/// What is said of more than is allowed: the file may be as it was written.
const ALLOWED: &str = "more than ctwatch allows a file of its size";

/// What takes a program: what it is, and what is said of it then.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("a long host name", ALLOWED),
    ("a long notice", ALLOWED),
    ("a long setting", ALLOWED),
    ("a long name of a netns", ALLOWED),
    ("long facts", ""),
    ("a long listing", ""),
    ("a long rule set", ""),
    ("a long incident", ALLOWED),
    ("a long event", ""),
    ("many tables", "tables"),
    ("many runs", "damaged"),
    ("many notices", "damaged"),
    ("many names", "damaged"),
    ("pages that are shared", ""),
    ("pages that many cells share", ALLOWED),
    ("pages that many cells of another kind share", ""),
    ("pages that many cells share, and a hole", ALLOWED),
    ("facts that many rows share", "texts and blobs"),
    ("deep JSON", "damaged"),
    ("wide JSON", ALLOWED),
    ("wide facts", ""),
];

/// Changes a recording into one of [`PROGRAMS`].
pub fn change(path: &Path, what: &str) {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF")
        .unwrap();
    let long = |sql: &str| {
        let changed = connection.execute(sql, [LONG as i64]).unwrap();
        assert!(changed > 0, "{what}");
    };
    const TEXT: &str = "CAST(replace(hex(zeroblob(?1 / 2)), '00', 'aa') AS TEXT)";
    let many = |sql: &str, times: i64| {
        let with = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1000 + ?1) {sql}"
        );
        connection.execute(&with, [times]).unwrap();
    };
    match what {
        "a long host name" => long(&format!("UPDATE run SET host = {TEXT}")),
        "a long notice" => long(&format!("UPDATE notice SET text = {TEXT} WHERE id = 1")),
        "a long setting" => long(&format!("UPDATE setting SET value = {TEXT} WHERE id = 1")),
        "a long name of a netns" => long(&format!("UPDATE netns SET name = {TEXT} WHERE id = 1")),
        "long facts" => long(&format!("UPDATE machine SET facts = {TEXT}")),
        "a long listing" => long(&format!("UPDATE listing_phase SET idle = {TEXT}")),
        "a long rule set" => long("UPDATE rules SET rules = zeroblob(?1) WHERE id = 1"),
        "a long incident" => long(&format!("UPDATE incident SET measured = {TEXT}")),
        "a long event" => long(&format!("UPDATE event SET device = {TEXT} WHERE tick = 25")),
        "many tables" => {
            for number in 0..2_000 {
                connection.execute_batch(&format!("CREATE TABLE t{number} (a)")).unwrap();
            }
        }
        "many runs" => many(
            "INSERT INTO run SELECT i, started_us, started_mono_us, NULL, NULL, '', '', backend, NULL, interval_us, 1, hooks, \
             0, 0, 0, 0, 0, 1, crc FROM n, run WHERE run.id = 1",
            300_000,
        ),
        "many notices" => many("INSERT INTO notice SELECT i, 1, 1, 1, 'a', 'b', 1 FROM n", 500_000),
        "many names" => many("INSERT INTO netns SELECT i, 1, i, 1, 1, 'a', NULL, 1 FROM n", 100_000),
        "deep JSON" => {
            connection.execute("UPDATE run SET hooks = ?1", ["[".repeat(60_000)]).unwrap();
        }
        "wide JSON" => {
            connection
                .execute("UPDATE run SET hooks = ?1", [format!("[{}0]", "0,".repeat(1 << 20))])
                .unwrap();
        }
        "wide facts" => {
            let facts = format!("{{\"notes\":[{}\"\"]}}", "\"\",".repeat(1 << 20));
            connection.execute("UPDATE machine SET facts = ?1", params![facts]).unwrap();
        }
        "pages that are shared" => {
            drop(connection);
            share_pages(path, "notice", 0);
        }
        "pages that many cells share" => {
            drop(connection);
            share_pages(path, "notice", 8);
        }
        "many pages that many cells share" => {
            many("INSERT INTO setting SELECT i, 1, 1, 1, hex(zeroblob(900)), '', NULL, 1 FROM n", 4_000);
            drop(connection);
            share_pages(path, "notice", 8);
        }
        // A table without rowids: each run of each reader begins with it.
        "pages that many cells of another kind share" => {
            drop(connection);
            share_pages(path, "meta", 8);
        }
        "pages that many cells share, and a hole" => {
            drop(connection);
            share_pages(path, "notice", 8);
            std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        }
        "facts that many rows share" => {
            drop(connection);
            share_facts(path);
        }
        other => panic!("{other}"),
    }
}

/// Page numbers are in front of the cells of an inner page, and for what comes after the last one in its head.
fn point_to(page: &mut [u8], child: u32) {
    assert!(matches!(page[0], 2 | 5), "an inner page");
    let cells = usize::from(u16::from_be_bytes([page[3], page[4]]));
    assert!(cells > 1, "it has children");
    for cell in 0..cells {
        let at = usize::from(u16::from_be_bytes([page[12 + 2 * cell], page[13 + 2 * cell]]));
        page[at..at + 4].copy_from_slice(&child.to_be_bytes());
    }
    page[8..12].copy_from_slice(&child.to_be_bytes());
}

fn first_child(page: &[u8]) -> u32 {
    let at = usize::from(u16::from_be_bytes([page[12], page[13]]));
    u32::from_be_bytes(page[at..at + 4].try_into().unwrap())
}

/// A file's pages, numbered from 1.
struct Pages {
    bytes: Vec<u8>,
    size: usize,
}

impl Pages {
    fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        Self { bytes, size }
    }

    fn page(&mut self, number: u32) -> &mut [u8] {
        let at = (number as usize - 1) * self.size;
        &mut self.bytes[at..at + self.size]
    }

    fn add(&mut self, page: &[u8]) -> u32 {
        self.bytes.extend_from_slice(page);
        let pages = (self.bytes.len() / self.size) as u32;
        self.bytes[28..32].copy_from_slice(&pages.to_be_bytes());
        pages
    }
}

fn root(path: &Path, table: &str) -> u32 {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let sql = "SELECT rootpage FROM sqlite_master WHERE name = ?1";
    connection.query_row(sql, [table], |row| row.get(0)).unwrap()
}

/// Makes all cells of a table's root point to one page, and those of that one again, for so many levels; the last ones to a
/// leaf. What takes kilobytes is read as gigabytes. With none the root points to itself.
fn share_pages(path: &Path, table: &str, levels: u32) {
    let connection = Connection::open(path).unwrap();
    let rows = match table {
        "notice" => "INSERT INTO notice SELECT i, 1, 1, 1, 'a', hex(zeroblob(300)), 1 FROM n",
        _ => "INSERT INTO meta SELECT 'zz' || i || hex(zeroblob(300)), 'a' FROM n",
    };
    connection
        .execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) {rows}"
        ))
        .unwrap();
    drop(connection);
    let root = root(path, table);
    let mut pages = Pages::of(path);
    let mut inner = pages.page(root).to_vec();
    // Down to the level above the leaves.
    let mut child = first_child(&inner);
    while matches!(pages.page(child)[0], 2 | 5) {
        inner = pages.page(child).to_vec();
        child = first_child(&inner);
    }
    for _ in 0..levels {
        point_to(&mut inner, child);
        child = pages.add(&inner);
    }
    let to = if levels == 0 { root } else { child };
    point_to(pages.page(root), to);
    std::fs::write(path, pages.bytes).unwrap();
}

/// One value of megabytes, and thousands of rows that have it.
fn share_facts(path: &Path) {
    let json = format!("{{\"notes\": [\"{}\"]}}", "a".repeat(4_000_000));
    let facts = vec![MachineSnapshot { at: testing::at(1), reason: SnapshotReason::Start, json }];
    let mut writer = Writer::open(path, &testing::run()).unwrap();
    writer.write(&Batch { facts, ..Batch::default() }).unwrap();
    drop(writer);
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "DELETE FROM machine WHERE length(facts) < 1000000; UPDATE machine SET id = 2000;
             WITH RECURSIVE n(i) AS (SELECT 200 UNION ALL SELECT i + 1 FROM n WHERE i < 1999)
             INSERT INTO machine SELECT i, 1, 'start', 1, 1, hex(zeroblob(400)), 1 FROM n",
        )
        .unwrap();
    drop(connection);
    let root = root(path, "machine");
    let mut pages = Pages::of(path);
    let inner = pages.page(root).to_vec();
    // The last leaf has the row with the long value: its overflow is what all others get.
    let last = u32::from_be_bytes(inner[8..12].try_into().unwrap());
    let leaf = pages.page(last).to_vec();
    let cells = usize::from(u16::from_be_bytes([leaf[3], leaf[4]]));
    let at = usize::from(u16::from_be_bytes([leaf[6 + 2 * cells], leaf[7 + 2 * cells]]));
    let cell = leaf[at..].to_vec();
    // And it has no other row.
    let page = pages.page(last);
    page[3..5].copy_from_slice(&1_u16.to_be_bytes());
    page[8..10].copy_from_slice(&(at as u16).to_be_bytes());
    // Payload's length and the row's number are varints, of 4 and of 2 bytes: a payload of 4,000,000 bytes, and rows from 128.
    let usable = pages.size;
    let length = cell[..4].iter().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7F));
    let least = (usable - 12) * 32 / 255 - 23;
    let local = least + (length - least) % (usable - 4);
    let local = if local <= usable - 35 { local } else { least };
    let whole = 6 + local + 4;
    let per_page = (usable - 8) / (whole + 2);
    assert!(per_page > 0, "{whole}");
    let leaves: Vec<u32> = (0..usize::from(u16::from_be_bytes([inner[3], inner[4]])))
        .map(|cell| {
            let at = usize::from(u16::from_be_bytes([inner[12 + 2 * cell], inner[13 + 2 * cell]]));
            u32::from_be_bytes(inner[at..at + 4].try_into().unwrap())
        })
        .collect();
    for leaf in leaves {
        let page = pages.page(leaf);
        let first = usize::from(u16::from_be_bytes([page[8], page[9]]));
        // Its first row's number, behind the payload's length.
        let number = first + page[first..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        if page[number] & 0x80 == 0 {
            continue;
        }
        let row = [page[number], page[number + 1]];
        let mut made = cell[..whole].to_vec();
        made[4..6].copy_from_slice(&row);
        let start = usable - whole;
        page[start..].copy_from_slice(&made);
        page[3..5].copy_from_slice(&1_u16.to_be_bytes());
        page[1..3].fill(0);
        page[5..7].copy_from_slice(&(start as u16).to_be_bytes());
        page[7] = 0;
        page[8..10].copy_from_slice(&(start as u16).to_be_bytes());
    }
    std::fs::write(path, pages.bytes).unwrap();
}
