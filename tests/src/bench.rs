//! What watching costs, in instructions: under `-icount shift=0,sleep=off -smp 1` a nanosecond is an instruction.
//! Only ratios and differences within one run are shown; wall-clock time has no meaning here.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bpftrace::Bpftrace;
use crate::ctwatch::Drops;
use crate::shell::{exists, run as command};
use crate::sysctl::{self, Setting};
use crate::table::{self, Mix};
use crate::{nftables, sys};

/// Fewer packets than a receive buffer holds, and so few that most batches pass between two timer ticks (4 ms).
const BATCH: u32 = 50;
const BATCHES: u32 = 400;
const PORT: u16 = 9000;
/// The same source in every column, so that every column's flows hash alike.
const SOURCE: u16 = 9001;
const ROWS: [&str; 3] = ["established packet", "new flow", "dropped packet"];

/// Instructions per send: the median of batches, and the mean, which includes whatever else ran on the CPU.
#[derive(Clone, Copy)]
struct Cost {
    median: f64,
    mean: f64,
}

/// Who watches while a column is measured; stopped when dropped.
type Watcher = Box<dyn std::any::Any>;

type Column = (&'static str, fn() -> Result<Watcher>);

const COLUMNS: [Column; 6] = [
    ("bare", || Ok(Box::new(()))),
    ("ctwatch", || ctwatch(&[])),
    ("ctwatch --no-inserts", || ctwatch(&["--no-inserts"])),
    ("ctwatch --table-full init-conntrack", || ctwatch(&["--table-full", "init-conntrack"])),
    ("bpftrace", bpftrace),
    ("bare, once more", || Ok(Box::new(()))),
];

/// Measures every column and prints the table.
pub fn run() -> Result<()> {
    command(&["ip", "link", "set", "lo", "up"])?;
    for module in ["nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_ct", "nft_counter"] {
        let _ = command(&["modprobe", module]);
    }
    nftables::track()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    println!("kernel {}, {} CPU, instructions per UDP send on loopback", release.trim(), sys::cpus());
    ensure!(
        sys::cpus() == 1,
        "instructions are only counted with one CPU (-icount shift=0,sleep=off -smp 1)"
    );
    // Once for nothing: the first round of a boot also pays for what is set up at first use.
    measure_in_own_process()?;
    let mut measured = Vec::new();
    for (name, start) in COLUMNS {
        let watcher = match start() {
            Ok(watcher) => watcher,
            Err(error) => {
                println!("{name}: not measured: {error:#}");
                measured.push((name, None));
                continue;
            }
        };
        // Let it finish whatever it does at start.
        thread::sleep(Duration::from_secs(2));
        measured.push((name, Some(measure_in_own_process()?)));
        drop(watcher);
        eprintln!("measured: {name}");
    }
    print(&measured);
    Ok(())
}

/// Measures the rows in this process and prints a line for each, for [`run`] to read.
pub fn measure() -> Result<()> {
    for cost in [established()?, new_flow()?, dropped()?] {
        println!("{} {}", cost.median, cost.mean);
    }
    Ok(())
}

/// A process of its own has one thread whoever watches: with more, each system call pays for a shared file table.
fn measure_in_own_process() -> Result<[Cost; 3]> {
    let own = std::env::current_exe().context("the own path")?;
    let printed = command(&[own.to_str().context("the own path")?, "bench-guest", "--measure"])?;
    command(&["conntrack", "-F"])?;
    let mut costs = Vec::new();
    for line in printed.lines() {
        let (median, mean) = line.split_once(' ').context("a line of two numbers")?;
        costs.push(Cost { median: median.parse()?, mean: mean.parse()? });
    }
    costs.try_into().map_err(|_| anyhow!("three rows were measured, not these: {printed}"))
}

fn print(measured: &[(&str, Option<[Cost; 3]>)]) {
    let cost = |column: &str, row: usize| {
        measured.iter().find(|(name, _)| *name == column).and_then(|(_, costs)| costs.map(|costs| costs[row]))
    };
    println!("\n{:38} {:>20} {:>12} {:>16}", "median of 400 batches of 50", ROWS[0], ROWS[1], ROWS[2]);
    for (name, costs) in measured {
        let cell = |row: usize| costs.map_or("-".to_owned(), |costs| format!("{:.0}", costs[row].median));
        println!("{name:38} {:>20} {:>12} {:>16}", cell(0), cell(1), cell(2));
    }
    println!("\n{:38} {:>20} {:>12} {:>16}", "more than bare", ROWS[0], ROWS[1], ROWS[2]);
    for (name, costs) in measured.iter().skip(1) {
        let cell = |row: usize| match (costs, cost("bare", row)) {
            (Some(costs), Some(bare)) => format!("{:+.0}", costs[row].median - bare.median),
            _ => "-".to_owned(),
        };
        println!("{name:38} {:>20} {:>12} {:>16}", cell(0), cell(1), cell(2));
    }
    println!(
        "\n{:38} {:>20} {:>12} {:>16}",
        "more than bare, mean with user space", ROWS[0], ROWS[1], ROWS[2]
    );
    for (name, costs) in measured.iter().skip(1) {
        let cell = |row: usize| match (costs, cost("bare", row)) {
            (Some(costs), Some(bare)) => format!("{:+.0}", costs[row].mean - bare.mean),
            _ => "-".to_owned(),
        };
        println!("{name:38} {:>20} {:>12} {:>16}", cell(0), cell(1), cell(2));
    }
    println!("\n{:38} {:>20} {:>12} {:>16}", "its part of what bpftrace adds", ROWS[0], ROWS[1], ROWS[2]);
    for (name, costs) in measured.iter().filter(|(name, _)| name.starts_with("ctwatch")) {
        let cell = |row: usize| match (costs, cost("bare", row), cost("bpftrace", row)) {
            (Some(costs), Some(bare), Some(bpftrace)) if bpftrace.median - bare.median > 50.0 => {
                format!("{:.2}", (costs[row].median - bare.median) / (bpftrace.median - bare.median))
            }
            _ => "-".to_owned(),
        };
        println!("{name:38} {:>20} {:>12} {:>16}", cell(0), cell(1), cell(2));
    }
}

fn established() -> Result<Cost> {
    let pair = Pair::open()?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    // A packet each way, and the flow is established.
    pair.sender.send_to(b"hello", to)?;
    let mut buffer = [0; 64];
    let (_, from) = pair.receiver.recv_from(&mut buffer).context("the first packet")?;
    pair.receiver.send_to(b"hello", from)?;
    pair.measure(|_| to, false)
}

fn new_flow() -> Result<Cost> {
    let _limit = Setting::set(sysctl::MAX, 200_000)?;
    let pair = Pair::open()?;
    // Each send goes to another of loopback's addresses, all of them the one receiver's.
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
    let cost = pair.measure(|index| SocketAddr::from((Ipv4Addr::from(first + index), PORT)), false);
    command(&["conntrack", "-F"])?;
    cost
}

fn dropped() -> Result<Cost> {
    let _limit = Setting::set(sysctl::MAX, table::LIMIT)?;
    table::fill(Mix::Assured)?;
    let pair = Pair::open()?;
    let to = SocketAddr::from((Ipv4Addr::new(127, 2, 0, 1), PORT));
    let cost = pair.measure(|_| to, true);
    command(&["conntrack", "-F"])?;
    cost
}

/// A sender and the receiver that keeps its packets from being dropped.
struct Pair {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Pair {
    fn open() -> Result<Self> {
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("the receiver")?;
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, SOURCE)).context("the sender")?;
        Ok(Self { sender, receiver })
    }

    fn measure(&self, to: impl Fn(u32) -> SocketAddr, refused: bool) -> Result<Cost> {
        self.receiver.set_nonblocking(true)?;
        let mut per_send = Vec::new();
        for batch in 0..BATCHES {
            let mut wrong = 0;
            let before = sys::monotonic();
            for index in 0..BATCH {
                let sent = self.sender.send_to(b"0123456789abcdef", to(batch * BATCH + index));
                wrong += u32::from(sent.is_err() != refused);
            }
            let took = sys::monotonic().saturating_sub(before);
            ensure!(
                wrong == 0,
                "{wrong} of {BATCH} sends of batch {batch} went the other way (refused: {refused})"
            );
            per_send.push(took.as_nanos() as f64 / f64::from(BATCH));
            let mut buffer = [0; 64];
            let mut received = 0;
            while self.receiver.recv(&mut buffer).is_ok() {
                received += 1;
            }
            let wanted = if refused { 0 } else { BATCH };
            ensure!(received == wanted, "{received} of {wanted} packets of batch {batch} arrived");
        }
        let mean = per_send.iter().sum::<f64>() / f64::from(BATCHES);
        per_send.sort_by(f64::total_cmp);
        Ok(Cost { median: per_send[per_send.len() / 2], mean })
    }
}

