use proptest::prelude::*;

use super::*;
use crate::record::delta_encoder::DeltaEncoder;
use ctwatch_common::slot::KIND_FLOWS;
use jiff::Timestamp;

/// What moved in one tick: per slot, and entries in the table.
type Step = (Vec<(u16, u8, u64)>, Option<u32>, [u64; 4]);

const HOST: NetnsId = NetnsId::from_packed(4_026_531_840);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = (0..6u16, prop::sample::select(vec![1u8, 8, KIND_FLOWS, 0x81]), 0..1000u64);
    let step = (prop::collection::vec(slot, 0..8), prop::option::of(0..100u32), [0..5u64, 0..5, 0..5, 0..5]);
    prop::collection::vec(step, 1..20)
}

/// The samples of a watch that sees these steps.
fn samples(steps: &[Step]) -> Vec<Sample> {
    let mut slots: BTreeMap<SlotKey, [u64; 3]> = BTreeMap::new();
    let mut kernel = [0; 4];
    let mut samples = Vec::new();
    for (second, (moves, count, counted)) in steps.iter().enumerate() {
        for (port, kind, by) in moves {
            let slot = slots
                .entry(SlotKey { netns: HOST.packed(), port: *port, proto: 6, kind: *kind })
                .or_default();
            slot[0] += by;
            if *kind == KIND_FLOWS {
                slot[1] += by / 2;
            }
        }
        let before = kernel;
        add(&mut kernel, &counted.map(u64::cast_signed));
        let slots = slots.iter().map(|(key, [count, deletes, failed])| SlotSample {
            key: *key,
            count: *count,
            deletes: *deletes,
            failed: *failed,
        });
        let netns = NetnsSample {
            id: HOST,
            name: None,
            container: None,
            count: *count,
            max: Some(100),
            before: counters(before),
            after: counters(kernel),
            gone: false,
            complete: false,
            access: if count.is_some_and(|count| count % 3 == 0) {
                NetnsAccess::Unreadable
            } else {
                NetnsAccess::Readable
            },
        };
        samples.push(Sample {
            counters_from: None,
            time: Timestamp::from_second(second as i64).unwrap(),
            mono_us: 0,
            interval_s: 1.0,
            // A netns that can't be read for a while is in no sample.
            netns: if count.is_some() { vec![netns] } else { Vec::new() },
            slots: slots.collect(),
            retired: Vec::new(),
            overflow: [0; CAUSES],
            lost_events: [second as u64; CAUSES],
            ambiguous: second as u64,
            flows: FlowSample { overflow: 2 * second as u64, ..FlowSample::default() },
        });
    }
    samples
}

/// The same samples, but keys give their slots back in some of them: half of a slot's counts is retired, or all of it.
fn retiring(samples: &[Sample], retires: &[(u16, bool)]) -> Vec<Sample> {
    let mut given_back: BTreeMap<SlotKey, [u64; 3]> = BTreeMap::new();
    let mut retiring = samples.to_vec();
    for (sample, (port, all)) in retiring.iter_mut().zip(retires.iter().cycle()) {
        for slot in &mut sample.slots {
            let gone = given_back.entry(slot.key).or_default();
            let [count, deletes, failed] = [&mut slot.count, &mut slot.deletes, &mut slot.failed];
            (*count, *deletes, *failed) = (*count - gone[0], *deletes - gone[1], *failed - gone[2]);
            if slot.key.port == *port {
                let part = if *all { 1 } else { 2 };
                let retired = SlotSample { count: *count / part, deletes: *deletes / part, ..*slot };
                let retired = SlotSample { failed: 0, ..retired };
                *gone = [gone[0] + retired.count, gone[1] + retired.deletes, gone[2]];
                slot.count -= retired.count;
                slot.deletes -= retired.deletes;
                sample.retired.push(retired);
            }
        }
        sample.slots.retain(|slot| (slot.count, slot.deletes) != (0, 0));
    }
    retiring
}

fn text(sample: &Sample, is_there: bool) -> String {
    let mut sample = sample.clone();
    sample.slots.retain(|slot| (slot.count, slot.deletes) != (0, 0) && (is_there || !is_flow(slot.key)));
    sample.slots.sort_by_key(|slot| slot.key);
    format!("{sample:?}")
}

fn sums(sample: &Sample) -> (u64, u64) {
    let of = |flows: bool| sample.slots.iter().filter(move |slot| is_flow(slot.key) == flows);
    let lost: u64 = of(false).map(|slot| slot.count).sum();
    let flows: u64 = of(true).map(|slot| slot.count + slot.deletes + slot.failed).sum();
    (lost + sample.overflow.iter().sum::<u64>(), flows + sample.flows.overflow)
}

