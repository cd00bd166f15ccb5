//! `ctwatch advise` as people and scripts see it: the story's host, text, JSON and the script.
//! The same report goes through the schema test.

use crate::fixtures::{HOST, golden, time};
use crate::goldens::{fits_80_columns, json, text};
use ctwatch::advise::case::{Case, Firewall, ServiceFacts};
use ctwatch::advise::demand::{Basis, Demand, Residence, Service};
use ctwatch::advise::gc::Gc;
use ctwatch::advise::netns_commands::NetnsCommands;
use ctwatch::advise::report::{Advice, Source, report};
use ctwatch::advise::target::ServiceTarget;
use ctwatch::firewall::{Commands, Objection, ObjectionKind};
use ctwatch::machine::table::{EntrySize, Module, SizeSource, Sizes, TableLimits};
use ctwatch::machine::{BootSettings, Machine, Manager, Memory, managers};
use ctwatch::model::{Direction, NetnsId, Protocol, TimeoutHistogram, TimeoutKind};
use ctwatch::view::{View, sh};
use proptest::strategy::Strategy as _;

fn service(port: u16, direction: Direction, per_s: f64, held_back: f64) -> Service {
    let entries = (per_s * 60.0) as u32;
    let mut idle = TimeoutHistogram::default();
    (0..entries).for_each(|index| idle.add(index * 60 / entries));
    let mut talking = TimeoutHistogram::default();
    (0..40).for_each(|_| talking.add(0));
    Service {
        proto: Protocol::TCP,
        port,
        direction,
        entries: entries + 40,
        admitted_per_s: per_s,
        offered_per_s: per_s * held_back,
        refused_per_s: per_s * (held_back - 1.0) * 2.0,
        backlog_factor: held_back,
        residences: vec![
            Residence {
                phase: TimeoutKind::TimeWait,
                timeout: 120,
                entries,
                idle,
                per_s: per_s * held_back,
                assumed: false,
            },
            Residence {
                phase: TimeoutKind::Established,
                timeout: 432_000,
                entries: 40,
                idle: talking,
                per_s,
                assumed: false,
            },
        ],
        pairs: Some(1),
        earlier: None,
        basis: Basis::Measured,
    }
}

