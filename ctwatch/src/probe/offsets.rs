//! From BTF and kallsyms to the programs' frozen configuration.
//! Every offset is checked here against the size of the block it is read from; the verifier checks again.

use anyhow::{Context, Result, ensure};
use ctwatch_common::config::{CT_SPAN, Config, HEAD_SPAN, NONE, SKB_SPAN, STAT_SPAN};

use crate::kernel::btf::Btf;
use crate::kernel::symbols::Symbols;

/// Fills in everything that depends on the running kernel. Switches are left at their defaults.
pub fn resolve(btf: &Btf, symbols: &Symbols) -> Result<Config> {
    check_shapes(btf)?;
    let need = |structure: &str, field: &str| {
        btf.offset(structure, field).with_context(|| {
            format!("this kernel's BTF has no field {structure}.{field}, which ctwatch must read")
        })
    };
    let skb = |field: &str| need("sk_buff", field);
    let fields = [skb("dev")?, skb("sk")?, skb("_skb_refdst")?, skb("_nfct")?, skb("len")?];
    let head_fields = [skb("network_header")?, skb("head")?];
    // The read helper works in words of eight bytes; fields keep their alignment relative to the span.
    let start = |fields: &[u32]| fields.iter().min().copied().unwrap_or_default() & !7;
    let (skb_span, head_span) = (start(&fields), start(&head_fields));
    let within = |offset: u32, size: u32, span: usize, what: &str| {
        ensure!(
            offset + size <= span as u32,
            "this kernel's {what} spreads the fields ctwatch reads over more than {span} bytes"
        );
        Ok(offset)
    };
    let in_skb = |offset: u32| within(offset - skb_span, 8, SKB_SPAN, "struct sk_buff");
    let in_head = |offset: u32, size: u32| within(offset - head_span, size, HEAD_SPAN, "struct sk_buff");

    let ct_status = need("nf_conn", "status")?;
    let mut config = Config {
        skb_span,
        skb_dev: in_skb(fields[0])?,
        skb_sk: in_skb(fields[1])?,
        skb_dst: in_skb(fields[2])?,
        skb_nfct: in_skb(fields[3])?,
        skb_len: in_skb(fields[4])?,
        skb_without_len: (fields[..4].iter().max().copied().unwrap_or_default() - skb_span)
            .next_multiple_of(8)
            + 8,
        head_span,
        head_network_header: in_head(head_fields[0], 2)?,
        head_head: in_head(head_fields[1], 8)?,
        skb_data: skb("data")?,
        skb_nfct_absolute: fields[3],
        sock_net: need("sock", "__sk_common.skc_net")?,
        dev_net: need("net_device", "nd_net")?,
        dev_ifindex: need("net_device", "ifindex")?,
        dev_name: need("net_device", "name")?,
        dst_dev: need("dst_entry", "dev")?,
        net_inum: need("net", "ns.inum")?,
        cpus: u32::try_from(aya::util::nr_cpus().map_err(|(what, error)| {
            anyhow::anyhow!("counting the CPUs this kernel may have: {what}: {error}")
        })?)?,
        net_stat: NONE,
        net_count: btf.offset("net", "ct.count").unwrap_or(NONE),
        net_gen: need("net", "gen")?,
        stat_chaintoolong: NONE,
        ct_tuple: need("nf_conn", "tuplehash")? + need("nf_conntrack_tuple_hash", "tuple")?,
        ct_reply: btf
            .size("nf_conntrack_tuple_hash")
            .context("this kernel's BTF has no struct nf_conntrack_tuple_hash")?,
        ct_status,
        ct_net: within(
            need("nf_conn", "ct_net")?
                .checked_sub(ct_status)
                .context("nf_conn.ct_net lies before nf_conn.status")?,
            8,
            CT_SPAN,
            "struct nf_conn",
        )?,
        ct_timeout: need("nf_conn", "timeout")?,
        bpf_array_pptrs: need("bpf_array", "pptrs")?,
        task_nsproxy: need("task_struct", "nsproxy")?,
        nsproxy_net: need("nsproxy", "net_ns")?,
        net_loopback: need("net", "loopback_dev")?,
        net_exit_list: need("net", "exit_list")?,
        net_references: ["ns.__ns_ref", "ns.count", "count"]
            .into_iter()
            .find_map(|field| btf.offset("net", field))
            .context("this kernel's BTF has no reference count in struct net")?,
        ct_tcp_state: btf.offset("nf_conn", "proto.tcp.state").unwrap_or(NONE),
        ct_zone: if_shaped(btf, "nf_conn", "zone", 4),
        skb_iif: if_shaped(btf, "sk_buff", "skb_iif", 4),
        dev_l3mdev: if_shaped(btf, "net_device", "l3mdev_ops", 8),
        task_stack: need("task_struct", "stack")?,
        task_flags: need("task_struct", "flags")?,
        ..Config::default()
    };
    resolve_stat(btf, &mut config)?;
    resolve_symbols(symbols, &mut config);
    if has_netns_limit(btf) {
        // Which limit refused a packet is not known then: an event has the fill of the last sample.
        config.max_address = 0;
    }
    Ok(config)
}

