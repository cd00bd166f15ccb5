//! Inserts that `__nf_conntrack_confirm` starts but that fail after all, and those that don't pass through it:
//! `nf_ct_resolve_clash` drops or replaces the entry; ctnetlink and BPF insert by `nf_conntrack_hash_check_insert`.

use crate::config::config;
use crate::emit::{self, Field};
use crate::maps::{ANY, CLASHED, Clashed, INSERTING, Inserting};
use crate::netns;
use crate::packet::service_of_tuple;
use crate::read::{read, service_word, stack_at_entry, stack_at_its_entry};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

/// include/uapi/linux/netfilter.h
const NF_DROP: u32 = 0;
/// The same.
const NF_ACCEPT: u32 = 1;

/// Two CPUs insert the same tuple: this one came second.
#[inline(always)]
pub fn on_clash(ctx: &ProbeContext) {
    let Some(skb) = ctx.arg::<u64>(0) else { return };
    let nfct: u64 = read(skb + u64::from(config!(skb_nfct_absolute)));
    keep(ctx, skb, nfct & !7);
}

/// Unless the packet still holds its own entry and passes, that entry was not inserted.
#[inline(always)]
pub fn on_clash_resolved(ctx: &RetProbeContext) {
    let Some(kept) = take(ctx) else { return };
    let verdict = ctx.ret::<u32>();
    if verdict == NF_ACCEPT {
        let nfct: u64 = read(kept.skb + u64::from(config!(skb_nfct_absolute)));
        if nfct & !7 == kept.entry {
            return;
        }
    }
    emit::count_flow(kept.netns, kept.proto, kept.port, Field::Failed);
    if config!(preempts) != 0 && verdict == NF_DROP {
        // SAFETY: the helper has no preconditions.
        let clashed = Clashed { since: kept.since, cpu: u64::from(unsafe { bpf_get_smp_processor_id() }) };
        let _ = CLASHED.insert(kept.entry, clashed, ANY);
    }
}

/// Someone other than a packet inserts an entry.
#[inline(always)]
pub fn on_created(ctx: &ProbeContext) {
    let Some(entry) = ctx.arg::<u64>(0) else { return };
    keep(ctx, 0, entry);
}

/// Returns 0 if the entry is in the table.
#[inline(always)]
pub fn on_created_return(ctx: &RetProbeContext) {
    let Some(kept) = take(ctx) else { return };
    if ctx.ret::<u32>() == 0 {
        emit::count_flow(kept.netns, kept.proto, kept.port, Field::Inserts);
    }
}

#[inline(always)]
fn keep(ctx: &ProbeContext, skb: u64, entry: u64) {
    if entry == 0 {
        return;
    }
    let net: u64 = read(entry + u64::from(config!(ct_status)) + u64::from(config!(ct_net)));
    let (proto, port) = service_of_tuple(service_word(entry));
    // SAFETY: the helper has no preconditions.
    let since = unsafe { bpf_jiffies64() };
    let kept = Inserting { skb, entry, since, netns: netns::inum(net), port, proto, reserved: 0 };
    let _ = INSERTING.insert(stack_at_entry(ctx), kept, ANY);
}

#[inline(always)]
fn take(ctx: &RetProbeContext) -> Option<Inserting> {
    let key = stack_at_its_entry(ctx);
    let found = INSERTING.get_ptr(key)?;
    // SAFETY: a pointer into the map's value, of this context alone.
    let kept = unsafe { *found };
    let _ = INSERTING.remove(key);
    Some(kept)
}
