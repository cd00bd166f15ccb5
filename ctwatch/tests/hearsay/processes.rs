//! Processes by telling names. Each is a copy of the shell that waits; its last arguments are what it says.

use std::io::BufRead as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ctwatch::machine::Manager;
use ctwatch::machine::managers::{CLOSE_WAIT, ESTABLISHED, Kind, MAX};
use nix::sys::stat::Mode;

use crate::{alone, folder, recorded, recorded_for};

/// A process that is ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program of this name in this folder.
fn program(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(name);
    if !file.exists() {
        std::fs::copy("/bin/sh", &file).unwrap();
    }
    file
}

/// Starts it with these words in front (`setpriv …`), and waits until it says that it runs.
fn start(before: &[&str], program: &Path, arguments: &[&str]) -> Process {
    started(command(before, program, arguments))
}

fn command(before: &[&str], program: &Path, arguments: &[&str]) -> Command {
    let words: Vec<&std::ffi::OsStr> =
        before.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]).collect();
    let mut command = Command::new(words[0]);
    // `read` is the shell's own, so that the process that has this name stays.
    command.args(&words[1..]).args(["-c", "echo here; read forever; :"]).args(arguments);
    command
}

fn started(mut command: Command) -> Process {
    let mut process = Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    std::io::BufReader::new(process.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "here\n", "{command:?}");
    process
}

/// The only manager, which must be of this process.
#[track_caller]
fn only(managers: &[Manager], process: &Process) -> Manager {
    let [manager] = managers else { panic!("{managers:?}") };
    assert_eq!(manager.pid, Some(process.0.id()));
    manager.clone()
}

#[test]
fn who_may_not_be_what_it_calls_itself_owns_nothing() {
    let _alone = alone();
    let folder = folder();
    let kube_proxy = program(folder.path(), "kube-proxy");
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let others_program = program(&theirs, "kube-proxy");
    std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
    let zero = ["--config", "/dev/zero"];
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    for (before, program, why) in [
        (&nobody[..], &kube_proxy, "it runs as uid 65534"),
        // Root in a user namespace of one's own, as in a rootless container.
        (&["unshare", "--user", "--map-root-user"], &kube_proxy, "user namespace of its own"),
        (&["setpriv", "--ruid", "65534"], &kube_proxy, "it runs as uid 65534"),
        // As an ordinary container's root is.
        (&["setpriv", "--bounding-set=-net_admin"], &kube_proxy, "it lacks CAP_NET_ADMIN"),
        // Root was talked into running something of somebody else's.
        (&["env"], &others_program, "is not root's alone: theirs belongs to uid 65534"),
    ] {
        let process = start(before, program, &zero);
        let machine = recorded(folder.path());
        assert_eq!(machine.managers, [], "{before:?}");
        let expected = format!("calls itself kube-proxy (pid {}) and is not believed", process.0.id());
        let note = machine.notes.iter().find(|note| note.contains(&expected));
        assert!(note.is_some_and(|note| note.contains(why)), "{before:?}: {:?}", machine.notes);
    }
    // Another program that took the name, as every process may.
    let script = "printf kube-proxy > /proc/$$/comm; echo here; read forever; :";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "--config", "/dev/zero"]);
    let process = started(command);
    let machine = recorded(folder.path());
    assert_eq!(machine.managers, []);
    assert!(machine.notes.iter().any(|note| note.contains("its program is /")), "{:?}", machine.notes);
    drop(process);
}

