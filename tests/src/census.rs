//! `ctwatch table` against `conntrack -L`, entry by entry, and what each costs.
//! The listing is parsed here by its own rules: nothing of ctwatch's parser is used.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::checks::Checks;
use crate::ctnetlink::{Entry, Maker, TcpState, discard_dump};
use crate::shell::{exists, run, sh};
use crate::{nftables, sys, sysctl};

/// One line of `conntrack -L`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Name of the protocol.
    pub proto: String,
    /// Name of the state, or what its brackets say: UNREPLIED, ASSURED, else REPLIED.
    pub state: String,
    /// Source of the original direction.
    pub src: String,
    /// Destination of the original direction.
    pub dst: String,
    /// Destination port of the original direction, if it has one.
    pub dport: Option<u16>,
    /// Source of the reply direction.
    pub reply_src: String,
    /// Mark.
    pub mark: u32,
    /// Zone.
    pub zone: u16,
    /// Seconds until it expires.
    pub left: u32,
}

impl Line {
    /// Reads a line as conntrack 1.4 prints it without options.
    pub fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let all = |name: &str| words.iter().filter_map(|word| word.strip_prefix(name)).collect::<Vec<_>>();
        let number = |name: &str| all(name).first().map_or(Ok(0), |value| value.parse::<u32>());
        let (sources, dsts) = (all("src="), all("dst="));
        ensure!(sources.len() == 2 && words.len() > 3, "this is no line of conntrack -L: {line}");
        let state = match words[3] {
            state if !state.contains('=') => state,
            _ if words.contains(&"[UNREPLIED]") => "UNREPLIED",
            _ if words.contains(&"[ASSURED]") => "ASSURED",
            _ => "REPLIED",
        };
        Ok(Self {
            proto: words[0].to_owned(),
            state: state.to_owned(),
            src: sources[0].to_owned(),
            dst: dsts[0].to_owned(),
            dport: all("dport=").first().map(|port| port.parse()).transpose()?,
            reply_src: sources[1].to_owned(),
            mark: number("mark=")?,
            zone: number("zone=")? as u16,
            left: words[2].parse().with_context(|| format!("the timeout in {line}"))?,
        })
    }
}

/// Hands over every entry of the calling thread's netns, of both families, as `conntrack -L` lists them.
pub fn conntrack_lists(mut each: impl FnMut(Line)) -> Result<u64> {
    let mut lines = 0;
    for family in ["ipv4", "ipv6"] {
        let mut child = Command::new("conntrack")
            .args(["-L", "-f", family])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting conntrack -L")?;
        let out = BufReader::new(child.stdout.take().context("its stdout")?);
        for line in out.lines() {
            each(Line::parse(&line?)?);
            lines += 1;
        }
        ensure!(child.wait()?.success(), "conntrack -L -f {family} failed");
    }
    Ok(lines)
}

/// `conntrack -L`, counted by some of each line.
pub fn conntrack_by<K: Ord>(key: impl Fn(&Line) -> Option<K>) -> Result<BTreeMap<K, u64>> {
    let mut counts = BTreeMap::new();
    conntrack_lists(|line| {
        if let Some(key) = key(&line) {
            *counts.entry(key).or_default() += 1;
        }
    })?;
    Ok(counts)
}

/// One look of `ctwatch table --format json` with these arguments.
pub fn ctwatch_table(args: &[&str]) -> Result<Value> {
    let mut line = vec!["ctwatch", "table", "--format", "json", "--top", "1000000"];
    line.extend(args);
    serde_json::from_str(&run(&line)?).context("JSON of ctwatch table")
}

/// A table's object in it.
pub fn table_of(report: &Value, netns: u64) -> Result<&Value> {
    let tables = report["tables"].as_array().context("no `tables`")?;
    let table = tables.iter().find(|table| table["netns"] == netns);
    table.with_context(|| format!("no table of netns {netns} in {tables:?}"))
}

