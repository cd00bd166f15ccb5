//! On this host, as it is: what takes no conntrack of its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

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