fn ctwatch(args: &[&str]) -> Result<Watcher> {
    ensure!(exists("ctwatch"), "ctwatch is not on PATH");
    let mut line = vec!["--backend", "kprobe"];
    line.extend(args);
    Ok(Box::new(Drops::start(&line)?))
}

/// The same job as a bpftrace one-off: drops per port by return value, new flows per port, evictions.
fn bpftrace() -> Result<Watcher> {
    ensure!(exists("bpftrace"), "bpftrace is not on PATH");
    let symbols = fs::read_to_string("/proc/kallsyms").context("reading kallsyms")?;
    let init = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .find(|name| *name == "init_conntrack" || name.starts_with("init_conntrack."))
        .context("init_conntrack is not in kallsyms")?;
    // Arguments as this compiler passes them: the tuple third; offsets are those of 5.10 to 7.x on x86-64.
    let script = format!(
        "kprobe:{init} {{ @tuple[tid] = arg2; }}\n\
         kretprobe:{init} /@tuple[tid]/ {{\n\
           if (retval >= 0xfffffffffffff001) {{ @drops[*(uint16*)(@tuple[tid] + 36)] = count(); }}\n\
           delete(@tuple[tid]);\n\
         }}\n\
         kprobe:__nf_conntrack_confirm {{\n\
           $ct = *(uint64*)(arg0 + 104) & 0xfffffffffffffff8;\n\
           @new[*(uint16*)($ct + 68)] = count();\n\
         }}\n\
         kretprobe:early_drop {{ @evicted[retval & 255] = count(); }}\n"
    );
    Ok(Box::new(Bpftrace::start(&script)?))
}
