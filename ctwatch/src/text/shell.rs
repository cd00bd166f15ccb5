//! Words for a shell: the only way in which a value that ctwatch didn't make gets into a command.
//! What a word holds arrives in the program as it is, whatever it is.

use crate::foreign::{bytes_of, harmless};

/// The text as one word of a POSIX shell. It can be shown: what acts on a terminal is left to printf.
#[must_use]
pub fn quote(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    if !text.is_empty() && !text.starts_with(['-', '=', '%']) && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    // No argument can hold a NUL, so no file has one in its name.
    let text = text.replace('\0', "");
    if harmless(&text) == text {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    // What a command prints loses the line breaks at its end; the third character of IFS is one.
    let word = text.trim_end_matches('\n');
    let breaks = "\"${IFS#??}\"".repeat(text.len() - word.len());
    if word.is_empty() { breaks } else { format!("\"$(printf '{}')\"{breaks}", for_printf(word)) }
}

/// The text on one line without anything that acts on a terminal: for a comment, or to be shown.
#[must_use]
pub fn one_line(text: &str) -> String {
    harmless(text).into_owned()
}

/// A format of printf that prints this and stands between single quotes.
fn for_printf(text: &str) -> String {
    let mut format = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '%' => format.push_str("%%"),
            '\\' => format.push_str("\\\\"),
            '\'' => format.push_str("\\047"),
            // Not to be an option.
            '-' if format.is_empty() => format.push_str("\\055"),
            ascii if (' '..='~').contains(&ascii) => format.push(ascii),
            other => format.extend(bytes_of(other).iter().map(|byte| format!("\\{byte:03o}"))),
        }
    }
    format
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::{Foreign, is_hidden};
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::Command;

    /// What the real shell makes of these words: its arguments, each behind a NUL.
    fn arguments(shell: &[&str], words: &[String]) -> Vec<Vec<u8>> {
        // Numbers in front, so that nothing is printed but by this loop.
        let line: Vec<String> = words.iter().map(|word| quote(word)).collect();
        let script =
            format!("set -u\nset -- {}\nfor one; do printf '%s\\0' \"$one\"; done\n", line.join(" "));
        let output = Command::new(shell[0]).args(&shell[1..]).arg("-c").arg(script).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        output.stdout.split_inclusive(|byte| *byte == 0).map(|word| word[..word.len() - 1].to_vec()).collect()
    }

    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "'",
            "\"",
            "\\",
            "$",
            "`",
            ";",
            "&",
            "|",
            "\n",
            "\r",
            " ",
            "\t",
            "*",
            "?",
            "[",
            "~",
            "#",
            "!",
            "{",
            "}",
            "<",
            ">",
            "(",
            ")",
            "-",
            "=",
            "%",
            "$(id)",
            "'\\''",
            "\u{1b}[2J",
            "é",
            "a",
            "/etc/x",
            "EOF",
            "\u{7f}",
            "\\n",
            "\u{202e}",
            "\u{9b}",
            "\u{301}",
            "%d",
        ]);
        let pieces = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        prop_oneof![pieces, any::<String>().prop_map(|text| text.replace('\0', ""))]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_shell_hands_on_what_was_quoted(words in prop::collection::vec(hostile(), 1..20)) {
            let expected: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            // dash, bash, busybox: whichever of them are here.
            for shell in [&["sh"][..], &["dash"], &["bash", "--posix"], &["busybox", "sh"]] {
                let is_here = std::env::var_os("PATH").is_some_and(|path| {
                    std::env::split_paths(&path).any(|folder| folder.join(shell[0]).is_file())
                });
                if is_here {
                    prop_assert_eq!(&arguments(shell, &words), &expected, "{:?}", shell);
                }
            }
        }

        #[test]
        fn a_word_can_be_shown(text in hostile()) {
            let word = quote(&text);
            prop_assert!(!word.chars().any(is_hidden), "{:?}", word);
            prop_assert_eq!(&*harmless(&word), &word);
        }
    }

    #[test]
    fn a_byte_arrives_as_that_byte() {
        let word = Foreign::from_bytes(b"a\xff\n\n");
        assert_eq!(quote(word.raw()), "\"$(printf 'a\\377')\"\"${IFS#??}\"\"${IFS#??}\"");
        assert_eq!(arguments(&["sh"], &[word.into_raw(), "\n".to_owned()]), [&b"a\xff\n\n"[..], b"\n"]);
    }

    #[test]
    fn plain_words_stay_as_they_are() {
        for plain in
            ["/etc/sysctl.d/99-ctwatch.conf", "net.netfilter.nf_conntrack_max=65536", "/proc/7/ns/net"]
        {
            assert_eq!(quote(plain), plain);
        }
        assert_eq!(quote(""), "''");
        assert_eq!(quote("-f"), "'-f'");
        assert_eq!(std::ffi::OsStr::new(&quote("a b")).as_bytes(), b"'a b'");
    }
}
