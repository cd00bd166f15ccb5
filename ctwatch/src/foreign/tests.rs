use super::*;
use proptest::prelude::*;

/// Text as somebody makes it who means harm.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "\u{1b}[2J",
        "\u{1b}[31m",
        "\u{1b}]0;x\u{7}",
        "\u{9b}31m",
        "\n",
        "\r",
        "\t",
        "\u{7f}",
        "\\",
        "\\n",
        "\\x1b",
        "\\u{202e}",
        "\u{202e}",
        "\u{2066}",
        "\u{200b}",
        "\u{feff}",
        "\u{2028}",
        "\u{e0041}",
        "\u{301}",
        "\u{10ffff}",
        "\u{10ff80}",
        "é",
        "日本",
        "🦀",
        "=",
        "+1",
        "-",
        "@",
        "＝",
        ";",
        "|",
        "\"",
        "'",
        " ",
        ",",
        "a",
        "{",
        "}",
        "[",
        "x1b",
        "…",
        "\0",
    ]);
    let pieces = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![pieces, any::<String>()]
}

fn acts_on_a_terminal(text: &str) -> bool {
    text.chars().any(is_hidden)
}

/// What a shown name was.
fn back(shown: &str) -> String {
    let mut out = String::new();
    let mut rest = shown;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        let (letter, length) = match rest.chars().next().unwrap() {
            'n' => ('\n', 1),
            'r' => ('\r', 1),
            't' => ('\t', 1),
            '\\' => ('\\', 1),
            'x' => match u32::from_str_radix(&rest[1..3], 16).unwrap() {
                ascii @ ..0x80 => (char::from_u32(ascii).unwrap(), 3),
                byte => (char::from_u32(0x10_ff00 | byte).unwrap(), 3),
            },
            'u' => {
                let end = rest.find('}').unwrap();
                (char::from_u32(u32::from_str_radix(&rest[2..end], 16).unwrap()).unwrap(), end + 1)
            }
            other => panic!("no escape: {other:?} in {shown:?}"),
        };
        out.push(letter);
        rest = &rest[length..];
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_shown_acts_on_nothing_and_tells_what_it_was(text in hostile()) {
        let shown = Foreign::from(text.as_str()).within(usize::MAX);
        prop_assert!(!acts_on_a_terminal(&shown), "{shown:?}");
        prop_assert_eq!(&back(&shown), &text);
        let debugged = format!("{:?}", Foreign::from(text.as_str()));
        prop_assert!(!acts_on_a_terminal(&debugged), "{debugged:?}");
    }

    #[test]
    fn bytes_are_told_apart(one in prop::collection::vec(any::<u8>(), 0..24), other in prop::collection::vec(any::<u8>(), 0..24)) {
        let [a, b] = [&one, &other].map(|bytes| Foreign::from_bytes(bytes));
        prop_assert!(!acts_on_a_terminal(&a.to_string()));
        prop_assert_eq!(a == b, one == other);
        prop_assert_eq!(a.within(usize::MAX) == b.within(usize::MAX), one == other);
    }

    #[test]
    fn text_is_itself_and_bytes_have_stand_ins(text in any::<String>()) {
        let has_none = !text.chars().any(|letter| bytes::byte(letter).is_some());
        prop_assert!(!has_none || Foreign::from_bytes(text.as_bytes()).raw() == text);
    }

    #[test]
    fn what_is_cut_fits(text in hostile(), columns_left in 0..40_usize) {
        let foreign = Foreign::from(text.as_str());
        let cut = foreign.within(columns_left);
        prop_assert!(columns(&cut) <= columns_left, "{cut:?}");
        let whole = foreign.within(usize::MAX);
        prop_assert_eq!(cut == whole, columns(&whole) <= columns_left);
        prop_assert_eq!(columns(&format!("{foreign:>60.40}")), 60);
        prop_assert_eq!(columns(&format!("{foreign:<60.40}|")), 61);
    }

    #[test]
    fn a_sentence_is_made_harmless_once(text in hostile()) {
        let once = harmless(&text).into_owned();
        prop_assert!(!acts_on_a_terminal(&once), "{once:?}");
        prop_assert_eq!(harmless(&once).into_owned(), once.clone());
        // A name that is escaped goes through as it is.
        let name = Foreign::from(text.as_str()).to_string();
        prop_assert_eq!(harmless(&name).into_owned(), name);
    }

    #[test]
    fn colours_stay_and_nothing_else_does(text in hostile()) {
        let painted = format!("\u{1b}[1m\u{1b}[31m{}\u{1b}[0m", harmless(&text));
        prop_assert_eq!(harmless_painted(&painted).into_owned(), painted);
        let mut rest = harmless_painted(&text).into_owned();
        while let Some(at) = rest.find("\u{1b}[") {
            let end = rest[at..].find('m').unwrap();
            prop_assert!(rest[at + 2..at + end].bytes().all(|byte| byte.is_ascii_digit() || byte == b';'));
            rest.replace_range(at..=at + end, "");
        }
        prop_assert!(!acts_on_a_terminal(&rest), "{rest:?}");
    }

    #[test]
    fn no_cell_is_a_formula(text in hostile()) {
        for cell in [Foreign::from(text.as_str()).cell(), sentence_cell(&text), json_cell(&text)] {
            prop_assert!(!spreadsheet::runs(&cell), "{cell:?}");
            prop_assert!(!acts_on_a_terminal(&cell), "{cell:?}");
        }
    }

    #[test]
    fn json_keeps_its_meaning(texts in prop::collection::vec(hostile(), 0..4)) {
        let json = to_json(&texts).unwrap();
        prop_assert!(!acts_on_a_terminal(&json), "{json:?}");
        prop_assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), texts.clone());
        let theirs = serde_json::to_string_pretty(&texts).unwrap();
        let cell = json_cell(&theirs);
        prop_assert!(!spreadsheet::runs(&cell) && !acts_on_a_terminal(&cell), "{cell:?}");
        prop_assert_eq!(serde_json::from_str::<Vec<String>>(&cell).unwrap(), texts.clone());
        let raw = serde_json::value::RawValue::from_string(theirs).unwrap();
        let inside = to_json(&[raw]).unwrap();
        prop_assert!(!acts_on_a_terminal(&inside), "{inside:?}");
        prop_assert_eq!(serde_json::from_str::<[Vec<String>; 1]>(&inside).unwrap(), [texts]);
    }
}

