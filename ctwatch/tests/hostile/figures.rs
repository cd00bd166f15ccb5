//! A process run to its end: what it said, how long it took, and how much memory.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What became of it.
#[derive(Clone, Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub out: String,
    pub error: String,
    /// CPU of the process, which other work on the machine doesn't change as it does the time that passes.
    pub cpu: Duration,
    pub took: Duration,
    /// Resident, at its most.
    pub kib: i64,
}

/// It ends on its own long before.
const STUCK: Duration = Duration::from_secs(60);

pub fn ctwatch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.stdin(Stdio::null()).env_remove("SUDO_UID");
    command
}

/// Runs it.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, which the lint does not know")]
pub fn run(mut command: Command) -> Ran {
    let shown = format!("{command:?}");
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let read = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            // What is written is not kept: this process's memory counts as the next one's until it runs its program.
            let (mut kept, mut buffer) = (Vec::new(), [0; 8192]);
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if kept.len() < 1 << 16 {
                    kept.extend_from_slice(&buffer[..read]);
                }
            }
            String::from_utf8_lossy(&kept).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().unwrap()));
    let error = read(Box::new(child.stderr.take().unwrap()));
    let (status, usage) = wait(&child, began + STUCK, &shown);
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ran {
        status,
        took: began.elapsed(),
        out: out.join().unwrap(),
        error: error.join().unwrap(),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        kib: usage.ru_maxrss,
    }
}

fn wait(child: &Child, until: Instant, shown: &str) -> (ExitStatus, libc::rusage) {
    let id = child.id() as libc::pid_t;
    loop {
        let mut status = 0;
        // SAFETY: a rusage is numbers, and all of them may be 0.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both places live until the call returns, and the process is a child of this one that nobody waited for.
        let waited = unsafe { libc::wait4(id, &raw mut status, libc::WNOHANG, &raw mut usage) };
        assert!(waited >= 0, "waiting for {shown}: {}", std::io::Error::last_os_error());
        if waited == id {
            return (ExitStatus::from_raw(status), usage);
        }
        if Instant::now() > until {
            // SAFETY: it is a child of this process that nobody waited for, so its number is still its own.
            unsafe { libc::kill(id, libc::SIGKILL) };
            panic!("it goes on for more than {STUCK:?}: {shown}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All that read a recording, with what they are called.
pub fn readers(file: &Path) -> Vec<(&'static str, Command)> {
    let of = |name: &'static str, arguments: &[&str]| {
        let mut command = ctwatch();
        let (first, rest) = arguments.split_first().unwrap();
        command.arg(first).arg(file).args(rest);
        (name, command)
    };
    let mut advise = ctwatch();
    advise.args(["advise", "--format", "sh", "--recording"]).arg(file);
    vec![
        of("report", &["report"]),
        of("report --format html", &["report", "--format", "html"]),
        of("replay", &["replay", "--speed", "max", "--by", "flow"]),
        of("export ndjson", &["export", "--to", "ndjson"]),
        ("advise", advise),
    ]
}

/// The recorder that would go on in it: conntrack is never loaded for it, so it looks and waits.
pub fn recorder(file: &Path, proc: &Path) -> Command {
    std::fs::create_dir_all(proc).unwrap();
    let mut command = ctwatch();
    command.args(["record", "--backend", "counters", "--duration", "50ms", "-o"]).arg(file);
    command.arg("--proc-root").arg(proc);
    command
}
