//! What the kernel says: records of the ring buffer, files of /proc, symbols, types, netlink.

use std::sync::LazyLock;

use ctwatch_common::event::RECORD_SIZE;
use jiff::Timestamp;

use super::super::settings;
use super::recording::show;
use crate::conntrack::{census, stat, tracking};
use crate::kernel::btf::{Btf, Functions};
use crate::kernel::symbols::Symbols;
use crate::kernel::{capabilities, cpus, netlink, release};
use crate::model::{
    Direction, EntryFields, FromKernel, Insert, KernelCounters, Loss, NetnsAccess, NetnsSample, Sample,
};
use crate::probe::plan::{self, ProbeOptions, RawTpReentrancy};
use crate::probe::{decode, offsets, shapes};
use crate::process::{cgroup, container, sockets};
use crate::state::{By, State};
use crate::{firewall, listing, machine};

/// A record after the other, as the ring buffer gives them, and what becomes of them until they are on screen.
pub(super) fn ring_record(bytes: &[u8]) {
    let whole = decode::decode(bytes);
    assert!(whole.is_none() || bytes.len() == RECORD_SIZE, "a record of {} bytes", bytes.len());
    let by = By::ALL[bytes.len() % By::ALL.len()];
    let mut state = State::new(settings(by));
    let mut events = Vec::new();
    let mut sample = sample();
    for record in bytes.chunks(RECORD_SIZE) {
        match decode::decode(record) {
            None | Some(FromKernel::Pusher { .. }) => {}
            Some(FromKernel::NetnsGone { netns, counters }) => {
                // Each is a sum over CPUs whose own has 32 bits.
                let whole = counters.as_array().map(|count| count % (1 << 44));
                let [drop, early_drop, insert_failed, chaintoolong] = whole;
                let counters = KernelCounters { drop, early_drop, insert_failed, chaintoolong };
                let (before, after) = (counters, counters);
                sample.netns.push(NetnsSample { id: netns, before, after, ..netns_sample() });
            }
            Some(FromKernel::Insert(packet)) => {
                events.extend(state.insert(&Insert { time: Timestamp::UNIX_EPOCH, packet }));
            }
            Some(FromKernel::Loss { cause, packet, entry, sender }) => {
                let loss = Loss {
                    entry,
                    sender,
                    jiffies_per_s: Some(250),
                    ..Loss::new(Timestamp::UNIX_EPOCH, cause, packet)
                };
                events.extend(state.loss(&loss));
            }
        }
    }
    let tick = state.sample(&sample);
    let end = state.end(sample.time);
    show(|view| {
        for event in &events {
            view.event(event)?;
        }
        view.tick(&tick)?;
        view.end(&end)
    });
}

fn netns_sample() -> NetnsSample {
    NetnsSample {
        id: super::super::HOST,
        name: None,
        container: None,
        count: Some(7),
        max: Some(7),
        before: KernelCounters::default(),
        after: KernelCounters::default(),
        gone: true,
        complete: true,
        access: NetnsAccess::Readable,
    }
}

fn sample() -> Sample {
    Sample {
        time: Timestamp::UNIX_EPOCH,
        mono_us: 0,
        interval_s: 1.0,
        netns: Vec::new(),
        counters_from: None,
        slots: Vec::new(),
        retired: Vec::new(),
        overflow: Default::default(),
        lost_events: Default::default(),
        ambiguous: 0,
        flows: Default::default(),
    }
}

/// A file of /proc or /sys, whichever: each reader of one gets it.
pub(super) fn proc(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    drop(stat::procfs::parse(text));
    let _ = (capabilities::Capabilities::in_status(text), cpus::parse(text), release::release_number(text));
    for line in text.lines() {
        let _ = (sockets::socket(line), sockets::connected(line), sockets::endpoint(line));
        drop(container::of_path(line).map(|container| container.netns_name()));
    }
    let _ = cgroup::most_telling(text);
    for network in [firewall::host::local_v4(text), firewall::host::local_v6(text)].into_iter().flatten() {
        drop(firewall::host::Host::new(&firewall::HostFacts {
            own_v4: Some(network.clone()),
            own_v6: Some(network),
            ..Default::default()
        }));
    }
    for service in firewall::ipvs::parse(text) {
        assert!(service.text.len() <= text.len());
    }
    let words: Vec<String> = text.split(['\0', '\n', ' ']).map(str::to_owned).collect();
    let _ = machine::software::option(&words, "config");
    let program = words.first().map(String::as_str);
    let _ = machine::Software::of(program.unwrap_or_default(), program, &words).name();
    for (key, value, line) in machine::settings::sysctl_d::conntrack_lines(text) {
        assert!(key.contains("conntrack") && text.contains(&value) && line <= text.lines().count());
    }
    let _ = machine::ports::cpus(text);
}

