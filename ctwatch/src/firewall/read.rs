//! Runs the tools that list rules, in the calling thread's netns. The only I/O of this module.
//! Listing may not load a kernel module: what isn't loaded has no rules, so its tool isn't run.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::dump::{Dump, Save, Tools};
use super::host::{HostFacts, LocalV4, LocalV6, NETWORKS};
use super::run::{Budget, output};
use super::{Firewall, Note};
use crate::files::lists::{self, Extent, Limit};
use crate::files::programs::{Found, Programs};
use crate::foreign::{Foreign, Shown as _};
use crate::kernel;
use crate::kernel::nf_tables::Family;
use crate::kernel::roots::Roots;
use crate::kernel::{routes, vrfs};

/// How long the kernel's symbols may take.
const KALLSYMS: Duration = Duration::from_secs(10);
/// Bytes of IPVS' services: tens of thousands of them.
const SERVICES: usize = 8 << 20;
/// Tables that are told by name.
const TABLES_NAMED: usize = 8;

/// Reads all rules of the calling thread's netns. What can't be read is a note.
#[must_use]
pub fn read(roots: &Roots) -> (Firewall, Dump, Vec<Note>) {
    let dump = dump(roots, &mut Budget::whole());
    let (firewall, more) = Firewall::parse(&dump);
    let notes = dump.unread.iter().cloned().chain(more).collect();
    (firewall, dump, notes)
}

/// What the tools print of the calling thread's netns, without judging it: for a recording. The budget is one for all of them.
#[must_use]
pub fn list(roots: &Roots, mut budget: Budget) -> Dump {
    dump(roots, &mut budget)
}