proptest! {
    #[test]
    fn what_was_recorded_is_what_was_sampled(steps in steps()) {
        let (mut encoder, mut decoder) = (DeltaEncoder::default(), DeltaDecoder::default());
        for sample in samples(&steps) {
            let tick = encoder.tick(&sample);
            decoder.add(&tick);
            let is_there = !sample.netns.is_empty();
            prop_assert_eq!(text(&decoder.sample(&tick, &HashMap::new()), is_there), text(&sample, is_there));
        }
    }

    #[test]
    fn keys_that_give_their_slots_back_are_recorded_like_any_other(
        steps in steps(),
        retires in prop::collection::vec((0..6u16, any::<bool>()), 1..8),
    ) {
        let (mut encoder, mut decoder) = (DeltaEncoder::default(), DeltaDecoder::default());
        let mut samples = samples(&steps);
        for sample in &mut samples {
            sample.netns.clear();
        }
        for (sample, retiring) in samples.iter().zip(retiring(&samples, &retires)) {
            let tick = encoder.tick(&retiring);
            decoder.add(&tick);
            prop_assert_eq!(text(&decoder.sample(&tick, &HashMap::new()), true), text(sample, true));
        }
    }

    #[test]
    fn however_many_keys_wait_to_be_written_sums_are_exact(
        steps in steps(),
        retires in prop::collection::vec((0..6u16, any::<bool>()), 1..8),
        room in 0..3usize,
        most in 1..4usize,
    ) {
        let (mut encoder, mut decoder) = (DeltaEncoder::keeping(most), DeltaDecoder::default());
        let mut samples = samples(&steps);
        for sample in &mut samples {
            sample.netns.clear();
        }
        for (sample, retiring) in samples.iter().zip(retiring(&samples, &retires)) {
            let tick = encoder.tick_within(&retiring, room);
            decoder.add(&tick);
            prop_assert_eq!(sums(&decoder.sample(&tick, &HashMap::new())), sums(sample));
        }
        if let Some(tick) = encoder.flush_deferred(Timestamp::UNIX_EPOCH, 0) {
            decoder.add(&tick);
        }
        let last = &samples[samples.len() - 1];
        let end = decoder.sample(&Tick::quiet(last.time, 0, 0), &HashMap::new());
        prop_assert_eq!(sums(&end), sums(last));
        prop_assert!(encoder.flush_deferred(Timestamp::UNIX_EPOCH, 0).is_none());
    }

    #[test]
    fn what_found_no_room_is_deferred_and_comes_in_the_end(steps in steps(), room in 0..4usize) {
        let (mut encoder, mut decoder) = (DeltaEncoder::default(), DeltaDecoder::default());
        let mut samples = samples(&steps);
        for sample in &mut samples {
            sample.netns.clear();
            let tick = encoder.tick_within(sample, room);
            prop_assert!(tick.losses.len() + tick.flows.len() <= room);
            decoder.add(&tick);
            prop_assert_eq!(sums(&decoder.sample(&tick, &HashMap::new())), sums(sample));
        }
        let last = Sample { interval_s: 0.0, ..samples[samples.len() - 1].clone() };
        if let Some(tick) = encoder.flush_deferred(last.time, 0) {
            decoder.add(&tick);
        }
        let tick = Tick::quiet(last.time, 0, 0);
        prop_assert_eq!(text(&decoder.sample(&tick, &HashMap::new()), true), text(&last, true));
        prop_assert!(encoder.flush_deferred(last.time, 0).is_none());
    }

    #[test]
    fn downsampled_ticks_add_up_to_the_same(steps in steps(), group in 1..5usize) {
        let mut encoder = DeltaEncoder::default();
        let samples = samples(&steps);
        let ticks: Vec<Tick> = samples.iter().map(|sample| encoder.tick(sample)).collect();
        let (mut fine, mut coarse) = (DeltaDecoder::default(), DeltaDecoder::default());
        for ticks in ticks.chunks(group) {
            let mut one = ticks[0].clone();
            fine.add(&ticks[0]);
            for tick in &ticks[1..] {
                fine.add(tick);
                one.append(tick.clone());
            }
            coarse.add(&one);
            let last = Tick { interval_us: one.interval_us, ..ticks[ticks.len() - 1].clone() };
            prop_assert_eq!(
                text(&coarse.sample(&one, &HashMap::new()), true),
                text(&fine.sample(&last, &HashMap::new()), true)
            );
        }
    }

    #[test]
    fn a_second_file_counts_from_its_beginning(steps in steps(), at in 0..20usize) {
        let mut encoder = DeltaEncoder::default();
        let samples = samples(&steps);
        let at = at.min(samples.len() - 1);
        for sample in &samples[..at] {
            encoder.tick(sample);
        }
        encoder.begin_file();
        let mut decoder = DeltaDecoder::default();
        for sample in &samples[at..] {
            decoder.add(&encoder.tick(sample));
        }
        let total = |sample: &Sample| sample.slots.iter().map(|slot| slot.count + slot.deletes).sum::<u64>();
        let before = at.checked_sub(1).map_or(0, |last| total(&samples[last]));
        let tick = Tick::quiet(Timestamp::UNIX_EPOCH, 0, 0);
        let rebuilt = DeltaDecoder { netns: BTreeMap::new(), ..decoder }.sample(&tick, &HashMap::new());
        prop_assert_eq!(total(&rebuilt), total(&samples[samples.len() - 1]) - before);
    }
}
