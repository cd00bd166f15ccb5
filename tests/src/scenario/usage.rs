//! What a user gets for a mistake: the right exit code, and words that say what to do.
//! Nothing is attached here; each case ends by itself.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::ctwatch::Drops;
use crate::nftables;
pub(super) use crate::shell::ended;

pub(super) fn errors(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let mut checks = Checks::new();
    let mut mistake = |what: &str, args: &[&str], code: i32, word: &str| -> Result<()> {
        let output = ended(Command::new("ctwatch").args(args))?;
        said(&mut checks, what, &output, code, word);
        Ok(())
    };
    mistake("an unknown flag", &["drops", "--no-such-flag"], 2, "--no-such-flag")?;
    mistake("a bad CIDR", &["drops", "--src", "10.0.0.0/33"], 2, "10.0.0.0/33")?;
    mistake("a CIDR that is none", &["drops", "--dst", "localhost"], 2, "localhost")?;
    mistake("an unknown netns", &["drops", "--netns", "nowhere"], 2, "nowhere")?;
    mistake("a bad port", &["drops", "--port", "70000"], 2, "70000")?;
    mistake("an unknown cause", &["drops", "--cause", "bad_luck"], 2, "bad_luck")?;
    mistake("a bad interval", &["drops", "--interval", "soon"], 2, "soon")?;

    for (backend, code) in [("kprobe", 3), ("tracepoint", 3), ("auto", 0)] {
        let line = ["drops", "--duration", "1s", "--backend", backend];
        let output = ended(Command::new("ctwatch").args(line).uid(65_534).gid(65_534))?;
        said(&mut checks, &format!("{backend}, not root"), &output, code, "run as root: sudo ctwatch");
    }
    let output = ended(Command::new("ctwatch").arg("check").uid(65_534).gid(65_534))?;
    checks.equal("exit code of check when not root", output.status.code(), Some(0));
    // Lines are wrapped.
    let shown = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    checks.that(shown.contains("would use the counters backend"), format!("check, not root: {shown}"));
    let output = ended(Command::new("ctwatch").args(["check", "--format", "json"]))?;
    checks.equal("exit code of check as root", output.status.code(), Some(0));
    let parsed = serde_json::from_slice::<serde_json::Value>(&output.stdout);
    checks.that(parsed.is_ok(), "check --format json writes no JSON");

    let line = "ctwatch drops --interval 100ms | head -1; echo ${PIPESTATUS[0]}";
    let output = ended(Command::new("bash").args(["-c", line]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    checks.equal("exit code with a closed pipe", text.lines().last(), Some("0"));
    checks.that(
        output.stderr.is_empty(),
        format!("stderr with a closed pipe: {}", String::from_utf8_lossy(&output.stderr)),
    );
    let line = "ctwatch drops --format json --interval 100ms | head -1; echo ${PIPESTATUS[0]}";
    let output = ended(Command::new("bash").args(["-c", line]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    checks.equal("exit code with a closed pipe, JSON", text.lines().last(), Some("0"));

    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let run = Drops::start(&[])?.stop_with(signal)?;
        checks.equal(&format!("exit code after {signal}"), run.status.code(), Some(0));
    }
    let mut timed = Drops::start(&["--duration", "1s"])?;
    checks.equal("exit code after --duration", timed.finish()?.status.code(), Some(0));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn said(checks: &mut Checks, what: &str, output: &Output, code: i32, word: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    checks.equal(&format!("exit code for {what}"), output.status.code(), Some(code));
    checks.that(stderr.contains(word), format!("{what}: stderr does not say `{word}`: {stderr}"));
    checks.that(!stderr.contains("panicked"), format!("{what}: {stderr}"));
}
