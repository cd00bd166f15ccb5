//! Which of the known words a mistyped one may stand for.
//! A guess is only ever told, never taken.

/// The word nearest to this one, if one is near: a slip or two away, or the one it begins or is part of.
pub fn nearest<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase();
    let length = text.chars().count();
    let slips = match length {
        0..3 => return None,
        3 => 1,
        _ => (length / 3).max(1),
    };
    let words: Vec<&str> = words.into_iter().collect();
    let near = |word: &&&str| distance(&text, word) <= slips;
    let by_slips = words.iter().filter(near).min_by_key(|word| distance(&text, word));
    let part = || words.iter().find(|word| word.starts_with(&text) || word.contains(&text));
    let whole = || words.iter().find(|word| word.len() > 2 && text.starts_with(**word));
    by_slips.or_else(part).or_else(whole).copied()
}

/// "; did you mean `tcp`?", if one is near.
pub fn did_you_mean<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    nearest(text, words).map_or_else(String::new, |word| format!("; did you mean `{word}`?"))
}

/// How many letters have to be put in, left out, replaced, or swapped with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, wanted) in other.iter().enumerate() {
            let replaced = above[column] + usize::from(letter != wanted);
            let mut least = replaced.min(above[column + 1] + 1).min(line[column] + 1);
            if row > 0 && column > 0 && *letter == other[column - 1] && one[row - 1] == *wanted {
                least = least.min(before[column - 1] + 1);
            }
            line.push(least);
        }
        before = std::mem::replace(&mut above, line);
    }
    above[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAUSES: [&str; 4] = ["table_full", "no_memory", "clash", "evicted"];

    #[test]
    fn a_slip_leads_to_the_word_and_nonsense_nowhere() {
        for (slip, word) in [
            ("tabel_full", "table_full"),
            ("full", "table_full"),
            ("Clsh", "clash"),
            ("evict", "evicted"),
            ("clashes", "clash"),
            ("no_memroy", "no_memory"),
        ] {
            assert_eq!(nearest(slip, CAUSES), Some(word), "{slip}");
        }
        for far in ["", "a", "xx", "bad_luck", "conntrack"] {
            assert_eq!(nearest(far, CAUSES), None, "{far}");
        }
        assert_eq!(did_you_mean("clas", CAUSES), "; did you mean `clash`?");
        assert_eq!(did_you_mean("bad_luck", CAUSES), "");
    }

    proptest! {
        #[test]
        fn a_distance_is_one(one in "[a-d]{0,6}", other in "[a-d]{0,6}") {
            prop_assert_eq!(distance(&one, &other) == 0, one == other);
            prop_assert_eq!(distance(&one, &other), distance(&other, &one));
            prop_assert!(distance(&one, &other) <= one.len().max(other.len()));
        }
    }
}
