//! Every reader, given recordings that were made to take its host's memory or time: each ends with an error of one line,
//! within a second and 300 MB.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ctwatch::record::rows::SnapshotReason;
use ctwatch::record::rules::{Packed, StoredRules};
use ctwatch::record::writer::Batch;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::figures::{Ran, readers, recorder, run};
use super::made::{PROGRAMS, SCRIPTS, change};
use super::numbers::base;
use super::synthetic::{HOST, all_of, at, rules};

const SECOND: Duration = Duration::from_secs(1);
const MOST_KIB: i64 = 300 << 10;

/// A recording with everything in it.
fn whole(path: &Path) {
    base(path).write(&Batch { rules: vec![rules(4, SnapshotReason::Start)], ..Batch::default() }).unwrap();
}

/// Holds for any file, whatever becomes of it.
fn is_bounded(ran: &Ran, what: &str) {
    assert!(ran.cpu < SECOND, "{what}: {:?} of CPU, {ran:?}", ran.cpu);
    assert!(ran.kib < MOST_KIB, "{what}: {} KiB, {ran:?}", ran.kib);
    assert!(matches!(ran.status.code(), Some(0..=2)), "{what}: {ran:?}");
    assert!(!ran.error.contains("panicked"), "{what}: {ran:?}");
}

/// By every reader, and by a recorder that would go on in it.
fn refused_by_all(path: &Path, what: &str, said: &str, proc: &Path) {
    let mut all = readers(path);
    all.push(("record", recorder(path, proc)));
    for (name, command) in all {
        let ran = run(command);
        let what = format!("{name}, {what}");
        is_bounded(&ran, &what);
        let is_recorder = name == "record";
        if !is_recorder || said != "damaged" {
            assert!(ran.status.code() != Some(0), "{what}: {ran:?}");
            assert!(ran.error.contains(said), "{what}: {ran:?}");
        }
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let proc = folder.path().join("proc");
    (folder, proc)
}

#[test]
fn a_schema_that_runs_something_is_refused_before_it_does() {
    let (folder, proc) = folder();
    let whole_one = folder.path().join("whole.ctw");
    whole(&whole_one);
    all_of(&whole_one).unwrap();
    for (name, command) in readers(&whole_one) {
        assert!(run(command).status.success(), "{name}: what it is made from is fine");
    }
    for (what, script, said) in SCRIPTS {
        let path = folder.path().join("a.ctw");
        fs::copy(&whole_one, &path).unwrap();
        rusqlite::Connection::open(&path).unwrap().execute_batch(script).unwrap_or_else(|error| {
            panic!("{what}: {error}");
        });
        refused_by_all(&path, what, said, &proc);
    }
}

/// Makes one of the large files in a process of its own: this one's memory would be counted as that of those it starts.
#[test]
fn maker() {
    if let (Some(path), Some(what)) = (std::env::var_os("HOSTILE_PATH"), std::env::var_os("HOSTILE_WHAT")) {
        match what.to_str().unwrap() {
            what if RULE_SETS.contains(&what) => make_rules(Path::new(&path), what),
            what => change(Path::new(&path), what),
        }
    }
}

fn made(path: &Path, what: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "recordings::maker"]).env("HOSTILE_PATH", path).env("HOSTILE_WHAT", what);
    let ran = run(command);
    assert!(ran.status.success() && ran.out.contains("1 passed"), "{what}: {ran:?}");
}

