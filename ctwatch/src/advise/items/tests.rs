//! The story's host, and what it is told.

use super::*;
use crate::advise::case::{Firewall, ServiceFacts};
use crate::advise::demand::{Demand, Residence, Service};
use crate::advise::gc::Gc;
use crate::advise::target::ServiceTarget;
use crate::firewall::ObjectionKind;
use crate::machine::table::{EntrySize, Module, SizeSource, TableLimits};
use crate::machine::{BootSettings, Machine, Manager, Memory, managers};
use crate::model::{Direction, Protocol, TimeoutHistogram, TimeoutKind};

fn service(port: u16, direction: Direction, rate: f64) -> Service {
    let mut idle = TimeoutHistogram::default();
    (0..(rate * 120.0) as u32).for_each(|index| idle.add(index % 120));
    let time_wait = Residence {
        phase: TimeoutKind::TimeWait,
        timeout: 120,
        entries: (rate * 120.0) as u32,
        idle,
        per_s: rate,
        assumed: false,
    };
    Service {
        proto: Protocol::TCP,
        port,
        direction,
        entries: (rate * 120.0) as u32,
        admitted_per_s: rate,
        offered_per_s: rate,
        refused_per_s: 0.0,
        backlog_factor: 1.0,
        residences: vec![time_wait],
        pairs: Some(1),
        earlier: None,
        basis: Default::default(),
    }
}

fn machine(ram: u64) -> Machine {
    Machine {
        kernel_release: "6.12.0".to_owned(),
        kernel_version: Some((6, 12)),
        cpus: Some(4),
        memory: Some(Memory { total: ram, available: None }),
        table: TableLimits {
            module: Module::Loaded,
            max: Some(65_536),
            count: Some(65_536),
            buckets: Some(65_536),
            entry: EntrySize { object: 256, source: SizeSource::Slabinfo, extensions: 128 },
            ..TableLimits::default()
        },
        settings: BootSettings {
            new_sysctl_file: "/etc/sysctl.d/99-ctwatch.conf".into(),
            new_modprobe_file: "/etc/modprobe.d/99-ctwatch.conf".into(),
            ..BootSettings::default()
        },
        ..Machine::default()
    }
}

/// nginx and redis, 500 requests a second, and the default table of a host with 2 GiB.
fn story() -> Case {
    let redis: ServiceTarget = "6379/tcp/lo".parse().expect("a target");
    let web: ServiceTarget = "80/tcp/in".parse().expect("a target");
    let notrack = |port: u16| Commands { now: vec![format!("notrack {port}")], ..Commands::default() };
    Case {
        demand: Demand {
            services: vec![service(6379, Direction::Loopback, 500.0), service(80, Direction::In, 250.0)],
            max: 65_536,
            ephemeral: None,
            gc: Gc::default(),
            unevictable: None,
        },
        timeouts: [(TimeoutKind::TimeWait, 120), (TimeoutKind::Established, 432_000)].into(),
        machine: machine(2 << 30),
        netns_prefix: String::new(),
        is_away_from_host: false,
        is_kept_at_boot: true,
        asked: Vec::new(),
        times: 2.0,
        ways_in: Vec::new(),
        firewall: Firewall {
            tracking: vec!["ct state established accept".to_owned()],
            ..Firewall::default()
        },
        facts: [
            (
                redis,
                ServiceFacts {
                    server: Some("redis".into()),
                    clients: vec!["nginx".into()],
                    reuse: Some((
                        "call set_keepalive".to_owned(),
                        vec!["red:set_keepalive(10000, 100)".to_owned()],
                    )),
                    notrack: Some(notrack(6379)),
                    ..ServiceFacts::default()
                },
            ),
            (web, ServiceFacts { notrack: Some(notrack(80)), ..ServiceFacts::default() }),
        ]
        .into(),
    }
}

fn find<'a>(items: &'a [Item], id: &str) -> &'a Item {
    let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    items.iter().find(|item| item.id == id).unwrap_or_else(|| panic!("{id} is not among {ids:?}"))
}

