//! The judge of NOTRACK against what nft 1.0.6 and iptables 1.8.9 print for rule sets of the field's kinds.
//! `read/` holds what the tools printed on 6.12 after loading `rules/`; neither may be written by hand.

use std::fs;
use std::path::Path;

use ctwatch::firewall::ObjectionKind::*;
use ctwatch::firewall::{Dump, ExemptTarget, Firewall, HostFacts, ObjectionKind, Save, Scope, Tool, Tools};
use ctwatch::kernel::roots::Roots;
use ctwatch::model::Protocol;

mod found;
mod many;
mod stateless;
mod verdicts;

/// A file of `read/`.
fn printed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/firewall/read").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

/// A rule set made with nft.
fn nft(name: &str) -> Firewall {
    let dump = Dump {
        nft_json: printed(&format!("{name}.json")),
        nft_text: printed(&format!("{name}.nft.txt")),
        tools: Tools { nft: true, iptables: false, ip6tables: false },
        ..Dump::default()
    };
    parsed(&dump)
}

/// A rule set made with iptables-nft, which nft shows as well.
fn iptables_nft(name: &str) -> Firewall {
    let ipv6 = name.ends_with("v6");
    let dump = Dump {
        nft_json: printed(&format!("{name}.nft.json")),
        nft_text: printed(&format!("{name}.nft.txt")),
        saves: vec![save(&format!("{name}.nft-save.txt"), ipv6, false)],
        tools: Tools { nft: true, iptables: true, ip6tables: true },
        ..Dump::default()
    };
    parsed(&dump)
}

/// A rule set made with iptables-legacy.
fn legacy(name: &str) -> Firewall {
    let save = save(&format!("{name}.legacy-save.txt"), name.ends_with("v6"), true);
    parsed(&Dump { saves: vec![save], ..Dump::default() })
}

fn save(name: &str, ipv6: bool, legacy: bool) -> Save {
    Save { tool: "iptables-save".to_owned(), ipv6, legacy, text: printed(name) }
}

/// The host on which these rule sets are: its own addresses, a bridge of containers, one of pods.
fn host() -> HostFacts {
    let own = ["127.0.0.0/8", "192.0.2.1/32", "172.17.0.1/32", "10.244.0.1/32"].map(str::to_owned);
    let own_v6 = ["::1/128", "2001:db8::1/128"].map(str::to_owned);
    HostFacts {
        own_v4: Some(own.to_vec()),
        own_v6: Some(own_v6.to_vec()),
        forwards_v4: Some(true),
        forwards_v6: Some(false),
        vrfs: Vec::new(),
    }
}

fn parsed(dump: &Dump) -> Firewall {
    let (firewall, notes) = Firewall::parse(&Dump { host: host(), ..dump.clone() });
    assert_eq!(notes, [], "everything in the fixtures can be read");
    firewall
}

/// What speaks against exempting the service, without doubles.
fn kinds(firewall: &Firewall, proto: Protocol, port: u16, scope: Scope) -> Vec<ObjectionKind> {
    let mut kinds: Vec<_> = firewall
        .objections(&ExemptTarget { proto, port, scope })
        .iter()
        .map(|objection| objection.kind)
        .collect();
    kinds.dedup();
    kinds
}

#[test]
fn the_rules_own_words_and_places_are_in_an_objection() {
    let found = nft("established").objections(&ExemptTarget {
        proto: Protocol::TCP,
        port: 6379,
        scope: Scope::Loopback,
    });
    let first = &found[0];
    assert_eq!(first.kind, EstablishedOnly);
    assert_eq!(
        (first.place.raw(), first.rule.raw()),
        ("inet filter input", "tcp dport { 22, 6379, 8080 } ct state new accept")
    );
    assert_eq!(
        first.remedy.as_deref(),
        Some("nft insert rule inet filter input iif lo tcp dport 6379 ct state untracked accept")
    );
    assert!(found.iter().any(|one| one.rule == "ct state established,related accept" && one.text.contains("replies from")));
}

