//! NOTRACK with iptables, kept over a reboot: by whatever way the host has to run something at boot, and a clear word where
//! it has none. What was kept is run after the rules were lost, as a boot would.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use ctwatch::firewall::{ExemptTarget, Firewall, Scope, Tool};
use ctwatch::model::Protocol;

use super::notrack::shell;
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::nftables;
use crate::shell::{run, sh};

/// A folder that tells how the host boots, and where its files come to lie.
const WAYS: [(&str, &str); 3] = [
    ("/run/systemd/system", "/etc/systemd/system"),
    ("/etc/local.d", "/etc/local.d"),
    ("/usr/share/netfilter-persistent/plugins.d", "/usr/share/netfilter-persistent/plugins.d"),
];

pub(super) fn over_a_reboot(_: &Guest) -> Result<Outcome> {
    let target = ExemptTarget { proto: Protocol::TCP, port: 6379, scope: Scope::Served };
    let commands = Firewall::default().notrack_commands(&target, Tool::Iptables);
    let mut checks = Checks::new();
    for (shows, folder) in WAYS {
        checks.that(!Path::new(shows).exists(), format!("{shows} is there before anything was done"));
        fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
        // The unit's folder alone is no systemd.
        if shows == folder {
            fs::remove_dir(folder)?;
        }
    }
    let before = files()?;

    // No way: it says so, and nothing is left half done.
    shell(&commands.now)?;
    let rules = rules()?;
    checks.that(rules.len() == 4, format!("`now` made {rules:?}"));
    let keep = Command::new("sh").args(["-ec", &commands.keep.join("\n")]).output().context("starting sh")?;
    let said = String::from_utf8_lossy(&keep.stderr).into_owned();
    checks.that(!keep.status.success(), "nothing was kept, and `keep` says it was");
    checks.that(
        said.starts_with("not persistent: no systemd") && said.lines().count() == 1,
        format!("`keep` says: {said}"),
    );
    checks.that(files()? == before, "files are left where nothing could be kept");
    checks.equal("rules after that", self::rules()?, rules.clone());
    shell(&commands.undo)?;
    checks.equal("rules after `undo`", self::rules()?.len(), 0);

    for (shows, folder) in WAYS {
        fs::create_dir_all(shows)?;
        // No systemd runs here to be told.
        let of = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|line| line.replace("systemctl", ": systemctl")).collect()
        };
        shell(&of(&commands.keep))?;
        let kept: Vec<_> = files()?.into_keys().filter(|file| !before.contains_key(file)).collect();
        checks.that(
            kept.len() == 1 && kept[0].starts_with(folder),
            format!("{shows}: what was kept is {kept:?}, not a file in {folder}"),
        );
        nftables::flush()?;
        checks.equal("rules before a boot", self::rules()?.len(), 0);
        boot(&kept[0]).with_context(|| format!("running {}", kept[0]))?;
        checks.equal(&format!("{shows}: rules after a boot"), self::rules()?, rules.clone());
        // What was tried once more than needed goes as well.
        shell(&commands.now)?;
        shell(&of(&commands.undo))?;
        checks.equal(&format!("{shows}: rules after `undo`"), self::rules()?.len(), 0);
        checks.that(files()? == before, format!("{shows}: files are left after `undo`"));
        fs::remove_dir(shows)?;
    }
    checks.figure("ways", WAYS.len());
    Ok(Outcome::Passed(checks.finish()?))
}

/// Runs what was kept, as the host's own start would: a unit's lines without a shell, scripts with their argument.
fn boot(file: &str) -> Result<()> {
    if !file.ends_with(".service") {
        // run-parts tells all plugins of everything; only a start is meant for this one.
        if !file.ends_with(".start") {
            run(&[file, "save"])?;
            anyhow::ensure!(rules()?.is_empty(), "it did something when told to save");
        }
        return run(&[file, "start"]).map(drop);
    }
    let text = fs::read_to_string(file)?;
    text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).try_for_each(|line| sh(line).map(drop))
}

/// The exemptions of both families.
fn rules() -> Result<Vec<String>> {
    let text = run(&["iptables-save", "-t", "raw"])? + &run(&["ip6tables-save", "-t", "raw"])?;
    Ok(text.lines().filter(|line| line.contains("--notrack")).map(str::to_owned).collect())
}

/// What lies in the folders that could hold something to be run at boot.
fn files() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for (_, folder) in WAYS {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            found.insert(path.display().to_string(), fs::read(&path).unwrap_or_default());
        }
    }
    Ok(found)
}
