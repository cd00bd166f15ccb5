//! On this host, as it is: what takes no conntrack of its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use super::{HOSTILE, ctwatch, shown};

#[test]
fn what_is_looked_up_here_is_repeated_escaped() {
    for name in HOSTILE.iter().map(|name| name.as_bytes()).chain([&b"a\xff\x9b\xe3\x81"[..]]) {
        let name = OsStr::from_bytes(name);
        for command in ["drops", "table", "advise"] {
            let output = ctwatch(&[OsStr::new(command), OsStr::new("--netns"), name]);
            assert!(!output.status.success(), "{command} {name:?}");
            shown(&format!("{command} {name:?}"), &output.stdout);
            shown(&format!("{command} {name:?}"), &output.stderr);
        }
        let roots = [OsStr::new("check"), OsStr::new("--proc-root"), name, OsStr::new("--sys-root"), name];
        let output = ctwatch(&roots);
        shown(&format!("check {name:?}"), &output.stdout);
        shown(&format!("check {name:?}"), &output.stderr);
    }
}

/// In a mount namespace of its own; as root, as whoever makes a named netns is.
#[test]
fn a_netns_may_be_called_anything() {
    let script = r#"
        mount --make-rprivate / && mkdir -p /run/netns && mount -t tmpfs none /run/netns || exit 9
        name=$(printf '\033[31mred\n\342\200\256|<b>\377')
        : > "/run/netns/$name"
        unshare -n sh -c 'mount --bind /proc/self/ns/net "/run/netns/$1"' sh "$name" || exit 9
        for format in text json; do
            "$0" table --by netns --format $format --netns "$1"
            "$0" drops --backend counters --duration 1s --format $format --netns "$1"
        done
        "$0" drops --netns nosuch
        true
    "#;
    // What was shown can be typed.
    let typed = r"\x1b[31mred\n\u{202e}|<b>\xff";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_ctwatch"), typed])
        .output()
        .unwrap();
    let said = shown("stderr", &output.stderr);
    assert!(output.status.success(), "as root? {said}");
    let text = shown("stdout", &output.stdout);
    assert!(
        said.contains(&format!("there is no netns named \"nosuch\"; known names: host, {typed}")),
        "{said}"
    );
    let is_loaded = std::path::Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists();
    if is_loaded {
        assert!(text.contains(&format!(" {typed}  ")), "{text}");
        // In JSON it is what it is: a byte NN that is no UTF-8 is U+10FFNN.
        assert!(text.contains(r#""name":"\u001b[31mred\n\u202e|<b>\udbff\udfff""#), "{text}");
    } else {
        assert!(said.contains("nf_conntrack is not loaded"), "{said}");
    }
}
