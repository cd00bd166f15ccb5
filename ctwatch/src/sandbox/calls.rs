//! Which system calls are left. Commands that run no other program have a list of those allowed; the others, one of those
//! forbidden, since nft or a hook may make any other.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::Work;

/// What a thread of Rust's with glibc's or musl's memory, clocks and locks needs, and files that are there already.
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    // fcntl is below.
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_renameat2,
    libc::SYS_renameat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_umask,
    // ioctl is below.
    // Memory. mmap and mprotect are below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and signals. clone is below; clone3 hides its flags, and who is told that there is none takes clone.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    // tgkill is below.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Clocks and waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_pipe2,
    // A pair of connected sockets wakes the task that waits for a signal.
    libc::SYS_socketpair,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // What it is.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
];

/// Those that later architectures don't have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_EARLIER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_EARLIER: &[c_long] = &[];

/// Only to list: netlink sockets, in each netns.
const ALLOWED_TO_LIST: &[c_long] =
    &[libc::SYS_bind, libc::SYS_connect, libc::SYS_getsockname, libc::SYS_setsockopt];

/// Only to watch: programs, their maps, and where they are attached.
const ALLOWED_TO_WATCH: &[c_long] = &[libc::SYS_bpf, libc::SYS_perf_event_open];

/// What files may be asked for: not who gets signals of theirs, and which (F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY), as these
/// may go to any process of the same user.
const FILE_COMMANDS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
    libc::F_GET_SEALS,
];

/// What neither ctwatch nor a program that it may have to run has any business with: each is a way from a process with
/// CAP_SYS_ADMIN to the whole host, or a part of the kernel known for its faults.
const FORBIDDEN: &[c_long] = &[
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // What other processes see.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    OPEN_TREE_ATTR,
    libc::SYS_unshare,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Any file of a file system, past all folders.
    libc::SYS_open_by_handle_at,
    // Keys, and what has had more faults than uses here.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_personality,
];

/// open_tree and mount_setattr in one (Linux 6.15).
const OPEN_TREE_ATTR: c_long = 467;
/// The first call that hasn't been reviewed here: the last one known is file_setattr, 469 (Linux 6.17). From 424 on all
/// architectures count alike (scripts/syscall.tbl).
const UNKNOWN: u32 = 470;

/// As above, on architectures that have them.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_EARLIER: &[c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS__sysctl];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_EARLIER: &[c_long] = &[];

/// All flags of clone that make a namespace (include/uapi/linux/sched.h); CLONE_NEWTIME is clone3's and unshare's alone.
const NAMESPACES: c_long = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as c_long;
/// PR_SET_VMA: glibc names its memory.
const NAMES_MEMORY: c_long = 0x5356_4d41;

/// What types into a terminal as if its user did: into that of root, who started ctwatch (TIOCSTI, and the console's
/// selection, which can be pasted; include/uapi/asm-generic/ioctls.h). The kernel looks at the lower half of the number only.
const TYPES_INTO_TERMINAL: [c_long; 2] = [0x5412, 0x541c];

/// As an older kernel would say it: libraries know what to do then.
const NO_SUCH_CALL: SeccompAction = SeccompAction::Errno(libc::ENOSYS as u32);
const NOT_PERMITTED: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;
type Made<T> = Result<T, seccompiler::BackendError>;

/// Confines this thread, and all threads that it starts.
pub(super) fn confine(work: Work) -> io::Result<()> {
    let programs = programs(work).map_err(io::Error::other)?;
    programs.iter().try_for_each(|program| apply_filter(program)).map_err(io::Error::other)
}

/// Whether the kernel has filters.
pub(super) fn is_supported() -> bool {
    /// SECCOMP_GET_ACTION_AVAIL
    const ASK: u32 = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the pointer is to a live number.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, ASK, 0, &raw const action) };
    done == 0
}

fn programs(work: Work) -> Made<Vec<BpfProgram>> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter =
        |rules, otherwise, matching| SeccompFilter::new(rules, otherwise, matching, arch)?.try_into();
    if work == Work::RunsPrograms {
        return Ok(vec![
            filter(forbidden()?, SeccompAction::Allow, NOT_PERMITTED)?,
            filter(Rules::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, NO_SUCH_CALL)?,
            without_unknown(),
        ]);
    }
    // On this list numbers of x32 aren't.
    Ok(vec![filter(allowed(work)?, NO_SUCH_CALL, SeccompAction::Allow)?])
}

