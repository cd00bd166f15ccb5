//! Advice for a netns that isn't the one it is asked in: its commands act there, and leave nothing on the host.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use super::notrack::{answer, serve};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::Netns;
use crate::nftables;
use crate::shell::run;

pub(super) fn acts_inside(_: &Guest) -> Result<Outcome> {
    let blue = Netns::create("blue")?;
    nftables::load(HOSTS_OWN)?;
    let talk = Talk::begin(&blue)?;
    thread::sleep(Duration::from_secs(1));
    let mut checks = Checks::new();
    for id in ["notrack-6379-tcp-lo", "firewall"] {
        let ask =
            ["ctwatch", "advise", "--netns", blue.name(), "--window", "3s", "--format", "sh", "--item", id];
        let text = run(&ask)?;
        let file = tempfile::NamedTempFile::new().context("a file for the script")?;
        fs::write(file.path(), &text).context("writing the script")?;
        let script = file.path().to_str().context("the script's path")?;
        let step = |step: &str| run(&["sh", script, step]).with_context(|| format!("`{step}` of\n{text}"));
        let rules = || run(&["nft", "-s", "list", "ruleset"]);
        let (here, there) = (rules()?, blue.run(rules)?);
        step("now")?;
        checks.equal(&format!("{id}: the host's rules after `now`"), rules()?, here.clone());
        checks.that(blue.run(rules)? != there, format!("{id}: `now` changed nothing in blue: {text}"));
        let _ = blue.run(|| run(&["conntrack", "-F"]));
        thread::sleep(Duration::from_secs(1));
        checks.equal(
            &format!("{id}: entries in blue"),
            blue.run(|| run(&["conntrack", "-L"]))?.lines().count(),
            0,
        );
        step("keep")?;
        checks.that(!text.contains("/etc/"), format!("{id}: files of the host: {text}"));
        step("undo")?;
        checks.equal(&format!("{id}: blue's rules after `undo`"), blue.run(rules)?, there);
        checks.equal(&format!("{id}: the host's rules after `undo`"), rules()?, here);
    }
    talk.end()?;
    Ok(Outcome::Passed(checks.finish()?))
}

/// Rules of the host, which must not change.
const HOSTS_OWN: &str =
    "table inet mine {\n chain in {\n  type filter hook input priority 0; tcp dport 9 accept\n }\n}\n";

/// Tracked connections to Redis on loopback in a netns, all the time.
struct Talk {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Talk {
    fn begin(netns: &Netns) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = netns.run(|| {
            nftables::track()?;
            serve(*b"blue")?;
            Ok(thread::spawn(move || {
                let redis = SocketAddr::from(([127, 0, 0, 1], 6379));
                while !over.load(Relaxed) {
                    anyhow::ensure!(answer(redis).is_some(), "{redis} doesn't answer in the netns");
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            }))
        })?;
        Ok(Self { is_over, thread })
    }

    fn end(self) -> Result<()> {
        self.is_over.store(true, Relaxed);
        self.thread.join().expect("talking doesn't panic")
    }
}

/// A process that only lives, until this is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start(before: &[&str]) -> Result<Self> {
        let line = [before, &["sleep", "600"]].concat();
        let child =
            Command::new(line[0]).args(&line[1..]).spawn().context("starting a process that sleeps")?;
        Ok(Self(child))
    }

    /// One with this number, as the kernel gives it out again once it is free.
    fn with_number(pid: u32) -> Result<Self> {
        for _ in 0..100 {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
                .context("choosing the next process's number")?;
            let sleeper = Self::start(&[])?;
            if sleeper.0.id() == pid {
                return Ok(sleeper);
            }
        }
        bail!("no process got the number {pid}");
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn acts_in_no_other(_: &Guest) -> Result<Outcome> {
    const ID: &str = "notrack-6379-tcp-lo";
    nftables::load(HOSTS_OWN)?;
    let rules = || run(&["nft", "-s", "list", "ruleset"]);
    let here = rules()?;
    let mut checks = Checks::new();
    let script = |netns: &str| -> Result<tempfile::NamedTempFile> {
        let ask = ["ctwatch", "advise", "--netns", netns, "--window", "3s", "--format", "sh", "--item", ID];
        let file = tempfile::NamedTempFile::new().context("a file for the script")?;
        fs::write(file.path(), run(&ask)?).context("writing the script")?;
        Ok(file)
    };
    let step = |script: &tempfile::NamedTempFile, step: &str| -> Result<(bool, String)> {
        let output =
            Command::new("sh").arg(script.path()).arg(step).output().context("running the script")?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };

    // A netns without a name, that of a process.
    let green = Netns::create("green")?;
    let talk = Talk::begin(&green)?;
    let sleeper = Sleeper::start(&["nsenter", &format!("--net=/run/netns/{}", green.name())])?;
    let pid = sleeper.0.id();
    thread::sleep(Duration::from_secs(1));
    drop(green);
    let there = || run(&["nsenter", &format!("--net=/proc/{pid}/ns/net"), "nft", "-s", "list", "ruleset"]);
    let before = there()?;
    let of_process = script(&format!("pid:{pid}"))?;
    let text = fs::read_to_string(of_process.path()).context("reading the script")?;
    checks.that(
        text.contains(&format!("--net=/proc/{pid}/ns/net ")),
        format!("another way leads there: {text}"),
    );
    for (name, changes) in [("now", true), ("undo", false)] {
        let (is_done, said) = step(&of_process, name)?;
        checks.that(is_done, format!("`{name}` failed while the process lives: {said}"));
        checks.that((there()? != before) == changes, format!("its rules after `{name}`"));
    }
    talk.end()?;
    drop(sleeper);
    // Its number goes to a process of the host's.
    let another = Sleeper::with_number(pid)?;
    for name in ["now", "undo"] {
        let (is_done, said) = step(&of_process, name)?;
        checks.that(!is_done || name == "undo", format!("`{name}` claims to have worked: {said}"));
        checks.that(said.contains("another netns is there by now"), format!("`{name}` says nothing: {said}"));
        checks.equal(
            &format!("the host's rules after `{name}` for a process that is gone"),
            rules()?,
            here.clone(),
        );
    }
    drop(another);

    // A name that leads to the host's by the time the script is run.
    let blue = Netns::create("blue")?;
    let talk = Talk::begin(&blue)?;
    thread::sleep(Duration::from_secs(1));
    let of_name = script(blue.name())?;
    talk.end()?;
    let file = format!("/run/netns/{}", blue.name());
    run(&["busybox", "umount", &file])?;
    run(&["busybox", "mount", "--bind", "/proc/1/ns/net", &file])?;
    let (is_done, said) = step(&of_name, "now")?;
    checks.that(!is_done && said.contains("another netns is there by now"), format!("the name: {said}"));
    checks.equal("the host's rules after `now` for a name that was bound anew", rules()?, here);
    Ok(Outcome::Passed(checks.finish()?))
}
