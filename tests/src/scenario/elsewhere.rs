//! Advice for a netns that isn't the one it is asked in: its commands act there, and leave nothing on the host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};

use super::notrack::{answer, serve};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::Netns;
use crate::nftables;
use crate::shell::run;

pub(super) fn acts_inside(_: &Guest) -> Result<Outcome> {
    let blue = Netns::create("blue")?;
    // A host with rules of its own, which must not change.
    nftables::load(
        "table inet mine {\n chain in {\n  type filter hook input priority 0; tcp dport 9 accept\n }\n}\n",
    )?;
    blue.run(|| {
        nftables::track()?;
        serve(*b"blue")
    })?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let talk = blue.run(|| {
        Ok(thread::spawn(move || {
            let redis = SocketAddr::from(([127, 0, 0, 1], 6379));
            while !over.load(Relaxed) {
                anyhow::ensure!(answer(redis).is_some(), "{redis} doesn't answer in blue");
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }))
    })?;
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
    is_over.store(true, Relaxed);
    talk.join().expect("talking doesn't panic")?;
    Ok(Outcome::Passed(checks.finish()?))
}
