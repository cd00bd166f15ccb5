//! Which places beside `nf_hook_slow` free packets that conntrack refused on this kernel, as it is now: two of them come with
//! modules. Pure but for one look at which modules are loaded.

use std::os::unix::fs::MetadataExt;

use ctwatch_common::door::{DOORS, Door, kind};

use crate::kernel::roots::Roots;
use crate::kernel::symbols::Symbols;

/// What brings a door with it, or keeps one in the kernel open, and a function by which its symbols are known.
const MODULES: [(&str, &str); 4] = [
    ("nfnetlink_queue", "nfqnl_reinject"),
    ("openvswitch", "ovs_ct_execute"),
    ("act_ct", "tcf_ct_act"),
    ("nf_conntrack_bridge", "nf_ct_bridge_pre"),
];
/// The longest that a function may be said to be: where a module's last one ends, kallsyms doesn't tell.
const LONGEST: u64 = 16 << 10;

/// The doors of a kernel with these symbols:
///
/// - `nf_reinject` (net/netfilter/nf_queue.c; in 6.12 and 7.3 nfnetlink_queue.c, inlined into `nfqnl_reinject`) runs the hooks
///   behind the one that queued a packet;
/// - `ovs_ct_execute` (net/openvswitch/conntrack.c);
/// - `tcf_ct_act` (net/sched/act_ct.c) answers TC_ACT_SHOT, and its caller frees the packet: `sch_handle_ingress` and
///   `sch_handle_egress` (net/core/dev.c), inlined into these two. Before 6.11 it let a refused packet go on, and its mark
///   and count would be taken for those of the next packet that tc drops;
/// - `nf_hook_bridge_pre` (net/bridge/br_input.c), inlined into `br_handle_frame`, runs the hooks of a bridge by itself: a door while
///   bridges track connections (`ct` in a table of the family bridge loads nf_conntrack_bridge).
#[must_use]
pub fn find(symbols: &Symbols, release: Option<(u32, u32)>) -> Vec<Door> {
    let has = |function| symbols.parts(function).next().is_some();
    let reinject = if has("nf_reinject") { "nf_reinject" } else { "nfqnl_reinject" };
    let mut functions = vec![(reinject, kind::NFQUEUE), ("ovs_ct_execute", kind::OPENVSWITCH)];
    if has("tcf_ct_act") && release >= Some((6, 11)) {
        functions.push(("__netif_receive_skb_core", kind::TC_INGRESS));
        functions.push(("__dev_queue_xmit", kind::TC_EGRESS));
    }
    if has("nf_ct_bridge_pre") {
        functions.push(("br_handle_frame", kind::BRIDGE));
    }
    let mut doors = Vec::new();
    for (function, kind) in functions {
        let mut parts: Vec<_> = symbols.parts(function).filter(|part| part.address != 0).collect();
        parts.sort_by_key(|part| part.address);
        for part in parts {
            let length = match part.end - part.address {
                0 => LONGEST,
                length => length.min(LONGEST),
            };
            doors.push(Door::new(part.address, length as u32, kind));
        }
    }
    doors.truncate(DOORS);
    doors
}

/// The modules with doors that are loaded. Their identities change with each load, so that a reload between two looks shows.
pub type Loaded = [Option<u64>; MODULES.len()];

/// Looks which modules with doors are loaded.
#[must_use]
pub fn loaded(roots: &Roots) -> Loaded {
    MODULES.map(|(name, _)| {
        let folder = std::fs::metadata(roots.sys("module").join(name));
        folder.ok().map(|folder| folder.ino())
    })
}

