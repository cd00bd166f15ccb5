//! `advise --recording F --format sh` with a recording that somebody else made, and who means ill: whatever its texts say, the
//! script runs what advice is made of and writes files of ours, and what is pasted from the text view is one line each.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::advice::machine;
use crate::fixtures::HOST;
use crate::postmortem::recorded_with;
use ctwatch::firewall::{Dump, Note, Save, Tools};
use ctwatch::machine::Machine;
use ctwatch::machine::managers::{CLOSE_WAIT, ESTABLISHED, Kind, MAX, Manager};
use ctwatch::machine::published::Published;
use ctwatch::model::NetnsId;
use ctwatch::record::rows::{MachineSnapshot, Names, SnapshotReason};
use ctwatch::record::rules::{Packed, StoredRules};
use ctwatch::record::writer::Batch;
use proptest::prelude::*;
use serde_json::Value;

/// Programs that are faked: each says how it was called, and does nothing. `pwned` is what no script of ours calls.
const FAKES: [&str; 19] = [
    "pwned",
    "nft",
    "iptables",
    "ip6tables",
    "iptables-nft",
    "ip6tables-nft",
    "iptables-legacy",
    "ip6tables-legacy",
    "iptables-save",
    "ip6tables-save",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "iptables-restore",
    "sysctl",
    "systemctl",
    "nsenter",
    "logger",
];

/// A recording with this text wherever it can hold one.
struct Hostile<'a> {
    text: &'a str,
    /// Also as names of tables and chains, where a rule set is refused as a whole.
    in_names: bool,
    /// A program owns the settings.
    managed: bool,
}

impl Hostile<'_> {
    fn machine(&self) -> String {
        let mut machine = machine();
        machine.notes = vec!["note".to_owned()];
        machine.settings.systemd = true;
        machine.settings.loaded_at_boot = None;
        if self.managed {
            let kinds = [Kind::KubeProxy, Kind::K3s, Kind::MicroK8s, Kind::Tuned, Kind::Ufw];
            machine.managers = kinds
                .into_iter()
                .map(|kind| Manager {
                    kind,
                    evidence: "TuneD's active profile x".into(),
                    pid: Some(7),
                    sets: [MAX, ESTABLISHED, CLOSE_WAIT].map(|name| (name.to_owned(), 7)).into(),
                    overwrites: true,
                    when: "when".into(),
                    configured_in: "/etc/x".into(),
                })
                .collect();
            machine.published = vec![Published {
                program: "docker-proxy".into(),
                pid: 9,
                proto: "tcp".into(),
                address: None,
                port: 443,
                to: None,
            }];
        }
        let mut json = serde_json::to_value(&machine).unwrap();
        let mut pointers = Vec::new();
        texts(&json, String::new(), &mut pointers);
        let mut replaced = 0;
        for pointer in pointers {
            let mut changed = json.clone();
            *changed.pointer_mut(&pointer).unwrap() = Value::String(self.text.to_owned());
            // Where only certain words are allowed it would not be read at all.
            if serde_json::from_value::<Machine>(changed.clone()).is_ok() {
                json = changed;
                replaced += 1;
            }
        }
        assert!(replaced >= 4, "its files, its kernel, its note: {json}");
        // Files that end as ours do, too.
        json["settings"]["new_sysctl_file"] = format!("/etc/sysctl.d/{}", self.text).into();
        json.to_string()
    }

    fn rules(&self) -> Dump {
        let text = self.text;
        let name = if self.in_names { text } else { "filter" };
        let rule = |handle: u64, expr: Value| {
            serde_json::json!({"rule": {"family": "inet", "table": name, "chain": "input", "handle": handle,
                "comment": text, "expr": expr}})
        };
        let state = serde_json::json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}});
        let json = serde_json::json!({"nftables": [
            {"metainfo": {"version": text, "release_name": text, "json_schema_version": 1}},
            {"table": {"family": "inet", "name": name, "handle": 1}},
            {"chain": {"family": "inet", "table": name, "name": "input", "handle": 1, "type": "filter",
                "hook": "input", "prio": 0, "policy": "accept"}},
            rule(2, serde_json::json!([state, {"accept": null}])),
            rule(3, serde_json::json!([{"log": {"prefix": text}}])),
        ]});
        let word = text.replace(['"', '\n', '\r'], "");
        let saves = if self.in_names { text } else { "iptables-save" };
        let save = |tool: &str, ipv6: bool| Save {
            tool: tool.to_owned(),
            ipv6,
            legacy: true,
            text: format!(
                "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -m comment --comment \"{word}\" -j ACCEPT\n\
                 -A INPUT -m conntrack --ctstate INVALID -j LOG --log-prefix \"{word}\"\n\
                 -A INPUT -m conntrack --ctstate ESTABLISHED {word} -j ACCEPT\nCOMMIT\n"
            ),
        };
        Dump {
            nft_json: json.to_string(),
            nft_text: format!(
                "table inet filter {{\n chain input {{ # handle 1\n  {word} # handle 2\n }}\n}}\n"
            ),
            saves: vec![save(saves, false), save("ip6tables-legacy-save", true)],
            tools: Tools { nft: true, iptables: true, ip6tables: true },
            ipvs: text.to_owned(),
            unread: if self.managed {
                vec![Note { tool: text.to_owned(), text: text.to_owned() }]
            } else {
                Vec::new()
            },
            ..Dump::default()
        }
    }

    fn plant(&self, second: i64, batch: &mut Batch) {
        let text = || self.text.to_owned();
        let netns = NetnsId::from_packed(HOST);
        if second == 1 {
            // Another name than the host's is another netns, whose commands are fewer.
            let name = if self.managed { text() } else { "host".to_owned() };
            let names = Names { name: Some(name.into()), container: Some(text().into()) };
            batch.names = HashMap::from([(netns, names)]);
            let at = batch.facts[0].at;
            batch.facts = vec![MachineSnapshot { at, reason: SnapshotReason::Start, json: self.machine() }];
            let rules = Packed::new(&serde_json::json!({ "dump": self.rules() })).unwrap();
            batch.rules = vec![StoredRules { netns, at, reason: SnapshotReason::Start, rules: Some(rules) }];
        }
        for setting in &mut batch.settings {
            (setting.value, setting.before) = (Some(text().into()), Some(text().into()));
        }
        for notice in &mut batch.notices {
            (notice.code, notice.text) = (text().into(), text().into());
        }
    }
}

