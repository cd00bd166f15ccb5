//! Rights as containers, user namespaces and filters leave them: what `check` says of them, what a live command falls back to, and
//! what it refuses when a backend was named. As root, on a kernel with nf_conntrack; `docker` and the like are cut down here by
//! the same capabilities, namespaces and filters.

use std::process::Command;

use super::said;

const CTWATCH: &str = env!("CARGO_BIN_EXE_ctwatch");

/// Run by another program, with what comes after its own arguments.
fn by(program: &[&str], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(CTWATCH).args(arguments).stdin(std::process::Stdio::null());
    let (code, stdout, stderr) = said(command);
    (code, format!("{stdout}{stderr}").split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The capabilities that docker gives (moby, daemon/pkg/oci/caps/defaults.go), for root.
const DOCKER: &[&str] = &[
    "setpriv",
    "--inh-caps",
    "-all",
    "--bounding-set",
    "-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service,+sys_chroot,\
     +kill,+audit_write",
];
/// All but one.
const ALL_BUT_SYSLOG: &[&str] = &["setpriv", "--inh-caps", "-all", "--bounding-set", "-syslog"];
/// Programs could be loaded with these; no other netns could be entered.
const BPF_PERFMON_NET_ADMIN: &[&str] =
    &["setpriv", "--inh-caps", "-all", "--bounding-set", "-all,+bpf,+perfmon,+net_admin"];
const USER_NAMESPACE: &[&str] = &["unshare", "-U", "-r", "-n"];

fn kptr_restrict() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap().trim().parse().unwrap()
}

#[test]
fn root_in_a_container_falls_to_the_counters_and_is_told_the_flags_and_not_to_become_root() {
    for container in [DOCKER, BPF_PERFMON_NET_ADMIN] {
        let (code, check) = by(container, &["check"]);
        assert_eq!(code, Some(0), "{check}");
        assert!(check.contains("would use the counters backend"), "{check}");
        assert!(!check.contains("run as root") && !check.contains("sudo"), "{check}");
        for words in ["--cap-add SYS_ADMIN", "--cap-add SYSLOG", "securityContext", "CAP_SYSLOG is missing"] {
            assert!(check.contains(words), "{words}: {check}");
        }
        assert!(!check.contains("CAP_BPF") || container == DOCKER, "it is there: {check}");
        let (code, drops) = by(container, &["drops", "--duration", "1s"]);
        assert_eq!(code, Some(0), "{drops}");
        for words in
            ["counters backend", "totals only", "no ports, flows or processes", "--cap-add SYS_ADMIN"]
        {
            assert!(drops.contains(words), "{words}: {drops}");
        }
        for backend in ["kprobe", "tracepoint"] {
            let (code, refused) = by(container, &["drops", "--duration", "1s", "--backend", backend]);
            assert_eq!(code, Some(3), "{refused}");
            assert!(
                refused.contains("missing") && refused.contains("--backend counters works here"),
                "{refused}"
            );
        }
    }
}

#[test]
fn zeroes_for_want_of_a_capability_are_not_laid_at_the_sysctl_s_door() {
    if kptr_restrict() >= 2 {
        return;
    }
    let (code, check) = by(ALL_BUT_SYSLOG, &["check"]);
    assert_eq!(code, Some(0), "{check}");
    assert!(
        check.contains("only zeroes: CAP_SYSLOG is missing -> docker, podman: --cap-add SYSLOG"),
        "{check}"
    );
    assert!(!check.contains("kptr_restrict"), "{check}");
}

#[test]
fn capabilities_in_a_user_namespace_are_not_called_present_and_what_was_not_tried_is_not_ok() {
    let (_, check) = by(USER_NAMESPACE, &["check"]);
    let right = "in a user namespace: capabilities of the initial one are needed";
    assert!(check.contains(right) && check.contains("run it on the host"), "{check}");
    for wrong in ["are present", "one was attached", "one was entered", "programs load"] {
        assert!(!check.contains(wrong), "{wrong}: {check}");
    }
    assert!(kptr_restrict() >= 2 || !check.contains("kptr_restrict"), "{check}");
    let (code, refused) = by(USER_NAMESPACE, &["drops", "--duration", "1s", "--backend", "tracepoint"]);
    assert_eq!(code, Some(3), "{refused}");
    assert!(refused.contains(right), "{refused}");
}

#[test]
fn what_is_lost_with_the_counters_is_in_the_recording_and_on_stderr() {
    let folder = super::folder();
    let path = folder.path().join("a.ctw");
    let path = path.to_str().unwrap();
    let (code, recorded) = by(DOCKER, &["record", "-o", path, "--duration", "2s"]);
    assert_eq!(code, Some(0), "{recorded}");
    assert!(recorded.contains("totals only") && recorded.contains("--cap-add SYS_ADMIN"), "{recorded}");
    let (code, stdout, stderr) = said(super::ctwatch(&["export", path, "--to", "ndjson"]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("totals only"), "{stdout}");
}