#[test]
fn large_values_many_rows_and_pages_read_again_take_no_more_than_others() {
    let (folder, proc) = folder();
    let whole_one = folder.path().join("whole.ctw");
    whole(&whole_one);
    for (what, said) in PROGRAMS {
        let path = folder.path().join("a.ctw");
        fs::copy(&whole_one, &path).unwrap();
        made(&path, what);
        let mut worst = (Duration::ZERO, 0);
        let mut refusals = 0;
        for (name, command) in readers(&path) {
            let ran = run(command);
            // What prints JSON is not optimized here, and takes ten times as long for it.
            let slower = if cfg!(debug_assertions) && *what == "facts that many rows share" { 10 } else { 1 };
            let what = format!("{name}, {what}");
            is_bounded(&Ran { cpu: ran.cpu / slower, ..ran.clone() }, &what);
            worst = (worst.0.max(ran.cpu), worst.1.max(ran.kib));
            refusals += usize::from(ran.status.code() != Some(0));
            if ran.status.code() != Some(0) {
                // Advice takes the latest facts alone, and these are none.
                let are_none = name == "advise" && ran.error.contains("from another version");
                assert!(ran.error.contains(said) || are_none, "{what}: {ran:?}");
            }
        }
        // Nobody reads all of that one: whether anything is there is all that is asked.
        assert!(refusals > 0 || what.contains("of another kind"), "{what}: nobody noticed");
        is_bounded(&run(recorder(&path, &proc)), &format!("record, {what}"));
        let megabytes = fs::metadata(&path).unwrap().blocks() as f64 * 512.0 / 1e6;
        let (cpu, mib) = (worst.0, worst.1 >> 10);
        println!("{what}: {megabytes:.1} MB, at most {cpu:?} of CPU and {mib} MiB; {refusals} refuse it");
    }
}

/// What the longest reading of a file costs for each of its megabytes, as docs/recording.md tells it.
#[test]
fn how_long_a_file_is_read_follows_from_what_it_takes_on_the_disk() {
    let (folder, _) = folder();
    let whole_one = folder.path().join("whole.ctw");
    whole(&whole_one);
    let mut all = Vec::new();
    for what in ["pages that many cells share", "many pages that many cells share"] {
        for hole in [false, true] {
            let path = folder.path().join("a.ctw");
            fs::copy(&whole_one, &path).unwrap();
            made(&path, what);
            if hole {
                fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
            }
            let megabytes = fs::metadata(&path).unwrap().blocks() as f64 * 512.0 / 1e6;
            let of_all = readers(&path).into_iter().map(|(_, command)| run(command).cpu.as_secs_f64());
            let cpu = of_all.fold(0.0, f64::max);
            println!("{what}, hole: {hole}: {megabytes:.1} MB, {:.3} s of CPU for each", cpu / megabytes);
            all.push((megabytes, cpu));
        }
    }
    let [(small, few), (_, few_with_hole), (large, many), (_, many_with_hole)] = all[..] else {
        panic!("{all:?}")
    };
    assert!(few_with_hole < 2.0 * few + 0.2 && many_with_hole < 2.0 * many + 0.2, "{all:?}");
    let of_each = (many - few) / (large - small);
    println!("{of_each:.3} s of CPU for each megabyte more");
    assert!(of_each < 1.0, "{all:?}");
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let (folder, proc) = folder();
    let at = |name: &str| folder.path().join(name);
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    for name in ["fifo", "link", "zero", "socket", "proc"] {
        fs::create_dir_all(&proc).unwrap();
        refused_by_all(&at(name), name, "regular file", &at("other-proc"));
    }
}

#[test]
fn half_a_file_and_a_compressed_one_are_no_recordings() {
    let (folder, proc) = folder();
    let path = folder.path().join("a.ctw");
    whole(&path);
    let bytes = fs::read(&path).unwrap();
    let other = folder.path().join("b.ctw");
    let of_part = |part: usize| bytes[..bytes.len() * part / 7].to_vec();
    let mut compressed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut compressed, &bytes).unwrap();
    let mut gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    gzip.extend(compressed.finish().unwrap());
    for (what, bytes, said) in [
        ("a part", of_part(1), "truncated"),
        ("another part", of_part(6), "truncated"),
        ("compressed", gzip, "not a ctwatch recording"),
        ("a head alone", bytes[..100].to_vec(), "truncated"),
        ("zeros", vec![0; 1 << 20], "not a ctwatch recording"),
    ] {
        fs::write(&other, bytes).unwrap();
        refused_by_all(&other, what, said, &proc);
    }
}

/// Rule sets that are small in the file: zeros, rules of nothing, lines of nothing.
const RULE_SETS: [&str; 7] = [
    "zeros",
    "a wide rule",
    "chains without rules",
    "rules of nothing",
    "notes",
    "a bomb that says less",
    "a bomb that says more",
];

