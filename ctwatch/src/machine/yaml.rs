//! YAML of configuration files, as far as settings go: mappings, lists and words of the first document.
//! Bounded in depth and size, aliases included: who wrote the file is not to be trusted with our memory.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// How deep it may be nested.
const DEPTH: usize = 32;
/// Of how many parts it may be made, once aliases are replaced by what they stand for, and what has an anchor is counted twice; a long
/// text is several.
const PARTS: usize = 1 << 18;
/// Letters of a text that are one part.
const LETTERS: usize = 16;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Yaml {
    /// Nothing: `null`, `~`, or no value.
    Null,
    /// A word, number or text, as it is written.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// A mapping; of several values of a key the last one counts.
    Map(Vec<(String, Self)>),
}

/// What is being read.
enum Open {
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>, Option<String>),
}

impl Yaml {
    /// Reads the first document.
    ///
    /// # Errors
    /// It is no YAML, or too deep or too large to be configuration.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut open: Vec<(Open, usize)> = Vec::new();
        let mut anchors: HashMap<usize, (Self, usize)> = HashMap::new();
        let mut parts = 0;
        for event in Parser::new_from_str(text) {
            let (event, _) = event.map_err(|error| error.to_string())?;
            let (value, anchor, size) = match event {
                Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => {
                    return Err(format!("it is nested deeper than {DEPTH} levels"));
                }
                Event::SequenceStart(anchor, _) => {
                    open.push((Open::List(Vec::new()), anchor));
                    continue;
                }
                Event::MappingStart(anchor, _) => {
                    open.push((Open::Map(Vec::new(), None), anchor));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some((Open::List(items), anchor)) => (Self::List(items), anchor, 1),
                    Some((Open::Map(pairs, _), anchor)) => (Self::Map(pairs), anchor, 1),
                    None => return Err("it ends before it begins".to_owned()),
                },
                Event::Scalar(text, style, anchor, _) => {
                    let is_null = style == ScalarStyle::Plain
                        && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                    let value = if is_null { Self::Null } else { Self::Text(text.into_owned()) };
                    let size = value.parts();
                    (value, anchor, size)
                }
                Event::Alias(anchor) => {
                    // One that stands within what it stands for has no end, and isn't known yet here.
                    let (value, size) = anchors.get(&anchor).cloned().unwrap_or((Self::Null, 1));
                    (value, 0, size)
                }
                Event::DocumentEnd | Event::StreamEnd => break,
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => continue,
                #[expect(unreachable_patterns, reason = "the parser may learn of more")]
                _ => continue,
            };
            // What has an anchor is kept twice, with all that is in it.
            let kept = if anchor == 0 { 0 } else { value.parts() };
            parts += size + kept;
            if parts > PARTS {
                return Err(format!("it has more than {PARTS} parts"));
            }
            if anchor != 0 {
                anchors.insert(anchor, (value.clone(), kept));
            }
            match open.last_mut() {
                None => return Ok(value),
                Some((Open::List(items), _)) => items.push(value),
                Some((Open::Map(pairs, key), _)) => match key.take() {
                    Some(key) => pairs.push((key, value)),
                    // Keys that are no words mean nothing here.
                    None => *key = Some(value.text().unwrap_or_default().to_owned()),
                },
            }
        }
        Ok(Self::Null)
    }

    fn parts(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Text(text) => 1 + text.len() / LETTERS,
            Self::List(items) => 1 + items.iter().map(Self::parts).sum::<usize>(),
            Self::Map(pairs) => {
                1 + pairs.iter().map(|(key, value)| 1 + key.len() / LETTERS + value.parts()).sum::<usize>()
            }
        }
    }

    /// The value of a key of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(pairs) = self else { return None };
        pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A word or text.
    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The words of a list, or the only one.
    pub(super) fn words(&self) -> Vec<String> {
        match self {
            Self::List(items) => items.iter().filter_map(|item| item.text().map(str::to_owned)).collect(),
            one => one.text().map(str::to_owned).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::time::{ClockId, clock_gettime};
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn values_are_found_however_they_are_written() {
        for text in [
            "conntrack:\n  min: 7\nmin: 8\n",
            "{conntrack: {min: 7}, min: 8}",
            "{\"conntrack\": {\"min\": 7, \"max\": null}}",
            "---\n\"conntrack\":\n    min: '7' # a word\n...\n---\nconntrack: {min: 9}\n",
            "conntrack: {min: 5, min: 7}",
            "defaults: &d {min: 7}\nconntrack: *d\n",
            "? conntrack\n: min: 7\n",
            "note: |\n  conntrack:\n    min: 5\nconntrack:\n  min: 7\n",
        ] {
            let yaml = Yaml::read(text).unwrap();
            let min = yaml.get("conntrack").and_then(|conntrack| conntrack.get("min"));
            assert_eq!(min.and_then(Yaml::text), Some("7"), "{text}");
        }
        assert_eq!(Yaml::read("a: null\nb: ~\nc:\n").unwrap().get("b"), Some(&Yaml::Null));
        assert_eq!(Yaml::read("").unwrap(), Yaml::Null);
        assert_eq!(Yaml::read("a: [x, 'y z', {b: c}]").unwrap().get("a").unwrap().words(), ["x", "y z"]);
    }

    #[test]
    fn anchors_around_anchors_count_with_all_that_is_in_them() {
        let nested = |levels: usize, items: usize| {
            let open: String = (0..levels).map(|level| format!("&a{level} [")).collect();
            format!("{open}{}{}", "x,".repeat(items), "]".repeat(levels))
        };
        // 30 copies of 200,000 words would be 6 million.
        assert!(Yaml::read(&nested(30, 200_000)).is_err_and(|why| why.contains("parts")));
        assert!(Yaml::read(&nested(30, 1000)).is_ok());
        assert!(Yaml::read(&"- &a x\n".repeat(100_000)).is_ok());
        assert!(Yaml::read(&"- &a x\n".repeat(140_000)).is_err_and(|why| why.contains("parts")));
    }

    #[test]
    fn what_is_no_configuration_is_refused_in_no_time() {
        let cpu_time = || -> Duration {
            clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the clock is there").into()
        };
        let began = cpu_time();
        let bomb: String = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
            format!("{text}a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)
        });
        let megabyte = |piece: &str| piece.repeat((1 << 20) / piece.len());
        for text in [
            bomb,
            format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 19), "*a,".repeat(1 << 17)),
            "&a [*a, *a]".repeat(10),
            megabyte("["),
            megabyte("{"),
            megabyte("- "),
            megabyte("? "),
            megabyte("{a: "),
            megabyte("a: &a\n "),
            megabyte("\"\\u0041"),
            megabyte("a,") + ":",
            megabyte("%TAG ! x\n"),
            megabyte("*a "),
            megabyte("&a "),
            megabyte("|\n "),
            megabyte(" "),
            megabyte("\t"),
            megabyte("\n"),
            megabyte("a\n"),
            megabyte("---\n"),
            megabyte("[a: b, "),
            megabyte("'"),
            megabyte("!"),
            megabyte("#"),
            megabyte("a:\n"),
            (0..60_000).map(|n| format!("{}a:\n", " ".repeat(n % 16))).collect(),
        ] {
            let start = cpu_time();
            let read = Yaml::read(&text);
            let small = read.as_ref().map_or(0, Yaml::parts);
            assert!(small <= 2 * PARTS, "{}", &text[..20]);
            let took = cpu_time() - start;
            assert!(took < Duration::from_secs(5), "{:?}: {took:?}", &text[..20]);
        }
        assert!(cpu_time() - began < Duration::from_secs(30));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\PC|[\\[\\]{}:,&*!|>'\"%@`?#\\n\\t -]){0,200}") {
            let _ = Yaml::read(&text);
        }

        #[test]
        fn what_is_written_is_read(words in prop::collection::vec("[a-z][a-z0-9=.-]{0,20}", 0..20)) {
            let block: String = words.iter().map(|word| format!("- {word}\n")).collect();
            for text in [format!("a:\n{block}b: z"), format!("a: [{}]", words.join(", "))] {
                prop_assume!(!words.iter().any(|word| word == "null"));
                let yaml = Yaml::read(&text).unwrap();
                prop_assert_eq!(yaml.get("a").map(Yaml::words).unwrap_or_default(), words.clone(), "{}", text);
            }
        }
    }
}
