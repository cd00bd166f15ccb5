//! Rows by process and by container: nothing is put down to somebody on a guess.
//! Through the whole state.

use super::*;

#[test]
fn losses_that_no_program_saw_take_exactness_from_rows_by_event() {
    for by in [By::Flow, By::Process, By::Container] {
        let mut state = State::new(settings(by));
        state.loss(&sent_by(812, Some("docker:1"), event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379)));
        let tick = state.sample(&sample(vec![netns(HOST, 2)], vec![unattributed(HOST, 1)]));
        assert_eq!((tick.rows.len(), tick.rows[0].exact), (1, false));
    }
}

fn sent_by(pid: u32, container: Option<&str>, loss: Loss) -> Loss {
    let process = ProcessId { pid, name: Name::new(b"nginx"), role: Role::Sender };
    let container = container.map(str::to_owned);
    let who = Owner { process: Some(process), container: container.map(Into::into), ..Owner::default() };
    Loss { owner: Some(Arc::new(who)), ..loss }
}

fn nobody_s(unattributable: bool, container: Option<&str>, loss: Loss) -> Loss {
    let who = Owner { unattributable, container: container.map(Into::into), ..Owner::default() };
    Loss { owner: Some(Arc::new(who)), ..loss }
}

#[test]
fn rows_by_process_never_merge_the_unknown_into_somebody_s() {
    let mut state = State::new(settings(By::Process));
    assert!(state.wants_events());
    let loss = || event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379);
    for pid in [812, 812, 813] {
        state.loss(&sent_by(pid, None, loss()));
    }
    state.loss(&nobody_s(false, None, loss()));
    let tick = state.sample(&sample(vec![netns(HOST, 4)], vec![]));
    let rows: Vec<_> = tick.rows.iter().map(|row| (row.process.clone(), row.losses, row.exact)).collect();
    let nginx = |pid| Some(Some(Process { pid, name: "nginx".into(), role: Role::Sender }));
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], (nginx(812), 2, true));
    assert!(rows.contains(&(nginx(813), 1, true)) && rows.contains(&(Some(None), 1, true)));

    // One that may be anybody's makes the others' counts lower bounds.
    state.loss(&nobody_s(true, None, loss()));
    state.loss(&sent_by(812, None, loss()));
    let tick = state.sample(&sample(vec![netns(HOST, 6)], vec![]));
    for row in &tick.rows {
        assert_eq!(row.exact, row.process == Some(None));
    }
}

#[test]
fn rows_by_process_and_container_admit_lost_events() {
    for by in [By::Process, By::Container] {
        let mut state = State::new(settings(by));
        let loss = event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379);
        state.loss(&sent_by(812, Some("docker:1"), loss));
        let mut sample = sample(vec![netns(HOST, 2)], vec![]);
        sample.lost_events[FULL as usize] = 1;
        assert!(state.sample(&sample).rows.iter().all(|row| !row.exact));
    }
}

#[test]
fn rows_by_container_take_the_netns_s_where_the_process_is_unknown() {
    let mut state = State::new(settings(By::Container));
    let loss = || event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379);
    state.loss(&sent_by(812, Some("docker:1"), loss()));
    state.loss(&nobody_s(true, Some("docker:1"), loss()));
    state.loss(&nobody_s(false, None, loss()));
    let tick = state.sample(&sample(vec![netns(HOST, 3)], vec![]));
    let rows: Vec<_> = tick.rows.iter().map(|row| (row.container.clone(), row.losses, row.exact)).collect();
    assert_eq!(rows, [(Some(Some("docker:1".into())), 2, true), (Some(None), 1, true)]);
}
