//! The exactness scenarios on every kernel that Debian offers, one after another, as a table in docs/kernels.md.
//! A kernel that fails is a row that says so; no kernel stops the others, and what has run isn't run again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::{self, Steps};
use crate::test::{Kept, Prefixed, guest_files};
use crate::vm::{self, GuestFile, Kernel, Status, Vm};
use crate::{cache, dist, markers, sh};
use offers::Offer;
use result::{Outcome, Results};
use suites::Found;

mod offers;
mod result;
mod suites;
mod table;

/// As Debian calls it.
const ARCH: &str = "amd64";
/// Emulated, a kernel takes two to four minutes.
const LIMIT: Duration = Duration::from_secs(1500);

/// How the folder begins that one kernel is unpacked in.
const TEMPORARY: &str = ".kernel-";

/// Two kernels of one suite are fetched through one apt, into one folder.
static FETCHING: Mutex<()> = Mutex::new(());

/// What shows in two minutes whether ctwatch is exact on a kernel: losses of both ways to lose a packet and of several
/// protocols against their senders, fields of all tuples, both ways to see a full table and the one without kprobes,
/// victims, another netns, a storm, a listing and a recording.
const SCENARIOS: [&str; 12] = [
    "udp_loopback_v4_and_v6_losses_equal_the_senders_eperm_per_port",
    "tcp_syn_losses_with_retransmits_equal_an_nft_counter_before_conntrack",
    "prerouting_losses_over_veth_from_another_netns",
    "tuples_are_right_in_all_fields",
    "tracepoint_backend_is_exact_without_a_firewall",
    "both_ways_of_seeing_table_full_agree",
    "two_netns_full_at_once",
    "chain_too_long_is_told_apart",
    "victims_of_early_drop_are_named_with_two_ctwatch_and_bpftrace",
    "drop_storm_keeps_per_port_totals_exact",
    "table_equals_conntrack_l_by_every_key",
    "record_an_incident_with_known_figures",
];

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the kernels that Debian's suites offer, and end
    #[arg(long)]
    list: bool,
    /// Run only kernels whose name contains this, or one of these: a,b; cloud, generic and rt mean the flavour
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Run also those that have run before
    #[arg(long)]
    again: bool,
    /// How many guests run at once; each has two CPUs, and takes up to 1 GB
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Look for newer kernels than those found within the last day
    #[arg(long)]
    update: bool,
}

/// Runs `cargo xtask kernels`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let _lock = cache::lock("kernels")?;
    let found = suites::look(ARCH, args.update)?;
    let only = args.only.as_deref().unwrap_or_default();
    let wanted: Vec<&Offer> = found.offers.iter().filter(|offer| offer.is_wanted(only)).collect();
    ensure!(!wanted.is_empty(), "no kernel's name contains `{only}`; --list prints the names");
    let results = Results::open()?;
    if args.list {
        list(&found, &wanted, &results);
        return Ok(ExitCode::SUCCESS);
    }
    let (wanted, gone): (Vec<&Offer>, Vec<&Offer>) = wanted.into_iter().partition(|offer| offer.is_complete);
    for offer in gone {
        progress::say(&format!("left out: {}, whose modules are gone from the mirror", offer.label()));
    }
    let missing: Vec<&Offer> =
        wanted.iter().copied().filter(|offer| args.again || !has_run(results.of(offer))).collect();
    let done = wanted.len() - missing.len();
    if done > 0 {
        progress::say(&format!("{done} of {} have run before: --again runs them anew", wanted.len()));
    }
    if !missing.is_empty() {
        remove_leftovers()?;
        // Once, so that a failed build isn't a failure of each kernel.
        dist::both()?;
    }
    run_all(&missing, args.jobs, |offer, outcome| {
        results.keep(offer, &outcome)?;
        write_table(&found, &results)
    })?;
    write_table(&found, &results)?;
    let failed: Vec<String> = wanted
        .iter()
        .filter(|offer| !results.of(offer).is_some_and(|outcome| outcome.held()))
        .map(|offer| offer.label())
        .collect();
    println!("\nexact on {} of {} kernels", wanted.len() - failed.len(), wanted.len());
    for label in &failed {
        println!("FAILED on {label}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs them, some at once, and hands over each result as it comes.
fn run_all(
    offers: &[&Offer],
    jobs: usize,
    done: impl FnMut(&Offer, Outcome) -> Result<()> + Send,
) -> Result<()> {
    let steps = Steps::of(offers.len());
    let queue = Mutex::new(offers.iter());
    let done = Mutex::new(done);
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().expect("no thread panics with the lock").next();
            let Some(offer) = next else { return Ok(()) };
            let _step = steps.begin(&offer.label());
            let day = today()?;
            let outcome = run_on(offer, &day).unwrap_or_else(|error| {
                progress::say(&format!("{error:#}"));
                Outcome::never_ran(&day, format!("it did not run: {error}"))
            });
            let mut done = done.lock().expect("no thread panics with the lock");
            done(offer, outcome)?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, offers.len().max(1))).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no run panics"))
    })
}

/// Whether a result is one of the scenarios of today.
fn has_run(outcome: Option<Outcome>) -> bool {
    outcome.is_some_and(|outcome| !outcome.never_ran && outcome.asked == SCENARIOS)
}

