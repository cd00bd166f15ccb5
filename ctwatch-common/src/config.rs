//! What user space tells the programs before they load: struct offsets of the running kernel and switches.
//! It is in .rodata, frozen at load, so the verifier folds every branch on it.

/// An offset or address that this kernel does not have.
pub const NONE: u32 = u32::MAX;

/// Bytes of `struct sk_buff` read in one go: who the packet belongs to.
pub const SKB_SPAN: usize = 112;
/// Bytes of `struct sk_buff` read for a packet that conntrack dropped: where its headers are.
pub const HEAD_SPAN: usize = 32;
/// Bytes of `struct ip_conntrack_stat` read in one go (its last ones).
pub const STAT_SPAN: usize = 48;
/// Bytes of `struct nf_conn` read in one go, from `status` on.
pub const CT_SPAN: usize = 24;
/// CPUs whose counters can be summed when a netns is destroyed: the largest CONFIG_NR_CPUS of x86-64. Maps are made as large
/// as the running kernel needs, and the verifier follows loops no further.
pub const MAX_CPUS: u32 = 8192;
/// CPUs among whose marks a task that was migrated in the middle of a drop looks for its own: the verifier takes no more. A
/// mark on another CPU is not found, and its loss is counted without a tuple.
pub const SEARCHED_CPUS: u32 = 512;
/// Offset of the packet's address in the tracepoint kfree_skb as perf passes it on; the location of the drop comes next.
pub const KFREE_SKB_ADDRESS: u32 = 8;
/// Kernel stacks are aligned to this on x86-64 (THREAD_SIZE, arch/x86/include/asm/page_64_types.h).
pub const STACK_ALIGN: u64 = 16 << 10;

/// Offsets and switches. Offsets are bytes from the start of the struct named first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Start of `nf_hook_slow`, and of its cold part (0 if none).
    pub nf_hook_slow: [u64; 2],
    /// Their lengths, bytes.
    pub nf_hook_slow_len: [u64; 2],
    /// Address of `nf_conntrack_max`, 0 if kallsyms doesn't give it.
    pub max_address: u64,
    /// Address of `nf_conntrack_net_id`, 0 if kallsyms doesn't give it or the kernel has `net.ct.count`.
    pub net_id_address: u64,
    /// Address of `__per_cpu_offset`, 0 if kallsyms doesn't give it.
    pub per_cpu_offset: u64,
    /// Where the span of sk_buff starts, and fields relative to **that**.
    pub skb_span: u32,
    /// sk_buff.dev
    pub skb_dev: u32,
    /// sk_buff.sk
    pub skb_sk: u32,
    /// sk_buff._skb_refdst
    pub skb_dst: u32,
    /// sk_buff._nfct
    pub skb_nfct: u32,
    /// sk_buff.len
    pub skb_len: u32,
    /// How many bytes of the span hold all of these but `skb_len`, which only single events need.
    pub skb_without_len: u32,
    /// Where the span of sk_buff that says where its headers are starts, and fields relative to **that**.
    pub head_span: u32,
    /// sk_buff.network_header
    pub head_network_header: u32,
    /// sk_buff.head
    pub head_head: u32,
    /// sk_buff.data, from the start of the struct
    pub skb_data: u32,
    /// sk_buff._nfct, from the start of the struct (for probes that read nothing else).
    pub skb_nfct_absolute: u32,
    /// sock.__sk_common.skc_net
    pub sock_net: u32,
    /// net_device.nd_net
    pub dev_net: u32,
    /// net_device.ifindex
    pub dev_ifindex: u32,
    /// net_device.name
    pub dev_name: u32,
    /// dst_entry.dev
    pub dst_dev: u32,
    /// net.ns.inum
    pub net_inum: u32,
    /// net.ct.stat
    pub net_stat: u32,
    /// net.ct.count, [`NONE`] from 5.12 on
    pub net_count: u32,
    /// net.gen
    pub net_gen: u32,
    /// Where the span of ip_conntrack_stat starts, and fields relative to **that**.
    pub stat_span: u32,
    /// ip_conntrack_stat.drop
    pub stat_drop: u32,
    /// ip_conntrack_stat.insert_failed
    pub stat_insert_failed: u32,
    /// ip_conntrack_stat.early_drop
    pub stat_early_drop: u32,
    /// ip_conntrack_stat.invalid
    pub stat_invalid: u32,
    /// ip_conntrack_stat.chaintoolong, [`NONE`] in 5.10
    pub stat_chaintoolong: u32,
    /// The tuple in nf_conn.tuplehash, original direction
    pub ct_tuple: u32,
    /// The tuple of the reply direction, from that one
    pub ct_reply: u32,
    /// nf_conn.status: the span starts here
    pub ct_status: u32,
    /// nf_conn.ct_net, relative to `ct_status`
    pub ct_net: u32,
    /// nf_conn.timeout
    pub ct_timeout: u32,
    /// bpf_array.pptrs
    pub bpf_array_pptrs: u32,
    /// task_struct.nsproxy
    pub task_nsproxy: u32,
    /// nsproxy.net_ns
    pub nsproxy_net: u32,
    /// net.loopback_dev
    pub net_loopback: u32,
    /// net.exit_list
    pub net_exit_list: u32,
    /// net.ns.count (5.10: net.count, from 6.18 on: net.ns.__ns_ref): 0 in a netns that is being destroyed.
    pub net_references: u32,
    /// nf_conn.proto.tcp.state
    pub ct_tcp_state: u32,
    /// nf_conn.zone, [`NONE`] without CONFIG_NF_CONNTRACK_ZONES
    pub ct_zone: u32,
    /// sk_buff.skb_iif, from the start of the struct; [`NONE`] if unknown
    pub skb_iif: u32,
    /// net_device.l3mdev_ops, [`NONE`] without CONFIG_NET_L3_MASTER_DEV
    pub dev_l3mdev: u32,
    /// task_struct.stack
    pub task_stack: u32,
    /// task_struct.flags
    pub task_flags: u32,
    /// `nf_ct_delete` is probed at its `.part.0`: DYING is set already, the arguments after `ct` are gone.
    pub delete_is_part: u32,
    /// The programs may read the kernel's per-CPU counters (all offsets known).
    pub has_stat: u32,
    /// Losses are counted by the kfree_skb programs (else by the init_conntrack pair).
    pub by_kfree_skb: u32,
    /// `early_drop` is probed, so a refusal without it means out of memory.
    pub early_drop_probed: u32,
    /// The init_conntrack pair is on `__nf_conntrack_alloc`, whose 6th argument is 0 for ctnetlink.
    pub pair_on_alloc: u32,
    /// Inserts go to the ring buffer too (`--events=insert`).
    pub insert_events: u32,
    /// Losses go to the ring buffer: their tuples are wanted.
    pub loss_events: u32,
    /// The senders of lost packets are wanted.
    pub owners: u32,
    /// Inserts and deletes are counted.
    pub flows: u32,
    /// `nf_conntrack_pernet_exit` is probed: the programs forget a netns when it is destroyed.
    pub exit_probed: u32,
    /// Tasks are preempted where raw tracepoints run (7.0 and later): a packet may be freed on another CPU than the one
    /// it was refused on.
    pub preempts: u32,
    /// The number of possible CPUs.
    pub cpus: u32,
    /// Single events are wanted in full: with time, fill and device name.
    pub event_details: u32,
}

const _: () = assert!(size_of::<Config>().is_multiple_of(8));