#[test]
fn names_as_people_give_them_stay_as_they_are() {
    for name in
        ["nginx", "web 1", "getty@tty1.service", "データベース", "Größe", "café", "e\u{301}", "пример", "🦀"]
    {
        assert_eq!(Foreign::from(name).to_string(), name);
    }
}

#[test]
fn escapes_are_these() {
    let cases: &[(&[u8], &str)] = &[
        (b"a\x1b[31m", "a\\x1b[31m"),
        (b"a\nb\rc\td\x7f", "a\\nb\\rc\\td\\x7f"),
        (b"dev-by\\x2duuid", "dev-by\\\\x2duuid"),
        (b"\xff\xc3\xa9\xc3", "\\xffé\\xc3"),
        ("\u{202e}gnp.exe".as_bytes(), "\\u{202e}gnp.exe"),
        ("\u{9b}31m\u{85}".as_bytes(), "\\u{9b}31m\\u{85}"),
        ("\u{301}a\u{301}\u{301}\u{301}\u{301}".as_bytes(), "\\u{301}a\u{301}\u{301}\u{301}\\u{301}"),
        (
            "a\u{200b}\u{feff}\u{e0041}\u{2028}\u{a0}".as_bytes(),
            "a\\u{200b}\\u{feff}\\u{e0041}\\u{2028}\\u{a0}",
        ),
        ("\u{10ffff}".as_bytes(), "\\xf4\\x8f\\xbf\\xbf"),
    ];
    for (bytes, shown) in cases {
        assert_eq!(Foreign::from_bytes(bytes).to_string(), *shown);
    }
    assert_eq!(format!("{:?}", Foreign::from("a\"\n")), "\"a\\\"\\n\"");
    assert_eq!(
        Foreign::from(String::from_utf8(vec![b'a'; 2_000]).unwrap()).to_string().len(),
        511 + "…".len()
    );
}

#[test]
fn widths_are_those_of_a_terminal() {
    assert_eq!(columns("nginx"), 5);
    assert_eq!(columns("データ"), 6);
    assert_eq!(columns("🦀"), 2);
    assert_eq!(columns("e\u{301}"), 1);
    assert_eq!(format!("{:<8}|", Foreign::from("データ")), "データ  |");
    assert_eq!(format!("{:>8}|", Foreign::from("データ")), "  データ|");
    assert_eq!(Foreign::from("データベース").within(5), "デー…");
    assert_eq!(Foreign::from("ab\u{1b}").within(4), "ab…");
}

#[test]
fn numbers_are_numbers_and_formulas_are_text() {
    for plain in ["", "-1", "+2.5", "-1e-7", "0", "nginx", "::1", "a-b", "tcp/80; 5 lost", "/a=b"] {
        assert_eq!(Foreign::from(plain).cell(), plain);
    }
    for (formula, cell) in [
        ("=1+1", "'=1+1"),
        ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("  +1", "'  +1"),
        ("-e1", "'-e1"),
        ("+1e", "'+1e"),
        ("＝1+1", "'＝1+1"),
        ("a;=1+1", "a;'=1+1"),
        ("a;\"=1", "a;'\"=1"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
    ] {
        assert_eq!(Foreign::from(formula).cell(), cell);
    }
    assert_eq!(json_cell("\"=1\""), "\"\\u003d1\"");
    assert_eq!(json_cell(" -1.5e3\n"), "-1.5e3");
    assert_eq!(json_cell("{\"a\":-1,\"b\":\";=x\"}"), "{\"a\":-1,\"b\":\";\\u003dx\"}");
}

#[test]
fn of_a_thousand_names_the_first_are_shown_and_the_others_counted() {
    let names: Vec<Foreign> = (0..1_000).map(|number| format!("n{number}\n").into()).collect();
    assert_eq!(joined(&names[..2]), r"n0\n, n1\n");
    assert_eq!(joined(&names), r"n0\n, n1\n, n2\n, n3\n, n4\n, n5\n, n6\n, n7\n and 992 more");
    assert_eq!(joined(&[]), "");
}
