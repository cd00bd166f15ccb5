//! Running other programs: one way to start them, one way to say that they failed.
//! No child may outlive xtask, and no failure may go by without its name.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Variables (besides the choice of a rustup toolchain) that a surrounding `cargo` (or a user) sets for its own toolchain and that would bend another one.
const TOOLCHAIN_VARIABLES: [&str; 11] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

/// Frees `command` from the toolchain settings of the cargo that runs xtask.
pub fn without_toolchain(command: &mut Command) -> &mut Command {
    for variable in TOOLCHAIN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Has the kernel kill the child when xtask dies, however it dies.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before prctl took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("xtask is gone"));
            }
            Ok(())
        })
    }
}

/// Has the child hear SIGINT: a shell starts what runs in its background deaf to it, and deafness is handed down.
pub fn hears_sigint(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only an async-signal-safe call is made.
    unsafe {
        command.pre_exec(|| {
            if libc::signal(libc::SIGINT, libc::SIG_DFL) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// From here on, what this thread starts leaves the CPUs to others that want them.
pub fn give_way() {
    // SAFETY: the call takes numbers only. On Linux it is about the thread, whose children inherit it.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 5);
    }
}

/// Runs `command` to its end with this process's own stdin, stdout and stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let status =
        die_with_parent(command).status().with_context(|| format!("starting {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs `command` silently; its output is shown only when it fails.
pub fn run_quiet(command: &mut Command) -> Result<()> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{} failed ({}):\n{}", describe(command), output.status, tail(&output));
    }
    Ok(())
}

/// Runs `command` and returns its stdout as text.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{} failed ({}):\n{}", describe(command), output.status, tail(&output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading the output of {}", describe(command)))
}

/// Is this process root, so that packages can be installed?
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    die_with_parent(command).output().with_context(|| format!("starting {}", describe(command)))
}

fn tail(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}
