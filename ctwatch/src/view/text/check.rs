//! The answer of `ctwatch check`: what was found, and for each "no" what would change it.
//! The same words as when `drops` can't start.

use crate::contract::{Check, CheckItem, CheckProgram};
use crate::text::{ALERT, COLUMNS, FAINT, OK, PLAIN, Paint, left, thousands, width, wrap};

pub(super) fn lines(check: &Check, paint: Paint) -> Vec<String> {
    let Check { schema: _, version, kernel_release, backend, backend_reason, items, programs } = check;
    let verdict = match backend {
        Some(backend) => {
            format!("ctwatch {version} on Linux {kernel_release}: would use the {} backend", backend.name())
        }
        None => format!("ctwatch {version} on Linux {kernel_release}: cannot watch here"),
    };
    let mut lines = wrap(&verdict, 2);
    if let Some(reason) = backend_reason {
        lines.extend(wrap(&format!("Why this backend: {reason}"), 2));
    }
    lines.push(String::new());
    let names = items.iter().map(|item| width(&item.name)).max().unwrap_or(0);
    lines.extend(items.iter().flat_map(|item| item_lines(item, names, paint)));
    if !programs.is_empty() {
        lines.push(String::new());
        lines.extend(programs.iter().flat_map(|program| program_lines(program, paint)));
    }
    lines
}

fn item_lines(item: &CheckItem, names: usize, paint: Paint) -> Vec<String> {
    let CheckItem { name, ok, found, remedy } = item;
    let (word, style) = verdict(*ok);
    // "  ok  name  "
    let column = 2 + 2 + 2 + names + 2;
    let head = format!("{}  {}  ", paint.on(style, &format!("{word:>4}")), left(name, names));
    let mut lines = hanging(found, column, "");
    lines[0] = head + &lines[0];
    for line in &mut lines[1..] {
        *line = " ".repeat(column) + line;
    }
    if let Some(remedy) = remedy {
        let remedy = hanging(remedy, column, "-> ");
        lines.extend(remedy.iter().map(|line| " ".repeat(column) + line));
    }
    lines
}

/// Text broken to what is left of the line from this column on.
fn hanging(text: &str, column: usize, lead: &str) -> Vec<String> {
    let room = COLUMNS.saturating_sub(column).max(20);
    let mut lines = vec![lead.to_owned()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("it starts with one line");
        let empty = line.trim_end() == lead.trim_end() || line.trim().is_empty();
        if !empty && width(line) + 1 + width(word) > room {
            lines.push(format!("{}{word}", " ".repeat(width(lead))));
        } else {
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

fn program_lines(program: &CheckProgram, paint: Paint) -> Vec<String> {
    let CheckProgram { name, ok, verified_instructions, log } = program;
    let (word, style) = verdict(Some(*ok));
    let cost = verified_instructions
        .map(|number| format!("  {} instructions verified", thousands(number)))
        .unwrap_or_default();
    let mut lines = vec![format!("{}  {name}{cost}", paint.on(style, &format!("{word:>4}")))];
    lines.extend(log.lines().map(|line| paint.on(FAINT, &format!("      {line}"))));
    lines
}

fn verdict(ok: Option<bool>) -> (&'static str, anstyle::Style) {
    match ok {
        Some(true) => ("ok", OK),
        Some(false) => ("no", ALERT),
        None => ("-", PLAIN),
    }
}