fn make_rules(path: &Path, what: &str) {
    let list =
        |inner: &str| serde_json::json!({"dump": {"nft_json": format!("{{\"nftables\": [{inner}]}}")}});
    let save = |text: String| serde_json::json!({"dump": {"saves": [{"tool": "iptables-save", "ipv6": false, "legacy": true, "text": text}]}});
    let (content, size) = match what {
        "zeros" => (list(&"0,".repeat(20 << 20)), None),
        "a wide rule" => (list(&format!("{{\"rule\": [{}0]}}", "0,".repeat(20 << 20))), None),
        "chains without rules" => (save(":a - [0:0]\n".repeat(3 << 20)), None),
        "rules of nothing" => (save(format!("*raw\n{}", "-A a\n".repeat(7 << 20))), None),
        "notes" => (serde_json::json!({"dump": {"nft_text": "\n".repeat(20 << 20)}}), None),
        "a bomb that says less" => (serde_json::json!("0".repeat(40 << 20)), Some(100)),
        _ => (serde_json::json!("0".repeat(40 << 20)), Some(1 << 60)),
    };
    let mut packed = Packed::new(&content).unwrap();
    packed.size = size.unwrap_or(packed.size);
    let stored = StoredRules { netns: HOST, at: at(1), reason: SnapshotReason::Start, rules: Some(packed) };
    base(path).write(&Batch { rules: vec![stored], ..Batch::default() }).unwrap();
}

#[test]
fn a_rule_set_that_grows_is_cut_off() {
    // Nothing is optimized here, and what unpacks them takes ten times as long for it.
    let slower = if cfg!(debug_assertions) { 10 } else { 1 };
    let (folder, _) = folder();
    for what in RULE_SETS {
        let path = folder.path().join("a.ctw");
        made(&path, what);
        let mut worst = (Duration::ZERO, 0);
        for (name, command) in readers(&path) {
            let ran = run(command);
            let what = format!("{name}, {what}");
            is_bounded(&Ran { cpu: ran.cpu / slower, ..ran.clone() }, &what);
            worst = (worst.0.max(ran.cpu), worst.1.max(ran.kib));
        }
        println!("{what}: at most {:?} of CPU and {} MiB", worst.0, worst.1 >> 10);
        fs::remove_file(path).unwrap();
    }
}

/// In its place anything could stand for what was there before.
#[test]
fn a_journal_beside_a_recording_is_refused_whatever_it_is() {
    let (folder, proc) = folder();
    let path = folder.path().join("a.ctw");
    whole(&path);
    let journal = folder.path().join("a.ctw-journal");
    let link = folder.path().join("link.ctw");
    std::os::unix::fs::symlink("a.ctw", &link).unwrap();
    for what in ["a file", "nothing in it", "a FIFO", "a link"] {
        match what {
            "a file" => fs::write(&journal, [0xD9; 4096]).unwrap(),
            "nothing in it" => fs::write(&journal, "").unwrap(),
            "a FIFO" => mkfifo(&journal, Mode::S_IRWXU).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/zero", &journal).unwrap(),
        }
        refused_by_all(&path, what, "a.ctw-journal", &proc);
        for (name, command) in readers(&link) {
            let ran = run(command);
            assert!(ran.error.contains("a.ctw-journal"), "{name}, by a link: {ran:?}");
        }
        fs::remove_file(&journal).unwrap();
    }
}

/// A -wal is beside the file, and not beside a link to it.
#[test]
fn by_a_link_a_recording_that_goes_on_is_read_with_its_latest_ticks() {
    let (folder, _) = folder();
    let path = folder.path().join("a.ctw");
    let mut writer = base(&path);
    writer.write(&Batch { rules: vec![rules(4, SnapshotReason::Start)], ..Batch::default() }).unwrap();
    let link = folder.path().join("elsewhere.ctw");
    std::os::unix::fs::symlink("a.ctw", &link).unwrap();
    for ((name, by_name), (_, by_link)) in readers(&path).into_iter().zip(readers(&link)) {
        let [one, other] = [by_name, by_link].map(run);
        assert!(one.status.success() && other.status.success(), "{name}: {one:?}, {other:?}");
        let without_name = |out: &str| out.replace("elsewhere.ctw", "a.ctw");
        assert_eq!(without_name(&other.out).len(), one.out.len(), "{name}");
    }
    drop(writer);
}
