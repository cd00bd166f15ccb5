//! Addresses and exact names of the kernel functions ctwatch hooks, from /proc/kallsyms.
//! A function may carry a compiler's suffix (.constprop.0, .isra.0, .part.0): only the known ones are accepted.

use crate::foreign::Shown as _;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Functions and data to look for, without suffix.
const WANTED: [&[u8]; 24] = [
    b"nf_hook_slow",
    b"early_drop",
    b"nf_ct_delete",
    b"__nf_conntrack_confirm",
    b"__nf_conntrack_alloc",
    b"init_conntrack",
    b"gc_worker",
    b"nf_ct_resolve_clash",
    b"nf_ct_expect_related_report",
    b"nf_conntrack_hash_check_insert",
    b"nf_conntrack_pernet_exit",
    b"nf_conntrack_in",
    b"nf_conntrack_max",
    b"nf_conntrack_net_id",
    b"__per_cpu_offset",
    b"init_net",
    b"nf_reinject",
    b"nfqnl_reinject",
    b"ovs_ct_execute",
    b"tcf_ct_act",
    b"br_handle_frame",
    b"nf_ct_bridge_pre",
    b"__netif_receive_skb_core",
    b"__dev_queue_xmit",
];
/// How a line ends whose symbol is in a module of which the length of a function matters: there symbols come in any order.
const UNSORTED: [&[u8]; 3] = [b"\t[nfnetlink_queue]\n", b"\t[openvswitch]\n", b"\t[bridge]\n"];
/// "ffffffff81000000 T " comes before the name.
const NAME_AT: usize = 19;

/// What a compiler appends to the name of a function that it copied or split, with a number.
const SUFFIXES: [&str; 3] = [".constprop.", ".isra.", ".part."];

/// One symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name with any suffix, as kprobes want it.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Where the next symbol starts: the function ends before it.
    pub end: u64,
    /// It is data, not code.
    pub is_data: bool,
}

/// The symbols found.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    found: HashMap<String, Symbol>,
    /// kallsyms shows only zeroes (kptr_restrict, or not root).
    pub hidden: bool,
    /// Functions that are there and can't be hooked, without suffix, and why.
    refused: HashMap<String, String>,
}

impl Symbols {
    /// Reads a kallsyms file.
    pub fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.shown()))?;
        Self::parse(BufReader::with_capacity(1 << 16, file))
            .with_context(|| format!("reading {}", path.shown()))
    }

    /// Reads kallsyms text.
    pub fn parse(mut reader: impl BufRead) -> Result<Self> {
        let mut symbols = Self { hidden: true, ..Self::default() };
        // The symbols before a section's end are sorted, so a function ends where the next greater address starts.
        let mut open: Vec<String> = Vec::new();
        let mut unsorted: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        // The second character of those that are wanted: the first is mostly an underscore, or that of a subsystem.
        let mut begins = [false; 256];
        for wanted in WANTED {
            begins[usize::from(wanted[1])] = true;
        }
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            // 200,000 lines, of which a handful matter: look at the name's place before parsing anything.
            let may_matter = line.get(NAME_AT..).is_some_and(|name| {
                name.get(1).is_some_and(|second| begins[usize::from(*second)])
                    && WANTED.iter().any(|one| name.starts_with(one))
            });
            let is_unsorted = line.ends_with(b"]\n") && UNSORTED.iter().any(|module| line.ends_with(module));
            if !may_matter && !is_unsorted && open.is_empty() && !symbols.hidden {
                continue;
            }
            let Some((address, kind, name)) = split(&line) else { continue };
            if address != 0 {
                symbols.hidden = false;
            }
            if is_unsorted {
                unsorted.push(address);
            }
            open.retain(|name| match symbols.found.get_mut(name) {
                Some(symbol) if address > symbol.address => {
                    symbol.end = address;
                    false
                }
                _ => true,
            });
            let wanted = may_matter && WANTED.iter().any(|wanted| is_variant(name.as_bytes(), wanted));
            if wanted && !symbols.found.contains_key(name) {
                // nm(1): b and d are writable data, r is read-only; text is t, w a weak symbol of it.
                let is_data = matches!(kind.to_ascii_lowercase(), 'b' | 'd' | 'r');
                let symbol = Symbol { name: name.to_owned(), address, end: address, is_data };
                symbols.found.insert(name.to_owned(), symbol);
                open.push(name.to_owned());
            }
        }
        for symbol in symbols.found.values_mut() {
            // Of addresses that came earlier, one may be nearer.
            let end = if symbol.end > symbol.address { symbol.end } else { u64::MAX };
            let nearer = unsorted.iter().filter(|address| **address > symbol.address && **address < end);
            symbol.end = nearer.min().copied().unwrap_or(symbol.end);
        }
        Ok(symbols)
    }

    /// The kernel doesn't allow hooks on this function (it is notrace, or blacklisted): from here on it isn't there, in none of
    /// its parts.
    pub fn refuse(&mut self, function: &str, why: String) {
        let whole =
            SUFFIXES.iter().find_map(|suffix| Some(function.split_once(suffix)?.0)).unwrap_or(function);
        self.found.retain(|name, _| !is_variant(name.as_bytes(), whole.as_bytes()));
        self.refused.insert(whole.to_owned(), why);
    }

    /// Why a function can't be hooked although it is there.
    #[must_use]
    pub fn refusal(&self, function: &str) -> Option<&str> {
        self.refused.get(function).map(String::as_str)
    }

    /// The symbol of exactly this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Symbol> {
        self.found.get(name)
    }

    /// All code of a function: its body, its copies, and their cold parts.
    pub fn parts(&self, name: &str) -> impl Iterator<Item = &Symbol> {
        self.found
            .values()
            .filter(move |symbol| !symbol.is_data && is_variant(symbol.name.as_bytes(), name.as_bytes()))
    }

    /// The variable of exactly this name: a function that took over its name is none.
    #[must_use]
    pub fn data(&self, name: &str) -> Option<&Symbol> {
        self.get(name).filter(|symbol| symbol.is_data)
    }

    /// The symbol of this name, else the one with a known suffix that keeps its arguments.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&Symbol> {
        self.get(name).or_else(|| {
            let mut variants: Vec<_> = self
                .found
                .values()
                .filter(|symbol| {
                    symbol.name.strip_prefix(name).is_some_and(|suffix| {
                        (suffix.starts_with(".constprop.") || suffix.starts_with(".isra."))
                            && !suffix.ends_with(".cold")
                    })
                })
                .collect();
            variants.sort_by(|a, b| a.name.cmp(&b.name));
            variants.first().copied()
        })
    }
}