#[test]
fn files_without_an_end_or_an_answer_hold_nothing_up() {
    let _alone = alone();
    let folder = folder();
    let kube_proxy = program(folder.path(), "kube-proxy");
    let at = |name: &str| folder.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();
    std::fs::File::create(at("sparse")).unwrap().set_len(3 << 30).unwrap();
    std::fs::write(at("deep"), "{a: ".repeat(250_000)).unwrap();
    std::fs::write(
        at("bomb"),
        (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
            format!("{text}a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1)
        }),
    )
    .unwrap();
    let defaults = [(ESTABLISHED, 86_400), (CLOSE_WAIT, 3600)];
    for (file, why) in [
        (PathBuf::from("/dev/zero"), "it is not a regular file"),
        (at("fifo"), "it is not a regular file"),
        (at("link"), "it is not a regular file"),
        (at("sparse"), "it is larger than"),
        (PathBuf::from("/proc/self/environ"), "can't be read"),
        (PathBuf::from("../../../../dev/zero"), "it is not a regular file"),
        (at("deep"), "can't be read"),
        (at("bomb"), "parts"),
    ] {
        let process = start(&["env"], &kube_proxy, &["--config", file.to_str().unwrap()]);
        let manager = only(&recorded(folder.path()).managers, &process);
        assert_eq!(manager.kind, Kind::KubeProxy);
        assert!(manager.evidence.raw().contains(why), "{file:?}: {}", manager.evidence);
        // Assumed, and said to be.
        assert!(manager.evidence.raw().contains("its defaults are assumed"), "{}", manager.evidence);
        for (sysctl, seconds) in defaults {
            assert_eq!(manager.sets[sysctl], seconds, "{file:?}");
        }
    }
    for name in ["k3s", "rke2"] {
        let process =
            start(&["env"], &program(folder.path(), name), &["--config", at("sparse").to_str().unwrap()]);
        let manager = only(&recorded(folder.path()).managers, &process);
        assert!(manager.evidence.raw().contains("it is larger than"), "{}", manager.evidence);
    }
}

#[test]
fn a_container_s_file_is_read_in_the_container() {
    let _alone = alone();
    let folder = folder();
    let kube_proxy = program(folder.path(), "kube-proxy");
    let within = folder.path().join("etc");
    std::fs::create_dir(&within).unwrap();
    let file = within.join("config.conf");
    let configuration =
        |min: u32| format!("kind: KubeProxyConfiguration\nconntrack: {{maxPerCore: 1, min: {min}}}\n");
    // The host has one by that name, too.
    std::fs::write(&file, configuration(111_111)).unwrap();
    // In a mount namespace of its own, something else is in that place.
    let script = format!(
        "mount -t tmpfs none {0} && printf '%s' '{1}' > {0}/config.conf && cd {0} && exec \"$@\"",
        within.display(),
        configuration(222_222)
    );
    let container = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
    for path in [file.to_str().unwrap(), "config.conf", "../etc/./config.conf"] {
        let process = start(&container, &kube_proxy, &[&format!("--config={path}")]);
        let manager = only(&recorded(folder.path()).managers, &process);
        assert_eq!(manager.sets[MAX], 222_222, "{path}: {}", manager.evidence);
    }
    let process = start(&["env"], &kube_proxy, &["--config", file.to_str().unwrap()]);
    assert_eq!(only(&recorded(folder.path()).managers, &process).sets[MAX], 111_111);
}

/// Mounts a file system in a mount namespace of this process's, and answers none of its requests.
fn mount_what_never_answers(at: &std::ffi::CStr) -> std::io::Result<()> {
    let check = |result: i32| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: only numbers and constants, and strings that end with a NUL.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ))?;
        // Stays open in what is run, so that the mount stays.
        let fuse = check(libc::open(c"/dev/fuse".as_ptr(), libc::O_RDWR))?;
        let fuse = check(libc::dup2(fuse, 100))?;
        assert_eq!(fuse, 100);
        let options = c"fd=100,rootmode=40000,user_id=0,group_id=0,allow_other";
        check(libc::mount(c"none".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()))?;
    }
    Ok(())
}

#[test]
fn a_file_system_that_never_answers_holds_nothing_up() {
    let _alone = alone();
    let folder = folder();
    let kube_proxy = program(folder.path(), "kube-proxy");
    let mount = folder.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let at = std::ffi::CString::new(mount.to_str().unwrap()).unwrap();
    // More of them than threads that may hang.
    let processes: Vec<Process> = (0..12)
        .map(|_| {
            let file = mount.join("config.conf");
            let mut command = command(&["env"], &kube_proxy, &["--config", file.to_str().unwrap()]);
            let at = at.clone();
            // SAFETY: between fork and exec it only makes system calls.
            unsafe { command.pre_exec(move || mount_what_never_answers(&at)) };
            started(command)
        })
        .collect();
    // They take a second each until too many hang.
    let machine = recorded_for(folder.path(), "14s");
    assert_eq!(machine.managers, []);
    assert!(machine.notes.iter().any(|note| note.contains("its files don't answer")), "{:?}", machine.notes);
    drop(processes);
}
