use super::*;
use crate::kernel::calls::Call;
use crate::kernel::standing::INITIAL_USER_NAMESPACE;
use anyhow::bail;
use std::fs;

const ALL: &str = "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";
const NONE_AS_ROOT: &str = "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n";
const ZEROES: &str = "0000000000000000 T nf_hook_slow\n";

/// Roots with these files, in the initial user namespace unless `user` says another.
fn roots_of(files: &[(&str, &str)], user: &str) -> (tempfile::TempDir, Roots) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    let namespaces = folder.path().join("proc/self/ns");
    fs::create_dir_all(&namespaces).expect("a folder");
    std::os::unix::fs::symlink(user, namespaces.join("user")).expect("a link");
    let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
    (folder, roots)
}

fn roots(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
    roots_of(files, INITIAL_USER_NAMESPACE)
}

/// Nothing may be tried where something is missing already.
fn look_at(roots: &Roots, trials: bool) -> Preflight {
    let nothing = Trials {
        program: &|| panic!("bpf() is not tried when something is missing already"),
        kprobe: &|| panic!("no kprobe is tried when something is missing already"),
        hooks: &|| panic!("nor any other hook"),
        listing: &|| panic!("nf_conntrack isn't loaded, and nobody may load it"),
        netns: &|| Ok(Entered::OnlyOwn),
    };
    look(roots, &Kernel::read(roots), &Standing::look(roots), &[], trials.then_some(&nothing))
}

fn item<'a>(found: &'a Preflight, name: &str) -> &'a CheckItem {
    found.items.iter().find(|item| item.name == name).unwrap_or_else(|| panic!("no item {name}"))
}

#[test]
fn without_root_the_first_obstacle_says_run_as_root() {
    let (_keep, roots) = roots(&[
        ("proc/sys/kernel/osrelease", "6.12.1\n"),
        ("proc/self/status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"),
        ("proc/kallsyms", ZEROES),
    ]);
    let obstacle = look_at(&roots, true).obstacle.expect("something is missing").to_string();
    assert!(obstacle.contains("CAP_BPF") && obstacle.contains("run as root"), "{obstacle}");
}

#[test]
fn root_without_capabilities_is_told_the_flags_that_give_all_of_them() {
    let (_keep, roots) = roots(&[
        ("proc/sys/kernel/osrelease", "6.12.1\n"),
        ("proc/sys/kernel/kptr_restrict", "0\n"),
        ("proc/self/status", NONE_AS_ROOT),
        ("proc/kallsyms", ZEROES),
    ]);
    let found = look_at(&roots, true);
    let obstacle = found.obstacle.clone().expect("something is missing").to_string();
    assert!(!obstacle.contains("run as root"), "{obstacle}");
    for words in
        ["--cap-add SYS_ADMIN", "--cap-add NET_ADMIN", "--cap-add SYSLOG", "securityContext", "systemd"]
    {
        assert!(obstacle.contains(words), "{words}: {obstacle}");
    }
    let symbols = item(&found, "symbols");
    assert!(symbols.found.contains("CAP_SYSLOG is missing"), "{symbols:?}");
    assert!(!format!("{symbols:?}").contains("kptr_restrict"), "it is 0: {symbols:?}");
    assert_eq!((item(&found, "bpf").ok, item(&found, "other netns").ok), (None, Some(false)));
}

#[test]
fn addresses_that_the_sysctl_hides_are_no_matter_of_capabilities() {
    let (_keep, roots) = roots(&[
        ("proc/sys/kernel/kptr_restrict", "2\n"),
        ("proc/self/status", ALL),
        ("proc/kallsyms", ZEROES),
    ]);
    let found = look_at(&roots, false);
    let symbols = item(&found, "symbols");
    assert!(symbols.found.contains("kernel.kptr_restrict is 2"), "{symbols:?}");
    assert!(symbols.remedy.as_deref().is_some_and(|remedy| !remedy.contains("SYSLOG")), "{symbols:?}");
}

