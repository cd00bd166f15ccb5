//! Advice as a script: it does nothing unless it is told to, and `try` takes back by itself what isn't confirmed.
//! Commands come from the advice unchanged; every other value is quoted. What the script does is in way_back.sh.

use std::io::{self, Write};

use crate::advise::items::Item;
use crate::advise::report::Advice;
use crate::foreign::harmless;
use crate::text::shell::quote;
use crate::text::thousands;
use crate::view::text::advice::after_idle;

/// The part that is the same in every script.
const WAY_BACK: &str = include_str!("way_back.sh");

/// Writes the script of these items.
///
/// # Errors
/// Writing failed.
pub fn write(mut out: impl Write, report: &Advice, items: &[&Item]) -> io::Result<()> {
    let name = report.name.as_ref().map_or_else(|| "an unnamed netns".to_owned(), ToString::to_string);
    writeln!(out, "#!/bin/sh")?;
    comment(
        &mut out,
        &format!(
            "Written by ctwatch {} at {:.0} for {name}, Linux {}.",
            report.version, report.time, report.kernel_release
        ),
    )?;
    comment(&mut out, "sh FILE             its pieces, and how to use it")?;
    comment(
        &mut out,
        "sh FILE try PIECE   apply one, watch, and take it back unless confirmed within a minute",
    )?;
    writeln!(out, "set -u")?;
    for (number, item) in (1..).zip(items) {
        piece(&mut out, number, item)?;
    }
    table(&mut out, items)?;
    // The prefix is a command of ours with its one foreign word quoted.
    writeln!(out, "\n# Where its commands act.\nenter() {{\n    {}\"$@\"\n}}", report.enter)?;
    out.write_all(WAY_BACK.as_bytes())
}

/// What is known of a piece, and its commands.
fn piece(out: &mut impl Write, number: usize, item: &Item) -> io::Result<()> {
    writeln!(out)?;
    comment(out, &format!("{number}. {}: {}", item.id, item.title))?;
    comment(out, &format!("  why: {}", item.evidence))?;
    comment(out, &format!("  risk, {}: {}", level(item), item.risk_text))?;
    comment(
        out,
        &format!(
            "  effect: {} entries{}, {} just before garbage collection",
            thousands(item.after.entries() as u64),
            match item.after.max {
                0 => ", no limit".to_owned(),
                max => format!(" of {}", thousands(max.into())),
            },
            thousands(item.after.peak as u64)
        ),
    )?;
    if let Some(idle) = after_idle(&item.after) {
        comment(out, &format!("  {idle}"))?;
    }
    for objection in &item.refused {
        comment(out, &format!("  refused: {}: {}", objection.text, objection.located_rule()))?;
    }
    for note in &item.notes {
        comment(out, &format!("  {note}"))?;
    }
    if !item.settings.is_empty() {
        comment(out, "  cannot be scripted; set by hand:")?;
    }
    for setting in &item.settings {
        comment(out, &format!("    {setting}"))?;
    }
    function(out, &format!("now_{number}"), &item.commands.now)?;
    function(out, &format!("keep_{number}"), &item.commands.keep)?;
    function(out, &format!("undo_{number}"), &item.commands.undo)
}

/// Which pieces there are, and what they are called.
fn table(out: &mut impl Write, items: &[&Item]) -> io::Result<()> {
    let numbered = || (1..).zip(items);
    writeln!(out, "\n# The number of a piece.\npick() {{\n    case \"$1\" in")?;
    if items.len() == 1 {
        writeln!(out, "    '') echo 1 ;;")?;
    }
    for (number, item) in numbered() {
        writeln!(out, "    {number} | {}) echo {number} ;;", quote(&item.id))?;
    }
    writeln!(out, "    *) return 1 ;;\n    esac\n}}")?;
    writeln!(out, "\ntitle() {{\n    case \"$1\" in")?;
    for (number, item) in numbered() {
        let title = quote(&harmless(&format!("{}: {}", item.id, item.title)));
        writeln!(out, "    {number}) printf '%s\\n' {title} ;;")?;
    }
    writeln!(out, "    *) return 1 ;;\n    esac\n}}")?;
    let able: Vec<String> = numbered()
        .filter(|(_, item)| !item.commands.now.is_empty())
        .map(|(number, _)| number.to_string())
        .collect();
    writeln!(out, "\nhas_commands() {{\n    case \"$1\" in")?;
    if !able.is_empty() {
        writeln!(out, "    {}) return 0 ;;", able.join(" | "))?;
    }
    writeln!(out, "    *) return 1 ;;\n    esac\n}}")?;
    writeln!(out, "\nlist() {{")?;
    if items.is_empty() {
        writeln!(out, "    echo 'there is no piece: nothing was advised that commands can do'")?;
    }
    for (number, item) in numbered() {
        let by_hand = match (item.commands.now.is_empty(), item.refused.is_empty()) {
            (false, _) => "",
            (true, true) => " (by hand)",
            (true, false) => " (refused)",
        };
        let line = format!("{number}  {}: {}{by_hand}", item.id, item.title);
        writeln!(out, "    printf '%s\\n' {}", quote(&harmless(&line)))?;
    }
    writeln!(out, "}}")
}

fn level(item: &Item) -> String {
    format!("{:?}", item.risk).to_lowercase()
}

/// A comment of one line, whatever the text holds.
fn comment(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "# {}", harmless(text))
}

fn function(out: &mut impl Write, name: &str, commands: &[String]) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{name}() {{")?;
    // A function may not be empty.
    writeln!(out, "    :")?;
    for command in commands {
        // What is for the reader holds words of rules: no line of it may become a command.
        if command.starts_with('#') {
            writeln!(out, "    {}", harmless(command))?;
            continue;
        }
        // As it is: a line break may be part of a word.
        writeln!(out, "    {command}")?;
    }
    writeln!(out, "}}")
}
