//! Runs the tools that list rules, in the calling thread's netns. The only I/O of this module.
//! Listing may not load a kernel module: what isn't loaded has no rules, so its tool isn't run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::dump::{Dump, Save, Tools};
use super::host::{HostFacts, local_v4, local_v6};
use super::{Firewall, Note};
use crate::foreign::Foreign;
use crate::kernel;
use crate::kernel::nf_tables::Family;
use crate::kernel::roots::Roots;

/// A tool that takes longer is stopped: 40,000 rules take nft a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// A tool that prints more is stopped: 40,000 rules are 40 MB of JSON.
const LONGEST: u64 = 256 << 20;

/// Reads all rules of the calling thread's netns. What can't be read is a note.
#[must_use]
pub fn read(roots: &Roots) -> (Firewall, Dump, Vec<Note>) {
    let dump = dump(roots);
    let (firewall, more) = Firewall::parse(&dump);
    let notes = dump.unread.iter().cloned().chain(more).collect();
    (firewall, dump, notes)
}

/// What the tools print of the calling thread's netns, without judging it: for a recording.
#[must_use]
pub fn list(roots: &Roots) -> Dump {
    dump(roots)
}

fn dump(roots: &Roots) -> Dump {
    let notes = &mut Vec::new();
    let found = |tool: &str| find(tool).is_some();
    let tools = Tools { nft: found("nft"), iptables: found("iptables"), ip6tables: found("ip6tables") };
    let mut dump = Dump { tools, host: host(roots), ..Dump::default() };
    let automatic = fs::read_to_string(roots.proc("sys/net/netfilter/nf_conntrack_helper"));
    dump.automatic_helpers = automatic.is_ok_and(|text| text.trim() == "1");
    let range = fs::read_to_string(roots.proc("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    dump.local_ports = range
        .split_once(char::is_whitespace)
        .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    dump.ipvs = virtual_services(roots);
    // Where nf_tables isn't loaded there are no rules of nft and of iptables-nft, and asking would load it.
    if has_nf_tables(roots) {
        if tools.nft {
            dump.nft_json = run("nft", &["-j", "list", "ruleset"], "nft rules", notes).unwrap_or_default();
            if dump.nft_json.trim().is_empty() && notes.is_empty() {
                // Even an empty rule set has its frame in JSON.
                notes.push(Note {
                    tool: "nft".to_owned(),
                    text: "`nft -j list ruleset` printed nothing: nft rules are unknown".to_owned(),
                });
            }
            if !dump.nft_json.is_empty() {
                // Words only, unless the JSON lacks something: that is found out where it is read.
                let text = run("nft", &["-s", "-a", "list", "ruleset"], "nft rules", &mut Vec::new());
                dump.nft_text = text.unwrap_or_default();
            }
        }
        for (tool, plain, ipv6) in
            [("iptables-nft-save", "iptables-save", false), ("ip6tables-nft-save", "ip6tables-save", true)]
        {
            save(tool, plain, ipv6, false, &mut dump, notes);
        }
        if !tools.nft {
            without_nft(&dump, notes);
        }
    }
    // The legacy tools only list tables named here, and so load none: for_each_table, iptables/iptables-save.c, 1.8.
    for (names, tool, plain, ipv6) in [
        ("ip_tables_names", "iptables-legacy-save", "iptables-save", false),
        ("ip6_tables_names", "ip6tables-legacy-save", "ip6tables-save", true),
    ] {
        let names = fs::read_to_string(roots.proc("thread-self/net").join(names)).unwrap_or_default();
        if !names.trim().is_empty() {
            save(tool, plain, ipv6, true, &mut dump, notes);
        }
    }
    dump.unread = std::mem::take(notes);
    dump
}

/// The virtual services of IPVS, without what is counted of them.
fn virtual_services(roots: &Roots) -> String {
    let text = fs::read_to_string(roots.proc("thread-self/net/ip_vs")).unwrap_or_default();
    let line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["->", server, ..] => format!("  -> {server}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Which tables of nf_tables nothing has listed, where nft isn't installed.
fn without_nft(dump: &Dump, notes: &mut Vec<Note>) {
    let listed: BTreeSet<(bool, &str)> = dump
        .saves
        .iter()
        .filter(|save| !save.legacy)
        .flat_map(|save| save.text.lines().filter_map(|line| Some((save.ipv6, line.strip_prefix('*')?))))
        .collect();
    let mut note = |text: String| notes.push(Note { tool: "nft".to_owned(), text });
    match kernel::nf_tables::tables() {
        Ok(tables) => {
            let unlisted: Vec<String> = tables
                .iter()
                .filter(|table| match table.family {
                    Family::Ip => !listed.contains(&(false, table.name.as_str())),
                    Family::Ip6 => !listed.contains(&(true, table.name.as_str())),
                    Family::Inet => true,
                    Family::Other => false,
                })
                .map(|table| format!("{} {}", table.family, table.name.escape_default()))
                .collect();
            if !unlisted.is_empty() {
                note(format!(
                    "nft is not installed: the rules of {} are unknown; install nftables",
                    unlisted.join(", ")
                ));
            }
        }
        Err(error) => note(format!("nft is not installed: nft rules are unknown ({error:#})")),
    }
}

/// The host's own addresses, and whether it forwards.
fn host(roots: &Roots) -> HostFacts {
    let read = |name: &str| fs::read_to_string(roots.proc("thread-self/net").join(name)).ok();
    // /proc/sys shows the netns of whoever reads it.
    let forwards = |ip: &str| -> Option<bool> {
        let folders = fs::read_dir(roots.proc("sys/net").join(ip).join("conf")).ok()?;
        let mut known = folders.map(|folder| {
            let text = fs::read_to_string(folder.ok()?.path().join("forwarding")).ok()?;
            Some(text.trim() != "0")
        });
        // Bridged packets meet the rules of forwarded ones.
        let bridged = fs::read_to_string(roots.proc("sys/net/bridge/bridge-nf-call-iptables"));
        let bridged = bridged.is_ok_and(|text| text.trim() == "1");
        known.try_fold(bridged, |any, one| Some(any | one?))
    };
    HostFacts {
        own_v4: read("fib_trie").and_then(|text| local_v4(&text)),
        // Without IPv6 there is no such file, and no packet of it.
        own_v6: match read("ipv6_route") {
            Some(text) => local_v6(&text),
            None if read("if_inet6").is_none() && read("fib_trie").is_some() => Some(Vec::new()),
            None => None,
        },
        forwards_v4: forwards("ipv4"),
        forwards_v6: forwards("ipv6"),
    }
}

/// Runs one iptables-save. A tool without a name of its own for the variant is taken if it is of that variant.
fn save(tool: &str, plain: &str, ipv6: bool, legacy: bool, dump: &mut Dump, notes: &mut Vec<Note>) {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let variant = if legacy { "legacy iptables" } else { "iptables-nft" };
    let tool = if find(tool).is_some() {
        tool
    } else if find(plain).is_some() && is_nf_tables(plain) != legacy {
        plain
    } else {
        // Rules of iptables-nft show in nft's list, and a note comes from there if they are opaque.
        if legacy {
            notes.push(Note {
                tool: tool.to_owned(),
                text: format!("{variant} has {family} rules, but {tool} is not installed: they are unknown"),
            });
        }
        return;
    };
    if let Some(text) = run(tool, &[], &format!("{family} rules of {variant}"), notes) {
        dump.saves.push(Save { tool: tool.to_owned(), ipv6, legacy, text });
    }
}

fn is_nf_tables(tool: &str) -> bool {
    let said = find(tool).and_then(|program| output(&program, &["--version"]).ok());
    said.is_some_and(|output| Foreign::from_bytes(&output.stdout).raw().contains("nf_tables"))
}

fn has_nf_tables(roots: &Roots) -> bool {
    // A built-in nf_tables has no folder there, but shows its functions.
    roots.sys("module/nf_tables").exists()
        || fs::read_to_string(roots.proc("kallsyms"))
            .is_ok_and(|text| text.lines().any(|line| line.ends_with(" nft_do_chain")))
}

/// What the program printed; a note if it couldn't.
fn run(tool: &str, arguments: &[&str], what: &str, notes: &mut Vec<Note>) -> Option<String> {
    let mut note = |text: String| notes.push(Note { tool: tool.to_owned(), text });
    let Some(program) = find(tool) else {
        note(format!("{tool} is not installed: {what} are unknown"));
        return None;
    };
    match output(&program, arguments) {
        Ok(output) if output.status.success() => Some(Foreign::from_bytes(&output.stdout).into_raw()),
        Ok(output) => {
            let said = Foreign::from_bytes(&output.stderr);
            let said = said.raw().lines().find(|line| !line.starts_with('#'));
            let said = Foreign::from(said.unwrap_or("no error message").trim());
            note(format!("{tool} failed, so {what} are unknown (root needed?): {said}"));
            None
        }
        Err(error) => {
            note(format!("{tool} can't be run, so {what} are unknown: {error:#}"));
            None
        }
    }
}

/// Runs it to its end, within limits.
fn output(program: &Path, arguments: &[&str]) -> Result<Output> {
    limited(program, arguments, PATIENCE, LONGEST)
}

fn limited(program: &Path, arguments: &[&str], patience: Duration, longest: u64) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: what it starts is stopped with it.
    command.process_group(0);
    let mut child = command.spawn().context("starting it")?;
    let group = child.id();
    let (done, news) = mpsc::channel();
    let collect = |from: Option<Box<dyn Read + Send>>, longest: u64| {
        let done = done.clone();
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(from) = from {
                // What couldn't be read is missing, and the status says why.
                let _ = from.take(longest + 1).read_to_end(&mut text);
            }
            let _ = done.send(text.len() as u64 > longest);
            text
        })
    };
    let stdout = collect(child.stdout.take().map(|from| Box::new(from) as _), longest);
    let stderr = collect(child.stderr.take().map(|from| Box::new(from) as _), 1 << 16);
    let until = Instant::now() + patience;
    let mut stopped = None;
    for _ in 0..2 {
        match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(false) => {}
            Ok(true) => stopped = Some(format!("it printed more than {} MB and was stopped", longest >> 20)),
            Err(_) => stopped = Some(format!("it took longer than {patience:?} and was stopped")),
        }
        if stopped.is_some() {
            break;
        }
    }
    while stopped.is_none() && child.try_wait().context("waiting for it")?.is_none() {
        if Instant::now() > until {
            stopped = Some(format!("it took longer than {patience:?} and was stopped"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    if let Some(why) = stopped {
        // SAFETY: no memory is involved; the group is that of a child that hasn't been waited for.
        unsafe { libc::kill(-(group as i32), libc::SIGKILL) };
        child.wait().context("waiting for it")?;
        bail!("{why}");
    }
    let status = child.wait().context("waiting for it")?;
    let text = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Where a tool is: on PATH, or where administrators' tools live though a unit's PATH may lack it.
fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(tool)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, longest: u64) -> Result<Output> {
        limited(Path::new("/bin/sh"), &["-c", script], Duration::from_millis(600), longest)
    }

    #[test]
    fn a_tool_that_hangs_or_prints_without_end_is_cut_off() {
        let started = Instant::now();
        let hangs = sh("sleep 60", 1 << 20).expect_err("it hangs");
        assert!(format!("{hangs:#}").contains("took longer"), "{hangs:#}");
        let child_hangs = sh("sleep 60 & exit 0", 1 << 20).expect_err("its child holds the pipe");
        assert!(format!("{child_hangs:#}").contains("took longer"), "{child_hangs:#}");
        let endless = sh("while :; do echo rule; done", 1 << 20).expect_err("it never ends");
        assert!(format!("{endless:#}").contains("more than 1 MB"), "{endless:#}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_tool_prints_is_read_to_the_end() {
        let output = sh("seq 100000; echo no >&2; exit 3", 1 << 20).expect("it ends");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 100_000);
        assert_eq!(output.stderr, b"no\n");
    }
}
