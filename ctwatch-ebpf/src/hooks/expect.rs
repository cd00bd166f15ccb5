//! `nf_ct_expect_related_report(exp, …)`: a helper (FTP, SIP …) wants to let a further connection in. Where there is no room for
//! one more (`nf_conntrack_expect_max`, or the helper's own limit for one connection) it says -EMFILE, and the helper drops the
//! packet that asked (net/netfilter/nf_conntrack_expect.c and the helpers, 5.10 to 7.3). No counter of conntrack's moves.

use crate::marks;
use crate::percpu::this_cpu;
use aya_ebpf::programs::RetProbeContext;

const EMFILE: i32 = 24;

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    if ctx.ret::<u64>() as i32 != -EMFILE {
        return;
    }
    let Some(cpu) = this_cpu() else { return };
    // SAFETY: the kernel's own registers; this CPU's own map value.
    unsafe { marks::expectation_refused(cpu, (*ctx.regs).rsp) };
}
