//! What others call themselves, through every command and every format: nothing that acts on a terminal comes out, no name
//! becomes markup, and no spreadsheet runs a cell. The binary is run as a user runs it.

#[path = "../record/synthetic.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod synthetic;

mod live;
mod recorded;

use std::ffi::OsStr;
use std::process::{Command, Output};

use ctwatch::foreign::is_hidden;

/// Names as somebody chooses them who means harm.
const HOSTILE: &[&str] = &[
    "\u{1b}[31mred\u{1b}[0m\u{1b}[2J",
    "\u{1b}]0;title\u{7}\u{9b}2J\u{90}x\u{9c}",
    "a\nerror: forged\r\tx\u{8}\u{7f}",
    "\u{202e}gpj.exe\u{2066}x\u{2069}\u{200b}\u{feff}\u{e0041}\u{61c}\u{2028}y",
    "<script>alert(1)</script><img src=x onerror=y>&lt;b&gt;",
    "\" onmouseover=\"x' --><svg/onload=y>]]><!-- <b>",
    "=1+1|`x`*b*_i_~~s~~[l](http://e.x)![i](y) $m$ \\",
    "# h\n- l\n1. x\n> q\n```\n    c\n",
    "> q",
    "- l",
    "1. l",
    "    code",
    "http://e.example www.e.example a@e.example <http://x.y> @who",
    "@SUM(1+1)*cmd|'/C calc'!A0",
    "a;=1+1;\"=2\"|+3",
    "＝1+1",
    "データベース🦀e\u{301}\u{301}\u{301}\u{301}\u{301}",
    "\u{301}\u{10ffff}\u{10ff80}\u{e000}",
];

fn ctwatch(arguments: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctwatch")).args(arguments).env("TERM", "xterm").output().unwrap()
}

/// What it printed, of which no character acts on a terminal; line breaks are ctwatch's own.
#[track_caller]
fn shown(what: &str, bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {error}")).to_owned();
    if let Some(line) = text.lines().find(|line| line.chars().any(is_hidden)) {
        panic!("{what}: {line:?}");
    }
    assert!(
        !text.lines().any(|line| line.starts_with("error: forged")),
        "{what}: a line of a name's own\n{text}"
    );
    text
}
