//! Advice as a script: it does nothing until it is told which of `now`, `keep` and `undo`.
//! Commands come from the advice as they are; here they only get a frame and comments.

use std::io::{self, Write};

use crate::advise::items::Item;
use crate::advise::report::Advice;
use crate::view::text::advice::after_idle;

/// Writes the script of these pieces.
///
/// # Errors
/// Writing failed.
pub fn write(mut out: impl Write, report: &Advice, items: &[&Item]) -> io::Result<()> {
    let name = report.name.as_deref().unwrap_or("netns without a name");
    writeln!(out, "#!/bin/sh")?;
    writeln!(
        out,
        "# By ctwatch {}, {:.0}, for {name} on {}.",
        report.version, report.time, report.kernel_release
    )?;
    writeln!(out, "# sh FILE now    try it until the next reboot")?;
    writeln!(out, "# sh FILE keep   keep it over reboots (after `now`)")?;
    writeln!(out, "# sh FILE undo   put back what was there when it was written")?;
    writeln!(out, "set -u")?;
    for item in items {
        writeln!(out)?;
        comment(&mut out, &format!("{}: {}", item.id, item.title))?;
        comment(&mut out, &format!("  why: {}", item.evidence))?;
        comment(&mut out, &format!("  risk, {}: {}", level(item), item.risk_text))?;
        comment(
            &mut out,
            &format!(
                "  then: {:.0} entries of {}, {:.0} before gc comes by",
                item.after.entries(),
                item.after.max,
                item.after.peak
            ),
        )?;
        if let Some(idle) = after_idle(&item.after) {
            comment(&mut out, &format!("  {idle}"))?;
        }
        for note in &item.notes {
            comment(&mut out, &format!("  {note}"))?;
        }
        if !item.settings.is_empty() {
            comment(&mut out, "  no command can do this; set it by hand:")?;
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
