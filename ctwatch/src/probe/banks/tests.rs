use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, PROBES, first_slot, next_slot};

/// Small banks, so that they overflow.
const SLOTS: u32 = 16;

/// What the kernel has.
#[derive(Debug)]
struct Fake {
    rooms: [RoomState; 2],
    slots: [Vec<Counts>; 2],
    overflow: [u64; CAUSES],
    flows_overflow: u64,
}

type Shared = Rc<RefCell<Fake>>;

impl Memory for Shared {
    fn slots(&self, _: Kind) -> u32 {
        SLOTS
    }

    fn room(&self, kind: Kind) -> RoomState {
        self.borrow().rooms[kind as usize]
    }

    fn activate(&self, kind: Kind, bank: usize) {
        self.borrow_mut().rooms[kind as usize].active = bank as u64 * u64::from(SLOTS);
    }

    fn slot(&self, kind: Kind, index: u32) -> Counts {
        self.borrow().slots[kind as usize][index as usize]
    }

    fn clear(&self, kind: Kind, index: u32) {
        self.borrow_mut().slots[kind as usize][index as usize] = (0, [0; 3]);
    }

    fn clear_claimed(&self, kind: Kind, bank: usize) {
        self.borrow_mut().rooms[kind as usize].claimed[bank] = 0;
    }
}

/// A program that has looked which bank is active, and will count something there.
#[derive(Clone, Copy, Debug)]
struct Program {
    kind: Kind,
    /// The first slot of that bank.
    first: u32,
    key: u64,
    counts: [u64; 3],
}