/// The sizes of what the programs read, bytes: the same from 5.10 to 7.3.
const SHAPES: [(&str, &str, u32); 17] = [
    ("sk_buff", "dev", 8),
    ("sk_buff", "sk", 8),
    ("sk_buff", "_skb_refdst", 8),
    ("sk_buff", "_nfct", 8),
    ("sk_buff", "len", 4),
    ("sk_buff", "network_header", 2),
    ("sk_buff", "head", 8),
    ("sk_buff", "data", 8),
    ("net", "ns.inum", 4),
    ("net", "ct.stat", 8),
    ("nf_conn", "status", 8),
    ("nf_conn", "timeout", 4),
    ("ip_conntrack_stat", "drop", 4),
    ("ip_conntrack_stat", "early_drop", 4),
    ("ip_conntrack_stat", "insert_failed", 4),
    ("ip_conntrack_stat", "invalid", 4),
    ("nf_conntrack_tuple_hash", "tuple", 40),
];

/// A field of another size holds something else than it used to: to read it as before would be to guess.
fn check_shapes(btf: &Btf) -> Result<()> {
    for (structure, field, size) in SHAPES {
        if let Some(found) = btf.field_size(structure, field) {
            ensure!(
                found == size,
                "this kernel's BTF has {structure}.{field} in another shape than ctwatch knows: {found} bytes instead of {size}"
            );
        }
    }
    Ok(())
}

/// Where a field is that ctwatch can do without: nowhere if it isn't of this size.
fn if_shaped(btf: &Btf, structure: &str, field: &str, size: u32) -> u32 {
    let offset = btf.offset(structure, field);
    offset.filter(|_| btf.field_size(structure, field) == Some(size)).unwrap_or(NONE)
}

/// Whether each netns has a limit of its own beside the initial one's, as patches under review would have it (none up to
/// 7.3: nf_conntrack_max is one variable).
#[must_use]
pub fn has_netns_limit(btf: &Btf) -> bool {
    btf.offset("net", "ct.sysctl_max").is_some()
}

/// The per-CPU counters.
fn resolve_stat(btf: &Btf, config: &mut Config) -> Result<()> {
    let need = |field: &str| {
        btf.offset("ip_conntrack_stat", field)
            .with_context(|| format!("this kernel's BTF has no field ip_conntrack_stat.{field}"))
    };
    let size = btf.size("ip_conntrack_stat").context("this kernel's BTF has no struct ip_conntrack_stat")?;
    let span = size
        .checked_sub(STAT_SPAN as u32)
        .with_context(|| format!("this kernel's struct ip_conntrack_stat has only {size} bytes"))?;
    let place = |field: &str| -> Result<u32> {
        need(field)?
            .checked_sub(span)
            .with_context(|| format!("ip_conntrack_stat.{field} lies too far from its end"))
    };
    config.net_stat = btf.offset("net", "ct.stat").context("this kernel's BTF has no field net.ct.stat")?;
    config.stat_span = span;
    config.stat_drop = place("drop")?;
    config.stat_insert_failed = place("insert_failed")?;
    config.stat_early_drop = place("early_drop")?;
    config.stat_invalid = place("invalid")?;
    if btf.offset("ip_conntrack_stat", "chaintoolong").is_some() {
        config.stat_chaintoolong = place("chaintoolong")?;
    }
    config.has_stat = 1;
    Ok(())
}

fn resolve_symbols(symbols: &Symbols, config: &mut Config) {
    for (index, name) in ["nf_hook_slow", "nf_hook_slow.cold"].into_iter().enumerate() {
        if let Some(symbol) = symbols.get(name) {
            config.nf_hook_slow[index] = symbol.address;
            config.nf_hook_slow_len[index] = symbol.end - symbol.address;
        }
    }
    config.max_address = symbols.data("nf_conntrack_max").map_or(0, |symbol| symbol.address);
    config.per_cpu_offset = symbols.data("__per_cpu_offset").map_or(0, |symbol| symbol.address);
    config.net_id_address = symbols.data("nf_conntrack_net_id").map_or(0, |symbol| symbol.address);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::Builder;

    /// `struct net` with a limit of its own, and per-CPU counters of this size.
    fn coming_kernel(counter: u32) -> Btf {
        const INT: u32 = 1;
        const STRUCT: u32 = 4;
        let mut builder = Builder::new();
        let name = builder.name("counter");
        builder.words(&[name, INT << 24, counter, counter * 8]); // 1
        builder.aggregate(STRUCT, "netns_ct", 4, &[("sysctl_max", 1, 0)]); // 2
        builder.aggregate(STRUCT, "net", 4, &[("ct", 2, 0)]);
        builder.aggregate(STRUCT, "ip_conntrack_stat", counter, &[("drop", 1, 0)]);
        builder.build()
    }

    #[test]
    fn a_field_of_another_size_is_named_and_not_misread() {
        assert!(check_shapes(&coming_kernel(4)).is_ok());
        let error = check_shapes(&coming_kernel(8)).expect_err("it is a u64 now").to_string();
        assert!(
            error.contains("ip_conntrack_stat.drop") && error.contains("8 bytes instead of 4"),
            "{error}"
        );
    }

    #[test]
    fn what_ctwatch_can_do_without_is_left_out_if_it_has_another_shape() {
        let btf = coming_kernel(4);
        assert_eq!(if_shaped(&btf, "ip_conntrack_stat", "drop", 4), 0);
        assert_eq!(if_shaped(&btf, "ip_conntrack_stat", "drop", 8), NONE);
        assert_eq!(if_shaped(&btf, "nf_conn", "zone", 4), NONE);
    }

    #[test]
    fn a_limit_of_each_netns_is_noticed() {
        assert!(has_netns_limit(&coming_kernel(4)));
    }
}
