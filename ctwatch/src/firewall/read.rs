//! Runs the tools that list rules, in the calling thread's netns. The only I/O of this module.
//! Listing may not load a kernel module: what isn't loaded has no rules, so its tool isn't run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::dump::{Dump, Save, Tools};
use super::{Firewall, Note};
use crate::kernel::roots::Roots;

/// Reads all rules of the calling thread's netns. What can't be read is a note.
#[must_use]
pub fn read(roots: &Roots) -> (Firewall, Dump, Vec<Note>) {
    let mut notes = Vec::new();
    let dump = dump(roots, &mut notes);
    let (firewall, more) = Firewall::parse(&dump);
    notes.extend(more);
    (firewall, dump, notes)
}

/// What the tools print of the calling thread's netns, without judging it: for a recording. Notes say what can't be read.
#[must_use]
pub fn list(roots: &Roots) -> (Dump, Vec<Note>) {
    let mut notes = Vec::new();
    let dump = dump(roots, &mut notes);
    (dump, notes)
}

fn dump(roots: &Roots, notes: &mut Vec<Note>) -> Dump {
    let found = |tool: &str| find(tool).is_some();
    let tools = Tools { nft: found("nft"), iptables: found("iptables"), ip6tables: found("ip6tables") };
    let mut dump = Dump { tools, ..Dump::default() };
    let automatic = fs::read_to_string(roots.proc("sys/net/netfilter/nf_conntrack_helper"));
    dump.automatic_helpers = automatic.is_ok_and(|text| text.trim() == "1");
    let range = fs::read_to_string(roots.proc("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    dump.local_ports = range
        .split_once(char::is_whitespace)
        .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    // Where nf_tables isn't loaded there are no rules of nft and of iptables-nft, and asking would load it.
    if has_nf_tables(roots) {
        dump.nft_json = run("nft", &["-j", "list", "ruleset"], "nft rules", notes).unwrap_or_default();
        if !dump.nft_json.is_empty() {
            let text = run("nft", &["-s", "-a", "list", "ruleset"], "the text of nft rules", notes);
            dump.nft_text = text.unwrap_or_default();
        }
        for (tool, plain, ipv6) in
            [("iptables-nft-save", "iptables-save", false), ("ip6tables-nft-save", "ip6tables-save", true)]
        {
            save(tool, plain, ipv6, false, &mut dump, notes);
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
    dump
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
    let output = Command::new(tool).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("nf_tables"))
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
    match Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said
                .lines()
                .find(|line| !line.starts_with('#'))
                .unwrap_or("no error message")
                .trim()
                .to_owned();
            note(format!("{tool} failed, so {what} are unknown (root needed?): {said}"));
            None
        }
        Err(error) => {
            note(format!("{tool} can't be started, so {what} are unknown: {error}"));
            None
        }
    }
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
