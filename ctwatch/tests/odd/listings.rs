//! A listing that is in the file is told, also where nothing counts what is inserted. Needs root, nft, and a kernel with
//! nf_conntrack: in a netns of its own, which ends with its thread.

use std::net::UdpSocket;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::{ctwatch, folder, said};

fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_a_table_held_all_the_time_is_told_by_its_listing() {
    let report = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        sh("ip link set lo up");
        sh("nft 'add table inet f; add chain inet f o { type filter hook output priority 0; }; \
            add rule inet f o ct state new counter'");
        for _ in 0..300 {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:53").unwrap();
        }
        let folder = folder();
        let path = folder.path().join("a.ctw").to_str().unwrap().to_owned();
        // Without the other namespaces of this host, which may hold more: no process and no name leads there.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]);
        command.args(["mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec \"$@\"", "sh"]);
        command.args([
            env!("CARGO_BIN_EXE_ctwatch"),
            "record",
            "--backend",
            "counters",
            "--duration",
            "3s",
            "-o",
            &path,
        ]);
        let (code, _, stderr) = said(command);
        assert_eq!(code, Some(0), "{stderr}");
        let (code, report, stderr) = said(ctwatch(&["report", &path, "--format", "json"]));
        assert_eq!(code, Some(0), "{stderr}");
        let (_, text, _) = said(ctwatch(&["report", &path]));
        assert!(text.contains("Entries and TIME_WAIT are as listed at"), "{text}");
        report
    });
    let report: serde_json::Value = serde_json::from_str(&report.join().unwrap()).unwrap();
    let worst = &report["hosts"][0]["worst"];
    assert_eq!(worst["as_listed"], true, "{worst}");
    let occupants = worst["occupants"].as_array().unwrap();
    let dns = occupants.iter().find(|one| one["port"] == "53/udp").unwrap_or_else(|| panic!("{worst}"));
    assert!(dns["entries"].as_u64().is_some_and(|entries| (290..=300).contains(&entries)), "{worst}");
}
