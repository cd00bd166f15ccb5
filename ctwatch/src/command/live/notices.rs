//! What the live loop has to say: each notice with its code, made in one place.
//! Codes are part of the contract; the sentences are for people.

use jiff::Timestamp;

use crate::contract::Notice;
use crate::text::counted;
use crate::watch::ModuleChange;

pub(super) fn waiting_for_conntrack() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "waiting_for_conntrack",
        text: "nf_conntrack is not loaded, so nothing is tracked and nothing can be dropped by it; waiting until a \
               firewall rule or `modprobe nf_conntrack` loads it"
            .into(),
    }
}

pub(super) fn module_changed(change: ModuleChange) -> Notice {
    let (code, text) = match change {
        ModuleChange::Unloaded => {
            ("conntrack_unloaded", "nf_conntrack was unloaded; waiting until it is loaded again".to_owned())
        }
        ModuleChange::Reattached => (
            "reattached",
            "nf_conntrack was loaded again; reattached, the kernel's counters start from 0".to_owned(),
        ),
    };
    Notice { time: Timestamp::now(), code, text: text.into() }
}

pub(super) fn too_few_threads() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "too_few_threads",
        text: "no thread can be started now: a limit is reached (systemd: TasksMax, docker: --pids-limit); counting goes on, \
               and the next tick comes once it is possible"
            .into(),
    }
}

pub(super) fn losses_without_tuple() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "losses_without_tuple",
        text: "the probes missed some drops the kernel counted; they are in the totals, without a tuple"
            .into(),
    }
}

pub(super) fn netns_crowded() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "netns_crowded",
        text: "more netns lose packets at once than ctwatch has counters for (`ctwatch check` says how many that is): in the others \
               only drops of a full table and evictions are counted; what else is lost there shows as unexplained"
            .into(),
    }
}

pub(super) fn netns_unnumbered() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "netns_unnumbered",
        text: "more inode numbers of netns were reused than ctwatch can keep apart: from now on a netns may be counted together \
               with an earlier one of the same number; totals per port stay exact"
            .into(),
    }
}

pub(super) fn netns_too_many() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "netns_too_many",
        text: "more than 16,384 netns exist: the kernel's counters of the others are not read; losses that the probes see there are \
               counted, and shown as not readable"
            .into(),
    }
}

pub(super) fn no_census(reason: &str) -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "no_census",
        text: format!("occupancy and time to full are unavailable: {reason}").into(),
    }
}

pub(super) fn events_lost(count: u64) -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "events_lost",
        text: format!(
            "{} did not fit the ring buffer: totals per port stay exact; rows by flow, source, \
             destination, process or container are lower bounds",
            counted(count, "event", "events")
        )
        .into(),
    }
}