#[test]
fn the_story_is_told_to_reuse_connections_first() {
    let items = advise(&story());
    assert_eq!(
        items[0].id,
        "reuse-6379-tcp-lo",
        "{:?}",
        items.iter().map(|item| &item.id).collect::<Vec<_>>()
    );
    assert!(items[0].solves && items[0].title.contains("nginx to redis"), "{}", items[0].title);
    assert_eq!(items[0].settings, ["red:set_keepalive(10000, 100)"]);
    for id in ["notrack-6379-tcp-lo", "notrack-80-tcp-in", "max", "time_wait", "reuse-80-tcp-in"] {
        assert!(find(&items, id).refused.is_empty(), "{id}");
    }
}

#[test]
fn a_larger_table_comes_with_buckets_memory_and_a_way_back() {
    let items = advise(&story());
    let item = find(&items, "max");
    assert_eq!(item.change.max, Some(262_144));
    assert!(item.solves);
    assert_eq!(
        item.commands.now,
        [
            "echo 262144 > /sys/module/nf_conntrack/parameters/hashsize",
            "sysctl -w net.netfilter.nf_conntrack_max=262144"
        ]
    );
    assert_eq!(item.commands.undo[0], "sysctl -w net.netfilter.nf_conntrack_max=65536");
    assert!(item.commands.undo.iter().any(|line| line.starts_with("echo 65536 >")));
    assert!(
        item.commands.keep.iter().any(|line| line.contains("hashsize=262144")),
        "{:?}",
        item.commands.keep
    );
    assert!(item.notes.iter().any(|note| note.contains("98 MiB")), "{:?}", item.notes);
}

#[test]
fn a_table_that_takes_much_of_the_memory_is_a_high_risk() {
    let mut case = story();
    case.machine = machine(512 << 20);
    assert_eq!(find(&advise(&case), "max").risk, Level::High);
}

#[test]
fn a_table_with_room_to_spare_needs_no_larger_one() {
    let mut case = story();
    case.demand.max = 1 << 20;
    let items = advise(&case);
    assert!(items.iter().all(|item| item.kind != ChangeKind::Size), "{items:?}");
}

#[test]
fn time_wait_is_shortened_no_more_than_it_takes() {
    let items = advise(&story());
    assert_eq!(find(&items, "time_wait").change.to_string(), "time_wait=30");
    let mut case = story();
    case.demand.max = 100_000;
    assert_eq!(find(&advise(&case), "time_wait").change.to_string(), "time_wait=60");
}

#[test]
fn a_rule_that_needs_state_refuses_notrack_and_says_why() {
    let mut case = story();
    let facts = case.facts.get_mut(&"80/tcp/in".parse().expect("a target")).expect("facts");
    facts.objections = vec![Objection {
        kind: ObjectionKind::NatRule,
        place: "".into(),
        rule: "tcp dport 80 dnat to 10.0.0.2".into(),
        text: "an untracked packet is not translated".to_owned(),
        remedy: None,
    }];
    let items = advise(&case);
    let item = find(&items, "notrack-80-tcp-in");
    assert!(item.commands.now.is_empty() && !item.refused.is_empty());
    assert!(items.last().is_some_and(|last| !last.refused.is_empty()), "refused advice comes last");
    assert!(
        best_combination(&case, &items)
            .is_some_and(|both| both.ids.iter().all(|id| !id.contains("notrack-80")))
    );
}

#[test]
fn kube_proxy_gets_the_setting_instead_of_a_sysctl_file() {
    let mut case = story();
    case.machine.managers = vec![Manager {
        kind: managers::Kind::KubeProxy,
        evidence: "kube-proxy (pid 7)".into(),
        pid: Some(7),
        sets: [(managers::MAX.to_owned(), 131_072)].into(),
        overwrites: true,
        when: "at its start".into(),
        configured_in: "/var/lib/kube-proxy/config.conf".into(),
    }];
    let items = advise(&case);
    let item = find(&items, "max");
    assert!(item.commands.keep.iter().all(|line| !line.contains("sysctl")), "{:?}", item.commands.keep);
    assert!(item.settings.iter().any(|line| line.contains("262144")), "{:?}", item.settings);
    assert!(item.notes.iter().any(|note| note.contains("kube-proxy (pid 7)")), "{:?}", item.notes);
}

#[test]
fn an_empty_table_needs_no_advice() {
    let case = Case { demand: Demand { max: 65_536, ..Demand::default() }, ..story() };
    assert!(advise(&case).is_empty());
}

