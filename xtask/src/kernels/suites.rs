//! Debian's releases and the package lists of their suites, as far as this machine's mirror carries them.
//! A suite that isn't there is told, never left out in silence, and no mirror is named.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::offers::{self, Offer};
use crate::apt::{self, PrivateApt, RELEASES, Release, Suite};
use crate::progress;

/// Lists that are younger are taken as they are: a run of many kernels may be made in many pieces.
const FRESH: Duration = Duration::from_hours(24);

/// What was found on the mirror.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Found {
    /// Every suite that was asked for.
    pub suites: Vec<Read>,
    /// The newest kernels.
    pub offers: Vec<Offer>,
}

/// A suite that was asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Read {
    /// As Debian calls it.
    pub suite: String,
    /// The day its lists were made, or why there are none.
    pub lists: Result<String, String>,
    /// How many kernels its lists name, of any age.
    pub kernels: usize,
}

/// Looks for kernels of this architecture in all suites, or takes what was found within the last day.
pub fn look(arch: &str, update: bool) -> Result<Found> {
    let path = super::folder()?.join(format!("offers-{arch}.json"));
    let is_fresh = fs::metadata(&path)
        .and_then(|file| file.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH));
    if is_fresh && !update {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        // One of another layout is looked for anew.
        if let Ok(found) = serde_json::from_str(&text) {
            return Ok(found);
        }
    }
    let found = look_now(arch)?;
    fs::write(&path, serde_json::to_string_pretty(&found)?)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(found)
}

fn look_now(arch: &str) -> Result<Found> {
    let (mut suites, mut all) = (Vec::new(), Vec::new());
    for Release { name, suites: of_release } in RELEASES {
        for suite in of_release {
            progress::say(&format!("fetching the package lists of {}", suite.name()));
            let (lists, offers) = match read(name, *suite, arch) {
                Ok((date, offers)) => (Ok(date), offers),
                Err(error) => (Err(why(&format!("{error:#}"))), Vec::new()),
            };
            if let Err(why) = &lists {
                progress::say(&format!("{}: {why}", suite.name()));
            }
            suites.push(Read { suite: suite.name().to_owned(), lists, kernels: offers.len() });
            all.extend(offers);
        }
    }
    ensure!(
        suites.iter().any(|read| read.lists.is_ok()),
        "none of Debian's suites can be read: is there a network?"
    );
    Ok(Found { suites, offers: offers::newest(all, apt::is_newer) })
}

fn read(release: &str, suite: Suite, arch: &str) -> Result<(String, Vec<Offer>)> {
    let apt = PrivateApt::open_however_old(&apt_of(suite.name()), suite)?;
    Ok((apt.lists_are_of()?, offers::read(&apt.lists()?, release, suite.name(), arch)))
}

/// The configuration of the suite that an offer is from, with the lists it was found in.
pub fn apt(offer: &Offer) -> Result<PrivateApt> {
    let mut suites = RELEASES.iter().flat_map(|release| release.suites);
    let suite = suites
        .find(|suite| suite.name() == offer.suite)
        .with_context(|| format!("{} is no suite", offer.suite))?;
    PrivateApt::configure(&apt_of(&offer.suite), &[*suite])
}

fn apt_of(suite: &str) -> String {
    format!("suite-{suite}")
}

/// apt's complaint in words that name no mirror.
fn why(complaint: &str) -> String {
    let is_missing = ["404", "does not have a Release file", "no longer has a Release file"]
        .iter()
        .any(|sign| complaint.contains(sign));
    if is_missing { "not on this machine's mirror" } else { "can't be read from this machine's mirror" }
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_suite_is_told_from_one_that_cannot_be_read() {
        let missing =
            "E: The repository 'http://mirror.example/debian old Release' does not have a Release file.";
        assert_eq!(why(missing), "not on this machine's mirror");
        let broken = why("E: Failed to fetch http://mirror.example/debian/x Connection refused");
        assert_eq!(broken, "can't be read from this machine's mirror");
    }
}
