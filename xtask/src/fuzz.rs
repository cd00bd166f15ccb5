//! Everything that reads foreign bytes, under libFuzzer: for as long as somebody waits, and with what that found in figures.
//! Nothing of it is in the test run, where the corpus and its mutations are ordinary tests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::Steps;
use crate::{cache, progress, sh, workspace};

const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Much more than the tests allow, as libFuzzer and AddressSanitizer keep what was freed for a while.
const MEMORY_MB: u32 = 2048;
/// Seconds one input may take: the judge of rules stops by itself after some, instrumented and beside others.
const LONGEST: u32 = 60;
/// Bytes of an input at most: recordings are the largest.
const LARGEST: u32 = 256 << 10;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Which reader [default: all, one after the other]
    targets: Vec<String>,
    /// How long each is fuzzed
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Put the inputs that reached something new into the corpus, made as few as they can be
    #[arg(long)]
    keep: bool,
}

/// What libFuzzer said of one target.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    runs: u64,
    per_s: u64,
    coverage: u64,
    features: u64,
    corpus: u64,
    new: u64,
}

/// Runs `cargo xtask fuzz`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let all = targets()?;
    for target in &args.targets {
        ensure!(all.contains(target), "no target {target}; there are {}", all.join(", "));
    }
    let wanted = if args.targets.is_empty() { &all } else { &args.targets };
    let steps = Steps::of(wanted.len() + 1);
    let tool = steps.step("cargo-fuzz", cargo_fuzz)?;
    let mut found = Vec::new();
    let mut lines = Vec::new();
    for target in wanted {
        let (figures, held) = steps.step(target, || fuzz(&tool, target, args))?;
        lines.push(format!("| {target} {}", row(&figures)));
        if !held {
            found.push(target.as_str());
        }
    }
    println!("\n| target | inputs | a second | edges | features | corpus | reached something new |");
    println!("|---|---|---|---|---|---|---|");
    lines.iter().for_each(|line| println!("{line}"));
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nFound something: {}. The inputs are in tests/fuzz/artifacts; once mended, they belong into tests/fuzz/corpus.",
        found.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

fn row(figures: &Figures) -> String {
    let Figures { runs, per_s, coverage, features, corpus, new } = figures;
    format!("| {runs} | {per_s} | {coverage} | {features} | {corpus} | {new} |")
}

fn folder() -> PathBuf {
    workspace::root().join("tests/fuzz")
}

/// The names of the targets' files.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("targets");
    let files = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|file| Some(file.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// The program; built into the cache the first time.
fn cargo_fuzz() -> Result<PathBuf> {
    cache::cargo_program("cargo-fuzz", CARGO_FUZZ_VERSION, &[])
}

/// Fuzzes one target. Whether nothing was found.
fn fuzz(tool: &Path, target: &str, args: &Args) -> Result<(Figures, bool)> {
    // The same dependencies as the product has; libFuzzer comes on top.
    let lock = folder().join("Cargo.lock");
    fs::copy(workspace::root().join("Cargo.lock"), &lock)
        .with_context(|| format!("copying Cargo.lock to {}", lock.display()))?;
    let corpus = folder().join("corpus").join(target);
    let grown = workspace::target().join("fuzz/corpus").join(target);
    fs::create_dir_all(&grown).with_context(|| format!("creating {}", grown.display()))?;
    progress::say("building with coverage and AddressSanitizer; the first time takes minutes");
    sh::run(cargo(tool, "build").arg(target))?;
    let began = Instant::now();
    let mut command = cargo(tool, "run");
    // What is new goes into the first folder.
    command.arg(target).args([&grown, &corpus]).arg("--");
    command.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-timeout={LONGEST}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MB}")).arg(format!("-max_len={LARGEST}"));
    command.args(["-print_final_stats=1", "-print_funcs=0"]);
    command.stderr(Stdio::piped());
    let mut child = sh::die_with_parent(&mut command).spawn().context("starting cargo fuzz")?;
    let mut figures = Figures::default();
    let mut tail = Vec::new();
    for line in BufReader::new(child.stderr.take().expect("stderr is piped")).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading what libFuzzer says")?).into_owned();
        figures.add(&line);
        if !line.starts_with('#') {
            tail.push(line);
        }
    }
    let status = child.wait().context("waiting for cargo fuzz")?;
    if !status.success() {
        eprintln!("{}", tail[tail.len().saturating_sub(60)..].join("\n"));
        if figures.runs == 0 && figures.coverage == 0 {
            bail!("cargo fuzz could not run {target} ({status})");
        }
    }
    progress::say(&format!("{} inputs in {:.0} s", figures.runs, began.elapsed().as_secs_f64()));
    if args.keep {
        let mut merge = cargo(tool, "run");
        merge.arg(target).args([&corpus, &grown]).args(["--", "-merge=1"]);
        sh::run_quiet(&mut merge)?;
    }
    Ok((figures, status.success()))
}

/// A subcommand of cargo-fuzz. Stable has all that it takes, but won't say so unasked.
fn cargo(tool: &Path, task: &str) -> Command {
    let mut command = Command::new(tool);
    sh::without_toolchain(&mut command).arg(task).args(["--fuzz-dir", "."]);
    command.arg("--target-dir").arg(workspace::target().join("fuzz"));
    command.current_dir(folder()).env("RUSTC_BOOTSTRAP", "1");
    command
}

impl Figures {
    /// Takes what a line of libFuzzer's says: `#1024  NEW  cov: 812 ft: 1034 corp: 38/9Kb exec/s: 341 rss: 70Mb …`, or
    /// `stat::number_of_executed_units: 20480`.
    fn add(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix("stat::") {
            let Some((name, number)) = said.split_once(':') else { return };
            let Ok(number) = number.trim().parse() else { return };
            match name {
                "number_of_executed_units" => self.runs = number,
                "average_exec_per_sec" => self.per_s = number,
                "new_units_added" => self.new = number,
                _ => {}
            }
            return;
        }
        let Some(said) = line.strip_prefix('#') else { return };
        let words: Vec<&str> = said.split_ascii_whitespace().collect();
        let behind = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.split('/').next()?.parse().ok()
        };
        self.runs = words.first().and_then(|number| number.parse().ok()).unwrap_or(self.runs);
        self.coverage = behind("cov:").unwrap_or(self.coverage);
        self.features = behind("ft:").unwrap_or(self.features);
        self.corpus = behind("corp:").unwrap_or(self.corpus);
        self.per_s = behind("exec/s:").unwrap_or(self.per_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_libfuzzer_s() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Loaded 1 modules   (121 inline 8-bit counters)",
            "#2\tINITED cov: 9 ft: 10 corp: 1/1b exec/s: 0 rss: 28Mb",
            "#1024\tNEW    cov: 812 ft: 1034 corp: 38/9Kb lim: 4 exec/s: 341 rss: 70Mb L: 3/4 MS: 1 CrossOver-",
            "stat::number_of_executed_units: 20480",
            "stat::average_exec_per_sec:     409",
            "stat::new_units_added:          37",
        ] {
            figures.add(line);
        }
        let expected =
            Figures { runs: 20_480, per_s: 409, coverage: 812, features: 1034, corpus: 38, new: 37 };
        assert_eq!(figures, expected);
    }

    #[test]
    fn there_are_targets() {
        assert!(targets().expect("they are files").contains(&"recording".to_owned()));
    }
}
