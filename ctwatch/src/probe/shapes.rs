//! What the programs take from the functions they hook, against what this kernel's types say of these. A function in another
//! shape is left alone: to read its arguments as before would be to guess.

use std::collections::BTreeMap;

use super::plan::HookKind;
use super::refusal::HookRefused;
use crate::kernel::btf::Functions;

/// The arguments a program reads, by position, as C writes their types without qualifiers (net/netfilter/nf_conntrack_core.c and
/// nf_conntrack_standalone.c, 5.10 to 7.3).
const TAKEN: [(&str, &[(usize, &str)]); 8] = [
    ("nf_ct_delete", &[(0, "struct nf_conn *"), (1, "u32"), (2, "int")]),
    ("__nf_conntrack_confirm", &[(0, "struct sk_buff *")]),
    ("nf_ct_resolve_clash", &[(0, "struct sk_buff *")]),
    ("nf_conntrack_hash_check_insert", &[(0, "struct nf_conn *")]),
    ("nf_conntrack_pernet_exit", &[(0, "struct list_head *")]),
    ("nf_conntrack_in", &[(0, "struct sk_buff *")]),
    ("init_conntrack", &[(0, "struct net *"), (2, "struct nf_conntrack_tuple *"), (3, "struct sk_buff *")]),
    ("__nf_conntrack_alloc", &[(0, "struct net *"), (2, "struct nf_conntrack_tuple *"), (5, "u32")]),
];
/// The same of the tracepoint kfree_skb (include/trace/events/skb.h).
const OF_KFREE_SKB: [(usize, &str); 2] = [(0, "struct sk_buff *"), (1, "void *")];

/// What was found.
#[derive(Debug, Default)]
pub struct Shapes {
    /// Those that take what ctwatch expects.
    pub as_known: Vec<&'static str>,
    /// Those that take something else.
    pub others: Vec<HookRefused>,
}

/// Compares all functions of which this kernel has types.
#[must_use]
pub fn compare(functions: &Functions<'_>) -> Shapes {
    compare_with(&functions.arguments(&TAKEN.map(|(name, _)| name)), functions.of_kfree_skb().as_deref())
}

fn compare_with(known: &BTreeMap<&'static str, Vec<String>>, kfree_skb: Option<&[String]>) -> Shapes {
    let mut shapes = Shapes::default();
    let mut one = |function: &'static str, kind, taken: &[(usize, &str)], found: &[String]| {
        let is_as_known =
            |(place, wanted): &(usize, &str)| found.get(*place).is_some_and(|found| found == wanted);
        if taken.iter().all(is_as_known) {
            shapes.as_known.push(function);
        } else {
            let why = format!("it takes other arguments than ctwatch knows: ({})", found.join(", "));
            shapes.others.push(HookRefused { function: function.to_owned(), kind, why });
        }
    };
    for (function, taken) in TAKEN {
        if let Some(found) = known.get(function) {
            one(function, HookKind::Kprobe, taken, found);
        }
    }
    if let Some(found) = kfree_skb {
        one("kfree_skb", HookKind::RawTracepoint, &OF_KFREE_SKB, found);
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(of: &[&str]) -> Vec<String> {
        of.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn a_function_that_takes_something_else_is_named_and_one_that_takes_more_is_not() {
        let known = BTreeMap::from([
            ("nf_ct_delete", arguments(&["struct net *", "struct nf_conn *", "u32", "int"])),
            ("__nf_conntrack_confirm", arguments(&["struct sk_buff *", "bool"])),
        ]);
        let kfree_skb = arguments(&["struct sk_buff *", "void *", "enum skb_drop_reason", "struct sock *"]);
        let shapes = compare_with(&known, Some(&kfree_skb));
        assert_eq!(shapes.as_known, ["__nf_conntrack_confirm", "kfree_skb"]);
        let [other] = &shapes.others[..] else { panic!("{shapes:?}") };
        assert_eq!(
            other.why,
            "it takes other arguments than ctwatch knows: (struct net *, struct nf_conn *, u32, int)"
        );
    }
}