/// "address type name [module]"
fn split(line: &[u8]) -> Option<(u64, char, &str)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?.chars().next()?;
    Some((address, kind, words.next()?))
}

fn is_variant(name: &[u8], wanted: &[u8]) -> bool {
    let Some(suffix) = name.strip_prefix(wanted) else { return false };
    let suffix = suffix.strip_suffix(b".cold").unwrap_or(suffix);
    suffix.is_empty()
        || SUFFIXES.iter().any(|known| {
            suffix.strip_prefix(known.as_bytes()).is_some_and(|number| number.iter().all(u8::is_ascii_digit))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_5_10: &str = "\
ffffffff81000000 T nf_hook_slow
ffffffff81000000 T nf_hook_slow_alias
ffffffff810000d0 T nf_hook_slow_list
ffffffff81000200 t nf_hook_slow.cold
ffffffff81000210 t other
ffffffffc0001000 t early_drop\t[nf_conntrack]
ffffffffc0001200 t init_conntrack.constprop.0\t[nf_conntrack]
ffffffffc0001300 t init_conntrack.constprop.0.cold\t[nf_conntrack]
ffffffffc0001400 t nf_ct_delete.part.0\t[nf_conntrack]
ffffffffc0001500 T nf_ct_delete\t[nf_conntrack]
ffffffffc0001600 t nf_ct_delete_from_lists\t[nf_conntrack]
";

    fn symbols(text: &str) -> Symbols {
        Symbols::parse(text.as_bytes()).expect("readable kallsyms")
    }

    #[test]
    fn a_function_ends_where_the_next_one_starts() {
        let found = symbols(DEBIAN_5_10);
        let function = found.get("nf_hook_slow").expect("it is there");
        assert_eq!((function.address, function.end), (0xffff_ffff_8100_0000, 0xffff_ffff_8100_00d0));
        let cold = found.get("nf_hook_slow.cold").expect("it is there");
        assert_eq!(cold.end - cold.address, 0x10);
    }

    #[test]
    fn known_suffixes_are_followed_and_cold_parts_are_not() {
        let found = symbols(DEBIAN_5_10);
        assert_eq!(found.function("init_conntrack").expect("found").name, "init_conntrack.constprop.0");
        assert_eq!(found.function("nf_ct_delete").expect("found").name, "nf_ct_delete");
        assert!(found.get("nf_ct_delete.part.0").is_some());
        assert!(found.function("__nf_conntrack_alloc").is_none());
    }

    #[test]
    fn cold_parts_belong_to_a_function_and_its_namesakes_do_not() {
        let found = symbols(DEBIAN_5_10);
        let names = |function| {
            let mut names: Vec<&str> = found.parts(function).map(|part| part.name.as_str()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(
            names("init_conntrack"),
            ["init_conntrack.constprop.0", "init_conntrack.constprop.0.cold"]
        );
        assert_eq!(names("nf_hook_slow"), ["nf_hook_slow", "nf_hook_slow.cold"]);
    }

    #[test]
    fn a_function_is_no_variable() {
        let found = symbols("ffffffffc0001000 d nf_conntrack_max\t[nf_conntrack]\n");
        assert!(found.data("nf_conntrack_max").is_some());
        let found = symbols("ffffffffc0001000 t nf_conntrack_max\t[nf_conntrack]\n");
        assert!(found.data("nf_conntrack_max").is_none() && found.get("nf_conntrack_max").is_some());
    }

    #[test]
    fn a_function_at_the_end_of_all_addresses_has_no_end() {
        let found = symbols("ffffffffffffffff t early_drop\n");
        assert_eq!(found.get("early_drop").map(|symbol| symbol.end), Some(u64::MAX));
    }

    #[test]
    fn hidden_addresses_are_noticed() {
        assert!(symbols("0000000000000000 T nf_hook_slow\n").hidden);
        assert!(!symbols(DEBIAN_5_10).hidden);
    }
}
