//! Every message that docs/troubleshooting.md quotes is one of the program's, and every refusal of the program's is quoted there.
//! Both by the string literals of the sources, without their tests.

use std::path::{Path, PathBuf};

const DOCUMENT: &str = "../docs/troubleshooting.md";

/// Whose wrong usage is about files.
const REFUSE_FILES: [&str; 6] = [
    "command/atomic_outputs.rs",
    "command/export.rs",
    "command/record.rs",
    "record/lock.rs",
    "record/writer.rs",
    "postmortem/gather.rs",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "testing" {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && path.file_name().unwrap() != "tests.rs"
        {
            found.push(path);
        }
    }
}

/// A string literal, what stands before it, and in which file.
struct Literal {
    text: String,
    before: String,
    file: String,
}

/// The literals of a source, lines that are broken with a backslash put together.
fn literals(source: &str, file: &str) -> Vec<Literal> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    let mut rest = source;
    let mut code = String::new();
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest = &rest[if rest.starts_with("'\"'") { 3 } else { 4 }..];
        } else if c == '"' {
            let mut text = String::new();
            let mut inside = rest[1..].char_indices();
            let end = loop {
                match inside.next().expect("a literal ends") {
                    (at, '"') => break at,
                    (_, '\\') => match inside.next().expect("an escape ends").1 {
                        '\n' => {
                            while inside.as_str().starts_with(char::is_whitespace) {
                                inside.next();
                            }
                        }
                        'n' => text.push('\n'),
                        other => text.push(other),
                    },
                    (_, other) => text.push(other),
                }
            };
            found.push(Literal { text, before: code.clone(), file: file.to_owned() });
            code.clear();
            rest = &rest[1 + end + 1..];
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

fn all_literals() -> Vec<Literal> {
    let mut files = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&folder, &mut files);
    files.sort();
    let of = |file: &PathBuf| {
        let name = file.strip_prefix(&folder).unwrap().to_str().unwrap();
        literals(&std::fs::read_to_string(file).unwrap(), name)
    };
    files.iter().flat_map(of).collect()
}

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT)).unwrap()
}

/// The messages that headings quote.
fn quoted(document: &str) -> Vec<&str> {
    document.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect()
}

/// What stands between the holes of a message, `…` in the document and `{…}` in the sources.
fn pieces(message: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut depth = 0_u32;
    for c in message.chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                pieces.push(String::new());
            }
            '…' => pieces.push(String::new()),
            c if depth == 0 => pieces.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    pieces.into_iter().filter(|piece| piece.chars().filter(|c| c.is_alphabetic()).count() > 1).collect()
}

#[test]
fn every_message_quoted_is_one_of_the_program_s() {
    let (document, literals) = (document(), all_literals());
    let messages = quoted(&document);
    assert!(messages.len() > 40, "{} messages", messages.len());
    for message in messages {
        let wanted = pieces(message);
        assert!(!wanted.is_empty(), "{message}");
        for piece in wanted {
            let piece = piece.trim();
            // A hole of the document is a hole, or an ellipsis, of the sources.
            assert!(
                literals.iter().any(|one| pieces(&one.text).iter().any(|own| own.contains(piece))),
                "docs/troubleshooting.md quotes what the program doesn't say: {piece:?} of {message:?}"
            );
        }
    }
}

#[test]
fn every_refusal_and_everything_not_readable_is_explained() {
    let document = document();
    let explained: Vec<String> = quoted(&document).iter().flat_map(|message| pieces(message)).collect();
    let mut missing = Vec::new();
    let mut looked_at = 0;
    let mut is_code = false;
    for Literal { text, before, file } in all_literals() {
        let before = before.trim_end().trim_end_matches("format!(").trim_end().to_owned();
        let is_refusal = before.ends_with("cannot_watch(") || before.ends_with("or_cannot_watch(||");
        // Where a recording or an output can't be.
        let is_about_files = REFUSE_FILES.contains(&file.as_str())
            && (before.ends_with("Failure::usage(") || before.ends_with("or_usage(||"));
        let is_unfit = file == "record/unfit.rs";
        let is_told = std::mem::replace(&mut is_code, before.ends_with(".tell(")) && before.trim() == ", &";
        let is_notice = is_told || file == "command/live/notices.rs" && text.contains(' ');
        let Some(longest) = pieces(&text).into_iter().max_by_key(String::len) else { continue };
        let words = longest.trim().trim_matches(|c: char| !c.is_alphanumeric());
        let is_one = is_refusal || is_about_files || is_unfit || is_notice || text.contains("not readable");
        if words.len() < 8 || !is_one {
            continue;
        }
        looked_at += 1;
        // A heading that says less says something else.
        if !explained.iter().any(|one| one.contains(words)) {
            missing.push(text);
        }
    }
    assert!(looked_at >= 30, "only {looked_at} were found");
    assert_eq!(missing, Vec::<String>::new(), "not in docs/troubleshooting.md");
}

#[test]
fn each_line_of_check_that_rules_out_programs_has_its_place() {
    let document = document();
    let mut names: Vec<String> = all_literals()
        .into_iter()
        .filter(|one| one.before.trim_end().ends_with(".need("))
        .map(|one| one.text)
        .collect();
    names.dedup();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_table_of_environments_on_6_12_blames_no_limit_of_older_kernels() {
    let document = document();
    let (_, rest) = document.split_once("<!-- cargo xtask environments: begin -->").unwrap();
    let (table, _) = rest.split_once("<!-- cargo xtask environments: end -->").unwrap();
    let wrong: Vec<&str> = table
        .lines()
        .filter(|row| row.contains("before Linux 5.11"))
        .map(|row| row.split('|').nth(1).unwrap_or(row).trim())
        .collect();
    assert_eq!(wrong, Vec::<&str>::new(), "made with Debian's kernel 6.12");
}

#[test]
fn literals_are_found_as_they_are_written() {
    let source = "let a = \"one \\\n        two\"; // \"no\"\nlet b = '\"'; f(\"x \\\"y\\\" {z}\");\n#[cfg(test)] \"no\"";
    let texts: Vec<String> = literals(source, "a.rs").into_iter().map(|one| one.text).collect();
    assert_eq!(texts, ["one two", "x \"y\" {z}"]);
    assert_eq!(pieces("ab … cd {e} fg"), ["ab ", " cd ", " fg"]);
}