/// The kernel's types with which symbols are tried, and the other way round.
static KNOWN_TYPES: LazyLock<Btf> = LazyLock::new(|| {
    Btf::parse(include_bytes!("../../../../tests/fuzz/corpus/btf/6.12-what-is-read").to_vec())
        .expect("well-formed")
});
static KNOWN_SYMBOLS: LazyLock<Symbols> = LazyLock::new(|| {
    Symbols::parse(&include_bytes!("../../../../tests/fuzz/corpus/kallsyms/6.12")[..]).expect("well-formed")
});

/// /proc/kallsyms, and what is attached where by it.
pub(super) fn kallsyms(bytes: &[u8]) {
    let Ok(symbols) = Symbols::parse(bytes) else { return };
    for function in ["init_conntrack", "nf_hook_slow", "nf_conntrack_max", "early_drop"] {
        let whole = symbols.function(function).into_iter().chain(symbols.data(function));
        for part in whole.chain(symbols.parts(function)) {
            assert!(part.end >= part.address && part.name.starts_with(function), "{part:?}");
        }
    }
    watch(&KNOWN_TYPES, &symbols);
}

fn watch(types: &Btf, symbols: &Symbols) {
    let Ok(mut config) = offsets::resolve(types, symbols) else { return };
    for kprobes in [true, false] {
        let everything = ProbeOptions::everything(RawTpReentrancy::Nested);
        let options = ProbeOptions { kprobes, trace_init_conntrack: kprobes, ..everything };
        let _ = plan::plan(symbols, options, &mut config);
    }
}

/// A kernel's types, and, where there is something behind them, those of its module.
pub(super) fn btf(bytes: &[u8]) {
    let end = end_of_types(bytes).unwrap_or(bytes.len());
    let (kernel, module) = bytes.split_at(end);
    let Ok(kernel) = Btf::parse(kernel.to_vec()) else { return };
    watch(&kernel, &KNOWN_SYMBOLS);
    let module = Btf::parse(module.to_vec()).ok();
    for built_in in [false, true] {
        drop(shapes::compare(&Functions { kernel: &kernel, module: module.as_ref(), built_in }));
    }
}

/// Where both of its sections have ended.
fn end_of_types(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(word)).ok()
    };
    let (header, types, strings) = (word(4)?, word(8)? + word(12)?, word(16)? + word(20)?);
    Some(header + types.max(strings)).filter(|end| *end <= bytes.len())
}

/// A datagram of ctnetlink, whatever was asked.
pub(super) fn ctnetlink(bytes: &[u8]) {
    let all = EntryFields { addresses: true, marks: true };
    let mut listing = listing::Listing::new(Default::default(), 15);
    let mut tally = census::tally::Tally::new();
    let mut count = 0;
    for message in census::parse::Messages::new(bytes, all) {
        count += 1;
        if let census::parse::Message::Entry(entry) = message {
            listing.add(&entry, Direction::In);
            // Each protocol takes 256 KiB of the tally: those of the kernel are few.
            if entry.proto.0 < 8 {
                tally.add(&entry);
            }
        }
    }
    assert!(count <= bytes.len() / 16, "{count} messages in {} bytes", bytes.len());
    let (keys, _) = tally.finish();
    assert!(keys.len() <= count);
    assert!(listing.services().map(|(_, entries)| entries.entries() as usize).sum::<usize>() <= count);
    let mut cpus = Vec::new();
    drop(stat::ctnetlink::add_cpus(bytes, &mut cpus));
    assert!(cpus.len() <= bytes.len() / 16);
    drop(stat::ctnetlink::entries(bytes));
    let _ = tracking::look(bytes);
    drop(netlink::refusal(bytes).to_string());
}