/// Those of them that were there when the symbols were read.
#[must_use]
pub fn known(mut loaded: Loaded, symbols: &Symbols) -> Loaded {
    for (identity, (_, function)) in loaded.iter_mut().zip(MODULES) {
        identity.take_if(|_| symbols.parts(function).next().is_none());
    }
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(text: &str) -> Symbols {
        Symbols::parse(text.as_bytes()).expect("readable kallsyms")
    }

    const DEBIAN_6_12: &str = "\
ffffffff81000000 t __netif_receive_skb_core.constprop.0
ffffffff81001000 T other
ffffffff81002000 T __dev_queue_xmit
ffffffff81002f00 T another
ffffffffc0001000 t ovs_ct_get_info\t[openvswitch]
ffffffffc0000100 t ovs_ct_execute\t[openvswitch]
ffffffffc0000900 t ovs_ct_clear\t[openvswitch]
ffffffffc0000500 T ovs_ct_put_key\t[openvswitch]
ffffffffc0009200 t nfqnl_flush\t[nfnetlink_queue]
ffffffffc0009000 t nfqnl_reinject\t[nfnetlink_queue]
ffffffffc0008000 t nfqnl_recv_verdict\t[nfnetlink_queue]
";

    #[test]
    fn a_door_ends_where_the_next_function_of_its_module_begins_in_whatever_order_they_come() {
        let doors = find(&symbols(DEBIAN_6_12), Some((6, 12)));
        assert_eq!(
            doors,
            [
                Door::new(0xffff_ffff_c000_9000, 0x200, kind::NFQUEUE),
                Door::new(0xffff_ffff_c000_0100, 0x400, kind::OPENVSWITCH),
            ]
        );
    }

    #[test]
    fn the_doors_of_tc_are_open_while_act_ct_is_there() {
        let with = format!("{DEBIAN_6_12}ffffffffc000a000 t tcf_ct_act\t[act_ct]\n");
        let doors = find(&symbols(&with), Some((6, 12)));
        assert_eq!(
            doors[2..],
            [
                Door::new(0xffff_ffff_8100_0000, 0x1000, kind::TC_INGRESS),
                Door::new(0xffff_ffff_8100_2000, 0xf00, kind::TC_EGRESS),
            ]
        );
        for it_lets_packets_go_on in [Some((6, 1)), None] {
            assert_eq!(find(&symbols(&with), it_lets_packets_go_on), doors[..2]);
        }
    }

    #[test]
    fn the_door_of_bridges_is_open_while_they_track_connections() {
        let bridge =
            "ffffffffc000b000 t br_handle_frame\t[bridge]\nffffffffc000b300 t br_pass_frame_up\t[bridge]\n";
        assert_eq!(find(&symbols(bridge), None), []);
        let with = format!("{bridge}ffffffffc000c000 t nf_ct_bridge_pre\t[nf_conntrack_bridge]\n");
        assert_eq!(find(&symbols(&with), None), [Door::new(0xffff_ffff_c000_b000, 0x300, kind::BRIDGE)]);
    }

    #[test]
    fn where_packets_come_back_in_the_kernel_itself_its_module_has_no_door() {
        let found = find(
            &symbols(
                "ffffffff81000000 T nf_reinject\nffffffff81000200 T other\nffffffffc0009000 t nfqnl_reinject\t[nfnetlink_queue]\n",
            ),
            Some((6, 1)),
        );
        assert_eq!(found, [Door::new(0xffff_ffff_8100_0000, 0x200, kind::NFQUEUE)]);
    }

    #[test]
    fn where_the_last_function_of_all_ends_is_not_known_and_it_is_not_taken_for_long() {
        let doors = find(&symbols("ffffffffc0009000 t nfqnl_reinject\t[nfnetlink_queue]\n"), None);
        assert_eq!(doors, [Door::new(0xffff_ffff_c000_9000, LONGEST as u32, kind::NFQUEUE)]);
    }

    #[test]
    fn addresses_that_are_hidden_are_no_doors() {
        assert_eq!(find(&symbols("0000000000000000 T nf_reinject\n0000000000000000 T other\n"), None), []);
    }

    #[test]
    fn a_module_that_came_after_the_symbols_were_read_is_not_known() {
        let loaded = [Some(1), Some(2), Some(3), Some(4)];
        assert_eq!(known(loaded, &symbols(DEBIAN_6_12)), [Some(1), Some(2), None, None]);
    }
}
