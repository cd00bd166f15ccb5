//! `report --anonymize`: whatever the recording knows of names and addresses, no format shows it; figures stay.
//! The night of the postmortem, with names and addresses planted wherever a recording can hold them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::advice::machine;
use crate::fixtures::{HOST, evicted, loss, of};
use crate::postmortem::recorded_with;
use ctwatch::machine::Machine;
use ctwatch::machine::managers::{Kind, MAX, Manager};
use ctwatch::machine::published::Published;
use ctwatch::model::{Loss, NetnsId, Role, Tuple};
use ctwatch::postmortem::{Postmortem, ReportFormat, Request, gather, render};
use ctwatch::record::anonymize::Anonymizer;
use ctwatch::record::rows::Names;
use ctwatch::record::writer::Batch;
use jiff::tz::TimeZone;
use serde_json::Value;

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// What may not be seen: of names, and of addresses as they are written.
const SECRETS: [&str; 10] = [
    "acme",
    "web1",
    "nginx",
    "redis-cli",
    "2001:db8",
    "198.51.100",
    "203.0.113",
    "10.0.0",
    "10.96",
    "secret",
];

fn secretive(machine: Machine) -> Machine {
    let mut machine = machine;
    machine.notes = vec!["/etc/acme.conf is odd".to_owned()];
    machine.settings.new_sysctl_file = "/etc/sysctl.d/99-acme.conf-ctwatch.conf".into();
    machine.settings.new_modprobe_file = "/etc/modprobe.d/99-acme.conf-ctwatch.conf".into();
    machine.managers = vec![Manager {
        kind: Kind::KubeProxy,
        evidence: "acme-proxy (pid 812)".into(),
        pid: Some(812),
        sets: BTreeMap::from([(MAX.to_owned(), 262_144)]),
        overwrites: true,
        when: "when acme starts".into(),
        configured_in: "/etc/acme/proxy.yaml".into(),
    }];
    machine.published = vec![Published {
        program: "acme-proxy".into(),
        pid: 812,
        proto: "tcp".into(),
        address: Some(IpAddr::V4(SERVER)),
        port: 443,
        to: Some((IpAddr::V4(CLIENT), 443)),
    }];
    machine
}

/// From outside, in IPv4.
fn from_a_client() -> Loss {
    let mut loss = loss(true, 6);
    loss.packet.tuple = Some(Tuple { src: CLIENT.into(), dst: SERVER.into(), sport: 42_901, dport: 443 });
    of("acme-server", Role::Listener, Some("docker:acme"), loss)
}

fn plant(second: i64, batch: &mut Batch) {
    if second == 1 {
        let names = Names { name: Some("acme-net".into()), container: Some("docker:acme".into()) };
        batch.names = HashMap::from([(NetnsId::from_packed(HOST), names)]);
        batch.facts[0].json = serde_json::to_string(&secretive(machine())).unwrap();
    }
    if let Some(notice) = batch.notices.first_mut() {
        notice.text = "acme-server at 203.0.113.9 set the clock".into();
    }
    if (21..=40).contains(&second) {
        batch.events.extend([(from_a_client(), true), (evicted(), true)]);
    }
}

fn report(path: &Path, anonymize: Option<Option<String>>) -> Postmortem {
    let request = Request { files: vec![path.to_owned()], incident: None, from: None, to: None, anonymize };
    gather(&request, "0.1.0", &TimeZone::UTC).unwrap()
}

#[test]
fn no_format_shows_a_name_or_an_address_and_all_show_the_figures() {
    let path = recorded_with("secret.ctw", plant);
    let (open, hidden) = (report(&path, None), report(&path, Some(None)));
    let shown = |report: &Postmortem, format| render(report, format, &TimeZone::UTC).unwrap();
    for format in [ReportFormat::Text, ReportFormat::Markdown, ReportFormat::Html, ReportFormat::Json] {
        let text = shown(&hidden, format);
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} in {format:?}: {text}");
        }
        assert!(text.contains("6379") && text.contains("443"), "ports stay");
    }
    // Otherwise there was nothing to hide.
    let json = shown(&open, ReportFormat::Json);
    for secret in
        ["acme-net", "acme-server", "99-acme", "198.51.100.7", "203.0.113.9", "2001:db8", "web1", "nginx"]
    {
        assert!(json.contains(secret), "{secret} is not in {json}");
    }
    let (open, hidden) = (host(&open), host(&hidden));
    for figures in ["story", "kernel_counters", "counted", "by_fill"] {
        let renamed = open[figures].to_string().replace("acme-net", "netns-1");
        assert_eq!(hidden[figures].to_string(), renamed, "{figures}");
    }
    let pieces = |host: &Value| host["advice"]["items"].as_array().cloned().unwrap_or_default();
    assert!(!pieces(&hidden).is_empty());
    for piece in pieces(&hidden) {
        let same =
            pieces(&open).into_iter().find(|other| other["id"] == piece["id"]).expect("the same advice");
        assert_eq!(piece["commands"]["now"], same["commands"]["now"]);
        assert_eq!(piece["commands"]["keep"], serde_json::json!([]), "{piece}");
        assert!(!piece["commands"]["undo"].to_string().contains("rm -f"), "{piece}");
    }
}

fn host(report: &Postmortem) -> Value {
    let text = render(report, ReportFormat::Json, &TimeZone::UTC).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["hosts"][0].take()
}

#[test]
fn with_a_key_an_address_is_the_same_wherever_it_stands() {
    let path = recorded_with("secret-key.ctw", plant);
    let key = "one for all hosts";
    let report = report(&path, Some(Some(key.to_owned())));
    let anonymizer = Anonymizer::new(Some(key)).unwrap();
    let (client, server) = (anonymizer.address(CLIENT.into()), anonymizer.address(SERVER.into()));
    let victims = host(&report)["victims"].take();
    let has = |table: &str, what: String| {
        victims[table].as_array().is_some_and(|rows| rows.iter().any(|row| row["what"] == what))
    };
    assert!(has("flows", format!("{client} -> {server} 443/tcp")), "{victims}");
    assert!(has("sources", client.to_string()), "{victims}");
}