pub fn machine() -> Machine {
    Machine {
        kernel_release: "6.12.117".to_owned(),
        kernel_version: Some((6, 12)),
        cpus: Some(4),
        memory: Some(Memory { total: 8 << 30, available: Some(5 << 30) }),
        table: TableLimits {
            module: Module::Loaded,
            max: Some(65_536),
            count: Some(65_536),
            buckets: Some(65_536),
            entry: EntrySize { object: 256, source: SizeSource::Slabinfo, extensions: 128 },
            kernel_default: Some(Sizes { max: 262_144, buckets: 262_144 }),
            old_rule: Some(Sizes { max: 262_144, buckets: 32_768 }),
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

fn story() -> Case {
    let target = |text: &str| text.parse::<ServiceTarget>().expect("a target");
    let notrack = Commands {
        now: vec!["nft 'table inet t { … }'".to_owned()],
        keep: vec!["# nftables.service reads it".to_owned()],
        undo: vec!["nft delete table inet t".to_owned()],
    };
    let redis = ServiceFacts {
        server: Some("redis".into()),
        clients: vec!["nginx+lua".into()],
        reuse: Some((
            "keep the connections from nginx+lua to redis open".to_owned(),
            vec!["red:set_keepalive(10000, 100) instead of red:close()".to_owned()],
        )),
        notrack: Some(notrack.clone()),
        ..ServiceFacts::default()
    };
    let objection = Objection {
        kind: ObjectionKind::NatRule,
        place: "inet nat prerouting".into(),
        rule: "tcp dport 443 dnat to 10.0.0.2".into(),
        text: "an untracked packet is not translated".to_owned(),
        remedy: None,
    };
    let web = ServiceFacts {
        server: Some("nginx".into()),
        objections: vec![objection],
        notrack: Some(notrack),
        ..ServiceFacts::default()
    };
    Case {
        demand: Demand {
            services: vec![
                service(6379, Direction::Loopback, 520.0, 1.6),
                service(443, Direction::In, 210.0, 1.2),
            ],
            max: 65_536,
            ephemeral: Some(28_232),
            gc: Gc::default(),
            unevictable: Some(40),
        },
        timeouts: [(TimeoutKind::TimeWait, 120), (TimeoutKind::Established, 432_000)].into(),
        machine: machine(),
        times: 2.0,
        ways_in: Vec::new(),
        netns_prefix: String::new(),
        is_away_from_host: false,
        is_kept_at_boot: true,
        asked: Vec::new(),
        firewall: Firewall {
            nat: true,
            tracking: vec!["inet filter input: ct state established accept".to_owned()],
            removal: None,
            objections: vec![Objection {
                kind: ObjectionKind::NatRule,
                place: "inet nat prerouting".into(),
                rule: "tcp dport 443 dnat to 10.0.0.2".into(),
                text: "NAT needs conntrack".to_owned(),
                remedy: None,
            }],
        },
        facts: [(target("6379/tcp/lo"), redis), (target("443/tcp/in"), web)].into(),
    }
}

fn advice(case: &Case, what_if: Option<&str>) -> Advice {
    let source = Source {
        version: "0.1.0",
        time: time(0),
        netns: NetnsId::from_packed(HOST),
        name: Some("host".into()),
        window_s: 15.0,
        measured_by: "kprobe",
        notes: vec!["/etc/sysctl.d/10.conf sets nf_conntrack_max twice".to_owned()],
    };
    let change = what_if.map(|text| text.parse().expect("a change"));
    report(case, source, change.as_ref())
}

/// Everything a report can hold, for the schema test.
pub fn all() -> Vec<Advice> {
    let mut managed = story();
    managed.machine.managers = vec![Manager {
        kind: managers::Kind::KubeProxy,
        evidence: "kube-proxy (pid 7)".into(),
        pid: Some(7),
        sets: [(managers::MAX.to_owned(), 131_072)].into(),
        overwrites: true,
        when: "at its start".into(),
        configured_in: "/var/lib/kube-proxy/config.conf".into(),
    }];
    let mut empty = story();
    empty.demand.services.clear();
    let what_if = "max=0,time_wait=30,notrack=53/udp,keepalive=6379:50,established=300,times=1.5";
    vec![advice(&story(), Some(what_if)), advice(&managed, None), advice(&empty, None)]
}

#[test]
fn the_story_in_text() {
    let shown = text(false, |view: &mut dyn View| {
        view.advice(&advice(&story(), Some("max=262144,time_wait=30,notrack=6379/tcp/lo"))).unwrap();
    });
    // Commands are to be copied: they alone may be longer.
    let prose: String = shown
        .lines()
        .filter(|line| !line.contains(" > ") && !line.contains(" >> "))
        .collect::<Vec<_>>()
        .join("\n");
    fits_80_columns(&prose);
    golden("advice.txt", &shown);
}

#[test]
fn a_host_with_room_needs_no_advice() {
    let mut case = story();
    case.demand.services.clear();
    let shown = text(false, |view: &mut dyn View| view.advice(&advice(&case, None)).unwrap());
    assert!(shown.contains("nothing to advise"), "{shown}");
}

#[test]
fn the_story_in_json() {
    golden("advice.ndjson", &json(|view: &mut dyn View| view.advice(&advice(&story(), None)).unwrap()));
}

/// The script of these pieces.
fn script(report: &Advice, ids: &[&str]) -> String {
    let chosen: Vec<_> = report.items.iter().filter(|item| ids.contains(&item.id.as_str())).collect();
    let mut script = Vec::new();
    sh::write(&mut script, report, &chosen).expect("memory is writable");
    String::from_utf8(script).expect("UTF-8")
}

/// The shells that are here: dash or whatever sh is, bash as sh, busybox.
fn shells() -> Vec<&'static [&'static str]> {
    let all: [&[&str]; 4] = [&["sh"], &["dash"], &["bash", "--posix"], &["busybox", "sh"]];
    let path = std::env::var_os("PATH").expect("there is a PATH");
    let is_here =
        |shell: &&[&str]| std::env::split_paths(&path).any(|folder| folder.join(shell[0]).is_file());
    all.into_iter().filter(is_here).collect()
}

fn ran(shell: &[&str], script: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", script, "advice.sh"]).args(arguments);
    command.output().expect("a shell runs")
}

#[test]
fn a_script_lists_its_pieces_and_does_nothing_unless_it_is_told() {
    let report = advice(&story(), None);
    let script = script(&report, &["max", "reuse-6379-tcp-lo", "notrack-443-tcp-in"]);
    golden("advice.sh", &script);
    for shell in shells() {
        for arguments in
            [&[][..], &["later"], &["now"], &["now", "4"], &["try", "time_wait"], &["try", "max; id"]]
        {
            let output = ran(shell, &script, arguments);
            assert_eq!(output.status.code(), Some(2), "{shell:?} {arguments:?}: {output:?}");
            let (said, usage) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(said.contains("2  max: raise nf_conntrack_max"), "{said}");
            assert!(
                said.contains("reuse-6379-tcp-lo")
                    && said.contains("(by hand)")
                    && said.contains("(refused)")
            );
            assert!(usage.contains("try PIECE") && usage.contains("rollback"), "{usage}");
        }
        // What nobody can apply says so.
        let output = ran(shell, &script, &["now", "reuse-6379-tcp-lo"]);
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("nothing to apply")
        );
    }
}

/// With commands that only print their arguments, each behind a NUL.
fn harmless(script: &str) -> String {
    let print = "{ printf '%s\\0' \"$@\"; }";
    let fakes: String =
        ["sysctl", "mkdir", "rm", "nsenter", "nft"].map(|name| format!("{name}() {print}\n")).concat();
    script.replacen("set -u\n", &format!("set -u\n{fakes}"), 1)
}

fn arguments(output: &[u8]) -> Vec<String> {
    let words = output.split(|byte| *byte == 0).map(|word| String::from_utf8(word.to_vec()).expect("UTF-8"));
    words.collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// Names of files, of a netns, of programs, rules and hosts, as a recording from elsewhere may hold them.
    #[test]
    fn no_name_reaches_the_shell_but_as_one_word(
        name in proptest::prop_oneof![
            proptest::collection::vec(proptest::sample::select(vec![
                "'", "\"", "\\", "$(touch /tmp/ctwatch-was-here)", "`id`", ";", "&", "|", "\n", "\r", " ", "*", "~", "#", "!",
                "{", "}", "<", ">", "(", ")", "-", "a", "é", "\u{1b}[2J", "EOF", "\nEOF\n", "$HOME", "${x}", "esac\n", ";;",
            ]), 1..8).prop_map(|parts| parts.concat()),
            proptest::prelude::any::<String>(),
        ],
    ) {
        let name = name.replace('\0', "");
        let mut case = story();
        case.machine.kernel_release = name.clone();
        case.machine.settings.new_sysctl_file = format!("/etc/sysctl.d/{name}.conf").into();
        case.machine.settings.new_modprobe_file = format!("/etc/modprobe.d/{name}").into();
        for facts in case.facts.values_mut() {
            facts.server = Some(name.as_str().into());
            facts.clients = vec![name.as_str().into()];
            facts.reuse = Some((name.clone(), vec![name.clone()]));
            for objection in &mut facts.objections {
                (objection.rule, objection.place, objection.text) = (name.as_str().into(), name.as_str().into(), name.clone());
            }
        }
        let inside = NetnsCommands::inside(std::path::Path::new(&format!("/run/netns/{name}")), NetnsId::from_packed(7));
        for prefix in [String::new(), inside.enter] {
            case.netns_prefix = prefix.clone();
            case.is_kept_at_boot = prefix.is_empty();
            let mut report = advice(&case, None);
            report.name = Some(name.as_str().into());
            let ids: Vec<&str> = report.items.iter().map(|item| item.id.as_str()).collect();
            let script = harmless(&script(&report, &ids));
            for shell in shells() {
                let keep = ran(shell, &script, &["undo", "time_wait"]);
                proptest::prop_assert!(keep.status.success(), "{:?}: {}", shell, String::from_utf8_lossy(&keep.stderr));
                proptest::prop_assert!(keep.stderr.is_empty(), "{:?}: {}", shell, String::from_utf8_lossy(&keep.stderr));
                let set = ["-w", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=120"].map(str::to_owned);
                let expected: Vec<String> = if prefix.is_empty() {
                    // Not even as one word: it is not this name that decides what is written.
                    let file = "/etc/sysctl.d/99-ctwatch-time_wait.conf".to_owned();
                    let module = "/etc/modules-load.d/ctwatch-time_wait.conf".to_owned();
                    set.into_iter().chain(["-f".to_owned(), file, "-f".to_owned(), module, String::new()]).collect()
                } else {
                    let guarded = arguments(&keep.stdout).get(3).cloned().unwrap_or_default();
                    proptest::prop_assert!(guarded.contains("= \"net:[7]\" ] && exec \"$@\"; "), "{}", guarded);
                    let enter = [&*format!("--net=/run/netns/{name}"), "sh", "-c", &guarded, "enter", "sysctl"];
                    enter.map(str::to_owned).into_iter().chain(set).chain([String::new()]).collect()
                };
                proptest::prop_assert_eq!(arguments(&keep.stdout), expected, "{:?}", shell);
                // Titles and lists hold names, too.
                let list = ran(shell, &script, &[]);
                proptest::prop_assert_eq!(list.status.code(), Some(2));
                proptest::prop_assert_eq!(list.stdout.iter().filter(|byte| **byte == b'\n').count(), ids.len());
            }
        }
        proptest::prop_assert!(!std::path::Path::new("/tmp/ctwatch-was-here").exists());
    }
}

#[test]
fn a_service_that_was_busier_is_said_to_have_been_and_its_lifetime_is_that_of_its_entries() {
    let mut case = story();
    let redis = &mut case.demand.services[0];
    let came: f64 =
        redis.residences.iter().filter(|one| one.phase.expires_unrefreshed()).map(|one| one.per_s).sum();
    redis.offered_per_s = came / 8.0;
    redis.refused_per_s = came / 8.0;
    let told = advice(&case, None);
    let note = told.notes.iter().find(|note| note.contains("its entries came at")).expect("a note");
    assert!(
        note.starts_with("6379/tcp/lo: its entries came at 832 flows/s, more than the 104 that"),
        "{note}"
    );
    let redis = told.services.iter().find(|one| one.port == Some(6379)).expect("redis is among them");
    let lifetime = redis.lifetime_s.expect("a lifetime");
    assert!((lifetime - redis.needs / came).abs() < 1e-9, "{lifetime}");
    // One that is refused as many as came isn't.
    case.demand.services[0].offered_per_s = came;
    assert!(!advice(&case, None).notes.iter().any(|note| note.contains("its entries came at")));
}