/// The rows of a table by some of each; a row without that is an error, and so is a rest row.
pub fn rows_by<K: Ord>(
    report: &Value,
    netns: u64,
    key: impl Fn(&Value) -> Option<K>,
) -> Result<BTreeMap<K, u64>> {
    let mut counts = BTreeMap::new();
    for row in report["rows"].as_array().context("no `rows`")?.iter().filter(|row| row["netns"] == netns) {
        let entries = row["entries"].as_u64().context("a row without entries")?;
        let key = key(row).with_context(|| format!("a row without its key: {row}"))?;
        *counts.entry(key).or_default() += entries;
    }
    Ok(counts)
}

/// A text field of a row.
pub fn text(row: &Value, name: &str) -> Option<String> {
    row[name].as_str().map(str::to_owned)
}

/// Entries of the benchmark.
const ENTRIES: u32 = 1_000_000;
/// As many buckets, or the kernel refuses entries for too long chains.
const BUCKETS: &str = "1048576";

/// A busy host's table: the story's mix, over some ten thousand ports.
fn entry(index: u32) -> Entry {
    let timed = |entry: Entry, timeout| Entry { timeout, ..entry };
    match index % 10 {
        0..=4 => timed(Entry::nth(index, 6379, Some(TcpState::TimeWait), true), 3_000 + index % 120),
        5 => Entry::nth(index, 443, Some(TcpState::Established), true),
        6 => Entry::nth(index, 80, Some(TcpState::Established), true),
        7 => timed(Entry::nth(index, 80, Some(TcpState::SynSent), false), 3_600),
        8 => timed(Entry::nth(index, 53, None, index % 20 == 8), 3_600),
        _ => Entry::nth(index, 10_000 + (index / 10 % 10_000) as u16, Some(TcpState::Established), true),
    }
}

/// What a command took: its time, and the most memory it held.
struct Taken {
    took: Duration,
    peak_kb: u64,
}

fn measure(command: &mut Command) -> Result<Taken> {
    let started = Instant::now();
    let child = command.stdout(Stdio::null()).spawn().with_context(|| format!("starting {command:?}"))?;
    let (success, peak_kb) = sys::wait_for(child.id())?;
    ensure!(success, "{command:?} failed");
    Ok(Taken { took: started.elapsed(), peak_kb })
}

/// Fills a table and measures who reads it how fast; only in a throw-away VM.
pub fn bench() -> Result<()> {
    for module in ["nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_ct", "nft_counter"] {
        let _ = run(&["modprobe", module]);
    }
    std::fs::write(sysctl::BUCKETS, BUCKETS).context("setting buckets")?;
    std::fs::write(sysctl::MAX, "1200000").context("raising nf_conntrack_max")?;
    compare(ENTRIES)
}

/// The same natively, in a private netns, with as many entries as the limit allows; no setting is touched.
pub fn bench_native() -> Result<()> {
    crate::netns::leave_for_private()?;
    sh("ip link set lo up")?;
    nftables::track()?;
    let limit = sysctl::read(sysctl::MAX)?.min(ENTRIES.into());
    // A full table has its gc evict.
    compare(u32::try_from(limit)? / 10 * 9)
}