#[test]
fn capabilities_of_another_user_namespace_are_not_called_present() {
    let (_keep, roots) = roots_of(
        &[
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("proc/sys/kernel/kptr_restrict", "0\n"),
            ("proc/self/status", ALL),
            ("proc/kallsyms", ZEROES),
            ("sys/bus/event_source/devices/kprobe/type", "6\n"),
        ],
        "user:[4026532577]",
    );
    let found = look_at(&roots, true);
    let capabilities = item(&found, "capabilities");
    assert_eq!(capabilities.ok, Some(false));
    assert!(
        capabilities.found.starts_with("in a user namespace: capabilities of the initial one are needed")
    );
    assert!(capabilities.remedy.as_deref().is_some_and(|remedy| remedy.starts_with("run it on the host")));
    for name in ["kprobes", "bpf"] {
        assert_eq!(item(&found, name).ok, None, "{name} was not tried");
    }
    assert_eq!(item(&found, "other netns").ok, Some(false));
    assert!(!format!("{:?}", found.items).contains("kptr_restrict"), "{:?}", found.items);
}

#[test]
fn a_call_that_a_filter_refuses_is_named_with_what_lets_it_pass() {
    let refused = |call| Refused { call, code: libc::EPERM };
    for (calls, is_obstacle) in
        [(&[Call::Setns][..], false), (&[Call::PerfEventOpen], false), (&[Call::Bpf, Call::Setns], true)]
    {
        let (_keep, roots) = roots(&[("proc/sys/kernel/osrelease", "6.12.1\n"), ("proc/self/status", ALL)]);
        let trials = Trials {
            program: &|| Ok(()),
            kprobe: &|| Ok(true),
            hooks: &|| Ok(Vec::new()),
            listing: &|| Ok(()),
            netns: &|| bail!("EPERM"),
        };
        let calls_refused: Vec<Refused> = calls.iter().copied().map(refused).collect();
        let (kernel, standing) = (Kernel::read(&roots), Standing::look(&roots));
        // A run that attaches anyway tries nothing else, and meets the same obstacle.
        let by_run = look(&roots, &kernel, &standing, &calls_refused, None).obstacle;
        assert_eq!(by_run.is_some_and(|obstacle| obstacle.name == "system calls"), is_obstacle, "{calls:?}");
        let found = look(&roots, &kernel, &standing, &calls_refused, Some(&trials));
        let item = item(&found, "system calls");
        assert_eq!(item.ok, Some(false));
        assert!(item.found.contains("seccomp profile") && item.found.contains(calls[0].name()), "{item:?}");
        assert!(
            item.remedy.as_deref().is_some_and(|remedy| remedy.contains("seccomp=unconfined")),
            "{item:?}"
        );
        let by_this = found.obstacle.is_some_and(|obstacle| obstacle.name == "system calls");
        assert_eq!(by_this, is_obstacle, "{calls:?}");
        assert!(found.kprobes.is_err());
    }
}

/// What is found where programs load, the listing comes out as `listing` says, and other netns as `netns`.
fn tried(roots: &Roots, listing: bool, netns: Entered) -> Preflight {
    let trials = Trials {
        program: &|| Ok(()),
        kprobe: &|| Ok(true),
        hooks: &|| Ok(Vec::new()),
        listing: &|| if listing { Ok(()) } else { bail!("EPERM") },
        netns: &|| Ok(netns),
    };
    look(roots, &Kernel::read(roots), &Standing::look(roots), &[], Some(&trials))
}

const LOADED: (&str, &str) = ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");

#[test]
fn the_right_to_read_one_table_is_told_apart_from_the_right_to_read_all() {
    for (capabilities, own, others) in [
        ("0000000000000000", false, false),
        ("0000000000001000", true, false),
        ("000001ffffffffff", true, true),
    ] {
        let status = format!("Name:\tx\nCapEff:\t{capabilities}\n");
        let (_keep, roots) = roots(&[("proc/self/status", status.as_str()), LOADED]);
        let found = tried(&roots, own, Entered::Another);
        let ok = |name: &str| item(&found, name).ok;
        assert_eq!((ok("census"), ok("other netns")), (Some(own), Some(others)), "{capabilities}");
    }
}

#[test]
fn a_listing_that_was_not_tried_is_neither_possible_nor_lacks_what_is_there() {
    for user in [INITIAL_USER_NAMESPACE, "user:[4026532577]"] {
        let (_keep, roots) = roots_of(&[("proc/self/status", ALL)], user);
        // conntrack isn't loaded, and a question would load it.
        let census = item(&look_at(&roots, true), "census").clone();
        assert_eq!(census.ok, None, "{census:?}");
        assert!(census.found.ends_with("not tried: nf_conntrack isn't loaded"), "{census:?}");
        assert_eq!(census.remedy, None);
    }
}

