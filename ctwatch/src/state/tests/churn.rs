//! Namespaces and containers come and go for weeks, and whoever likes may make more: memory is bounded, sums stay exact.
//! Through the whole state.

use super::*;

/// A netns that loses so much and is deleted: its last counts, and that its slots are given back.
fn comes_and_goes(state: &mut State, id: u32, lost: u64) {
    let there = || NetnsSample { name: Some(format!("short-{id}").into()), ..netns(id, lost) };
    let gone = || NetnsSample { gone: true, complete: true, ..there() };
    let host = || netns(HOST, 0);
    let slots = vec![slot(id, FULL, 6, 80, lost)];
    state.sample(&sample(vec![host(), there()], slots.clone()));
    state.sample(&Sample { retired: slots, ..sample(vec![host(), gone()], vec![]) });
    state.sample(&sample(vec![host(), gone()], vec![]));
}

#[test]
fn of_thousands_of_namespaces_that_lost_something_and_are_gone_the_sums_remain() {
    let mut state = State::new(settings(By::Netns));
    // One that lost much is remembered by its name.
    comes_and_goes(&mut state, 7, 1_000_000);
    let many = 3_000;
    for id in 0..many {
        comes_and_goes(&mut state, 100_000 + id, u64::from(id % 5) + 1);
    }
    let tick = state.sample(&sample(vec![netns(HOST, 3)], vec![slot(HOST, FULL, 6, 80, 3)]));
    assert!(state.namespaces.len() <= 1_100, "{} namespaces are remembered", state.namespaces.len());
    let all = 1_000_000 + 3 * u64::from(many) + 3;
    assert_eq!((tick.counted.of(FULL), tick.kernel_counters.drop), (all, all));
    assert!(tick.unexplained.is_zero(), "{:?}", tick.unexplained);
    let end = state.end(time(9));
    assert_eq!((end.netns_gone, end.netns_not_readable, end.agreement.drop), (0, 0, Agreement::Agree));
    assert_eq!(end.rows.iter().map(|row| row.losses_total).sum::<u64>(), all);
    assert_eq!(end.rows[0].name, Some(Some("short-7".into())));
}

#[test]
fn what_namespaces_took_along_is_still_missing_once_they_are_forgotten() {
    let mut state = State::new(settings(By::Port));
    for id in 0..3_000 {
        let id = 100_000 + id;
        let slots = vec![slot(id, FULL, 6, 80, 5)];
        // The kernel was last heard to say 2; what it said in the end nobody read.
        state.sample(&sample(vec![netns(id, 2)], slots.clone()));
        state.sample(&Sample { retired: slots, ..sample(vec![], vec![]) });
    }
    for _ in 0..3 {
        state.sample(&sample(vec![], vec![]));
    }
    assert!(state.namespaces.len() <= 1_100);
    let end = state.end(time(9));
    assert_eq!((end.netns_gone, end.agreement.drop), (3_000, Agreement::NotReadable));
    assert_eq!((end.counted.of(FULL), end.kernel_counters.drop), (15_000, 6_000));
}

#[test]
fn a_netns_whose_counts_are_still_in_slots_is_not_forgotten() {
    let mut state = State::new(settings(By::Port));
    let slots: Vec<SlotSample> = (0..3_000).map(|id| slot(100_000 + id, FULL, 6, 80, 5)).collect();
    let there = (0..3_000).map(|id| netns(100_000 + id, 5)).collect();
    state.sample(&sample(there, slots.clone()));
    for _ in 0..4 {
        let tick = state.sample(&sample(vec![], slots.clone()));
        assert_eq!(tick.counted.of(FULL), 15_000);
    }
    let tick = state.sample(&Sample { retired: slots, ..sample(vec![], vec![]) });
    assert_eq!(tick.counted.of(FULL), 15_000);
    let tick = state.sample(&sample(vec![], vec![]));
    assert_eq!(tick.counted.of(FULL), 15_000);
    assert!(state.namespaces.len() <= 1_100);
}

#[test]
fn hidden_namespaces_with_flows_and_nothing_lost_leave_nothing_behind() {
    let mut state = State::new(settings(By::Port));
    for id in 0..3_000 {
        let key = SlotKey { netns: 100_000 + id, port: 80, proto: 6, kind: KIND_FLOWS };
        let flows = SlotSample { key, count: 5, deletes: 5, failed: 0 };
        state.sample(&Sample { retired: vec![flows], ..sample(vec![netns(HOST, 0)], vec![]) });
    }
    assert!(state.namespaces.len() <= 1_100, "{}", state.namespaces.len());
    assert!(state.end(time(9)).netns_not_readable <= 1_100);
}

#[test]
fn containers_come_and_go_and_a_new_one_still_has_a_row_of_its_own() {
    let mut state = State::new(settings(By::Container));
    let lost_by = |state: &mut State, name: String| {
        let container = Some(name.into());
        let who = Owner { container, ..Owner::default() };
        let loss = event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379);
        state.loss(&Loss { owner: Some(Arc::new(who)), ..loss });
    };
    let mut count = 0;
    for tick in 0..200 {
        for number in 0..100 {
            lost_by(&mut state, format!("docker:{tick}-{number}"));
        }
        for _ in 0..3 {
            lost_by(&mut state, "docker:stays".to_owned());
        }
        count += 103;
        state.sample(&sample(vec![netns(HOST, count)], vec![]));
    }
    lost_by(&mut state, "docker:new".to_owned());
    let tick = state.sample(&sample(vec![netns(HOST, count + 1)], vec![]));
    assert_eq!(tick.rows[0].container, Some(Some("docker:new".into())));
    let end = state.end(time(9));
    assert_eq!(
        (end.rows[0].container.clone(), end.rows[0].losses_total),
        (Some(Some("docker:stays".into())), 600)
    );
    assert_eq!(end.rows.iter().map(|row| row.losses_total).sum::<u64>(), count + 1);
}
