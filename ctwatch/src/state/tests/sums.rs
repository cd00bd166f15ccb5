//! Whatever is counted and however it is grouped, rows add up.
//! Through the whole state, on random samples.

use super::*;

fn any_slot() -> impl Strategy<Value = (u32, usize, u8, u16, bool, u64)> {
    let proto = prop_oneof![Just(6u8), Just(17), Just(1), Just(132), Just(47)];
    (1..4u32, 0..Cause::ALL.len(), proto, 0..6u16, any::<bool>(), 0..1000u64)
}

fn any_by() -> impl Strategy<Value = By> {
    prop_oneof![Just(By::Port), Just(By::Proto), Just(By::Cause), Just(By::Netns)]
}

#[test]
fn a_netns_that_cannot_be_entered_neither_agrees_nor_went_away() {
    let mut state = State::new(settings(By::Port));
    let beyond = NetnsSample {
        access: NetnsAccess::Unreadable,
        count: None,
        before: drops(0),
        after: drops(0),
        ..netns(7, 0)
    };
    let slots = vec![slot(HOST, FULL, 6, 80, 5), slot(7, FULL, 6, 80, 60)];
    let tick = state.sample(&sample(vec![netns(HOST, 5), beyond], slots));
    let table =
        tick.tables.iter().find(|table| table.netns == NetnsId::from_packed(7)).expect("it is listed");
    assert!(table.not_readable && !table.gone);
    assert!(tick.unexplained.is_zero());
    let end = state.end(time(1));
    assert_eq!((end.netns_not_readable, end.netns_gone), (1, 0));
    assert_eq!(
        (end.agreement.drop, end.agreement.early_drop),
        (Agreement::NotReadable, Agreement::NotReadable)
    );
}

#[test]
fn a_netns_in_no_sample_is_not_readable_either() {
    let mut state = State::new(settings(By::Port));
    let tick = state.sample(&sample(vec![netns(HOST, 0)], vec![slot(7, FULL, 6, 80, 60)]));
    assert!(tick.tables.iter().any(|table| table.not_readable && table.packets_lost == 60));
    let end = state.end(time(1));
    assert_eq!((end.netns_not_readable, end.netns_gone, end.agreement.drop), (1, 0, Agreement::NotReadable));
}

#[test]
fn a_difference_where_the_kernel_can_be_read_is_one_whatever_cannot_be_read_elsewhere() {
    let mut state = State::new(settings(By::Port));
    let slots = vec![slot(HOST, FULL, 6, 80, 5), slot(7, FULL, 6, 80, 60)];
    state.sample(&sample(vec![netns(HOST, 9)], slots));
    assert_eq!(state.end(time(1)).agreement.drop, Agreement::Differ);
}

proptest! {
    /// Without filters the rows of every tick add up to what was counted in it, cause by cause unit, at any --top.
    #[test]
    fn rows_add_up_to_what_was_counted(
        by in any_by(),
        top in 1..8usize,
        ticks in proptest::collection::vec(proptest::collection::vec(any_slot(), 0..30), 1..5),
        overflow in proptest::collection::vec(0..50u64, 1..5),
    ) {
        let mut state = State::new(StateConfig { top, ..settings(by) });
        let mut slots = BTreeMap::<(u32, usize, u8, u16, bool), u64>::new();
        let mut before = Counted::default();
        let mut overflowed = 0;
        for (tick, overflow) in ticks.iter().zip(overflow.iter().cycle()) {
            for (netns, cause, proto, port, loopback, count) in tick {
                *slots.entry((*netns, *cause, *proto, *port, *loopback)).or_default() += count;
            }
            let slots = slots.iter().map(|((netns, cause, proto, port, loopback), count)| {
                let slot = slot(*netns, Cause::ALL[*cause], *proto, *port, *count);
                if *loopback { on_loopback(slot) } else { slot }
            });
            let mut sample = sample(vec![], slots.collect());
            overflowed += overflow;
            sample.overflow[FULL as usize] = overflowed;
            let tick = state.sample(&sample);
            for unit in [Cause::TableFull.unit(), Cause::Evicted.unit()] {
                let of_unit = |counted: &Counted| -> u64 {
                    Cause::ALL
                        .into_iter()
                        .filter(|cause| cause.unit() == unit && *cause != Cause::Invalid)
                        .map(|cause| counted.of(cause))
                        .sum()
                };
                let rows: u64 = tick.rows.iter().filter(|row| row.unit == unit).map(|row| row.losses).sum();
                prop_assert_eq!(rows, of_unit(&tick.counted) - of_unit(&before));
            }
            let keyed = tick.rows.iter().filter(|row| !row.rest).count();
            prop_assert!(keyed <= top);
            prop_assert!(tick.rows.iter().all(|row| row.losses > 0 && row.losses <= row.losses_total));
            let sorted = tick.rows.iter().filter(|row| !row.rest).collect::<Vec<_>>();
            prop_assert!(sorted.windows(2).all(|pair| pair[0].losses >= pair[1].losses));
            before = tick.counted;
        }
    }

    /// When the kernel counted what we counted, nothing is unexplained, whatever the bracket.
    #[test]
    fn equal_counts_explain_each_other(
        counts in proptest::collection::vec((1..6u32, 0..Cause::ALL.len(), 0..1000u64), 0..20),
        early in 0..5u64,
        late in 0..5u64,
    ) {
        let mut by_netns = BTreeMap::<u32, [u64; CAUSES]>::new();
        let mut slots = Vec::new();
        for (netns, cause, count) in counts {
            let cause = Cause::ALL[cause];
            by_netns.entry(netns).or_default()[cause as usize] += count;
            slots.push(slot(netns, cause, 6, 80, count));
        }
        let samples = by_netns.iter().map(|(id, counts)| {
            let truth = Counted(*counts).in_kernel_terms();
            let before = KernelCounters { drop: truth.drop.saturating_sub(early), ..truth };
            NetnsSample { before, after: KernelCounters { drop: truth.drop + late, ..truth }, ..netns(*id, 0) }
        });
        let tick = State::new(settings(By::Port)).sample(&sample(samples.collect(), slots));
        prop_assert!(tick.unexplained.is_zero());
        prop_assert!(tick.tables.iter().all(|table| table.unexplained.is_none()));
    }
}
