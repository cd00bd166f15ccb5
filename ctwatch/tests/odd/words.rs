//! Words as people write them: understood, or a near miss is told.

use crate::{ctwatch, folder, said};

fn usage(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let (code, _, stderr) = said(ctwatch(&words));
    assert_eq!(code, Some(2), "{line}: {stderr}");
    stderr
}

#[test]
fn help_is_a_command_too() {
    for (one, other) in [
        (&["help"][..], &["--help"][..]),
        (&["help", "drops"], &["drops", "--help"]),
        (&["help", "record"], &["record", "--help"]),
    ] {
        let (first, second) = (said(ctwatch(one)), said(ctwatch(other)));
        assert_eq!((first.0, second.0), (Some(0), Some(0)), "{one:?}");
        assert_eq!(first.1, second.1, "{one:?}");
    }
    assert!(usage("help drop").contains("drops"));
}

#[test]
fn case_and_other_names_are_understood() {
    let folder = folder();
    let recording = crate::any_recording(folder.path());
    for flags in [
        "--proto TCP",
        "--proto icmp6",
        "--proto ipv6-icmp",
        "--proto UDPlite,gre,Esp",
        "--cause Table-Full,early_drop",
        "--by Source",
        "--by PROTOCOL",
        "--by ports",
        "--format JSON",
        "--format ndjson",
        "--format jsonl",
        "--by processes",
        "--loopback=NO",
        "--speed MAX",
    ] {
        let words: Vec<&str> = flags.split(' ').collect();
        let mut arguments = [&["replay", &recording], &words[..]].concat();
        if !flags.contains("--speed") {
            arguments.extend(["--speed", "max"]);
        }
        let (code, _, stderr) = said(ctwatch(&arguments));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{flags}");
    }
}

#[test]
fn near_misses_are_told() {
    for (line, hint) in [
        ("drops --proto tpc", "did you mean `tcp`?"),
        ("drops --port http", "http usually has 80"),
        ("drops --port 80-", "has no end"),
        ("drops --json", "--format json"),
        ("drops --by cuase", "'cause'"),
        ("drops --by state", "ctwatch table --by"),
        ("drops --cause full", "did you mean `table_full`?"),
        ("table --by process", "ctwatch drops --by process"),
        ("table --by cause", "ctwatch drops --by cause"),
        ("table --by pid", "ctwatch drops --by process"),
        ("table --by proc", "ctwatch drops --by process"),
        ("table --by processes", "ctwatch drops --by process"),
        ("table --by reason", "ctwatch drops --by cause"),
        ("table --by conn", "each entry is a flow"),
        ("drops --by states", "ctwatch table --by"),
        ("drops --by zones", "ctwatch table --by"),
        ("drops --duration 30", "did you mean 30s?"),
        ("drops --interval 2", "did you mean 2s?"),
        ("record -o a.html", "ctwatch report"),
        ("record -o a.md", "ctwatch report"),
        ("record -o a.json", "ctwatch export"),
        ("record -o a.csv", "ctwatch export"),
        ("table --by stat", "did you mean `state`?"),
        ("record -o x --when fil>90%", "did you mean `fill`?"),
        ("record -o x --when fill>=90", "did you mean fill>=90%?"),
        ("record -o x --when drops<0", "can't fire"),
        ("advise --what-if timewait=3", "did you mean `time_wait`?"),
        ("export x --to csv --table los", "did you mean `losses`?"),
        ("top", "ctwatch drops"),
        ("export x --to parqet", "'parquet'"),
    ] {
        let stderr = usage(line);
        assert!(stderr.contains(hint), "{line}: {stderr}");
    }
}

#[test]
fn a_list_may_have_spaces_and_json_is_lines_of_it() {
    let folder = folder();
    let recording = crate::any_recording(folder.path());
    let lists = [
        ["--port", "80, 443"],
        ["--proto", "tcp, udp"],
        ["--src", "10.0.0.0/8, ::1"],
        ["--cause", "clash, dying"],
    ];
    for list in lists {
        let (code, _, stderr) =
            said(ctwatch(&[&["replay", &recording, "--speed", "max"], &list[..]].concat()));
        assert_eq!(code, Some(0), "{list:?}: {stderr}");
    }
    let json = folder.path().join("a.json");
    let (code, _, stderr) = said(ctwatch(&["export", &recording, "-o", json.to_str().unwrap()]));
    assert_eq!(code, Some(0), "{stderr}");
    let lines = std::fs::read_to_string(json).unwrap();
    assert!(lines.lines().count() > 1 && lines.lines().all(|line| line.starts_with("{\"type\":")), "{lines}");
}

#[test]
fn a_dash_is_a_stream_or_refused_and_never_a_file() {
    let folder = folder();
    let recording = crate::any_recording(folder.path());
    let run = |arguments: &[&str]| {
        let mut command = ctwatch(arguments);
        command.current_dir(folder.path());
        said(command)
    };
    for arguments in [
        &["record", "-o", "-", "--duration", "1s"][..],
        &["report", "-"],
        &["replay", "-"],
        &["export", "-", "--to", "ndjson"],
        &["advise", "--recording", "-"],
        &["export", &recording, "--to", "parquet", "-o", "-"],
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
    }
    assert!(run(&["record", "-o", "-"]).2.contains("can't be written to standard output"));
    for arguments in [&["report", &recording][..], &["export", &recording, "--to", "ndjson"]] {
        let (plain, dash) = (run(arguments), run(&[arguments, &["-o", "-"]].concat()));
        assert_eq!(plain, dash, "{arguments:?}");
        assert!(plain.0 == Some(0) && !plain.1.is_empty());
    }
    let stdout = run(&["report", &recording, "-o", "/dev/stdout"]);
    assert!(stdout.0 == Some(2) && stdout.2.contains("`-o -`") && !stdout.2.contains("remove"), "{stdout:?}");
    assert!(!folder.path().join("-").exists());
}

#[test]
fn the_ending_says_the_format_or_is_refused() {
    let folder = folder();
    let recording = crate::any_recording(folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, begins) in [
        ("a.html", "<!doctype html>"),
        ("a.MD", "# "),
        ("a.json", "{\"type\":\"report\""),
        ("a.txt", "postmortem"),
    ] {
        let (code, _, stderr) = said(ctwatch(&["report", &recording, "-o", &at(name)]));
        assert_eq!(code, Some(0), "{stderr}");
        let text = std::fs::read_to_string(at(name)).unwrap();
        assert!(text.to_lowercase().starts_with(begins), "{name}: {}", &text[..40]);
    }
    let (code, _, stderr) = said(ctwatch(&["report", &recording, "-o", &at("a.pdf")]));
    assert!(code == Some(2) && stderr.contains(".html") && !folder.path().join("a.pdf").exists(), "{stderr}");
    let (code, _, stderr) = said(ctwatch(&["export", &recording, "-o", &at("a.csv"), "--table", "ticks"]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(std::fs::read_to_string(at("a.csv")).unwrap().starts_with("run,tick,"));
    let (code, _, stderr) = said(ctwatch(&["export", &recording, "-o", &at("a.xml")]));
    assert!(code == Some(2) && stderr.contains("--to"), "{stderr}");
}