fn allowed(work: Work) -> Made<Rules> {
    let mut calls = vec![ALLOWED, ALLOWED_EARLIER];
    if work != Work::Reads {
        calls.push(ALLOWED_TO_LIST);
    }
    if work == Work::Watches {
        calls.push(ALLOWED_TO_WATCH);
    }
    let mut rules: Rules = calls.concat().into_iter().map(|call| (call, Vec::new())).collect();
    // To itself: abort and the like.
    rules.insert(libc::SYS_tgkill, vec![is(0, std::process::id().into())?]);
    let commands = FILE_COMMANDS.iter().map(|command| is(1, (*command).into()));
    rules.insert(libc::SYS_fcntl, commands.collect::<Made<_>>()?);
    let no_flag_of = |argument, flags| masked(argument, flags, 0);
    rules.insert(libc::SYS_clone, vec![no_flag_of(0, NAMESPACES)?]);
    rules.insert(libc::SYS_ioctl, vec![is_none_of(1, &TYPES_INTO_TERMINAL)?]);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![no_flag_of(2, c_long::from(libc::PROT_EXEC))?]);
    }
    rules.insert(
        libc::SYS_prctl,
        vec![is(0, libc::PR_SET_NAME.into())?, is(0, libc::PR_GET_NAME.into())?, is(0, NAMES_MEMORY)?],
    );
    if work == Work::Reads {
        // What the limits are, not what they shall be: the new ones are at no address.
        rules.insert(libc::SYS_prlimit64, vec![whole(2, 0)?]);
    } else {
        // Its own limits.
        rules.insert(libc::SYS_prlimit64, vec![is(0, 0)?, is(0, std::process::id().into())?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_setrlimit, Vec::new());
        rules.insert(libc::SYS_setns, vec![is(1, libc::CLONE_NEWNET.into())?]);
        let mut sockets = vec![is(0, libc::AF_NETLINK.into())?, is(0, libc::AF_UNIX.into())?];
        if work == Work::Watches {
            // This thread's CPUs.
            rules.insert(libc::SYS_sched_setaffinity, vec![is(0, 0)?]);
            // Whether an address is this host's shows by binding to it (owner::listener).
            sockets.extend([datagrams(libc::AF_INET)?, datagrams(libc::AF_INET6)?]);
        }
        rules.insert(libc::SYS_socket, sockets);
    }
    Ok(rules)
}

fn forbidden() -> Made<Rules> {
    let calls = [FORBIDDEN, FORBIDDEN_EARLIER].concat();
    let mut rules: Rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    // Into namespaces of the network, and no others.
    let not_net = SeccompCmpOp::Ne;
    rules
        .insert(libc::SYS_setns, vec![rule(1, SeccompCmpArgLen::Dword, not_net, libc::CLONE_NEWNET.into())?]);
    let mut makes_one = Vec::new();
    for bit in 0..31 {
        let flag: c_long = 1 << bit;
        if NAMESPACES & flag != 0 {
            makes_one.push(masked(0, flag, flag)?);
        }
    }
    rules.insert(libc::SYS_clone, makes_one);
    let types = TYPES_INTO_TERMINAL.map(|request| is(1, request));
    rules.insert(libc::SYS_ioctl, types.into_iter().collect::<Made<_>>()?);
    Ok(rules)
}

fn rule(argument: u8, length: SeccompCmpArgLen, compare: SeccompCmpOp, value: c_long) -> Made<SeccompRule> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, compare, value as u64)?])
}

/// Sockets of this family for datagrams, whatever flags they are made with.
fn datagrams(family: i32) -> Made<SeccompRule> {
    /// SOCK_TYPE_MASK, include/linux/net.h
    const TYPE: u64 = 0xf;
    let compare = |argument, compare, value: i32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value as u64)
    };
    SeccompRule::new(vec![
        compare(0, SeccompCmpOp::Eq, family)?,
        compare(1, SeccompCmpOp::MaskedEq(TYPE), libc::SOCK_DGRAM)?,
    ])
}

/// The lower half of an argument is this.
fn is(argument: u8, value: c_long) -> Made<SeccompRule> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// The lower half of an argument is none of these.
fn is_none_of(argument: u8, values: &[c_long]) -> Made<SeccompRule> {
    let other_than = |value: &c_long| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *value as u64)
    };
    SeccompRule::new(values.iter().map(other_than).collect::<Made<_>>()?)
}

/// All of an argument is this.
fn whole(argument: u8, value: c_long) -> Made<SeccompRule> {
    rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}