/// Where the texts of a JSON value are.
fn texts(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| texts(item, format!("{at}/{index}"), found));
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                texts(field, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

fn advise(file: &Path, format: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ctwatch"))
        .args(["advise", "--format", format, "--recording"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with the fakes.
fn fakes(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for name in FAKES {
        // Checking and deleting fails, so that rules are inserted and loops end.
        let script = format!(
            "#!/bin/sh\n{{ printf '%s\\037' {name} \"$@\"; printf '\\036'; }} >> \"$CALLS\"\n\
             case \" $* \" in *' -C '* | *' -D '*) exit 1 ;; esac\nexit 0\n"
        );
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

/// Runs everything in a script, where /etc, /run, /sys/module and /usr/share are empty folders that go with it. Prints the files
/// there are then.
fn run_all(folder: &Path, script: &str, pieces: usize) -> (Output, String) {
    let (file, calls) = (folder.join("advice.sh"), folder.join("calls"));
    std::fs::write(&file, script).unwrap();
    std::fs::write(&calls, "").unwrap();
    let bin = fakes(folder);
    let outer = format!(
        "set -e\nfor one in /etc /run /sys/module /usr/share; do mount -t tmpfs -o size=16m none $one; done\n\
         mkdir -p /run/systemd/system /sys/module/nf_conntrack/parameters /sys/module/nf_tables /etc/systemd/system\n\
         echo 1 > /sys/module/nf_conntrack/parameters/hashsize\nset +e\n\
         piece=1\nwhile [ $piece -le {pieces} ]; do\n\
           for what in now keep undo; do sh \"$SCRIPT\" $what $piece > \"$SAID\" 2>&1 < /dev/null; done\n\
           piece=$((piece + 1))\ndone\n\
         find /etc /run /usr/share -type f -o -type l -o -type p\n"
    );
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c", &outer])
        .env_clear()
        .envs([("PATH", path.as_str()), ("TMPDIR", folder.to_str().unwrap())])
        .env("CALLS", &calls)
        .env("SCRIPT", &file)
        .env("SAID", folder.join("said"))
        .current_dir(folder)
        .output()
        .unwrap();
    let calls = String::from_utf8_lossy(&std::fs::read(&calls).unwrap()).into_owned();
    (output, calls)
}

/// Whether advice makes calls like this.
fn is_expected(call: &str) -> bool {
    let words: Vec<&str> = call.split('\u{1f}').filter(|word| !word.is_empty()).collect();
    let is_setting = |text: &str| {
        text.strip_prefix("net.netfilter.nf_conntrack_").and_then(|text| text.split_once('=')).is_some_and(
            |(name, value)| {
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                    && value.bytes().all(|byte| byte.is_ascii_digit())
            },
        )
    };
    match words[..] {
        ["sysctl", "-w", set] => is_setting(set),
        ["systemctl", "daemon-reload"] | ["systemctl", "is-enabled", "-q", "nftables.service"] => true,
        ["systemctl", "enable" | "disable", unit] => {
            unit.starts_with("ctwatch-notrack-") && unit.ends_with(".service")
        }
        ["nft", "-s", "list", "ruleset"] | ["nft", "-f", "-"] => true,
        ["nft", "list", "table", "inet", "filter"] => true,
        ["nft", "delete", "rule", "inet", "filter", "input", "handle", _] => true,
        ["nft", one] => {
            one.starts_with("add table inet ctwatch_notrack_")
                && one.bytes().all(|byte| byte.is_ascii() && byte >= b' ')
        }
        [program, "-w", "-t", "raw", how, chain, ..] if program.contains("tables") => {
            matches!(how, "-C" | "-I" | "-D") && matches!(chain, "OUTPUT" | "PREROUTING")
        }
        // Words of a recorded rule may be anything, but the command is to delete that rule.
        [program, "-w", "-t", "filter", "-D", "INPUT", ..] if program.contains("tables") => {
            !words.iter().any(|word| word.starts_with("--mo") || *word == "-M")
        }
        [program, "-c", "-t", "filter"] if program.ends_with("-save") => true,
        [program] if program.ends_with("-save") => true,
        [program, "-w", "-c"] if program.ends_with("-restore") => true,
        _ => false,
    }
}

/// Whether advice writes such files.
fn is_ours(file: &str) -> bool {
    let name = Path::new(file).file_name().unwrap().to_str().unwrap();
    let within = |folder: &str| {
        file.strip_prefix(folder).is_some_and(|rest| !rest.trim_start_matches('/').contains('/'))
    };
    let is_named = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@+".contains(&byte));
    let conf = ["/etc/sysctl.d", "/etc/modprobe.d", "/etc/modules-load.d"].into_iter().any(within);
    is_named
        && ((conf && name.contains("ctwatch") && name.ends_with(".conf"))
            || (within("/etc/nftables.d") && name.starts_with("ctwatch_notrack_"))
            || (within("/etc/systemd/system") && name.starts_with("ctwatch-notrack-"))
            || (within("/run") && name.starts_with("ctwatch-firewall"))
            || file == "/etc/nftables.conf")
}

/// Checks all that such a recording gives.
fn check(hostile: &Hostile<'_>) -> Result<BTreeSet<String>, TestCaseError> {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let recording =
        recorded_with(&format!("hostile-{number}.ctw"), |second, batch| hostile.plant(second, batch));
    let script = advise(&recording, "sh");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for shell in [&["sh", "-n"][..], &["bash", "--posix", "-n"]] {
        let file = folder.path().join("parsed.sh");
        std::fs::write(&file, &script).unwrap();
        let parsed = Command::new(shell[0]).args(&shell[1..]).arg(&file).output().unwrap();
        prop_assert!(parsed.status.success() && parsed.stderr.is_empty(), "{shell:?}: {parsed:?}\n{script}");
    }
    let pieces = script.lines().filter(|line| line.starts_with("now_") && line.ends_with("() {")).count();
    let (output, calls) = run_all(folder.path(), &script, pieces);
    prop_assert!(output.status.success(), "{output:?}");
    let calls: Vec<&str> = calls.split('\u{1e}').filter(|call| !call.is_empty()).collect();
    for call in &calls {
        prop_assert!(is_expected(call), "{call:?} was called\n{script}");
    }
    let files = String::from_utf8_lossy(&output.stdout).into_owned();
    for file in files.lines() {
        prop_assert!(is_ours(file), "{file:?} was written\n{script}");
    }
    let here: BTreeSet<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with("tmp."))
        .collect();
    prop_assert_eq!(
        here,
        BTreeSet::from(["advice.sh", "bin", "calls", "parsed.sh", "said"].map(str::to_owned)),
        "nothing else is in the folder it ran in"
    );
    let _ = std::fs::remove_file(recording);
    Ok(calls.iter().map(|call| call.split('\u{1f}').next().unwrap_or_default().to_owned()).collect())
}

#[test]
fn a_recording_does_not_choose_which_file_a_script_writes_nor_what_it_runs() {
    let mut called = BTreeSet::new();
    for text in [
        "/etc/passwd",
        "../../etc/passwd",
        "/etc/modprobe.d/../passwd-ctwatch.conf",
        "/etc/cron.d/ctwatch.conf",
        "; pwned #",
        "'; pwned; '",
        "$(pwned)",
        "`pwned`",
        "\npwned\n",
        "\r\npwned\r\n",
        "--modprobe=pwned",
        "-M pwned",
        "/tmp/pwned",
        "\u{2028}pwned\u{202e}",
        "EOF\npwned\nEOF\n",
        "}\npwned\n{",
        "\u{1b}[2Jpwned",
        "> /etc/shadow",
    ] {
        // Each as it is; some in other places, too.
        let elsewhere = ["/etc/passwd", "; pwned #", "\npwned\n", "$(pwned)"].contains(&text);
        for (in_names, managed) in [(false, false), (true, false), (false, true)] {
            if (in_names || managed) && !elsewhere {
                continue;
            }
            let hostile = Hostile { text, in_names, managed };
            match check(&hostile) {
                Ok(programs) => called.extend(programs),
                Err(error) => panic!("{text:?}: {error}"),
            }
        }
    }
    // Or nothing was shown.
    for program in ["sysctl", "nft"] {
        assert!(called.contains(program), "{called:?}");
    }
}

#[test]
fn what_is_pasted_from_the_text_is_a_line_each() {
    for text in ["a\npwned\n", "a\rpwned", "$(pwned)", "'\npwned\n'"] {
        for managed in [false, true] {
            let hostile = Hostile { text, in_names: false, managed };
            let name = format!("pasted-{managed}.ctw");
            let recording = recorded_with(&name, |second, batch| hostile.plant(second, batch));
            let shown = advise(&recording, "text");
            let mut label = "";
            for line in shown.lines() {
                // Labels are in column 5, what goes with them in column 15.
                label = match line.strip_prefix("    ") {
                    Some(rest) if !rest.starts_with(' ') => rest.split(' ').next().unwrap_or_default(),
                    Some(_) => label,
                    None => "",
                };
                if ["now", "keep", "undo", "set", "unblock"].contains(&label) {
                    let command = line.trim_start().trim_start_matches(label).trim_start();
                    assert!(!command.starts_with("pwned"), "{text:?}: {line:?}\n{shown}");
                    let is_pasted = label != "set" && !command.starts_with('#');
                    let is_quoted = command.contains('\'') || !command.contains("$(pwned)");
                    assert!(!is_pasted || is_quoted, "{text:?}: {line:?}\n{shown}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn no_text_of_a_recording_reaches_the_shell_unquoted(
        text in prop::collection::vec(prop::sample::select(vec![
            "'", "\"", "\\", "$(pwned)", "`pwned`", ";", "&", "|", "\n", "\r", " ", "*", "~", "#", "!", "{", "}", "<", ">", "(",
            ")", "-", "--modprobe=", "é", "\u{1b}[2J", "EOF", "\nEOF\n", "$HOME", "${x}", "esac\n", ";;", "pwned", "\npwned\n",
            "../", "/etc/passwd", "ctwatch.conf", ".conf", "\u{202e}", "-j", "-t nat", "handle 4",
        ]), 1..10).prop_map(|parts| parts.concat()),
        in_names: bool,
        managed: bool,
    ) {
        check(&Hostile { text: &text, in_names, managed })?;
    }
}
