//! The bodies of the fuzz targets on stable, without a fuzzer: every input of tests/fuzz/corpus, and so many mutations of them, the
//! same in each run. None may panic, take long, or want much memory. A find of `cargo xtask fuzz` becomes one more input there.

mod memory;
mod mutate;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctwatch::testing::fuzz::{TARGETS, Target};
use nix::time::{ClockId, clock_gettime};

use mutate::Mutator;

/// CPU time that one input may take in an unoptimized build. Nothing here is quadratic in what a file may hold.
const LONGEST: Duration = Duration::from_secs(5);
/// Memory that one input may want at a time, SQLite's own apart.
const MOST: usize = 256 << 20;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
}

/// The inputs of a target, each with its file's name, in the order of these.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Runs one input and judges what it took.
fn run(target: &Target, what: &str, input: &[u8]) {
    let began = cpu_time();
    let told = Told { target: target.name, what, input };
    let most = memory::most_during(|| (target.run)(input));
    drop(told);
    let took = cpu_time() - began;
    assert!(took < LONGEST, "{}: {what} took {took:?}", target.name);
    assert!(most < MOST, "{}: {what} wanted {most} bytes", target.name);
}

/// Keeps the input of a panic, so that it can become one of the corpus.
struct Told<'a> {
    target: &'a str,
    what: &'a str,
    input: &'a [u8],
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = std::env::temp_dir().join(format!("ctwatch-{}-input", self.target));
            let kept = fs::write(&file, self.input).map(|()| file.display().to_string());
            eprintln!("{}: {} is the input: {kept:?}", self.target, self.what);
        }
    }
}

fn corpus_and_mutations(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{name} has no inputs");
    for (file, input) in &inputs {
        run(target, file, input);
    }
    let mut mutator = Mutator::new(name);
    for round in 0..target.rounds * times() {
        run(target, &format!("round {round}"), &mutator.next(&inputs));
    }
}

/// `FOREIGN_TIMES=100 cargo test --test foreign` tries so many times more mutations.
fn times() -> u32 {
    std::env::var("FOREIGN_TIMES").map_or(1, |times| times.parse().expect("FOREIGN_TIMES is a number"))
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                corpus_and_mutations(stringify!($name));
            }
        )+

        #[test]
        fn each_target_is_tested_here_and_has_a_file_for_the_fuzzer() {
            let mut tested = vec![$(stringify!($name)),+];
            let mut named: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            tested.sort_unstable();
            named.sort_unstable();
            assert_eq!(tested, named);
            let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
            for name in named {
                let file = folder().join(format!("targets/{name}.rs"));
                assert!(fs::read_to_string(file).unwrap().contains(&format!("run(\"{name}\", bytes)")));
                assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
            }
        }
    };
}

targets![ring_record, proc, kallsyms, btf, ctnetlink, nft, iptables, kube_proxy, recording, recorded, filter,];
