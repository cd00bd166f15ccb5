//! `ctwatch table`: who fills which table, now or again and again. It needs no eBPF, only the right to read the table.
//! It changes nothing; like `conntrack -L`, the first look makes the kernel load nf_conntrack_netlink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::live::Shutdown;
use super::netns_spec;
use super::{VERSION, confine, event_loop, view};
use crate::children::threads;
use crate::cli::{Config, TableConfig};
use crate::conntrack::census::{self, Refusal, hidden};
use crate::conntrack::{addresses, module, stat, tracking};
use crate::contract::breakdown::{Skipped, TableReport};
use crate::error::{Exit, Failure};
use crate::kernel::capabilities::{Capabilities, Capability};
use crate::kernel::roots::Roots;
use crate::model::{Locals, NetnsId};
use crate::netns::{self, InitialNetns, Netns};
use crate::sandbox::{Files, Work};
use crate::state::table::{Breakdown, BreakdownConfig, ScanContext, TableResult, combine};
use crate::stderr::Progress;
use crate::text::thousands;

/// So often a listing is restarted because the table was resized; the next one goes on, and says so.
const RESTARTS: u32 = 3;

const NOT_LOADED: &str = "nf_conntrack is not loaded, so nothing is tracked and there is no table; a firewall rule \
                          that uses it loads it (`ct state …`, NAT), or `modprobe nf_conntrack`";

/// Runs it.
pub fn run(config: &Config, table: &TableConfig) -> Result<Exit> {
    confine(config, Work::Lists, &Files::default());
    event_loop()?.block_on(run_loop(config, table))
}

async fn run_loop(config: &Config, table: &TableConfig) -> Result<Exit> {
    let request = TableRequest {
        roots: config.roots(),
        settings: table.settings.clone(),
        netns: netns_spec::resolve(&table.netns)?,
        listed: Arc::default(),
    };
    let mut view = view(table.format, &config.look);
    let mut shutdown = Shutdown::new()?;
    // It waits for whoever reads, as nothing goes on meanwhile.
    shutdown.end_within(Duration::from_secs(1));
    loop {
        let started = Instant::now();
        let listed = Arc::clone(&request.listed);
        listed.store(0, Ordering::Relaxed);
        let progress =
            Progress::show(move || format!("listing: {} entries", thousands(listed.load(Ordering::Relaxed))));
        let listing = aside(&request)?;
        let report = tokio::select! {
            biased;
            _ = shutdown.wait() => return Ok(Exit::Done),
            report = listing => report.context("listing the tables")??,
        };
        drop(progress);
        view.table(&report).context("writing the table")?;
        let Some(every) = table.watch else { return Ok(Exit::Done) };
        let took = started.elapsed();
        tokio::select! {
            biased;
            _ = shutdown.wait() => return Ok(Exit::Done),
            () = sleep(every.saturating_sub(took).max(took)) => {}
        }
    }
}

/// Lists them on a thread of its own. One that is cut short ends with the process.
fn aside(request: &TableRequest) -> Result<oneshot::Receiver<Result<TableReport>>> {
    let request = request.clone();
    let (sender, listed) = oneshot::channel();
    // Nobody waits for it any more if a signal came.
    threads::start("tables", 2 << 20, move || drop(sender.send(request.at_all())))
        .context("starting the thread that lists the tables")?;
    Ok(listed)
}

/// What to look at, and how.
#[derive(Clone)]
struct TableRequest {
    roots: Roots,
    settings: BreakdownConfig,
    /// Those asked for; `None` means all.
    netns: Option<Vec<NetnsId>>,
    /// Entries seen so far, of all tables.
    listed: Arc<AtomicU64>,
}

impl TableRequest {
    /// All tables that were asked for, or that may be entered.
    fn at_all(&self) -> Result<TableReport> {
        if !module::is_there(&self.roots) {
            return Err(Failure::cannot_watch(NOT_LOADED).into());
        }
        let started = Instant::now();
        let namespaces = netns::discover()?;
        let own = netns::own()?;
        let initial = InitialNetns::look(&self.roots, own).known();
        let everywhere = netns::on_netns_thread(|| stat::limit_everywhere(namespaces.values(), initial))?;
        let may_enter =
            Capabilities::effective(&self.roots).is_none_or(|these| these.has(Capability::SysAdmin));
        let own_netns_only = self.netns.is_none() && !may_enter;
        let (mut finished, mut skipped) = (Vec::new(), Vec::new());
        for netns in namespaces.values() {
            let must = match &self.netns {
                Some(wanted) if !wanted.contains(&netns.id) => continue,
                Some(_) => true,
                None if netns.id == own => true,
                None if own_netns_only => continue,
                None => false,
            };
            // A netns that can't be entered is told apart from one that can't be read.
            let listed = netns::run_inside(netns, || Ok(self.at(netns, everywhere)))
                .map_err(|error| unable(&error))
                .flatten();
            match listed {
                Ok(listed) => finished.push(listed),
                Err(error) if must => {
                    return Err(error.context(format!("listing the table of {}", named(netns))));
                }
                // It went while we came.
                Err(_) if !netns.path.exists() => {}
                Err(error) => skipped.push(Skipped {
                    netns: netns.id,
                    name: netns.name.clone(),
                    reason: format!("{error:#}").into(),
                }),
            }
        }
        Ok(combine(
            &self.settings,
            finished,
            skipped,
            own_netns_only,
            VERSION,
            Timestamp::now(),
            started.elapsed().as_secs_f64(),
        ))
    }

    /// The table of the netns this thread is in. `everywhere` is the limit that holds in all of them.
    fn at(&self, netns: &Netns, everywhere: Option<u32>) -> Result<TableResult> {
        let settings = &self.settings;
        let locals = if settings.needs_locals() {
            Locals::new(&addresses::local_addresses()?)
        } else {
            Locals::default()
        };
        let mut restarts = 0;
        loop {
            let started = Instant::now();
            let count_before = census::entries_here();
            let mut rows = Breakdown::new(settings, netns.id, locals.clone(), now_ns());
            let listing = census::list_entries(settings.wanted(), restarts < RESTARTS, |entry| {
                self.listed.fetch_add(1, Ordering::Relaxed);
                rows.add(entry);
            })
            .map_err(|error| if error.is::<Refusal>() { unable(&error) } else { error })?;
            if listing.resized && restarts < RESTARTS {
                restarts += 1;
                continue;
            }
            let count = census::entries_here();
            let fewest = count_before.min(count).map(u64::from);
            let hidden = fewest.is_some_and(|counted| counted > listing.entries);
            return Ok(rows.end(ScanContext {
                count_before,
                count,
                hidden: hidden.then(|| hidden::hidden_here(&self.roots)),
                max: stat::stricter(everywhere, census::max_here()),
                listed: listing.entries,
                duplicates: listing.duplicates,
                restarts,
                resized: listing.resized,
                interrupted: listing.interrupted,
                tracks: (listing.entries == 0).then(tracking::hooks_registered),
                took_s: started.elapsed().as_secs_f64(),
                name: netns.name.clone(),
                container: netns.container.clone(),
            }));
        }
    }
}

/// The same error with exit code 3.
fn unable(error: &Error) -> Error {
    Failure::cannot_watch(format!("{error:#}")).into()
}

fn named(netns: &Netns) -> String {
    netns.name.as_ref().map_or_else(|| netns.id.to_string(), ToString::to_string)
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
