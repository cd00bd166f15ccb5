//! Advice on trial: the story's host asks `ctwatch advise` while its table is full; then, for each piece of advice, the same
//! host boots afresh, obeys, and bears the same load. No number of the prediction may come from anywhere but the advice.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::vm::{GuestFile, Series, Vm};
use crate::workspace;

/// Arguments of `cargo xtask bench advice`.
#[derive(clap::Args)]
pub struct Args {
    /// On this kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// How many guests run at once; each has one CPU
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only these pieces of advice (may be repeated); `together` is the pair of the two best
    #[arg(long)]
    only: Vec<String>,
    /// Don't ask again: obey what the last run was told
    #[arg(long)]
    again: bool,
}

/// So far may the mean be off,
const TOLERANCE: f64 = 0.15;
/// or by so many entries: of a table that is next to empty, a few connections more are a large part.
const SLACK: f64 = 60.0;
/// Requests that a client sends over a connection when advice asks for reuse: as many as advice reckons with.
const REQUESTS: &str = "100";
/// A guest has so long, on a busy host too.
const VM_LIMIT: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
struct Advice {
    items: Vec<Item>,
    together: Option<Together>,
    table: Table,
    kernel_release: String,
}

#[derive(Deserialize)]
struct Table {
    offered_per_s: f64,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    after: Predicted,
    refused: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Together {
    ids: Vec<String>,
    after: Predicted,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Predicted {
    needed: f64,
    peak: f64,
    max: u32,
}

impl Predicted {
    fn limit(&self) -> f64 {
        if self.max == 0 { f64::INFINITY } else { f64::from(self.max) }
    }

    fn mean(&self) -> f64 {
        self.needed.min(self.limit())
    }

    fn drops(&self) -> bool {
        self.peak > self.limit()
    }
}

#[derive(Debug, Default, Deserialize)]
struct Entries {
    mean: f64,
    most: u64,
}

#[derive(Deserialize)]
struct Baseline {
    entries: Entries,
    drops: u64,
    flows_per_s: f64,
}

#[derive(Debug, Default, Deserialize)]
struct Measured {
    entries: Entries,
    drops: u64,
    early_drops: u64,
    requests: u64,
    answered: u64,
    rate_held: bool,
    now: Vec<String>,
    left: Vec<String>,
    failed: Vec<String>,
}

/// A piece of advice, or two, and how to follow it.
struct Trial {
    name: String,
    predicted: Predicted,
    scripts: Vec<PathBuf>,
    keepalive: bool,
    reuses: bool,
}

impl Trial {
    fn new(name: &str, ids: &[String], predicted: Predicted, folder: &Path) -> Result<Self> {
        let name = name.to_owned();
        let mut trial = Self { name, predicted, scripts: Vec::new(), keepalive: false, reuses: false };
        for id in ids {
            let script = folder.join(format!("{id}.sh"));
            // What no command can do is the story's to set.
            match id.as_str() {
                _ if script.exists() => trial.scripts.push(script),
                "reuse-6379-tcp-lo" => trial.keepalive = true,
                "reuse-80-tcp-lo" => trial.reuses = true,
                _ => bail!("{id} has no command, and there is no other way to follow it here"),
            }
        }
        Ok(trial)
    }

    fn command(&self) -> Vec<String> {
        let mut command = vec!["ctwatch-tests".to_owned(), "apply-advice".to_owned()];
        for script in &self.scripts {
            command.extend(["--script".to_owned(), in_guest(script)]);
        }
        if self.keepalive {
            command.push("--keepalive".to_owned());
        }
        if self.reuses {
            command.extend(["--per-connection".to_owned(), REQUESTS.to_owned()]);
        }
        command
    }

    fn run(&self, kernel: Series, files: &[GuestFile], folder: &Path) -> Result<Measured> {
        let mut vm = guest(kernel, files);
        let scripts =
            self.scripts.iter().map(|script| GuestFile { host: script.clone(), guest: in_guest(script) });
        vm.files.extend(scripts);
        let mut out = Vec::new();
        let status = vm.run(&self.command(), &mut out, &mut io::stderr())?;
        ensure!(status.success(), "the guest ended with {status:?}");
        fs::write(folder.join(format!("{}.result.json", self.slug())), &out).context("keeping the result")?;
        let measured: Measured = serde_json::from_slice(&out).context("reading what the guest measured")?;
        eprintln!("{}", self.row(&measured));
        Ok(measured)
    }

    fn slug(&self) -> String {
        self.name.replace(": ", "-").replace(" + ", "+")
    }

    /// What is wrong with it, in words.
    fn faults(&self, measured: &Measured) -> Vec<String> {
        let mut faults = Vec::new();
        let (predicted, mean) = (self.predicted.mean(), measured.entries.mean);
        let off = (mean - predicted).abs();
        if off > SLACK.max(TOLERANCE * predicted) {
            faults.push(format!("{predicted:.0} entries were predicted, {mean:.0} came"));
        }
        if measured.drops > 0 && !self.predicted.drops() {
            faults.push(format!("{} drops where none were predicted", measured.drops));
        }
        if measured.early_drops > 0 && !self.predicted.drops() {
            faults.push(format!("{} evictions where no drops were predicted", measured.early_drops));
        }
        if !self.scripts.is_empty() && measured.now.is_empty() {
            faults.push("`now` changed nothing".to_owned());
        }
        faults.extend(measured.left.iter().map(|line| format!("after `undo`: {line}")));
        faults.extend(measured.failed.iter().cloned());
        if !measured.rate_held {
            faults.push("the load did not hold its rate".to_owned());
        }
        faults
    }

    fn row(&self, measured: &Measured) -> String {
        let percent = |measured: f64, predicted: f64| match predicted {
            0.0 => "-".to_owned(),
            _ => format!("{:+.1} %", (measured / predicted - 1.0) * 100.0),
        };
        let (mean, peak) = (self.predicted.mean(), self.predicted.peak.min(self.predicted.limit()));
        format!(
            "| {} | {mean:.0} | {:.0} | {} | {peak:.0} | {} | {} | {} | {} | {} of {} |",
            self.name,
            measured.entries.mean,
            percent(measured.entries.mean, mean),
            measured.entries.most,
            percent(measured.entries.most as f64, peak),
            if self.predicted.drops() { "some" } else { "none" },
            measured.drops,
            measured.answered,
            measured.requests,
        )
    }
}

fn in_guest(script: &Path) -> String {
    let name = script.file_name().expect("a script has a name").to_string_lossy();
    format!("/ctw/advice/{name}")
}

/// A machine whose time does not depend on how busy its host is.
fn guest(kernel: Series, files: &[GuestFile]) -> Vm {
    let mut vm = Vm::new(kernel);
    vm.icount = true;
    vm.timeout = VM_LIMIT;
    vm.files = files.to_vec();
    vm
}

/// Runs `cargo xtask bench advice`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut files = super::files()?;
    files.push(GuestFile { host: workspace::root().join("tests/guest"), guest: "/ctw".to_owned() });
    let folder = workspace::target().join("advice").join(args.kernel.to_string());
    if !args.again {
        ask(args.kernel, &files, &folder)?;
    }
    let advice: Advice = read(&folder.join("advice.json"))?;
    let baseline: Baseline = read(&folder.join("baseline.json"))?;
    let trials = trials(&advice, &folder, &args.only)?;
    println!(
        "Linux {}: {:.0} flows/s come, advise reckons with {:.1}; while it looked, the table held {:.0} entries on average and {} at \
         most, and {} packets were dropped",
        advice.kernel_release,
        baseline.flows_per_s,
        advice.table.offered_per_s,
        baseline.entries.mean,
        baseline.entries.most,
        baseline.drops
    );
    for item in advice.items.iter().filter(|item| !item.refused.is_empty()) {
        println!("{}: refused, so not tried", item.id);
    }
    let results = at_once(&trials, args, &files, &folder);
    println!(
        "\n| advice | entries predicted | measured | off by | peak predicted | measured | off by | drops predicted | \
         measured | requests answered |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut failed = false;
    let mut faults = Vec::new();
    for (trial, result) in trials.iter().zip(results) {
        match result {
            Ok(measured) => {
                println!("{}", trial.row(&measured));
                faults.extend(
                    trial.faults(&measured).into_iter().map(|fault| format!("{}: {fault}", trial.name)),
                );
            }
            Err(error) => faults.push(format!("{}: {error:#}", trial.name)),
        }
    }
    for fault in faults {
        failed = true;
        println!("FAILED {fault}");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The first boot: leaves the advice in a folder.
fn ask(kernel: Series, files: &[GuestFile], folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut vm = guest(kernel, files);
    vm.out_dir = Some(folder.to_owned());
    let status =
        vm.run(&["ctwatch-tests", "ask-advice"].map(str::to_owned), &mut io::stdout(), &mut io::stderr())?;
    ensure!(status.success(), "asking for advice ended with {status:?}");
    Ok(())
}

fn trials(advice: &Advice, folder: &Path, only: &[String]) -> Result<Vec<Trial>> {
    let usable = advice.items.iter().filter(|item| item.refused.is_empty());
    let mut trials = usable
        .map(|item| Trial::new(&item.id, std::slice::from_ref(&item.id), item.after, folder))
        .collect::<Result<Vec<_>>>()?;
    if let Some(Together { ids, after }) = &advice.together {
        trials.push(Trial::new(&format!("together: {}", ids.join(" + ")), ids, *after, folder)?);
    }
    let wanted = |trial: &Trial| {
        only.is_empty()
            || only.iter().any(|one| trial.name == *one || trial.name.starts_with(&format!("{one}:")))
    };
    trials.retain(wanted);
    ensure!(!trials.is_empty(), "there is no such advice; there is {}", {
        let ids: Vec<&str> = advice.items.iter().map(|item| item.id.as_str()).collect();
        ids.join(", ")
    });
    Ok(trials)
}

/// Runs guests side by side.
fn at_once(trials: &[Trial], args: &Args, files: &[GuestFile], folder: &Path) -> Vec<Result<Measured>> {
    let queue = Mutex::new(trials.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, trials.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no thread panics with the lock").next();
                    let Some((index, trial)) = next else { return };
                    let result = trial.run(args.kernel, files, folder);
                    done.lock().expect("no thread panics with the lock").push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics with the lock");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(needed: f64, peak: f64, mean: f64, drops: u64) -> Vec<String> {
        let predicted = Predicted { needed, peak, max: 5000 };
        let name = "max".to_owned();
        let trial = Trial { name, predicted, scripts: Vec::new(), keepalive: true, reuses: false };
        trial.faults(&Measured {
            entries: Entries { mean, most: mean as u64 },
            drops,
            rate_held: true,
            ..Measured::default()
        })
    }

    #[test]
    fn a_mean_within_the_tolerance_holds_and_one_beyond_it_does_not() {
        assert!(faults(1000.0, 1200.0, 1149.0, 0).is_empty());
        assert!(faults(1000.0, 1200.0, 851.0, 0).is_empty());
        assert_eq!(faults(1000.0, 1200.0, 1151.0, 0).len(), 1);
        assert_eq!(faults(1000.0, 1200.0, 849.0, 0).len(), 1);
    }

    #[test]
    fn a_table_that_is_next_to_empty_may_be_off_by_some_entries() {
        assert!(faults(0.0, 0.0, 59.0, 0).is_empty());
        assert_eq!(faults(0.0, 0.0, 61.0, 0).len(), 1);
    }

    #[test]
    fn drops_are_a_fault_only_where_none_were_predicted() {
        assert_eq!(faults(4000.0, 4900.0, 4000.0, 1).len(), 1);
        assert!(faults(4800.0, 5600.0, 4800.0, 1).is_empty());
        assert!(faults(6000.0, 7000.0, 5000.0, 9).is_empty(), "a table can't hold more than its limit");
    }

    #[test]
    fn what_undo_leaves_and_what_now_forgets_are_faults() {
        let predicted = Predicted { needed: 10.0, peak: 10.0, max: 5000 };
        let scripts = vec![PathBuf::from("/advice/max.sh")];
        let trial = Trial { name: "max".to_owned(), predicted, scripts, keepalive: false, reuses: false };
        let measured = Measured {
            rate_held: true,
            left: vec!["nf_conntrack_max: 5000 -> 16384".to_owned()],
            ..Measured::default()
        };
        let faults = trial.faults(&measured);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert_eq!(trial.command(), ["ctwatch-tests", "apply-advice", "--script", "/ctw/advice/max.sh"]);
    }
}
