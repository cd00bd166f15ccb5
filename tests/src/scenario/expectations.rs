//! No room for expectations: a helper drops the packets that announce a connection, and no kernel counter counts them.
//! nft counters on both sides of the helper are the judge.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::nftables;
use crate::shell::{run, sh};
use crate::sysctl::Setting;
use crate::traffic::tcp;

const EXPECT_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_expect_max";
const FTP: u16 = 21;
/// Packets that a rule drops, besides.
const FILTERED: u16 = 4721;

const TRUTH: &str = "table ip truth {
 counter sent { }
 counter arrived { }
 chain out { type filter hook output priority 0; tcp dport 21 tcp flags & psh == psh counter name sent; }
 chain block { type filter hook output priority 1; ct state new tcp dport 4721 drop; }
 chain in { type filter hook input priority 0; tcp dport 21 tcp flags & psh == psh counter name arrived; }
}
";

fn counted(name: &str) -> Result<u64> {
    let text = run(&["nft", "-j", "list", "counter", "ip", "truth", name])?;
    let listed: Value = serde_json::from_str(&text).context("reading an nft counter")?;
    let of = |one: &Value| one["counter"]["packets"].as_u64();
    listed["nftables"].as_array().and_then(|all| all.iter().find_map(of)).context("no counter is listed")
}

pub(super) fn full(_: &Guest) -> Result<Outcome> {
    nftables::load(TRUTH)?;
    sh("iptables-legacy -t raw -A OUTPUT -o lo -p tcp --dport 21 -j CT --helper ftp")?;
    let _limit = Setting::set(EXPECT_MAX, 1)?;
    // It takes any line, and keeps the connection.
    let server = TcpListener::bind(("127.0.0.1", FTP))?;
    thread::spawn(move || {
        for mut one in server.incoming().flatten() {
            thread::spawn(move || while one.read(&mut [0; 256]).is_ok_and(|read| read > 0) {});
        }
    });
    let drops = Drops::start(&[])?;
    let before = Counters::read()?;
    let mut clients =
        (0..5).map(|_| TcpStream::connect(("127.0.0.1", FTP))).collect::<Result<Vec<_>, _>>()?;
    for client in &mut clients {
        client.write_all(b"USER a\r\n")?;
    }
    // What a rule drops at the same time, of entries too, is no loss of conntrack's.
    let filtered =
        (0..20).map(|_| tcp::start(([127, 0, 0, 1], FILTERED).into())).collect::<Result<Vec<_>>>()?;
    // The kernel skips return probes in a softirq that interrupts a task's probe, and nothing but a return probe sees this cause. So
    // no task sends while packets are retransmitted, which is 0.2, 0.6, 1.4, 3.0 and 6.2 s after this.
    thread::sleep(Duration::from_millis(200));
    for (client, port) in clients.iter_mut().zip(1..) {
        client.write_all(format!("PORT 127,0,0,1,200,{port}\r\n").as_bytes())?;
    }
    thread::sleep(Duration::from_millis(4500));
    let clients = clients.into_iter().map(Into::into).collect();
    tcp::abort(vec![clients, filtered], Vec::new())?;
    thread::sleep(Duration::from_millis(500));
    drops.wait_for_ticks(2)?;
    let end = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let _ = sh("iptables-legacy -t raw -F OUTPUT");

    let mut checks = Checks::new();
    let (sent, arrived) = (counted("sent")?, counted("arrived")?);
    checks.figure("sent", sent);
    checks.figure("arrived", arrived);
    checks.that(sent >= arrived + 4, format!("{sent} sent and {arrived} arrived: nothing was refused"));
    checks.equal("expect_full against what didn't arrive", end.end.counted("expect_full"), sent - arrived);
    checks.equal("rows of it", end.end.row_sum("expect_full"), sent - arrived);
    checks.equal("packets lost by any cause", end.end.packets_lost(), sent - arrived);
    checks.equal("Δdrop", kernel.get("drop"), 0);
    checks.that(end.end.all_explained(), format!("unexplained {:?}", end.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