/// Of these flags, an argument has those.
fn masked(argument: u8, flags: c_long, those: c_long) -> Made<SeccompRule> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flags as u64), those)
}

/// A list of what is forbidden has no calls that came later. Nor has it those that x86-64 kernels may know under a second number,
/// with the bit 0x4000_0000 (__X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h), which is beyond all others.
fn without_unknown() -> BpfProgram {
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The number of the call is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, UNKNOWN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, NO_SUCH_CALL.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a thread gets that may only do this: 0, or the error.
    fn inside<T: Send + 'static>(work: Work, act: impl FnOnce() -> T + Send + 'static) -> T {
        let confined = move || {
            confine(work).unwrap();
            act()
        };
        std::thread::spawn(confined).join().unwrap()
    }

    fn call(number: c_long, arguments: [c_long; 3]) -> i32 {
        // SAFETY: the calls tried here get no pointers, or null ones.
        let done = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
        if done >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() }
    }

    const NETNS: c_long = libc::CLONE_NEWNET as c_long;
    const MOUNTS: c_long = libc::CLONE_NEWNS as c_long;

    #[test]
    fn a_reader_has_no_sockets_runs_nothing_and_makes_nothing_executable() {
        let socket = |family: i32| call(libc::SYS_socket, [family.into(), libc::SOCK_DGRAM.into(), 0]);
        let (inet, netlink, bpf, other, runs) = inside(Work::Reads, move || {
            let runs = std::process::Command::new("/bin/true").status();
            (
                socket(libc::AF_INET),
                socket(libc::AF_NETLINK),
                call(libc::SYS_bpf, [0; 3]),
                call(libc::SYS_setns, [-1, NETNS, 0]),
                runs.map_err(|error| error.raw_os_error()),
            )
        });
        assert_eq!([inet, netlink, bpf, other], [libc::ENOSYS; 4]);
        assert_eq!(runs.unwrap_err(), Some(libc::ENOSYS));
        let (private, anonymous) = (libc::MAP_PRIVATE, libc::MAP_ANONYMOUS);
        let mapped = move |protection: i32| {
            let anywhere = std::ptr::null_mut();
            // SAFETY: a new mapping at an address that the kernel chooses.
            let at = unsafe { libc::mmap(anywhere, 4096, protection, private | anonymous, -1, 0) };
            at != libc::MAP_FAILED
        };
        let both = inside(Work::Reads, move || {
            [mapped(libc::PROT_READ | libc::PROT_WRITE), mapped(libc::PROT_READ | libc::PROT_EXEC)]
        });
        assert_eq!(both, [true, false]);
    }

    #[test]
    fn a_reader_allocates_waits_and_starts_threads() {
        let sum = inside(Work::Reads, || {
            let thread = std::thread::Builder::new().name("one".to_owned()).spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                vec![1_u8; 32 << 20].iter().map(|one| u64::from(*one)).sum::<u64>()
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            });
            thread.unwrap().join().unwrap()
        });
        assert_eq!(sum, 32 << 20);
    }

    #[test]
    fn those_who_watch_may_ask_which_addresses_are_the_hosts_and_send_nothing_else() {
        let kinds =
            [libc::SOCK_DGRAM, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::SOCK_STREAM, libc::SOCK_RAW];
        for family in [libc::AF_INET, libc::AF_INET6] {
            let made = inside(Work::Watches, move || {
                kinds.map(|kind| call(libc::SYS_socket, [family.into(), kind.into(), 0]))
            });
            assert_eq!(made, [0, 0, libc::ENOSYS, libc::ENOSYS], "family {family}");
        }
        let bound = inside(Work::Watches, || std::net::UdpSocket::bind(("127.0.0.1", 0)).is_ok());
        assert!(bound);
        assert_eq!(
            inside(Work::Lists, || call(libc::SYS_socket, [libc::AF_INET.into(), 2, 0])),
            libc::ENOSYS
        );
    }

    #[test]
    fn those_who_list_enter_namespaces_of_the_network_and_no_others() {
        for (work, refused) in [(Work::Lists, libc::ENOSYS), (Work::RunsPrograms, libc::EPERM)] {
            let [net, mounts] =
                inside(work, || [NETNS, MOUNTS].map(|kind| call(libc::SYS_setns, [-1, kind, 0])));
            assert_eq!((net, mounts), (libc::EBADF, refused), "{work:?}");
        }
        assert_eq!(inside(Work::Lists, || call(libc::SYS_bpf, [-1, 0, 0])), libc::ENOSYS);
        assert_ne!(inside(Work::Watches, || call(libc::SYS_bpf, [-1, 0, 0])), libc::ENOSYS);
    }

    #[test]
    fn whoever_runs_programs_runs_them_but_neither_mounts_nor_makes_namespaces() {
        let (runs, refused) = inside(Work::RunsPrograms, || {
            let runs = std::process::Command::new("/bin/sh").args(["-c", "true | true"]).status();
            let calls = [libc::SYS_mount, libc::SYS_unshare, libc::SYS_ptrace, libc::SYS_init_module];
            (runs.unwrap().success(), calls.map(|number| call(number, [0; 3])))
        });
        assert!(runs);
        assert_eq!(refused, [libc::EPERM; 4]);
        let new_namespace = inside(Work::RunsPrograms, || {
            call(libc::SYS_clone, [c_long::from(libc::CLONE_NEWNET | libc::SIGCHLD), 0, 0])
        });
        assert_eq!(new_namespace, libc::EPERM);
        const X32: c_long = 0x4000_0000;
        let unknown = inside(Work::RunsPrograms, || {
            [libc::SYS_getpid | X32, UNKNOWN.into(), 999].map(|number| call(number, [0; 3]))
        });
        assert_eq!(unknown, [libc::ENOSYS; 3]);
        // Where the kernel has it, it would say what else is wrong.
        assert_eq!(inside(Work::RunsPrograms, || call(OPEN_TREE_ATTR, [-1, 0, 0])), libc::EPERM);
    }

    #[test]
    fn who_runs_no_program_sends_others_no_signal_and_changes_no_limit_of_theirs() {
        let parent = c_long::from(std::os::unix::process::parent_id());
        let own = c_long::from(std::process::id());
        for work in [Work::Reads, Work::Lists, Work::Watches] {
            let refused = inside(work, move || {
                let of_file = |command: i32| call(libc::SYS_fcntl, [0, command.into(), parent]);
                [
                    // Signal 0: whether it could be sent.
                    call(libc::SYS_tgkill, [parent, parent, 0]),
                    call(libc::SYS_tkill, [parent, 0, 0]),
                    call(libc::SYS_kill, [parent, 0, 0]),
                    of_file(libc::F_SETOWN),
                    of_file(libc::F_NOTIFY),
                    // F_SETSIG, F_SETOWN_EX (include/uapi/asm-generic/fcntl.h)
                    of_file(10),
                    of_file(15),
                    call(libc::SYS_prlimit64, [parent, libc::RLIMIT_NOFILE as c_long, -1]),
                    call(libc::SYS_sched_setaffinity, [parent, 0, 0]),
                    call(OPEN_TREE_ATTR, [-1, 0, 0]),
                ]
            });
            assert_eq!(refused, [libc::ENOSYS; 10], "{work:?}");
            let own = inside(work, move || {
                let thread = call(libc::SYS_gettid, [0; 3]);
                // SAFETY: it has no arguments.
                let id = unsafe { libc::syscall(libc::SYS_gettid) };
                [
                    thread,
                    call(libc::SYS_tgkill, [own, id, 0]),
                    call(libc::SYS_fcntl, [0, libc::F_GETFD.into(), 0]),
                ]
            });
            assert_eq!(own, [0; 3], "{work:?}");
        }
    }

    #[test]
    fn nobody_types_into_a_terminal_and_all_may_ask_it_for_its_size() {
        let high: c_long = 1 << 32;
        for work in [Work::Reads, Work::Lists, Work::Watches, Work::RunsPrograms] {
            let refused = if work == Work::RunsPrograms { libc::EPERM } else { libc::ENOSYS };
            let said = inside(work, move || {
                let ioctl = |request: c_long| call(libc::SYS_ioctl, [-1, request, 0]);
                let [sti, linux] = TYPES_INTO_TERMINAL;
                // The kernel drops what is above 32 bits.
                [
                    ioctl(sti),
                    ioctl(linux),
                    ioctl(sti | high),
                    ioctl(linux | high),
                    ioctl(libc::TIOCGWINSZ as c_long),
                ]
            });
            assert_eq!(said, [refused, refused, refused, refused, libc::EBADF], "{work:?}");
        }
        assert_eq!(TYPES_INTO_TERMINAL, [libc::TIOCSTI as c_long, libc::TIOCLINUX as c_long]);
    }
}