fn dump(roots: &Roots, budget: &mut Budget) -> Dump {
    let notes = &mut Vec::new();
    let programs = &Programs::of_path();
    let found = |tool: &str| programs.find(tool).program().is_some();
    let tools = Tools { nft: found("nft"), iptables: found("iptables"), ip6tables: found("ip6tables") };
    let mut dump = Dump { tools, host: host(roots, budget.lists(), notes), ..Dump::default() };
    dump.automatic_helpers = match if_there(&roots.proc("sys/net/netfilter/nf_conntrack_helper")) {
        Ok(text) => text.trim() == "1",
        Err(error) => {
            notes.push(Note {
                tool: "sysctl".to_owned(),
                text: format!("whether connections get helpers by their port is unknown: {error}"),
            });
            false
        }
    };
    let range = fs::read_to_string(roots.proc("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    dump.local_ports = range
        .split_once(char::is_whitespace)
        .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    // Where nf_tables isn't loaded there are no rules of nft and of iptables-nft, and asking would load it.
    let has_nf_tables = has_nf_tables(roots, Limit::new(KALLSYMS, u64::MAX));
    if has_nf_tables.is_none() {
        notes.push(Note {
            tool: "nft".to_owned(),
            text: "whether the kernel has nf_tables could not be read: its rules are unknown".to_owned(),
        });
    }
    if has_nf_tables == Some(true) {
        if tools.nft {
            dump.nft_json = run(programs, "nft", &["-j", "list", "ruleset"], "nft rules", budget, notes)
                .unwrap_or_default();
            if dump.nft_json.trim().is_empty() && notes.is_empty() {
                // Even an empty rule set has its frame in JSON.
                notes.push(Note {
                    tool: "nft".to_owned(),
                    text: "`nft -j list ruleset` printed nothing: nft rules are unknown".to_owned(),
                });
            }
            if !dump.nft_json.is_empty() {
                // Words only, unless the JSON lacks something: that is found out where it is read.
                let text = run(
                    programs,
                    "nft",
                    &["-s", "-a", "list", "ruleset"],
                    "nft rules",
                    budget,
                    &mut Vec::new(),
                );
                dump.nft_text = text.unwrap_or_default();
            }
        }
        for (tool, plain, ipv6) in
            [("iptables-nft-save", "iptables-save", false), ("ip6tables-nft-save", "ip6tables-save", true)]
        {
            save(programs, Wanted { tool, plain, ipv6, legacy: false }, &mut dump, budget, notes);
        }
        if !tools.nft {
            without_nft(programs, &dump, notes);
        }
    }
    // The legacy tools only list tables named here, and so load none: for_each_table, iptables/iptables-save.c, 1.8.
    for (names, tool, plain, ipv6) in [
        ("ip_tables_names", "iptables-legacy-save", "iptables-save", false),
        ("ip6_tables_names", "ip6tables-legacy-save", "ip6tables-save", true),
    ] {
        let names = match if_there(&roots.proc("thread-self/net").join(names)) {
            Ok(names) => names,
            Err(error) => {
                notes.push(Note {
                    tool: tool.to_owned(),
                    text: format!("which tables of legacy iptables there are is unknown ({names}: {error})"),
                });
                continue;
            }
        };
        if !names.trim().is_empty() {
            save(programs, Wanted { tool, plain, ipv6, legacy: true }, &mut dump, budget, notes);
        }
    }
    match virtual_services(&roots.proc("thread-self/net/ip_vs"), budget.lists()) {
        Ok(services) => dump.ipvs = services,
        Err(why) => notes.push(Note { tool: "ipvs".to_owned(), text: why }),
    }
    dump.unread = std::mem::take(notes);
    dump
}

/// A file that isn't there where the kernel has no such thing; nothing else than that means so.
fn if_there(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// The virtual services of IPVS, without what is counted of them; or why they are unknown.
fn virtual_services(file: &Path, limit: &mut Limit) -> Result<String, String> {
    let mut services = String::new();
    let read = lists::each_line(file, limit, |line| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("->"), Some(server)) => services.extend(["  -> ", server, "\n"]),
            _ => services.extend([line, "\n"]),
        }
        if services.len() > SERVICES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match read {
        Ok(Extent::Whole) if services.len() <= SERVICES => Ok(services),
        Ok(_) => {
            Err("there are more virtual services of IPVS than could be read: they are unknown".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("the virtual services of IPVS are unknown: {error}")),
    }
}

/// Which tables of nf_tables nothing has listed, where nft isn't installed.
fn without_nft(programs: &Programs, dump: &Dump, notes: &mut Vec<Note>) {
    let why = why_not("nft", &programs.find("nft"));
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
            let mut named = unlisted[..unlisted.len().min(TABLES_NAMED)].join(", ");
            if unlisted.len() > TABLES_NAMED {
                named += &format!(" and {} more", unlisted.len() - TABLES_NAMED);
            }
            if !unlisted.is_empty() {
                note(format!("{why}: the rules of {named} are unknown; install nftables"));
            }
        }
        Err(error) => note(format!("{why}: nft rules are unknown ({error:#})")),
    }
}

/// The host's own addresses, and whether it forwards. Whose netns it is has any number of routes and devices: what takes too long is
/// unknown.
fn host(roots: &Roots, limit: &mut Limit, notes: &mut Vec<Note>) -> HostFacts {
    let asked = |is_ipv6| routes::local_networks(is_ipv6, limit.until(), NETWORKS).ok();
    let (own_v4, own_v6) = (asked(false), asked(true));
    let vrfs = vrfs::here(limit.until()).unwrap_or_else(|error| {
        notes.push(Note {
            tool: "rtnetlink".to_owned(),
            text: format!("whether this host has a VRF is unknown: {error:#}"),
        });
        Vec::new()
    });
    HostFacts {
        vrfs,
        own_v4: own_v4.or_else(|| listed_v4(roots, limit)),
        own_v6: own_v6.or_else(|| listed_v6(roots, limit)),
        forwards_v4: forwards(roots, "ipv4", limit),
        forwards_v6: forwards(roots, "ipv6", limit),
    }
}

/// Where the kernel can't be asked for them alone. A hundred thousand routes take its list two seconds, and a million some minutes:
/// each page begins with a walk from the first one (fib_trie_get_idx, net/ipv4/fib_trie.c, 6.18).
fn listed_v4(roots: &Roots, limit: &mut Limit) -> Option<Vec<String>> {
    let mut networks = LocalV4::default();
    let list = roots.proc("thread-self/net/fib_trie");
    let read = lists::each_line(&list, limit, |line| {
        networks.line(line);
        ControlFlow::Continue(())
    });
    matches!(read, Ok(Extent::Whole)).then(|| networks.found()).flatten()
}

fn listed_v6(roots: &Roots, limit: &mut Limit) -> Option<Vec<String>> {
    let mut networks = LocalV6::default();
    let folder = roots.proc("thread-self/net");
    let read = lists::each_line(&folder.join("ipv6_route"), limit, |line| {
        networks.line(line);
        ControlFlow::Continue(())
    });
    match read {
        Ok(Extent::Whole) => networks.found(),
        Ok(Extent::Cut) => None,
        // Without IPv6 there is no such file, and no packet of it.
        Err(_) => (!folder.join("if_inet6").exists() && folder.join("fib_trie").exists()).then(Vec::new),
    }
}

/// Whether any device forwards.
fn forwards(roots: &Roots, ip: &str, limit: &Limit) -> Option<bool> {
    // Bridged packets meet the rules of forwarded ones.
    let bridged = fs::read_to_string(roots.proc("sys/net/bridge/bridge-nf-call-iptables"));
    let bridged = bridged.is_ok_and(|text| text.trim() == "1");
    // /proc/sys shows the netns of its reader.
    let folders = fs::read_dir(roots.proc("sys/net").join(ip).join("conf")).ok()?;
    for folder in folders {
        if bridged {
            return Some(true);
        }
        if limit.is_over() {
            return None;
        }
        let text = fs::read_to_string(folder.ok()?.path().join("forwarding")).ok()?;
        if text.trim() != "0" {
            return Some(true);
        }
    }
    Some(bridged)
}

/// One iptables-save, and what it is called where it has no name of its own for its variant.
struct Wanted {
    tool: &'static str,
    plain: &'static str,
    ipv6: bool,
    legacy: bool,
}

/// Runs one iptables-save. A tool without a name of its own for the variant is taken if it is of that variant.
fn save(programs: &Programs, wanted: Wanted, dump: &mut Dump, budget: &mut Budget, notes: &mut Vec<Note>) {
    let Wanted { tool, plain, ipv6, legacy } = wanted;
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let variant = if legacy { "legacy iptables" } else { "iptables-nft" };
    let found = |tool: &str| programs.find(tool).program().is_some();
    let tool = if found(tool) {
        tool
    } else if found(plain) && is_nf_tables(programs, plain, budget) != legacy {
        plain
    } else {
        // Rules of iptables-nft show in nft's list, and a note comes from there if they are opaque.
        if legacy {
            notes.push(Note {
                tool: tool.to_owned(),
                text: format!(
                    "{variant} has {family} rules, but {}: they are unknown",
                    why_not(tool, &programs.find(tool))
                ),
            });
        }
        return;
    };
    if let Some(text) = run(programs, tool, &[], &format!("{family} rules of {variant}"), budget, notes) {
        dump.saves.push(Save { tool: tool.to_owned(), ipv6, legacy, text });
    }
}

fn is_nf_tables(programs: &Programs, tool: &str, budget: &mut Budget) -> bool {
    let program = programs.find(tool).program();
    let said = program.and_then(|program| output(&program, &["--version"], &programs.path(), budget).ok());
    said.is_some_and(|output| Foreign::from_bytes(&output.stdout).raw().contains("nf_tables"))
}

/// Whether the kernel has nf_tables loaded, if that is known.
fn has_nf_tables(roots: &Roots, mut limit: Limit) -> Option<bool> {
    // A built-in nf_tables has no folder there, but shows its functions.
    if roots.sys("module/nf_tables").exists() {
        return Some(true);
    }
    let mut is_there = false;
    let read = lists::each_line(&roots.proc("kallsyms"), &mut limit, |line| {
        is_there = line.ends_with(" nft_do_chain");
        if is_there { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match read {
        _ if is_there => Some(true),
        Ok(Extent::Whole) => Some(false),
        // A kernel without the list has its modules' folders at least.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            roots.sys("module").exists().then_some(false)
        }
        Ok(Extent::Cut) | Err(_) => None,
    }
}

/// Why a program isn't run.
fn why_not(tool: &str, found: &Found) -> String {
    match found {
        Found::NotTrusted { path, why } => {
            format!("{} is not run, since others than root may have put it there ({why})", path.shown())
        }
        Found::Program(_) | Found::Missing => format!("{tool} is not installed"),
    }
}

/// What the program printed; a note if it couldn't.
fn run(
    programs: &Programs,
    tool: &str,
    arguments: &[&str],
    what: &str,
    budget: &mut Budget,
    notes: &mut Vec<Note>,
) -> Option<String> {
    let mut note = |text: String| notes.push(Note { tool: tool.to_owned(), text });
    let program = match programs.find(tool) {
        Found::Program(program) => program,
        not_run => {
            note(format!("{}: {what} are unknown", why_not(tool, &not_run)));
            return None;
        }
    };
    match output(&program, arguments, &programs.path(), budget) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A host's lists and settings.
    fn roots(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("below")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let roots = Roots { proc: folder.path().to_owned(), sys: folder.path().to_owned() };
        (folder, roots)
    }

    /// As a router with so many routes has them, which are listed before its own addresses.
    fn routes(count: u32) -> String {
        let mut text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n".to_owned();
        for route in 0..count {
            let address = std::net::Ipv4Addr::from_bits((16 << 24) + (route << 8));
            text += &format!("        |-- {address}\n           /24 universe UNICAST\n");
        }
        text + "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.1\n        /32 host LOCAL\n"
    }

    #[test]
    fn a_router_s_own_addresses_are_found_behind_all_its_routes_or_unknown() {
        let (_folder, roots) = roots(&[("thread-self/net/fib_trie", &routes(100_000))]);
        let mut limit = Limit::new(MINUTE, u64::MAX);
        assert_eq!(listed_v4(&roots, &mut limit), Some(vec!["192.0.2.1/32".to_owned()]));
        assert_eq!(listed_v6(&roots, &mut limit), Some(Vec::new()), "it has no IPv6");
        for mut cut in [Limit::new(MINUTE, 1 << 20), Limit::new(Duration::ZERO, u64::MAX)] {
            assert_eq!(listed_v4(&roots, &mut cut), None);
        }
    }

    #[test]
    fn the_kernel_tells_the_same_own_addresses_as_its_lists() {
        // Without routes that come and go meanwhile, as others' tests may have them.
        let both = || {
            let roots = Roots::default();
            let limit = || Limit::new(MINUTE, u64::MAX);
            let sorted = |networks: Option<Vec<String>>| {
                networks.map(|networks| networks.into_iter().collect::<BTreeSet<_>>())
            };
            let asked = |is_ipv6| sorted(routes::local_networks(is_ipv6, limit().until(), NETWORKS).ok());
            let listed = [listed_v4(&roots, &mut limit()), listed_v6(&roots, &mut limit())].map(sorted);
            ([asked(false), asked(true)], listed)
        };
        for _ in 0..50 {
            let ([asked_v4, asked_v6], [listed_v4, listed_v6]) = both();
            if asked_v4.is_some() && asked_v4 == listed_v4 && (asked_v6.is_none() || asked_v6 == listed_v6) {
                return;
            }
        }
        panic!("{:?}", both());
    }

    #[test]
    fn a_flood_of_own_addresses_makes_them_unknown_and_is_not_kept() {
        let mut v4 = "Local:\n".to_owned();
        let mut v6 = String::new();
        for number in 0..70_000_u32 {
            let address = std::net::Ipv4Addr::from_bits((10 << 24) + number);
            v4 += &format!("     |-- {address}\n        /32 host LOCAL\n");
            v6 +=
                &format!("{number:032x} 80 {0:032x} 00 {0:032x} 00000000 00000001 00000000 80200001 lo\n", 0);
        }
        let (_folder, roots) =
            roots(&[("thread-self/net/fib_trie", &v4), ("thread-self/net/ipv6_route", &v6)]);
        let mut limit = Limit::new(MINUTE, u64::MAX);
        assert_eq!((listed_v4(&roots, &mut limit), listed_v6(&roots, &mut limit)), (None, None));
    }

    #[test]
    fn whether_a_host_of_many_devices_forwards_is_unknown_if_there_is_no_time() {
        let off: Vec<String> =
            (0..100).map(|device| format!("sys/net/ipv4/conf/dummy{device}/forwarding")).collect();
        let mut files: Vec<(&str, &str)> = off.iter().map(|path| (path.as_str(), "0\n")).collect();
        let (_folder, without) = roots(&files);
        let time = Limit::new(MINUTE, u64::MAX);
        assert_eq!(forwards(&without, "ipv4", &time), Some(false));
        assert_eq!(forwards(&without, "ipv4", &Limit::new(Duration::ZERO, 0)), None);
        files.push(("sys/net/ipv4/conf/eth0/forwarding", "1\n"));
        let (_folder, with) = roots(&files);
        assert_eq!(forwards(&with, "ipv4", &time), Some(true));
    }

    #[test]
    fn virtual_services_are_kept_without_counts_and_a_flood_of_them_is_unknown() {
        let text =
            "IP Virtual Server\nProt\n  -> Remote\nTCP  0A000001:0050 rr\n  -> 0A000002:1F90 Masq 1 3 5\n";
        let flood = "TCP  0A000001:0050 rr\n".repeat(SERVICES / 20);
        let (folder, _roots) = roots(&[("one", text), ("flood", &flood)]);
        let of = |name: &str| virtual_services(&folder.path().join(name), &mut Limit::new(MINUTE, u64::MAX));
        assert!(of("one").expect("all").ends_with("TCP  0A000001:0050 rr\n  -> 0A000002:1F90\n"));
        assert_eq!((of("flood").is_err(), of("missing")), (true, Ok(String::new())));
        assert!(of("").is_err(), "a folder can't be read, and is no proof of absence");
    }

    #[test]
    fn only_what_is_not_there_is_absent() {
        let (folder, _roots) = roots(&[("sys/net/netfilter/nf_conntrack_helper", "1\n")]);
        let of = |name: &str| if_there(&folder.path().join(name)).map_err(|error| error.kind());
        assert_eq!(of("sys/net/netfilter/nf_conntrack_helper").as_deref(), Ok("1\n"));
        assert_eq!(of("sys/net/netfilter/other").as_deref(), Ok(""));
        assert!(of("sys/net/netfilter").is_err());
    }

    #[test]
    fn a_list_of_symbols_that_was_cut_says_nothing_of_nf_tables() {
        let symbols = "0 T start_kernel\n0 T nft_do_chain\n";
        let (_folder, built_in) = roots(&[("kallsyms", symbols), ("module/x/refcnt", "0")]);
        let time = || Limit::new(MINUTE, u64::MAX);
        assert_eq!(has_nf_tables(&built_in, time()), Some(true));
        assert_eq!(has_nf_tables(&built_in, Limit::new(MINUTE, 20)), None);
        let (_folder, without) = roots(&[("kallsyms", "0 T start_kernel\n"), ("module/x/refcnt", "0")]);
        assert_eq!(has_nf_tables(&without, time()), Some(false));
    }
}