fn compare(entries: u32) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let started = Instant::now();
    Maker::open()?.create((0..entries).map(entry))?;
    let count = sysctl::read(sysctl::COUNT)?;
    println!(
        "kernel {}, {} CPUs, {count} entries, made in {:.1} s",
        release.trim(),
        sys::cpus(),
        started.elapsed().as_secs_f64()
    );
    ensure!(count == u64::from(entries), "{count} of {entries} entries were made");
    let table = || {
        let mut command = Command::new("ctwatch");
        command.args(["table", "--format", "json", "--netns", "host"]);
        command
    };
    let (mut discarded, mut listed, mut peak_kb) = (Duration::MAX, Duration::MAX, 0);
    // In turns, and the best of each: other work on the machine only ever adds time.
    for round in 1..=4 {
        let started = Instant::now();
        discard_dump()?;
        let once = started.elapsed();
        let taken = measure(&mut table())?;
        println!(
            "round {round}: discarding reader {:.2} s, ctwatch table {:.2} s",
            once.as_secs_f64(),
            taken.took.as_secs_f64()
        );
        discarded = discarded.min(once);
        listed = listed.min(taken.took);
        peak_kb = peak_kb.max(taken.peak_kb);
    }
    let ratio = listed.as_secs_f64() / discarded.as_secs_f64();
    println!(
        "ctwatch table: {ratio:.3} × the discarding reader (goal 1.1), peak RSS {peak_kb} KB (goal 8192)"
    );
    for by in ["src", "port,state", "src,dst"] {
        let taken = measure(table().args(["--by", by]))?;
        let ratio = taken.took.as_secs_f64() / discarded.as_secs_f64();
        println!("--by {by}: {ratio:.3} × the discarding reader, peak RSS {} KB", taken.peak_kb);
    }
    let mut checks = Checks::new();
    checks.that(ratio <= 1.1, format!("{ratio:.3} × the discarding reader"));
    checks.that(peak_kb <= 8 << 10, format!("peak RSS {peak_kb} KB"));
    if exists("conntrack") {
        let mut pipe = Command::new("bash");
        let taken = measure(pipe.args(["-c", "conntrack -L 2>/dev/null | wc -l"]).process_group(0))?;
        let ratio = taken.took.as_secs_f64() / listed.as_secs_f64();
        println!(
            "conntrack -L | wc -l: {:.2} s, {ratio:.2} × ctwatch table (goal 2.4)",
            taken.took.as_secs_f64()
        );
        checks.that(ratio >= 2.4, format!("only {ratio:.2} × faster than conntrack -L"));
        compare_counts(&mut checks)?;
    } else {
        println!("conntrack is not on PATH: not compared with it");
    }
    match checks.finish() {
        Ok(_) => {
            println!("ok: all goals are met");
            Ok(())
        }
        Err(error) => bail!("goals missed: {error:#}"),
    }
}

/// One listing by each, per port and state.
fn compare_counts(checks: &mut Checks) -> Result<()> {
    let netns = crate::netns::own_inode()?;
    let want = conntrack_by(|line| Some((line.proto.clone(), line.dport?, line.state.clone())))?;
    let report = ctwatch_table(&["--by", "port,state", "--netns", "host"])?;
    let got = rows_by(&report, netns, |row| {
        Some((text(row, "proto")?, row["port"].as_u64()? as u16, text(row, "state")?))
    })?;
    println!("{} ports and states compared with conntrack -L", want.len());
    checks.equal_maps("entries per port and state against conntrack -L", &got, &want);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_conntrack_are_read() {
        let line = "tcp      6 118 TIME_WAIT src=127.0.0.1 dst=127.0.0.2 sport=40000 dport=6379 src=127.0.0.3 \
                    dst=127.0.0.1 sport=6379 dport=40000 [ASSURED] mark=16 zone=7 use=1";
        let tcp = Line::parse(line).unwrap();
        assert_eq!((tcp.proto.as_str(), tcp.state.as_str(), tcp.left), ("tcp", "TIME_WAIT", 118));
        assert_eq!((tcp.src.as_str(), tcp.dst.as_str(), tcp.dport), ("127.0.0.1", "127.0.0.2", Some(6379)));
        assert_eq!((tcp.reply_src.as_str(), tcp.mark, tcp.zone), ("127.0.0.3", 16, 7));
        let line = "udp      17 28 src=10.0.0.1 dst=10.0.0.2 sport=5 dport=53 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 \
                    sport=53 dport=5 mark=0 use=1";
        assert_eq!(Line::parse(line).unwrap().state, "UNREPLIED");
        let line = "icmp     1 9 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=3 src=10.0.0.2 dst=10.0.0.1 type=0 \
                    code=0 id=3 mark=0 use=1";
        let icmp = Line::parse(line).unwrap();
        assert_eq!((icmp.state.as_str(), icmp.dport), ("REPLIED", None));
        assert!(Line::parse("conntrack v1.4.7 (conntrack-tools): 2 flow entries").is_err());
    }
}
