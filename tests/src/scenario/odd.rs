//! What people met in odd places: tables of other namespaces in trouble, tables without a limit, rows that sum up others.
//! Judged by what ctwatch says where a person or a script reads it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::record::Recorder;
use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::census::{ctwatch_table, table_of};
use crate::checks::Checks;
use crate::ctnetlink::{Entry, Maker};
use crate::ctwatch::Drops;
use crate::environments::Environment;
use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::shell::{run, sh};
use crate::sysctl::{self, Setting};
use crate::table::{self, LIMIT, Mix};
use crate::traffic::icmp::Icmp;
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

fn ctwatch(arguments: &[&str]) -> Result<Output> {
    ended(Command::new("ctwatch").args(arguments))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Each netns that loses something or is half full is listed and told, on each backend and without any trigger.
pub(super) fn tables_in_trouble(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let (half_full, calm) = (Netns::create("half")?, Netns::create("calm")?);
    for (netns, entries) in [(&half_full, LIMIT * 3 / 4), (&calm, LIMIT / 4)] {
        netns.run(|| {
            nftables::track()?;
            table::fill_to(Mix::Assured, entries).map(drop)
        })?;
    }
    let folder = TempDir::new()?;
    let mut checks = Checks::new();
    for backend in ["kprobe", "tracepoint", "counters"] {
        let path = folder.path().join(format!("{backend}.ctw"));
        let path = path.to_str().context("a path")?;
        let recorded = ctwatch(&["record", "-o", path, "--backend", backend, "--duration", "8s"])?;
        checks.equal(&format!("{backend}: exit code of record"), recorded.status.code(), Some(0));
        let report: Value = serde_json::from_slice(&ctwatch(&["report", path, "--format", "json"])?.stdout)?;
        let tables = report["hosts"][0]["tables"].as_array().cloned().unwrap_or_default();
        let told: Vec<&str> = tables.iter().filter_map(|table| table["netns"].as_str()).collect();
        checks.equal(&format!("{backend}: tables in trouble"), told, vec![half_full.name()]);
        let table = tables.first().unwrap_or(&Value::Null);
        let held: u64 = table["occupants"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["entries"].as_u64())
            .sum();
        checks.equal(&format!("{backend}: entries told"), held, LIMIT * 3 / 4);
        let listings = text(&ctwatch(&["export", path, "--to", "csv", "--table", "listings"])?);
        checks.that(listings.contains(half_full.name()), format!("{backend}: not listed: {listings}"));
        checks.that(!listings.contains(calm.name()), format!("{backend}: one that is calm was listed"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// nf_conntrack_max = 0 is "no limit" wherever a limit stands, and a trigger on fill says that it can't fire.
pub(super) fn no_limit(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, 0)?;
    table::fill_to(Mix::OneWay, 400)?;
    let folder = TempDir::new()?;
    let path = folder.path().join("a.ctw");
    let path = path.to_str().context("a path")?;
    let mut checks = Checks::new();
    for condition in ["fill>=90%", "full_in<60s"] {
        let refused = ctwatch(&["record", "-o", path, "--duration", "3s", "--once", "--when", condition])?;
        said(&mut checks, condition, &refused, 3, "nf_conntrack_max is 0, so the table has no limit");
    }
    checks.that(fs::read_dir(folder.path())?.next().is_none(), "a refused recording left something");
    let conditions = ["--when", "fill>=90%", "--when", "drops>0"];
    let recorded = ctwatch(&[&["record", "-o", path, "--duration", "3s"][..], &conditions].concat())?;
    said(&mut checks, "one trigger of two", &recorded, 0, "fill>=90%: it can't fire");
    let report = text(&ctwatch(&["report", path])?);
    for line in ["entries, no limit, in ", "Table full: never, it has no limit", "entries, no limit in "] {
        checks.that(report.contains(line), format!("no `{line}`: {report}"));
    }
    for wrong in [" of 0", "0 to 50 %", "  ?  "] {
        checks.that(!report.contains(wrong), format!("`{wrong}`: {report}"));
    }
    for arguments in [&["table"][..], &["drops", "--duration", "2s"], &["advise", "--window", "3s"]] {
        let shown = text(&ctwatch(arguments)?);
        checks.that(shown.contains(", no limit"), format!("{arguments:?} doesn't say it: {shown}"));
        checks.that(!shown.contains(" of 0") && !shown.contains("/0"), format!("{arguments:?}: {shown}"));
    }
    let script = text(&ctwatch(&["advise", "--window", "3s", "--format", "sh"])?);
    checks.that(!script.contains("entries of 0"), format!("the script: {script}"));
    Ok(Outcome::Passed(checks.finish()?))
}

/// What sums up the rest stands with the rows it sums up, one is one, and times keep their columns.
pub(super) fn rows_and_columns(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let folder = TempDir::new()?;
    let out = folder.path().join("out");
    let mut child = Command::new("ctwatch")
        .args(["drops", "--duration", "8s", "--by", "flow", "--top", "2"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out)?)
        .spawn()
        .context("starting ctwatch")?;
    let until = Instant::now() + Duration::from_secs(90);
    while !fs::read_to_string(&out)?.contains("Columns:") {
        ensure!(Instant::now() < until, "drops doesn't start");
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(1));
    table::fill(Mix::Assured)?;
    let refused = udp::send(&Plan::new(loopback(&[53, 514, 6379]), 1))?.total_refused();
    ensure!(child.wait()?.success(), "drops failed");
    let shown = fs::read_to_string(&out)?;
    let summary = shown.split("\nSummary of ").nth(1).context("no summary")?;
    let at = |word: &str| summary.lines().position(|line| line.contains(word));
    let mut checks = Checks::new();
    checks.figure("refused", refused);
    checks.that(refused >= 4, "too few were refused to show anything");
    let (rest, occupants) = (at("other flows"), at("top occupants"));
    checks.that(rest.is_some() && rest < occupants, format!("the rest is not with the rows: {summary}"));
    checks.that(!summary.contains(" 1 packets"), format!("1 packets: {summary}"));
    checks.that(summary.contains(" 1 packet "), format!("no row of one packet: {summary}"));
    for (interval, width) in [("1500ms", 8), ("500ms", 10)] {
        let shown = text(&ctwatch(&["drops", "--interval", interval, "--duration", "2s"])?);
        let is_time =
            |word: &&str| word.len() >= 8 && word.as_bytes()[2] == b':' && word.as_bytes()[5] == b':';
        let widths: Vec<usize> =
            shown.lines().filter_map(|line| line.split(' ').next()).filter(is_time).map(str::len).collect();
        let is_one = !widths.is_empty() && widths.iter().all(|one| *one == width);
        checks.that(is_one, format!("{interval}: times of {widths:?} columns: {shown}"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// Two VRFs with the same addresses, each in a zone of its own in the original direction alone: both have one reply tuple,
/// so the second flow clashes with the first. The tuples are equal; the zones tell them apart, wherever the loss is shown.
pub(super) fn clash_between_zones(_: &Guest) -> Result<Outcome> {
    let _ = run(&["modprobe", "vrf"]);
    let router = Netns::create("router")?;
    let clients = [Netns::create("one")?, Netns::create("two")?];
    let inside = format!("ip -n {}", router.name());
    for (number, client) in (1..).zip(&clients) {
        let (netns, table) = (client.name(), 100 + number);
        sh(&format!("{inside} link add r{number} type veth peer name e0 netns {netns}"))?;
        if sh(&format!("{inside} link add v{number} type vrf table {table}")).is_err() {
            return Ok(Outcome::Skipped("this kernel has no VRF".into()));
        }
        sh(&format!("{inside} link set v{number} up"))?;
        sh(&format!("{inside} link set r{number} master v{number} up"))?;
        sh(&format!("{inside} addr add 10.0.0.1/24 dev r{number}"))?;
        sh(&format!("ip -n {netns} addr add 10.0.0.2/24 dev e0"))?;
        sh(&format!("ip -n {netns} link set e0 up"))?;
    }
    router.run(|| {
        nftables::load(
            "table inet ctw_zones {\n\
             chain early { type filter hook prerouting priority -300;\n\
             iifname {r1, v1} ct original zone set 1; iifname {r2, v2} ct original zone set 2; }\n\
             chain in { type filter hook input priority 0; ct state new counter; }\n}\n",
        )
    })?;
    let to = Ipv4Addr::new(10, 0, 0, 1).into();
    let ping = |client: &Netns, packets: u16| {
        client.run(|| {
            let socket = Icmp::open(to)?;
            (0..packets).try_for_each(|number| socket.echo(to, 1, number).map(drop))?;
            Ok(())
        })
    };
    let folder = TempDir::new()?;
    let file = folder.path().join("zones.ctw");
    let mut recorder = Recorder::start(folder.path(), &file, &["--when", "drops>0"])?;
    let by_flow = Drops::start(&["--by", "flow"])?;
    let drops = Drops::start(&["--events"])?;
    let before = router.counters()?;
    let packets = 3;
    ping(&clients[0], packets)?;
    // The first has its entry, once its neighbour is known.
    let until = Instant::now() + Duration::from_secs(30);
    while router.run(|| sysctl::read(sysctl::COUNT))? == 0 {
        ensure!(Instant::now() < until, "the first flow has no entry");
        thread::sleep(Duration::from_millis(50));
    }
    ping(&clients[1], packets)?;
    drops.wait_for("a clash", |lines| lines.iter().any(|line| line["type"] == "drop"))?;
    drops.wait_for_ticks(2)?;
    by_flow.wait_for_ticks(2)?;
    let (run, flows) = (drops.stop()?, by_flow.stop()?);
    recorder.signal(Signal::SIGINT)?;
    let (code, _, said) = recorder.end()?;
    ensure!(code == Some(0), "record failed: {said}");
    let kernel = router.counters()?.since(&before);

    let mut checks = Checks::new();
    let clashes: Vec<_> =
        run.drops.iter().filter(|drop| drop.cause == "clash" && drop.netns == router.inode()).collect();
    checks.figure("clashes", clashes.len());
    checks.equal("clashes against Δinsert_failed", clashes.len() as u64, kernel.get("insert_failed"));
    checks.that(!clashes.is_empty(), "nothing clashed");
    for drop in clashes {
        let place = (drop.hook.as_deref(), drop.device_in.as_deref(), drop.device_out.as_deref());
        checks.equal("hook and devices of a clash", place, (Some("input"), Some("v2"), None));
        checks.equal("its zones", (drop.zone_original, drop.zone_reply), (Some(2), Some(0)));
        checks.equal("its type and code", (drop.icmp_type, drop.icmp_code), (Some(8), Some(0)));
    }
    let rows = flows.end.rows.iter().filter(|row| row.cause() == "clash");
    let zones: Vec<_> = rows.map(|row| (row.zone_original, row.zone_reply)).collect();
    checks.equal("zones of rows by flow", zones, vec![(Some(2), Some(0))]);

    let path = file.to_str().context("a path")?;
    // Lines are wrapped.
    let words = |output: &Output| text(output).split_whitespace().collect::<Vec<_>>().join(" ");
    let replayed = words(&ctwatch(&["replay", path, "--speed", "max", "--events", "--cause", "clash"])?);
    checks.that(replayed.contains("zone 2 (original only) input v2"), format!("replay: {replayed}"));
    let shown = words(&ctwatch(&["replay", path, "--speed", "max", "--by", "flow"])?);
    checks.that(shown.contains("zone 2 (original only)"), format!("replay --by flow: {shown}"));
    let exported = text(&ctwatch(&["export", path, "--to", "csv", "--table", "drops"])?);
    let mut lines = exported.lines();
    let columns: Vec<&str> = lines.next().context("no header")?.split(',').collect();
    let place = |name: &str| columns.iter().position(|column| *column == name);
    let (original, reply) = (place("zone_original").context("a column")?, place("zone_reply"));
    let zones = lines.map(|line| line.split(',').collect::<Vec<_>>()).map(|cells| {
        (cells.get(original).copied().unwrap_or_default(), reply.and_then(|place| cells.get(place).copied()))
    });
    checks.that(zones.clone().count() > 0, "nothing exported");
    for zones in zones {
        checks.equal("zones exported", zones, ("2", Some("0")));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// A flush takes entries out of the table whose packets wait for a neighbour that isn't there: they count, and no listing
/// shows them. Up to 5.18 the kernel lists them elsewhere; later ones don't, and that is said.
pub(super) fn dying_entries(guest: &Guest) -> Result<Outcome> {
    const FLOWS: u16 = 40;
    let netns = Netns::create("flushed")?;
    let name = netns.name();
    sh(&format!("ip -n {name} link add v0 type veth peer name v1"))?;
    sh(&format!("ip -n {name} link set v0 up"))?;
    sh(&format!("ip -n {name} link set v1 up"))?;
    sh(&format!("ip -n {name} addr add 2001:db8::1/64 dev v0 nodad"))?;
    let mut checks = Checks::new();
    netns.run(|| {
        nftables::track()?;
        // A neighbour is asked for three times, a second apart; by then the packets are gone, and their entries.
        fs::write("/proc/sys/net/ipv6/neigh/v0/mcast_solicit", "60").context("mcast_solicit")?;
        for index in 1..=FLOWS {
            let to: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, index).into();
            Icmp::open(to)?.echo(to, index, 1)?;
        }
        run(&["conntrack", "-F"]).map(drop)
    })?;
    let counted = netns.run(|| sysctl::read(sysctl::COUNT))?;
    let report = ctwatch_table(&["--netns", name])?;
    let shown = text(&ctwatch(&["table", "--netns", name])?);
    let table = table_of(&report, netns.inode())?;
    checks.figure("counted", counted);
    checks.equal("entries the kernel counts", counted, u64::from(FLOWS));
    checks.equal("of which are listed", table["listed"].as_u64(), Some(0));
    checks.equal("unlisted", table["unlisted"].as_u64(), Some(counted));
    let hidden = &table["hidden"];
    if guest.is_5_10() {
        let judge = netns.run(|| run(&["conntrack", "-L", "dying"]))?;
        checks.equal(
            "dying against conntrack -L dying",
            hidden["dying"].as_u64(),
            Some(judge.lines().count() as u64),
        );
        checks.equal("dying", hidden["dying"].as_u64(), Some(counted));
        checks.equal("unconfirmed", hidden["unconfirmed"].as_u64(), Some(0));
        checks.equal("others", hidden["others"].as_u64(), Some(0));
        checks.equal("complete", hidden["complete"].as_bool(), Some(true));
        checks.equal("reasons", &table["reasons"], &serde_json::json!(["dying"]));
        let service = &hidden["services"][0];
        let key = ["sort", "proto", "icmp_type", "icmp_code", "entries"].map(|name| service[name].clone());
        checks.equal(
            "whose they are",
            Value::from(key.to_vec()),
            serde_json::json!(["dying", "icmpv6", 128, 0, counted]),
        );
        let words = format!("{counted} dying of type 128 code 0/icmpv6");
        checks.that(shown.contains(&words), format!("no `{words}`: {shown}"));
    } else {
        checks.equal("dying", &hidden["dying"], &Value::Null);
        checks.equal("unconfirmed", &hidden["unconfirmed"], &Value::Null);
        checks.equal("complete", hidden["complete"].as_bool(), Some(false));
        checks.that(shown.contains("not readable"), format!("it doesn't say that it can't tell: {shown}"));
    }
    checks.that(!shown.contains("the table is empty"), format!("it isn't empty: {shown}"));
    Ok(Outcome::Passed(checks.finish()?))
}

/// More destinations than can be counted each: one that has many is told with bounds, and of those that may have one no row
/// claims more.
pub(super) fn bounds(_: &Guest) -> Result<Outcome> {
    const HEAVY: [u8; 4] = [10, 200, 0, 1];
    let _limit = Setting::set(sysctl::MAX, 150_000)?;
    let entries = 70_000_u32;
    // It begins after the others have taken all cells.
    let dst = |index: u32| if index % 50 == 49 { HEAVY } else { (0x0B00_0000 + index).to_be_bytes() };
    Maker::open()?.create(
        (0..entries)
            .map(|index| Entry { dst: (IpAddr::from(dst(index)), 53), ..Entry::nth(index, 53, None, true) }),
    )?;
    let truth = (0..entries).filter(|index| dst(*index) == HEAVY).count() as u64;
    let netns = own_inode()?;
    let mut checks = Checks::new();
    let report: Value = serde_json::from_slice(
        &ctwatch(&["table", "--by", "dst", "--top", "4", "--format", "json"])?.stdout,
    )?;
    let rows: Vec<&Value> =
        report["rows"].as_array().context("no rows")?.iter().filter(|row| row["netns"] == netns).collect();
    checks.equal("rows: the heavy one, and the others", rows.len(), 2);
    let (heavy, rest) = (rows.first().context("no row")?, rows.last().context("no row")?);
    checks.equal("the heavy one", heavy["dst"].as_str(), Some("10.200.0.1"));
    let of = |row: &Value, name: &str| row[name].as_u64();
    let bound = |row: &Value, name| of(row, name).or(of(row, "entries")).unwrap_or(0);
    let (least, most) = (bound(heavy, "entries_min"), bound(heavy, "entries_max"));
    checks.that((least..=most).contains(&truth), format!("{truth} is not between {least} and {most}"));
    let (least, most) = (bound(rest, "entries_min"), bound(rest, "entries_max"));
    let others = u64::from(entries) - truth;
    checks.that((least..=most).contains(&others), format!("{others} is not between {least} and {most}"));
    let each = of(rest, "each_at_most").unwrap_or(0);
    checks.that((1..=4).contains(&each), format!("others have at most {each} each"));
    let shown = text(&ctwatch(&["table", "--by", "dst,state", "--top", "4"])?);
    let ghosts = shown.lines().filter(|line| line.contains(" 11.")).count();
    checks.equal("rows of destinations of which one entry is certain", ghosts, 0);
    checks.that(shown.contains("one that isn't shown has at most"), format!("it doesn't say so: {shown}"));
    for line in shown
        .lines()
        .filter(|line| line.trim_end().rsplit(' ').next().is_some_and(|last| last.starts_with('+')))
    {
        checks.that(line.contains('≥'), format!("a bound that isn't shown as one: {line}"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// Rights as containers and user namespaces leave them, where there are kprobes to be refused: what `check` says has been tried, no
/// root is told to become root, and what falls to the counters counts as the kernel does.
pub(super) fn rights(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let words = |output: &Output| {
        let all = format!("{}{}", text(output), String::from_utf8_lossy(&output.stderr));
        all.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut checks = Checks::new();
    let host = words(&ctwatch(&["check"])?);
    for tried in ["one was attached to early_drop", "get through", "table: tried", "programs load"] {
        checks.that(host.contains(tried), format!("`{tried}` is not said on the host: {host}"));
    }
    for (name, right, wrong) in [
        ("docker run", "missing CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_NET_ADMIN", "run as root"),
        ("docker run", "perf_event_open() (EPERM), setns() (EPERM) are refused", "kptr_restrict"),
        ("docker run", "--cap-add SYS_ADMIN", "sudo"),
        (
            "podman run, rootless",
            "in a user namespace: capabilities of the initial one are needed",
            "are present",
        ),
        ("unshare -U -r -n", "run it on the host", "one was attached"),
        ("unshare -U -r -n", "CAP_SYSLOG of the initial user namespace is missing", "kptr_restrict"),
        (
            "a seccomp profile that refuses the calls",
            "bpf() (EPERM), perf_event_open() (EPERM), setns() (EPERM)",
            "sudo",
        ),
        ("a seccomp profile that refuses the calls", "--security-opt seccomp=unconfined", "one was entered"),
    ] {
        let there = Environment::named(name)?;
        let check = words(&there.run(&["ctwatch", "check"])?);
        checks.that(check.contains(right), format!("{name}: `{right}` is not said: {check}"));
        checks.that(!check.contains(wrong), format!("{name}: `{wrong}`: {check}"));
        checks.that(check.contains("would use the counters backend"), format!("{name}: {check}"));
        let named = there.run(&["ctwatch", "drops", "--duration", "1s", "--backend", "kprobe"])?;
        checks.equal(&format!("{name}: exit code of a backend that was named"), named.status.code(), Some(3));
    }
    // Without a right, in the host's netns: the counters alone count what the senders are refused.
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let mut drops = Drops::start_by(
        &["setpriv", "--inh-caps", "-all", "--bounding-set", "-all"],
        &["--duration", "20s"],
    )?;
    let refused = udp::send(&Plan::new(loopback(&[6379]), 40))?.total_refused();
    let run = drops.finish()?;
    checks.figure("refused", refused);
    checks.equal("backend without any right", run.start.backend.as_str(), "counters");
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(refused));
    checks
        .that(run.stderr.contains("totals only"), format!("stderr doesn't say what is lost: {}", run.stderr));
    Ok(Outcome::Passed(checks.finish()?))
}