fn list(found: &Found, wanted: &[&Offer], results: &Results) {
    for offer in wanted {
        let state = match results.of(offer) {
            _ if !offer.is_complete => "its modules are gone from the mirror".to_owned(),
            None => "not run yet".to_owned(),
            Some(outcome) if outcome.held() => format!("exact on {}", outcome.day),
            Some(outcome) => format!("failed on {}", outcome.day),
        };
        let size = progress::megabytes(offer.bytes);
        println!(
            "{:<50} {:<8} {:<22} {size:>7}  {state}",
            offer.label(),
            offer.flavour.to_string(),
            offer.version
        );
    }
    for read in &found.suites {
        if let Err(why) = &read.lists {
            println!("{}: {why}", read.suite);
        }
    }
}

/// What a killed run left; the lock says that no living one is at work.
fn remove_leftovers() -> Result<()> {
    let dir = folder()?;
    for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Where what was found, what became of it, and one kernel at a time are kept.
fn folder() -> Result<PathBuf> {
    let dir = cache::dir()?.join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// Fetches one kernel, runs the scenarios on it and leaves nothing of it behind.
fn run_on(offer: &Offer, day: &str) -> Result<Outcome> {
    let dir = folder()?;
    let temp = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempdir_in(&dir)
        .with_context(|| format!("creating a temporary folder in {}", dir.display()))?;
    let (ran, kernel) = fetch(offer, temp.path())?;
    progress::say("running the scenarios");
    let mut vm = Vm::new(kernel);
    vm.timeout = LIMIT;
    vm.files = guest_files(dist::ctwatch()?)?;
    vm.files.push(GuestFile { host: script(temp.path(), offer)?, guest: "/ctw/kernels.sh".to_owned() });
    let mut out = Prefixed::new(&ran.name, io::stdout());
    let mut err = Prefixed::new(&ran.name, io::stderr());
    let mut out = Kept::new(&mut out);
    let status = vm.run(&["bash /ctw/kernels.sh".to_owned()], &mut out, &mut err)?;
    let mut outcome = Outcome::read(&out.text(), day, &SCENARIOS);
    outcome.instead = (ran != offer).then(|| (ran.name.clone(), ran.version.clone()));
    outcome.never_ran = outcome.release.is_none() && outcome.ran() == 0;
    outcome.trouble = match status {
        Status::Died if outcome.never_ran => Some("the guest died before it ran anything".to_owned()),
        Status::Died => Some("the guest died".to_owned()),
        Status::TimedOut => Some(format!("no end within {} s", LIMIT.as_secs())),
        Status::Exited(_) if outcome.ran() < SCENARIOS.len() => {
            Some(format!("only {} of {} scenarios ended", outcome.ran(), SCENARIOS.len()))
        }
        Status::Exited(_) => None,
    };
    Ok(outcome)
}

/// Makes the kernel bootable, or the next best one that can be had: lists name packages that have left the pool.
fn fetch<'a>(offer: &'a Offer, dir: &Path) -> Result<(&'a Offer, Kernel)> {
    let (root, ready) = (dir.join("root"), dir.join("ready"));
    for folder in [&root, &ready] {
        fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let unpack = |offer: &Offer| {
        let packages: Vec<String> =
            offer.packages.iter().map(|package| format!("{package}={}", offer.version)).collect();
        let _one_at_a_time = FETCHING.lock().expect("no thread panics with the lock");
        suites::apt(offer)?.unpack(&packages, &root)
    };
    for any in std::iter::once(offer).chain(&offer.instead) {
        if let Err(error) = unpack(any) {
            progress::say(&format!("{} {} can't be fetched: {error}", any.packages[0], any.version));
            continue;
        }
        progress::say("making it bootable");
        let kernel = vm::make_kernel(&root, &ready)?;
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        // Signed or not, it is the same kernel.
        let is_same = any.name == offer.name && any.version == offer.version;
        return Ok((if is_same { offer } else { any }, kernel));
    }
    bail!("the mirror's lists name it, but it can't be fetched, and nothing older either")
}

/// What the guest does: says what ctwatch finds here and what it attaches, then runs the scenarios.
fn script(dir: &Path, offer: &Offer) -> Result<PathBuf> {
    let path = dir.join("kernels.sh");
    let text = format!(
        "modprobe nf_conntrack\n\
         echo \"check $(ctwatch check --format json)\"\n\
         echo \"start $(timeout 120 ctwatch drops --format json --duration 1s | head -n 1)\"\n\
         exec ctwatch-tests guest --kernel {} --only {}\n",
        stands_for(offer),
        SCENARIOS.join(",")
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The kernel under test that is most like it: what scenarios know of a kernel they know by these names.
fn stands_for(offer: &Offer) -> &'static str {
    match (offer.series.as_str(), offer.major()) {
        ("5.10", _) => "5.10",
        ("6.1", _) => "6.1",
        (_, ..=6) => "6.12",
        _ => "7",
    }
}

fn write_table(found: &Found, results: &Results) -> Result<()> {
    let rows: Vec<_> = found.offers.iter().map(|offer| (offer.clone(), results.of(offer))).collect();
    markers::put("docs/kernels.md", table::NAME, |document| table::render(&rows, &found.suites, document))
}

fn today() -> Result<String> {
    Ok(sh::capture(Command::new("date").args(["--utc", "+%F"]))?.trim().to_owned())
}
