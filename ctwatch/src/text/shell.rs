//! Words for a shell: the only way in which a value that ctwatch didn't make gets into a command.
//! What a word holds arrives in the program as it is, whatever it is.

/// The text as one word of a POSIX shell.
#[must_use]
pub fn quote(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    if !text.is_empty() && !text.starts_with(['-', '=', '%']) && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    // No argument can hold a NUL, so no file has one in its name.
    format!("'{}'", text.replace('\0', "").replace('\'', "'\\''"))
}

/// The text on one line without anything that moves a terminal's cursor: for a comment, or to be shown.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        fn a_comment_has_one_line_and_no_control_characters(text: String) {
            let line = one_line(&text);
            prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
            prop_assert_eq!(line.chars().count(), text.chars().count());
        }
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
