//! The same counters over ctnetlink, which every kernel with conntrack-tools has: per CPU by IPCTNL_MSG_CT_GET_STATS_CPU,
//! the entry count by IPCTNL_MSG_CT_GET_STATS (net/netfilter/nf_conntrack_netlink.c, 5.10 to 7.3). Needs CAP_NET_ADMIN.

use anyhow::{Context, Result, bail, ensure};
use ctwatch_common::classify::Counters;

use super::Stat;
use crate::kernel::netlink::{self, DONE, ERROR, Next};
use crate::model::CounterSource;

// NFNL_SUBSYS_CTNETLINK << 8 | enum cntl_msg_types (include/uapi/linux/netfilter/nfnetlink_conntrack.h)
const GET_STATS_CPU: u16 = 1 << 8 | 4;
const GET_STATS: u16 = 1 << 8 | 5;

// enum ctattr_stats_cpu
const INSERT_FAILED: u16 = 9;
const DROP: u16 = 10;
const EARLY_DROP: u16 = 11;
/// Not in 5.10.
const CHAIN_TOOLONG: u16 = 15;
/// enum ctattr_stats_global
const GLOBAL_ENTRIES: u16 = 1;

/// struct nfgenmsg comes before the attributes.
const NFGENMSG: usize = 4;

/// The counters of the netns this thread is in.
pub(super) fn read_here() -> Result<Stat> {
    let mut cpus = Vec::new();
    netlink::dump_here(GET_STATS_CPU, libc::AF_UNSPEC as u8, &[], |datagram| add_cpus(datagram, &mut cpus))?;
    ensure!(!cpus.is_empty(), "the kernel named no CPU");
    let entries = entries(&netlink::ask_here(GET_STATS, libc::AF_UNSPEC as u8)?)?;
    Ok(Stat { entries, cpus, from: CounterSource::Ctnetlink, max: None })
}

/// Adds the CPUs of one datagram. The kernel names all possible CPUs in their order.
pub(crate) fn add_cpus(datagram: &[u8], cpus: &mut Vec<Counters>) -> Result<Next> {
    for (kind, body) in netlink::messages(datagram) {
        match kind {
            DONE => return Ok(Next::Stop),
            ERROR => return Err(netlink::refusal(body).into()),
            _ => cpus.push(counters(body)?),
        }
    }
    Ok(Next::Go)
}

fn counters(body: &[u8]) -> Result<Counters> {
    let all = body.get(NFGENMSG..).context("a CPU's statistics are cut short")?;
    let (mut drop, mut insert_failed, mut early_drop, mut chaintoolong) = (None, None, None, None);
    for (kind, value) in netlink::attributes(all) {
        let place = match kind {
            DROP => &mut drop,
            INSERT_FAILED => &mut insert_failed,
            EARLY_DROP => &mut early_drop,
            CHAIN_TOOLONG => &mut chaintoolong,
            _ => continue,
        };
        *place = Some(number(value)?);
    }
    let missing = |name| format!("a CPU's statistics have no {name}");
    Ok(Counters {
        drop: drop.with_context(|| missing("drop"))?,
        insert_failed: insert_failed.with_context(|| missing("insert_failed"))?,
        early_drop: early_drop.with_context(|| missing("early_drop"))?,
        chaintoolong: chaintoolong.unwrap_or(0),
    })
}

pub(crate) fn entries(datagram: &[u8]) -> Result<u32> {
    for (kind, body) in netlink::messages(datagram) {
        if kind == ERROR {
            return Err(netlink::refusal(body).into());
        }
        let all = body.get(NFGENMSG..).unwrap_or_default();
        if let Some((_, value)) = netlink::attributes(all).find(|(kind, _)| *kind == GLOBAL_ENTRIES) {
            return number(value);
        }
    }
    bail!("the kernel's answer holds no entry count")
}

fn number(value: &[u8]) -> Result<u32> {
    let bytes = value.try_into().ok().with_context(|| format!("a number of {} bytes", value.len()))?;
    Ok(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::census::parse::tests::{attribute, message};
    use proptest::prelude::*;

    fn cpu(values: &[(u16, u32)]) -> Vec<u8> {
        let mut body = vec![0; NFGENMSG];
        for (kind, value) in values {
            body.extend(attribute(*kind, &value.to_be_bytes()));
        }
        message(GET_STATS_CPU, 2, &body)
    }

    #[test]
    fn each_cpu_is_one_message_and_an_old_kernel_counts_no_long_chains() {
        let mut datagram =
            cpu(&[(2, 7), (DROP, 193), (INSERT_FAILED, 1), (EARLY_DROP, 2), (CHAIN_TOOLONG, 3)]);
        datagram.extend(cpu(&[(DROP, u32::MAX), (INSERT_FAILED, 0), (EARLY_DROP, 0)]));
        let mut cpus = Vec::new();
        assert!(matches!(add_cpus(&datagram, &mut cpus), Ok(Next::Go)));
        assert_eq!(cpus[0], Counters { drop: 193, insert_failed: 1, chaintoolong: 3, early_drop: 2 });
        assert_eq!(cpus[1], Counters { drop: u32::MAX, ..Counters::default() });
        assert!(matches!(add_cpus(&message(DONE, 2, &[0; 4]), &mut cpus), Ok(Next::Stop)));
    }

    #[test]
    fn what_is_missing_is_an_error_and_never_0() {
        let mut cpus = Vec::new();
        let told = add_cpus(&cpu(&[(DROP, 1), (INSERT_FAILED, 1)]), &mut cpus).err().expect("no early_drop");
        assert!(told.to_string().contains("early_drop"), "{told:#}");
        let refused = message(ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        assert!(add_cpus(&refused, &mut cpus).is_err());
        assert!(entries(&refused).is_err());
        assert!(entries(&message(GET_STATS, 0, &[0; 4])).is_err());
        assert!(cpus.is_empty());
    }

    #[test]
    fn the_entry_count_is_the_global_one() {
        let mut body = vec![0; NFGENMSG];
        body.extend(attribute(GLOBAL_ENTRIES, &4000u32.to_be_bytes()));
        body.extend(attribute(2, &262_144u32.to_be_bytes()));
        assert_eq!(entries(&message(GET_STATS, 0, &body)).expect("well-formed"), 4000);
    }

    proptest! {
        #[test]
        fn garbage_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = add_cpus(&bytes, &mut Vec::new());
            let _ = entries(&bytes);
        }
    }
}
