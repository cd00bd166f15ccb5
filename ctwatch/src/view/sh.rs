//! Advice as a script: it does nothing unless called with `now`, `keep` or `undo`.
//! Commands come from the advice unchanged; this only adds the frame and comments.

use std::io::{self, Write};

use crate::advise::items::Item;
use crate::advise::report::Advice;
use crate::text::thousands;
use crate::view::text::advice::after_idle;

/// Writes the script of these items.
///
/// # Errors
/// Writing failed.
pub fn write(mut out: impl Write, report: &Advice, items: &[&Item]) -> io::Result<()> {
    let name = report.name.as_deref().unwrap_or("an unnamed netns");
    writeln!(out, "#!/bin/sh")?;
    writeln!(
        out,
        "# Written by ctwatch {} at {:.0} for {name}, Linux {}.",
        report.version, report.time, report.kernel_release
    )?;
    writeln!(out, "# sh FILE now    apply until the next reboot")?;
    writeln!(out, "# sh FILE keep   make it persistent (run `now` first)")?;
    writeln!(out, "# sh FILE undo   restore the settings found when this was written")?;
    writeln!(out, "set -u")?;
    for item in items {
        writeln!(out)?;
        comment(&mut out, &format!("{}: {}", item.id, item.title))?;
        comment(&mut out, &format!("  why: {}", item.evidence))?;
        comment(&mut out, &format!("  risk, {}: {}", level(item), item.risk_text))?;
        comment(
            &mut out,
            &format!(
                "  effect: {} entries of {}, {} just before garbage collection",
                thousands(item.after.entries() as u64),
                thousands(item.after.max.into()),
                thousands(item.after.peak as u64)
            ),
        )?;
        if let Some(idle) = after_idle(&item.after) {
            comment(&mut out, &format!("  {idle}"))?;
        }
        for note in &item.notes {
            comment(&mut out, &format!("  {note}"))?;
        }
        if !item.settings.is_empty() {
            comment(&mut out, "  cannot be scripted; set by hand:")?;
        }
        for setting in &item.settings {
            comment(&mut out, &format!("    {setting}"))?;
        }
    }
    let of = |part: fn(&Item) -> &Vec<String>| -> Vec<String> {
        items.iter().flat_map(|item| part(item).iter().cloned()).collect()
    };
    function(&mut out, "now", "set -e", &of(|item| &item.commands.now))?;
    function(&mut out, "keep", "set -e", &of(|item| &item.commands.keep))?;
    let undo: Vec<String> = items.iter().rev().flat_map(|item| item.commands.undo.iter().cloned()).collect();
    function(&mut out, "undo", "", &undo)?;
    writeln!(out)?;
    writeln!(out, "case \"${{1:-}}\" in")?;
    writeln!(out, "now | keep | undo) \"$1\" ;;")?;
    writeln!(out, "*)")?;
    writeln!(out, "    echo \"usage: sh $0 now|keep|undo\" >&2")?;
    writeln!(out, "    exit 2")?;
    writeln!(out, "    ;;")?;
    writeln!(out, "esac")
}

fn level(item: &Item) -> String {
    format!("{:?}", item.risk).to_lowercase()
}

fn comment(out: &mut impl Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "# {line}"))
}

fn function(out: &mut impl Write, name: &str, first: &str, lines: &[String]) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{name}() {{")?;
    // A function may not be empty.
    writeln!(out, "    {}", if first.is_empty() { ":" } else { first })?;
    for line in lines.iter().flat_map(|line| line.lines()) {
        writeln!(out, "{}{line}", if line.starts_with(' ') { "" } else { "    " })?;
    }
    writeln!(out, "}}")
}
