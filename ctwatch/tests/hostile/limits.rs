//! Whoever starts ctwatch allows it few open files, or few threads: each command works, or says what to raise. None takes what
//! it could not open for what isn't there, and none panics.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::figures::{Ran, readers, recorder, run};
use super::synthetic::write;

/// Nobody else's.
const USER: u32 = 54_321;

/// The same command with a limit that bash sets: "-n 12".
fn limited(limit: &str, of: &Command) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]).arg(of.get_program());
    command.args(of.get_args()).stdin(Stdio::null()).env_remove("SUDO_UID");
    command
}

/// Those that watch or look at this host, as far as it has what they look at.
fn live(folder: &Path) -> Vec<(&'static str, Command)> {
    let of = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        command.args(arguments);
        command
    };
    let file = folder.join("live.ctw").display().to_string();
    let mut commands = vec![
        ("check", of(&["check"])),
        ("record, waiting", recorder(&folder.join("b.ctw"), &folder.join("proc"))),
    ];
    if Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        commands.extend([
            ("table", of(&["table"])),
            ("advise", of(&["advise", "--window", "3s"])),
            ("record", of(&["record", "--backend", "tracepoint", "--duration", "100ms", "-o", &file])),
            ("drops of counters", of(&["drops", "--backend", "counters", "--duration", "100ms"])),
            ("drops", of(&["drops", "--backend", "tracepoint", "--duration", "100ms"])),
        ]);
    }
    commands
}

fn is_too_few(ran: &Ran, what: &str, remedy: &str) -> bool {
    let said = format!("{}{}", ran.out, ran.error);
    assert!(!said.contains("panicked") && ran.status.code().is_some(), "{what}: {ran:?}");
    let is_said = said.contains(remedy);
    assert_eq!(is_said, ran.status.code() == Some(3) && is_said, "{what}: {ran:?}");
    is_said
}

/// Some fail while maps are made, some while programs are attached.
fn at_each_limit(name: &str, command: &Command) {
    let plain = run(limited("-n 1024", command));
    assert!(!is_too_few(&plain, name, "ulimit -n"), "{name}: {plain:?}");
    let mut told = 0;
    for files in (3..=40).chain([48, 64, 96]) {
        let what = format!("{name}, {files} open files");
        let ran = run(limited(&format!("-n {files}"), command));
        if ran.error.contains("error while loading shared libraries") {
            // Not one of ours: before ctwatch begins.
            assert_eq!(files, 3, "{what}: {ran:?}");
        } else if is_too_few(&ran, &what, "ulimit -n") {
            assert!(ran.out.is_empty() || name == "check", "{what}: half of it was said: {ran:?}");
            told = files;
        } else {
            assert_eq!(ran.status.code(), plain.status.code(), "{what}: {ran:?}");
            if files > 40 {
                break;
            }
        }
    }
    println!("{name}: works with more than {told} open files");
    assert!((34..96).contains(&told), "{name}: {told}");
}

#[test]
fn too_few_open_files_are_told_whichever_command_it_is_and_whatever_there_were_too_few_for() {
    assert!(nix::unistd::geteuid().is_root(), "others may not watch");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 10));
    std::thread::scope(|scope| {
        for (name, command) in readers(&path).into_iter().chain(live(folder.path())) {
            scope.spawn(move || at_each_limit(name, &command));
        }
    });
    let left = fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().ends_with("-lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn too_few_threads_are_told_whichever_command_it_is() {
    assert!(nix::unistd::geteuid().is_root(), "others may not become another user");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (path, program, own) =
        (folder.path().join("a.ctw"), folder.path().join("ctwatch"), folder.path().join("own"));
    drop(write(&path, 10));
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ctwatch"), &program).unwrap();
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(USER), Some(USER)).unwrap();
    let waiting = recorder(&own.join("b.ctw"), &folder.path().join("proc"));
    let mut commands = readers(&path);
    commands.push(("record", waiting));
    for arguments in
        [&["check"][..], &["table"], &["drops", "--duration", "1s"], &["advise", "--window", "3s"]]
    {
        let mut command = Command::new(&program);
        command.args(arguments);
        commands.push((arguments[0], command));
    }
    for (name, command) in commands {
        let mut of_user = Command::new(&program);
        of_user.args(command.get_args());
        for threads in [1, 2, 5, 8, 9, 12] {
            let what = format!("{name}, {threads} threads");
            let mut command = limited(&format!("-u {threads}"), &of_user);
            command.uid(USER).gid(USER).current_dir("/");
            let ran = run(command);
            let is_told = is_too_few(&ran, &what, "ulimit -u");
            // What watches needs some more once it watches.
            assert!(is_told || threads >= 9, "{what}: {ran:?}");
        }
    }
}