#[test]
fn each_piece_is_kept_in_files_of_its_own() {
    let items = advise(&story());
    let kept = |id: &str| -> Vec<String> {
        let lines = find(&items, id).commands.keep.iter();
        lines.filter_map(|line| line.split_once(" > ").map(|(_, file)| file.to_owned())).collect()
    };
    let (max, time_wait) = (kept("max"), kept("time_wait"));
    assert!(max.contains(&"/etc/sysctl.d/99-ctwatch-max.conf".to_owned()), "{max:?}");
    assert!(!max.is_empty() && max.iter().all(|file| !time_wait.contains(file)), "{max:?} {time_wait:?}");
    for file in max {
        assert!(find(&items, "max").commands.undo.contains(&format!("rm -f {file}")), "{file}");
    }
}

#[test]
fn the_limit_is_the_hosts_and_timeouts_are_the_netns_own() {
    let blue = "nsenter --net=/run/netns/blue ".to_owned();
    let case = Case { netns_prefix: blue, is_kept_at_boot: false, ..story() };
    let items = advise(&case);
    let last = |id: &str| find(&items, id).commands.now.last().expect("a command").clone();
    assert_eq!(last("max"), "sysctl -w net.netfilter.nf_conntrack_max=262144");
    assert!(
        last("time_wait").starts_with("nsenter --net=/run/netns/blue sysctl -w "),
        "{}",
        last("time_wait")
    );
    assert!(find(&items, "time_wait").commands.keep.is_empty());
    assert!(!find(&items, "max").commands.keep.is_empty());
}

#[test]
fn behind_nat_timeouts_below_the_rfcs_say_so() {
    let mut case = story();
    case.firewall.nat = true;
    for residence in case.demand.services.iter_mut().flat_map(|service| &mut service.residences) {
        residence.phase = TimeoutKind::FinWait;
    }
    case.timeouts = [(TimeoutKind::FinWait, 120)].into();
    let items = advise(&case);
    let item = find(&items, "fin_wait");
    assert!(item.risk_text.contains("RFC 5382 requires 4 min"), "{}", item.risk_text);
    assert_eq!(item.risk, Level::Medium);
    case.firewall.nat = false;
    let items = advise(&case);
    assert_eq!(find(&items, "fin_wait").risk, Level::Low);
    assert_eq!(rfc(TimeoutKind::Established), Some(("RFC 5382", 7440)));
    assert_eq!(rfc(TimeoutKind::TimeWait), None);
}

#[test]
fn a_way_in_comes_first_where_the_table_is_full_and_only_if_nothing_needs_its_state() {
    let mut case = story();
    let ssh: ServiceTarget = "22/tcp/in".parse().expect("a target");
    case.ways_in = vec![crate::advise::case::WayIn {
        target: ssh,
        who: Some("sshd (pid 812)".to_owned()),
        is_asked_for: false,
    }];
    let commands = Commands { now: vec!["notrack 22".to_owned()], ..Commands::default() };
    case.facts.insert(ssh, ServiceFacts { notrack: Some(commands), ..ServiceFacts::default() });
    let items = advise(&case);
    assert_eq!((items[0].id.as_str(), items[0].kind), ("keep-22-tcp-in", ChangeKind::WayIn));
    assert!(items[0].evidence.contains("sshd (pid 812)") && items[0].commands.now == ["notrack 22"]);
    assert!(
        best_combination(&case, &items).is_some_and(|both| both.ids.iter().all(|id| !id.contains("keep")))
    );

    // Exempt already: nothing to do.
    case.facts.get_mut(&ssh).expect("facts").untracked = true;
    assert!(advise(&case).iter().all(|item| item.kind != ChangeKind::WayIn));
    case.facts.get_mut(&ssh).expect("facts").untracked = false;

    case.facts.get_mut(&ssh).expect("facts").objections = vec![Objection {
        kind: ObjectionKind::NatRule,
        place: "".into(),
        rule: "tcp dport 22 dnat to 10.0.0.2".into(),
        text: "an untracked packet is not translated".to_owned(),
        remedy: None,
    }];
    let item = advise(&case).into_iter().find(|item| item.kind == ChangeKind::WayIn).expect("it is refused");
    assert!(item.commands.now.is_empty() && item.refused.len() == 1);

    // With room to spare it is offered to those who ask for it.
    case.demand.max = 1 << 24;
    assert!(advise(&case).iter().all(|item| item.kind != ChangeKind::WayIn));
    case.ways_in[0].is_asked_for = true;
    assert!(advise(&case).iter().any(|item| item.kind == ChangeKind::WayIn));
}
