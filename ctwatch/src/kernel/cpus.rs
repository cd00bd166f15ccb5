//! Which CPUs there are, and which of them run. The kernel keeps counters for all that are possible.
//! A host that may get more CPUs while it runs, as many virtual machines may, has far more possible than online ones.

use std::path::Path;

use crate::foreign::Shown as _;
use anyhow::{Context, Result};

/// Numbers of the CPUs that are online.
pub fn online(sys: &Path) -> Result<Vec<u32>> {
    read(sys, "online")
}

/// Numbers of the CPUs that this kernel may ever have, in the order in which it lists their counters.
pub fn possible(sys: &Path) -> Result<Vec<u32>> {
    read(sys, "possible")
}

fn read(sys: &Path, list: &str) -> Result<Vec<u32>> {
    let file = sys.join("devices/system/cpu").join(list);
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.shown()))?;
    parse(text.trim()).with_context(|| format!("parsing {}: {text:?}", file.shown()))
}

/// "0-3,5"
pub(crate) fn parse(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_have_ranges_and_single_numbers() {
        assert_eq!(parse("0"), Some(vec![0]));
        assert_eq!(parse("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse("x"), None);
    }
}
