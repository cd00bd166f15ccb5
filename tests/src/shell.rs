//! Runs the tools a user would run (ip, nft, modprobe …), because a scenario should read like a shell session.
//! A failed command may not pass unseen: the error holds the command line and what it wrote.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long an interrupted program may take to end; emulation is slow.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command that must end by itself, and takes what it writes and how it ended.
pub fn ended(command: &mut Command) -> Result<Output> {
    let folder = tempfile::tempdir().context("a folder for its output")?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let until = Instant::now() + Duration::from_secs(180);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            ensure!(false, "{command:?} did not end within 180 s: {}", fs::read_to_string(&err)?);
        }
        thread::sleep(Duration::from_millis(20));
    };
    Ok(Output { status, stdout: fs::read(out)?, stderr: fs::read(err)? })
}

/// Runs a program with its arguments and returns what it wrote to stdout.
pub fn run(line: &[&str]) -> Result<String> {
    run_with_input(line, "")
}

/// As [`run`], with `input` on the program's stdin.
pub fn run_with_input(line: &[&str], input: &str) -> Result<String> {
    let shown = line.join(" ");
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    let mut stdin = child.stdin.take().context("the child's stdin")?;
    // A program that doesn't read its input and ends makes this fail with EPIPE, which says nothing about its result.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("waiting for `{shown}`"))?;
    ensure!(
        output.status.success(),
        "`{shown}` ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        if input.is_empty() { String::new() } else { format!("\ninput was:\n{input}") }
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Splits a line at blanks and runs it; for lines without quoting.
pub fn sh(line: &str) -> Result<String> {
    run(&line.split_whitespace().collect::<Vec<_>>())
}

/// Whether a program is on PATH.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// Interrupts a program as Ctrl-C does, and kills it if that doesn't end it: neither bpftrace nor conntrack is sure to.
pub fn interrupt(child: &mut Child) -> Result<()> {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).context("sending SIGINT")?;
    let until = Instant::now() + END_PATIENCE;
    while child.try_wait().context("waiting for a program's end")?.is_none() {
        if Instant::now() > until {
            child.kill().context("sending SIGKILL")?;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
