//! With a full table nobody can log in: `ctwatch advise` says how to keep a way in, and it is one.
//! The server is this very program under the name of sshd, as root and in a folder of root's: another one isn't believed to
//! serve logins. Its client comes from another netns.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::{Netns, Veth};
use crate::nftables;
use crate::shell::run;
use crate::sysctl::{self, Setting};
use crate::table::{self, Mix};

/// Where sshd listens, and another service.
const PORTS: [u16; 2] = [2222, 8080];

fn serve() -> Result<()> {
    for port in PORTS {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
        thread::spawn(move || {
            listener.incoming().flatten().for_each(|mut one| drop(one.write_all(b"hello")))
        });
    }
    // Only for this host: no way in.
    let local = TcpListener::bind(("127.0.0.1", 6010))?;
    thread::spawn(move || local.incoming().for_each(drop));
    Ok(())
}

/// Whether a client there is served.
fn is_served(client: &Netns, server: IpAddr, port: u16) -> Result<bool> {
    client.run(|| {
        let to = SocketAddr::from((server, port));
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(4)) else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(Duration::from_secs(4)))?;
        let mut word = [0; 5];
        Ok(stream.read_exact(&mut word).is_ok())
    })
}

fn advise(args: &[&str]) -> Result<Vec<Value>> {
    let text = run(&[&["ctwatch", "advise", "--format", "json", "--window", "4s"], args].concat())?;
    let advice: Value = serde_json::from_str(&text).context("reading the advice")?;
    Ok(advice["items"].as_array().context("the advice has no items")?.clone())
}

/// Becomes a program called sshd, with the same arguments.
fn become_sshd() -> Result<()> {
    let own = std::env::current_exe().context("the own path")?;
    if own.file_name() == Some("sshd".as_ref()) {
        return Ok(());
    }
    let folder = Path::new("/run/ctwatch-way-in");
    fs::create_dir_all(folder).context("a folder for sshd")?;
    let file = folder.join("sshd");
    fs::copy(own, &file).context("copying this program")?;
    Err(Command::new(file).args(std::env::args_os().skip(1)).exec()).context("becoming sshd")
}

pub(super) fn kept(_: &Guest) -> Result<Outcome> {
    become_sshd()?;
    let blue = Netns::create("blue")?;
    let veth = Veth::join(&blue, 7)?;
    serve()?;
    nftables::track()?;
    let mut checks = Checks::new();
    for port in PORTS {
        checks.that(is_served(&blue, veth.v4.0, port)?, format!("{port} isn't served while there is room"));
    }
    for (wrong, word) in [
        ("22/icmp", "22/tcp/in"),
        ("type 8/icmp", "22/tcp/in"),
        ("22/tcp/fwd", "begin or end on this host"),
        ("0/tcp", "22/tcp/in"),
        ("ssh", "ssh usually has 22"),
        ("22/tcp/in/x", "PORT[/PROTO"),
        ("", "PORT[/PROTO"),
    ] {
        let told = ended(Command::new("ctwatch").args(["advise", "--keep", wrong]))?;
        said(&mut checks, &format!("--keep {wrong}"), &told, 2, word);
    }
    table::fill_to(Mix::Assured, 400)?;
    let _limit = Setting::set(sysctl::MAX, 300)?;
    checks.that(!is_served(&blue, veth.v4.0, 2222)?, "a full table shuts nobody out");

    let items = advise(&[])?;
    let first = items.first().context("no advice with a full table")?;
    // Both ports are sshd's as far as its process tells.
    checks.equal("the first piece", first["id"].as_str(), Some("keep-2222-tcp-in"));
    checks.that(first["evidence"].to_string().contains("sshd (pid"), format!("{}", first["evidence"]));
    checks.that(items.iter().all(|item| item["id"] != "keep-6010-tcp-in"), "what listens on lo is no way in");
    let script = run(&["ctwatch", "advise", "--window", "3s", "--keep", "2222/tcp", "--format", "sh"])?;
    let before = run(&["nft", "-s", "list", "ruleset"])?;
    let folder = tempfile::tempdir().context("a folder for the script")?;
    let file = folder.path().join("keep-ssh.sh");
    fs::write(&file, script).context("writing the script")?;
    let file = file.to_str().context("the script's path")?;
    let step = |step: &str| run(&["sh", file, step, "keep-2222-tcp-in"]).with_context(|| format!("`{step}`"));
    step("now")?;
    for address in [veth.v4.0, veth.v6.0] {
        checks.that(is_served(&blue, address, 2222)?, format!("{address}: shut out though it was kept"));
    }
    checks.that(!is_served(&blue, veth.v4.0, 8080)?, "another port is let in, too");
    let again = run(&["ctwatch", "advise", "--window", "3s", "--keep", "2222/tcp"])?;
    checks.that(again.contains("2222/tcp/in is exempt from tracking already"), again);
    step("undo")?;
    checks.equal("rules after `undo`", run(&["nft", "-s", "list", "ruleset"])?, before);
    checks.that(!is_served(&blue, veth.v4.0, 2222)?, "it is still let in");

    // Where answers are let out for being ESTABLISHED alone, it must not be done.
    nftables::load(
        "table inet guard {\n chain out {\n  type filter hook output priority 0; policy drop;\n  ct state established \
         accept\n }\n}\n",
    )?;
    let items = advise(&["--keep", "2222/tcp/in"])?;
    let item = items.iter().find(|item| item["id"] == "keep-2222-tcp-in").context("it isn't named")?;
    checks.that(item["refused"].to_string().contains("established"), format!("{}", item["refused"]));
    checks.equal("commands of what is refused", item["commands"]["now"].as_array().map(Vec::len), Some(0));
    Ok(Outcome::Passed(checks.finish()?))
}
