//! Flags of all commands: what they come to, and what is said of wrong ones.

use super::*;
use crate::model::Backend;
use crate::state::table::{Dimension, Keys};
use crate::state::{By, PortRange};
use std::time::Duration;

fn drops(flags: &str) -> DropsConfig {
    let arguments = ["ctwatch", "drops"].into_iter().chain(flags.split_whitespace());
    match parse(arguments).expect("these flags are right").command {
        Command::Drops(drops) => drops,
        other => panic!("asked for drops, not {other:?}"),
    }
}

fn table(flags: &str) -> TableConfig {
    let arguments = ["ctwatch", "table"].into_iter().chain(flags.split_whitespace());
    match parse(arguments).expect("these flags are right").command {
        Command::Table(table) => table,
        other => panic!("asked for a table, not {other:?}"),
    }
}

fn wrong(flags: &str) -> String {
    let arguments = ["ctwatch"].into_iter().chain(flags.split_whitespace());
    let error = parse(arguments).expect_err("these flags are wrong");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn nothing_given_means_ports_once_a_second() {
    let drops = drops("");
    assert_eq!(drops.by, By::Port);
    assert_eq!(drops.interval, Duration::from_secs(1));
    assert_eq!(drops.top, 20);
    assert!(drops.count_flows && !drops.drop_events && !drops.insert_events);
    assert_eq!(drops.backend, BackendChoice::Auto);
    assert_eq!(drops.filter.loopback, None);
}

#[test]
fn lists_take_commas_and_repetition() {
    let drops = drops("--port 80,443 --port 6000-6010 --src ::1,10.0.0.0/8");
    assert_eq!(drops.filter.ports.len(), 3);
    assert_eq!(drops.filter.ports[2], PortRange { first: 6000, last: 6010 });
    assert_eq!(drops.filter.src.len(), 2);
}

#[test]
fn a_bare_flag_with_an_optional_value_leaves_the_next_word_alone() {
    let drops = drops("--events --loopback --by flow");
    assert!(drops.drop_events && !drops.insert_events);
    assert_eq!(drops.filter.loopback, Some(true));
    assert_eq!(drops.by, By::Flow);
}

#[test]
fn optional_values_come_after_an_equals_sign() {
    let drops = drops("--events=drop,insert --loopback=no");
    assert!(drops.drop_events && drops.insert_events);
    assert_eq!(drops.filter.loopback, Some(false));
}

#[test]
fn a_backend_can_be_forced() {
    assert_eq!(drops("--backend tracepoint").backend, BackendChoice::Forced(Backend::Tracepoint));
}

#[test]
fn a_table_is_by_port_once_unless_more_is_asked_for() {
    let once = table("");
    assert_eq!((once.settings.by, once.settings.top, once.watch), (Keys::default(), 20, None));
    assert_eq!(table("--watch").watch, Some(Duration::from_secs(2)));
    let crossed = table("--watch 500ms --by src,state --loopback=no");
    assert_eq!(crossed.watch, Some(Duration::from_millis(500)));
    assert!(crossed.settings.by.has(Dimension::Src) && crossed.settings.by.has(Dimension::State));
    assert_eq!(crossed.settings.filter.loopback, Some(false));
}

#[test]
fn a_duration_may_be_days_and_conditions_need_no_flows_unless_they_do() {
    assert_eq!(drops("--duration 1d").duration, Some(Duration::from_secs(86_400)));
    let arguments = "ctwatch record -o x --when fill>=90% --no-inserts --exec page --duration 1d12h";
    let Command::Record(record) = parse(arguments.split_whitespace()).unwrap().command else { panic!() };
    assert_eq!(record.duration, Some(Duration::from_secs(36 * 3_600)));
    assert!(!record.count_flows && record.exec.is_some());
}

#[test]
fn wrong_usage_says_what_is_right() {
    assert!(wrong("drops --src 10.0.0.0/33").contains("0 to 32"));
    assert!(wrong("drops --cause full").contains("table_full"));
    assert!(wrong("drops --interval 1").contains("500ms"));
    assert!(wrong("drops --top 0").contains("--top"));
    assert!(wrong("drops --prot tcp").contains("--proto"));
    assert!(wrong("table --by colour").contains("direction"));
    assert!(wrong("table --by port,port").contains("twice"));
    assert!(wrong("record").contains("--output"));
    assert!(wrong("record -o x --once").contains("--when"));
    assert!(wrong("record -o x --when load>1").contains("fill>=90%"));
    assert!(wrong("record -o x --exec page").contains("--when"));
    assert!(wrong("record -o x --when full_in<60s --no-inserts").contains("leave out --no-inserts"));
    assert!(wrong("record -o x --duration 1").contains("7d"));
    wrong("check --by port");
    wrong("top");
}