#[test]
fn podman_s_root_is_told_the_flag_that_lists_its_own_netns_and_not_to_leave() {
    let status = "Uid:\t0\t0\t0\t0\nCapEff:\t00000000800405fb\n";
    let (_keep, roots) = roots_of(&[("proc/self/status", status), LOADED], "user:[4026532577]");
    let census = item(&tried(&roots, false, Entered::OnlyOwn), "census").clone();
    let remedy = census.remedy.clone().expect("a flag gives it");
    assert!(remedy.starts_with("docker, podman: --cap-add NET_ADMIN; "), "{census:?}");
}

#[test]
fn namespaces_of_processes_that_are_not_seen_are_not_called_listable() {
    // Any other inode number than the initial pid namespace's, as in a pod with hostNetwork and without hostPID.
    let (_keep, pod) = roots(&[("proc/self/status", ALL), ("proc/1/ns/pid", "")]);
    let other = item(&tried(&pod, true, Entered::OnlyOwn), "other netns").clone();
    assert_eq!(other.ok, Some(false), "{other:?}");
    assert!(other.found.contains("can't be seen from this pid namespace"), "{other:?}");
    let remedy = other.remedy.clone().expect("a flag shows them");
    assert!(remedy.contains("--pid=host") && remedy.contains("hostPID: true"), "{other:?}");
    // One that has a name can be entered all the same, which is not all there may be.
    let named = item(&tried(&pod, true, Entered::Another), "other netns").clone();
    assert!(named.ok == Some(true) && named.found.contains("from this pid namespace"), "{named:?}");
    // Whether all are seen can't be told.
    let (_keep, hidden) = roots(&[("proc/self/status", ALL)]);
    assert_eq!(item(&tried(&hidden, true, Entered::OnlyOwn), "other netns").ok, None);
}

#[test]
fn without_the_right_to_look_at_processes_other_netns_are_tried_and_what_is_not_found_is_said() {
    // All but CAP_SYS_PTRACE.
    let status = "Uid:\t0\t0\t0\t0\nCapEff:\t000001fffff7ffff\n";
    let (_keep, roots) = roots(&[("proc/self/status", status), ("proc/1/ns/pid", "")]);
    for (entered, ok) in [(Entered::Another, true), (Entered::OnlyOwn, false)] {
        let other = item(&tried(&roots, true, entered), "other netns").clone();
        assert_eq!(other.ok, Some(ok), "{other:?}");
        assert!(other.found.contains("CAP_SYS_PTRACE is missing"), "{other:?}");
        assert!(other.remedy.as_deref().is_some_and(|remedy| remedy.contains("SYS_PTRACE")), "{other:?}");
    }
}

#[test]
fn a_kernel_without_the_needed_symbol_is_told_what_would_help() {
    let (_keep, roots) = roots(&[
        ("proc/sys/kernel/osrelease", "6.12.1\n"),
        ("proc/self/status", "CapEff:\t000001ffffffffff\n"),
        ("proc/kallsyms", "ffffffff81000000 T something_else\n"),
    ]);
    let found = look_at(&roots, false);
    let item = item(&found, "symbols");
    assert_eq!(item.ok, Some(false));
    assert!(item.remedy.as_deref().is_some_and(|remedy| remedy.contains("counters")));
}

#[test]
fn an_old_kernel_and_lockdown_are_named() {
    let (_keep, roots) = roots(&[
        ("proc/sys/kernel/osrelease", "4.19.0-27\n"),
        ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
    ]);
    let found = look_at(&roots, false);
    assert!(found.obstacle.as_ref().expect("too old").found.contains("4.19"));
    assert_eq!(item(&found, "lockdown").ok, Some(false));
}

#[test]
fn where_there_is_no_proc_the_counters_are_not_called_readable() {
    let (_keep, there) = roots(&[("proc/sys/kernel/osrelease", "6.12.1\n")]);
    assert_eq!(look_at(&there, false).counters, Ok(()));
    let nowhere = Roots { proc: "/nowhere".into(), sys: "/nowhere".into() };
    assert!(look_at(&nowhere, false).counters.is_err());
}
