//! Rights as containers, user namespaces and filters leave them: what `check` says of them, what a live command falls back to, and
//! what it refuses when a backend was named. As root, on a kernel with nf_conntrack; `docker` and the like are cut down here by
//! the same capabilities, namespaces and filters.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

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

/// Under a filter that refuses these system calls: it is this thread's, and its children's.
fn filtered(calls: &[libc::c_long], arguments: &[&str]) -> (Option<i32>, String) {
    let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refusal = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let run = || {
        apply_filter(&filter).unwrap();
        by(&["env"], arguments)
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn a_run_under_a_filter_names_it_and_the_flag_that_lets_its_calls_pass() {
    let (code, drops) = filtered(&[libc::SYS_bpf], &["drops", "--duration", "1s"]);
    assert_eq!(code, Some(0), "{drops}");
    for words in ["system calls: bpf() (EPERM) is refused", "For more: ", "--security-opt seccomp=unconfined"]
    {
        assert!(drops.contains(words), "{words}: {drops}");
    }
    assert!(!drops.contains("RLIMIT_MEMLOCK"), "{drops}");
}

#[test]
fn another_user_in_a_container_is_told_more_than_sudo() {
    let user = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let (_, drops) = by(user, &["drops", "--duration", "1s"]);
    for words in ["sudo ctwatch", "--user 0 --cap-add SYS_ADMIN", "runAsUser: 0", "User=root"] {
        assert!(drops.contains(words), "{words}: {drops}");
    }
}

#[test]
fn root_that_may_not_read_a_recording_is_not_sent_to_sudo() {
    let folder = super::folder();
    let path = super::any_recording(folder.path());
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let without = &["setpriv", "--inh-caps", "-all", "--bounding-set", "-dac_override,-dac_read_search"];
    let (_, refused) = by(without, &["report", &path]);
    assert!(refused.contains("CAP_DAC_OVERRIDE") && !refused.contains("sudo"), "{refused}");
    std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    let (_, refused) =
        by(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"], &["report", &path]);
    assert!(refused.contains("use sudo"), "{refused}");
}