#[test]
fn one_rule_set_is_judged_alike_by_every_tool_that_prints_it() {
    for name in ["docker.v4", "ufw.v4", "kube.v4", "raw.v4", "plain.v6"] {
        let (with_nft, without) = (iptables_nft(name), legacy(name));
        for port in [21, 22, 53, 80, 443, 3128, 5432, 6379, 6380, 8000, 9000, 9001, 9002, 30_379, 40_000] {
            for proto in [Protocol::TCP, Protocol::UDP] {
                for scope in [Scope::Loopback, Scope::Served, Scope::Outgoing] {
                    assert_eq!(
                        kinds(&with_nft, proto, port, scope),
                        kinds(&without, proto, port, scope),
                        "{name} {proto} {port} {scope:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn chains_that_iptables_save_leaves_out_are_judged_all_the_same() {
    // iptables-nft-save prints the table without the chain `mine`, which drops what isn't ESTABLISHED.
    assert!(!printed("partial.v4.nft-save.txt").contains("mine"));
    let found = kinds(&iptables_nft("partial.v4"), Protocol::TCP, 23, Scope::Served);
    assert_eq!(found, []);
    let found = kinds(&iptables_nft("partial.v4"), Protocol::TCP, 2222, Scope::Served);
    assert_eq!(found, [EstablishedOnly]);
}

#[test]
fn where_nothing_is_loaded_no_tool_is_run() {
    let proc = tempfile::tempdir().expect("a folder");
    fs::create_dir(proc.path().join("module")).expect("the folder of what is loaded");
    let roots = Roots { proc: proc.path().to_owned(), sys: proc.path().to_owned() };
    let (firewall, dump, notes) = ctwatch::firewall::read(&roots);
    assert_eq!((dump.nft_json.as_str(), dump.saves.len(), notes.len()), ("", 0, 0));
    assert!(!firewall.has_nat());
}

#[test]
fn rules_that_nft_cant_print_are_never_taken_for_harmless() {
    let dump = Dump {
        nft_json: printed("docker.v4.nft.json"),
        nft_text: printed("docker.v4.nft.txt"),
        ..Dump::default()
    };
    let (firewall, notes) = Firewall::parse(&dump);
    assert!(notes[0].text.contains("install iptables"), "{notes:?}");
    let found = kinds(&firewall, Protocol::TCP, 6379, Scope::Served);
    assert!(found.contains(&PublishedPort), "{found:?}");
}

#[test]
fn lists_name_what_tracks_what_is_exempt_and_what_is_published() {
    let mixed = nft("mixed");
    let exempt: Vec<_> = mixed.untracked().into_iter().map(|listed| listed.rule).collect();
    assert_eq!(
        exempt,
        ["udp dport 514 notrack", "fib daddr type local udp dport 53 notrack", "udp sport 53 notrack"]
    );
    assert!(mixed.has_nat());
    let ports: Vec<_> =
        mixed.published().iter().map(|one| (one.ports, one.to.clone(), one.by.clone())).collect();
    assert_eq!(ports[0], ((8080, 8080), ":80".into(), "nat rule".into()));
    assert_eq!(ports[1], ((3306, 3306), "10.0.0.5".into(), "nat rule".into()));

    let docker = iptables_nft("docker.v4");
    let published = docker.published();
    assert_eq!(published[0].by, "docker");
    assert_eq!((published[0].proto, published[0].ports), (Some(6), (6379, 6379)));
    assert_eq!(published[0].to, "172.17.0.2:6379");
    assert_eq!(docker.tracking_rules().len(), 5, "{:#?}", docker.tracking_rules());

    let simple = nft("simple");
    assert!(!simple.has_nat() && simple.published().is_empty() && simple.untracked().is_empty());
    let tracking: Vec<_> = simple.tracking_rules().into_iter().map(|listed| listed.rule).collect();
    assert_eq!(tracking, ["ct state established,related accept", "ct state invalid drop"]);
}

#[test]
fn the_advice_speaks_the_tool_whose_rules_are_in_force() {
    assert_eq!(nft("simple").preferred_tool(), Tool::Nft);
    // A table of its own can't be cut off by a rule of iptables, and goes without a trace.
    assert_eq!(iptables_nft("ufw.v4").preferred_tool(), Tool::Nft);
    let only_iptables = Dump {
        saves: vec![save("ufw.v4.nft-save.txt", false, false)],
        tools: Tools { nft: false, iptables: true, ip6tables: true },
        ..Dump::default()
    };
    assert_eq!(parsed(&only_iptables).preferred_tool(), Tool::Iptables);
    let legacy = Dump {
        saves: vec![Save {
            tool: "iptables-legacy-save".to_owned(),
            ipv6: false,
            legacy: true,
            text: printed("ufw.v4.legacy-save.txt"),
        }],
        tools: Tools { nft: true, iptables: true, ip6tables: true },
        ..Dump::default()
    };
    assert_eq!(parsed(&legacy).preferred_tool(), Tool::Iptables, "nf_tables isn't loaded");
    let web = ExemptTarget { proto: Protocol::TCP, port: 80, scope: Scope::Served };
    let commands = parsed(&legacy).notrack_commands(&web, Tool::Iptables);
    assert!(
        commands.now[0].starts_with("iptables-legacy "),
        "the other variant would load nf_tables: {commands:?}"
    );
    assert_eq!(parsed(&Dump::default()).preferred_tool(), Tool::Nft);

    // What loaded modules leave behind are tables without rules.
    let empty = |table: &str| Save {
        tool: "iptables-legacy-save".to_owned(),
        ipv6: false,
        legacy: true,
        text: format!("*{table}\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"),
    };
    let left = Dump {
        nft_json: printed("simple.json"),
        nft_text: printed("simple.nft.txt"),
        saves: vec![empty("raw"), empty("nat"), empty("filter")],
        tools: Tools { nft: true, iptables: true, ip6tables: true },
        ..Dump::default()
    };
    assert_eq!(parsed(&left).preferred_tool(), Tool::Nft);
}

#[test]
fn a_json_that_cant_be_read_is_a_note() {
    let (firewall, notes) = Firewall::parse(&Dump { nft_json: "{".to_owned(), ..Dump::default() });
    assert!(notes[0].text.contains("nft rules are unknown"), "{notes:?}");
    assert_eq!(kinds(&firewall, Protocol::TCP, 6379, Scope::Loopback), [Unknown]);
    let why = firewall.without_tracking().expect_err("what isn't read may need it");
    assert_eq!(why[0].kind, Unknown);
}

#[test]
fn the_commands_exempt_both_directions_and_both_families_and_undo_takes_back_each() {
    let firewall = Firewall::default();
    let redis = ExemptTarget { proto: Protocol::TCP, port: 6379, scope: Scope::Loopback };
    let nft = firewall.notrack_commands(&redis, Tool::Nft);
    assert_eq!(
        nft.now,
        ["nft 'add table inet ctwatch_notrack_lo_tcp_6379; delete table inet ctwatch_notrack_lo_tcp_6379; \
          table inet ctwatch_notrack_lo_tcp_6379 { chain output { type filter hook output priority -301; \
          oif lo tcp dport 6379 notrack; oif lo tcp sport 6379 notrack; }; }'"]
    );
    assert_eq!(
        nft.undo[0],
        "nft 'add table inet ctwatch_notrack_lo_tcp_6379; delete table inet ctwatch_notrack_lo_tcp_6379'"
    );

    let web = ExemptTarget { proto: Protocol::TCP, port: 80, scope: Scope::Served };
    let iptables = firewall.notrack_commands(&web, Tool::Iptables);
    let (way, name) = ("! -i lo -m addrtype --dst-type LOCAL", "ctwatch-notrack-in-tcp-80");
    let request = format!("{way} -p tcp --dport 80 -m comment --comment {name} -j CT --notrack");
    assert_eq!(
        iptables.now[0],
        format!(
            "iptables -w -t raw -C PREROUTING {request} 2> /dev/null || iptables -w -t raw -I PREROUTING {request}"
        )
    );
    assert_eq!(iptables.now.len(), 4);
    assert!(iptables.now[2..].iter().all(|line| line.starts_with("ip6tables ")));
    for (add, delete) in iptables.now.iter().zip(&iptables.undo) {
        let (_, insert) = add.split_once(" || ").expect("it is added once");
        assert_eq!(format!("while {} 2> /dev/null; do :; done", insert.replace(" -I ", " -D ")), *delete);
    }
}

#[test]
fn what_is_refused_today_for_its_direction_would_be_let_in() {
    let text = "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctdir ORIGINAL -j DROP\n\
                -A OUTPUT -m connlimit --connlimit-above 4000 --connlimit-mask 32 --connlimit-saddr -j ACCEPT\nCOMMIT\n";
    let save = Save { tool: "iptables-save".to_owned(), ipv6: false, legacy: true, text: text.to_owned() };
    let firewall = parsed(&Dump { saves: vec![save], ..Dump::default() });
    let found = kinds(&firewall, Protocol::TCP, 8080, Scope::Loopback);
    assert!(found.contains(&OpensAccess), "{found:?}");
}