impl Program {
    /// As emit.rs does it.
    fn finish(self, fake: &mut Fake) {
        let Self { kind, first, key, counts } = self;
        let mut place = first_slot(key, SLOTS);
        for step in 1..=PROBES {
            let slot = &mut fake.slots[kind as usize][(first + place) as usize];
            if slot.0 == 0 {
                slot.0 = key;
                fake.rooms[kind as usize].claimed[usize::from(first != 0)] += 1;
            }
            if slot.0 == key {
                add(&mut slot.1, counts);
                return;
            }
            place = next_slot(place, step, SLOTS);
        }
        match kind {
            Kind::Losses => fake.overflow[usize::from(SlotKey::unpack(key).kind)] += counts[0],
            Kind::Flows => fake.flows_overflow += counts.iter().sum::<u64>(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A program starts.
    Start(Kind, u16, u64),
    /// The program that has run longest ends.
    Finish,
    /// The thread looks at the banks; the first time it has the other bank used, the second time it waits for the
    /// programs that run and empties the bank.
    Poll(Kind),
    Sample,
}

fn steps(ports: u16) -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let step = prop_oneof![
        8 => (kind.clone(), 0..ports, 0..9u64).prop_map(|(kind, port, by)| Step::Start(kind, port, by)),
        6 => Just(Step::Finish),
        2 => kind.prop_map(Step::Poll),
        1 => Just(Step::Sample),
    ];
    prop::collection::vec(step, 0..400)
}

struct Host {
    fake: Shared,
    banks: Banks<Shared>,
    running: Vec<Program>,
    flipped: [bool; 2],
    /// What programs were told to count.
    counted: BTreeMap<u64, [u64; 3]>,
    retired: BTreeMap<u64, [u64; 3]>,
}

impl Host {
    fn new() -> Self {
        let slots = || vec![(0, [0; 3]); (BANKS * SLOTS) as usize];
        let fake = Rc::new(RefCell::new(Fake {
            rooms: [RoomState::default(); 2],
            slots: [slots(), slots()],
            overflow: [0; CAUSES],
            flows_overflow: 0,
        }));
        Self {
            banks: Banks::new(Rc::clone(&fake)),
            fake,
            running: Vec::new(),
            flipped: [false; 2],
            counted: BTreeMap::new(),
            retired: BTreeMap::new(),
        }
    }

    fn start(&mut self, kind: Kind, port: u16, by: u64) {
        let (number, counts) = match kind {
            Kind::Losses => (Cause::ALL[usize::from(port) % Cause::ALL.len()] as u8, [by, 0, 0]),
            // Some insert, some delete, some take an insert back.
            Kind::Flows => (KIND_FLOWS, [[by, 0, 0], [0, by, 0], [by, 0, by / 2]][by as usize % 3]),
        };
        let key = SlotKey { netns: 1, port, proto: 17, kind: number }.pack();
        let first = self.fake.borrow().rooms[kind as usize].active as u32;
        self.running.push(Program { kind, first, key, counts });
    }

    fn finish(&mut self) {
        if !self.running.is_empty() {
            let program = self.running.remove(0);
            add(self.counted.entry(program.key).or_default(), program.counts);
            program.finish(&mut self.fake.borrow_mut());
        }
    }

    fn poll(&mut self, kind: Kind) {
        if self.flipped[kind as usize] {
            while !self.running.is_empty() {
                self.finish();
            }
            self.banks.harvest(kind);
            self.flipped[kind as usize] = false;
        } else if self.banks.claimed(kind) > 0 {
            self.banks.flip(kind);
            self.flipped[kind as usize] = true;
        }
    }

    /// Totals of a sample, and what found no slot: flows' counts by kind of move are told apart.
    fn sample(&mut self) -> BTreeMap<u64, [u64; 3]> {
        let Taken { slots, retired } = self.banks.take();
        let counts = |slot: &SlotSample| [slot.count, slot.deletes, slot.failed];
        for slot in &retired {
            add(self.retired.entry(slot.key.pack()).or_default(), counts(slot));
        }
        let mut totals = self.retired.clone();
        let mut flows = BTreeSet::new();
        for slot in &slots {
            add(totals.entry(slot.key.pack()).or_default(), counts(slot));
            assert!(!slot.counts_flows() || flows.insert(slot.key), "{:?} twice", slot.key);
        }
        totals
    }

    fn run(&mut self, steps: &[Step], mut at_sample: impl FnMut(&mut Self)) {
        for step in steps {
            match step {
                Step::Start(kind, port, by) => self.start(*kind, *port, *by),
                Step::Finish => self.finish(),
                Step::Poll(kind) => self.poll(*kind),
                Step::Sample => at_sample(self),
            }
        }
        at_sample(self);
    }
}

fn without_zeros(mut totals: BTreeMap<u64, [u64; 3]>) -> BTreeMap<u64, [u64; 3]> {
    totals.retain(|_, counts| *counts != [0; 3]);
    totals
}

fn is_flow(key: u64) -> bool {
    SlotKey::unpack(key).kind == KIND_FLOWS
}

proptest! {
    #[test]
    fn keys_that_fit_have_exact_totals_whichever_bank_they_are_in(steps in steps(SLOTS as u16)) {
        let mut host = Host::new();
        host.run(&steps, |host| {
            let totals = host.sample();
            assert_eq!(without_zeros(totals), without_zeros(host.counted.clone()));
        });
        prop_assert_eq!(host.fake.borrow().overflow, [0; CAUSES]);
        prop_assert_eq!(host.fake.borrow().flows_overflow, 0);
    }

    #[test]
    fn any_number_of_keys_has_exact_totals_per_cause(steps in steps(400), most_keys in 1..100usize) {
        let mut host = Host::new();
        (host.banks.most_losses, host.banks.most_flows) = (most_keys, most_keys);
        host.run(&steps, |host| {
            let totals = host.sample();
            let (mut sums, flows_overflow) = host.banks.overflow_at_sample();
            let flows_overflow = flows_overflow + host.fake.borrow().flows_overflow;
            for (sum, more) in sums.iter_mut().zip(host.fake.borrow().overflow) {
                *sum += more;
            }
            for (key, counts) in totals.iter().filter(|(key, _)| !is_flow(**key)) {
                sums[usize::from(SlotKey::unpack(*key).kind)] += counts[0];
            }
            let mut counted = [0; CAUSES];
            for (key, counts) in host.counted.iter().filter(|(key, _)| !is_flow(**key)) {
                counted[usize::from(SlotKey::unpack(*key).kind)] += counts[0];
            }
            assert_eq!(sums, counted);
            let flows = |totals: &BTreeMap<u64, [u64; 3]>| {
                totals.iter().filter(|(key, _)| is_flow(**key)).flat_map(|(_, counts)| *counts).sum::<u64>()
            };
            assert_eq!(flows(&totals) + flows_overflow, flows(&host.counted));
            assert!(host.banks.losses.len().max(host.banks.flows.len()) <= most_keys);
        });
    }

    #[test]
    fn a_census_sees_all_entries_at_any_moment(steps in steps(SLOTS as u16)) {
        let mut host = Host::new();
        host.run(&steps, |host| {
            let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
            for (key, counts) in host.counted.iter().filter(|(key, _)| is_flow(**key)) {
                expected.insert(*key, net(*counts));
            }
            expected.retain(|_, net| *net != 0);
            for when in ["before", "after"] {
                let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
                for slot in host.banks.flows() {
                    seen.insert(slot.key.pack(), net([slot.count, slot.deletes, slot.failed]));
                }
                seen.retain(|_, net| *net != 0);
                assert_eq!(seen, expected, "{when} the sample");
                host.sample();
            }
        });
    }

    #[test]
    fn an_inode_number_that_is_used_again_begins_at_nothing(first in steps(8), then in steps(8)) {
        let mut host = Host::new();
        host.run(&first, |_| ());
        while !host.running.is_empty() {
            host.finish();
        }
        host.banks.restart_flows(1);
        host.sample();
        host.retired.clear();
        host.counted.retain(|key, _| !is_flow(*key));
        let restarted = |totals: BTreeMap<u64, [u64; 3]>| {
            without_zeros(totals).into_iter().filter(|(key, _)| is_flow(*key)).collect::<BTreeMap<_, _>>()
        };
        host.run(&then, |host| assert_eq!(restarted(host.sample()), restarted(host.counted.clone())));
    }
}

#[test]
fn keys_that_come_and_go_leave_nothing_behind() {
    let mut host = Host::new();
    for port in 0..10_000 {
        for kind in Kind::ALL {
            host.start(kind, port, 3);
            host.start(kind, port, 1);
            host.finish();
            host.finish();
            while host.banks.is_filling(kind) || host.flipped[kind as usize] {
                host.poll(kind);
            }
        }
        if port % 100 == 0 {
            host.sample();
        }
    }
    let totals = host.sample();
    assert_eq!(without_zeros(totals), without_zeros(host.counted.clone()));
    assert_eq!(host.fake.borrow().overflow, [0; CAUSES]);
    assert!(host.banks.losses.is_empty());
    // Flows: 3 inserts and 1 delete each: all have entries. Then they go.
    assert!(host.banks.flows.len() > 9_900);
    for port in 0..10_000 {
        host.start(Kind::Flows, port, 1);
        host.start(Kind::Flows, port, 1);
        host.finish();
        host.finish();
        while host.banks.is_filling(Kind::Flows) || host.flipped[Kind::Flows as usize] {
            host.poll(Kind::Flows);
        }
    }
    host.sample();
    assert!(host.banks.flows.len() <= SLOTS as usize, "{}", host.banks.flows.len());
}
