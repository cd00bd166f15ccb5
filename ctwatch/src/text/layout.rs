//! Numbers, colours and line breaks of text for people.
//! Widths are counted in columns of a terminal, before any colour is put on.

use crate::foreign::columns;

/// Columns of the narrowest terminal ctwatch is read on.
pub const COLUMNS: usize = 80;

/// Columns that text takes.
pub fn width(text: &str) -> usize {
    columns(text)
}

/// 1234567 → "1,234,567"
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// 1 → "1 packet", 1234 → "1,234 packets"
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// -1234 → "-1,234", 1234 → "+1,234"
pub fn signed(number: i64) -> String {
    format!("{}{}", if number < 0 { '-' } else { '+' }, thousands(number.unsigned_abs()))
}

/// A rate in at most seven characters: "0.4", "2,210", "99,999", "123k", "4,567k"
pub fn rate(per_s: f64) -> String {
    if per_s > 0.0 && per_s < 10.0 {
        return format!("{per_s:.1}");
    }
    let rounded = per_s.round() as u64;
    if rounded < 100_000 { thousands(rounded) } else { format!("{}k", thousands(rounded / 1_000)) }
}

/// The part of a table that is used; rounded down, so that 100 % means full.
pub fn percent(fill: f64) -> String {
    format!("{} %", (fill * 100.0 + 1e-9).floor())
}

/// Cuts text that is too long, and shows that it did.
pub fn shorten(text: &str, longest: usize) -> String {
    if width(text) <= longest {
        return text.to_owned();
    }
    let mut kept = String::new();
    for letter in text.chars() {
        kept.push(letter);
        if width(&kept) >= longest {
            kept.pop();
            break;
        }
    }
    kept + "…"
}

/// Text with spaces behind it, to be so wide at least. `{:<}` counts characters, of which some take two columns, some none.
pub fn left(text: &str, columns: usize) -> String {
    format!("{text}{:1$}", "", columns.saturating_sub(width(text)))
}

/// Text with spaces before it.
pub fn right(text: &str, columns: usize) -> String {
    format!("{:1$}{text}", "", columns.saturating_sub(width(text)))
}

/// Breaks text at spaces, so that each line fits; all but the first are indented.
pub fn wrap(text: &str, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.trim_start().is_empty() && width(&line) + 1 + width(word) > COLUMNS {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_204), "1,204");
        assert_eq!(thousands(4_026_531_840), "4,026,531,840");
        assert_eq!(signed(-1_500), "-1,500");
        assert_eq!(counted(1, "packet", "packets"), "1 packet");
        assert_eq!(counted(0, "entry", "entries"), "0 entries");
        assert_eq!(rate(0.4), "0.4");
        assert_eq!(rate(0.0), "0");
        assert_eq!(rate(2_210.4), "2,210");
        assert_eq!(rate(612_345.0), "612k");
    }

    #[test]
    fn only_a_full_table_is_a_hundred_percent() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.9999), "99 %");
        assert_eq!(percent(0.29), "29 %");
        assert_eq!(percent(0.0), "0 %");
    }

    #[test]
    fn wide_letters_keep_the_columns() {
        assert_eq!(left("日本", 6) + "|", "日本  |");
        assert_eq!(right("日本", 6), "  日本");
        assert_eq!(left("e\u{301}", 3) + "|", "e\u{301}  |");
        assert_eq!(shorten("日本語", 4), "日…");
        assert_eq!(shorten("日本語", 6), "日本語");
        assert_eq!(shorten("abcd", 3), "ab…");
    }

    proptest! {
        #[test]
        fn what_is_shortened_fits(text: String, longest in 1..20_usize) {
            let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
            prop_assert!(width(&shorten(&text, longest)) <= longest);
            prop_assert_eq!(shorten(&text, longest) == text, width(&text) <= longest);
        }

        #[test]
        fn wrapped_lines_fit_and_lose_no_word(words in proptest::collection::vec("[a-z]{1,20}", 1..40)) {
            let lines = wrap(&words.join(" "), 4);
            prop_assert!(lines.iter().all(|line| width(line) <= COLUMNS));
            let back: Vec<String> = lines.join(" ").split_whitespace().map(str::to_owned).collect();
            prop_assert_eq!(back, words);
        }
    }
}
