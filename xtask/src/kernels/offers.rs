//! Which kernels Debian's releases offer: read from their package lists, the newest of each series and flavour.
//! A metapackage is no kernel, and debug symbols are none.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Packages that hold a kernel begin with one of these; of one version the first in this list is taken.
const IMAGES: [&str; 3] = ["linux-image-", "linux-binary-unsigned-", "linux-binary-"];
/// A package with less in it only depends on others.
const SMALLEST_IMAGE: u64 = 1_000_000;

/// How a kernel was configured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// For guests of clouds: few drivers.
    Cloud,
    /// For any machine.
    Generic,
    /// PREEMPT_RT.
    Rt,
}

impl Flavour {
    /// From the end of a kernel's name, for an architecture as Debian calls it.
    fn of(name: &str, arch: &str) -> Option<Flavour> {
        let rest = name.strip_suffix(arch)?.strip_suffix('-')?;
        Some(match rest.rsplit_once('-') {
            Some((_, "cloud")) => Flavour::Cloud,
            Some((_, "rt")) => Flavour::Rt,
            _ => Flavour::Generic,
        })
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
            Flavour::Rt => "rt",
        })
    }
}

/// A kernel that can be fetched.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Offer {
    /// Debian's releases that have it: "bookworm", "trixie-backports".
    pub releases: Vec<String>,
    /// The suite to fetch it from: "bookworm-security".
    pub suite: String,
    /// As `uname -r` will print it: "6.12.118+deb13-rt-amd64".
    pub name: String,
    /// Its package's version.
    pub version: String,
    /// "6.12"
    pub series: String,
    /// How it was configured.
    pub flavour: Flavour,
    /// The packages that make it up.
    pub packages: Vec<String>,
    /// What they weigh, to be downloaded.
    pub bytes: u64,
    /// Nothing that belongs to it has left the suite.
    pub is_complete: bool,
    /// What to take instead, best first: lists name packages that have left the pool.
    pub instead: Vec<Offer>,
}

impl Offer {
    /// What `--only` looks into, and `--list` prints.
    pub fn label(&self) -> String {
        format!("{}/{}", self.releases[0], self.name)
    }

    /// Whether these comma-separated words ask for it: its flavour, or a part of its label.
    pub fn is_wanted(&self, only: &str) -> bool {
        only.split(',').any(|word| match word {
            "cloud" | "generic" | "rt" => self.flavour.to_string() == word,
            part => self.label().contains(part),
        })
    }

    /// The major number of its version.
    pub fn major(&self) -> u32 {
        self.series.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

/// One stanza of a package list.
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    size: u64,
}

fn packages(list: &str) -> impl Iterator<Item = Package<'_>> {
    list.split("\n\n").filter_map(|stanza| {
        let field = |key: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
        };
        let name = field("Package")?;
        name.starts_with("linux-").then_some(())?;
        Some(Package { name, version: field("Version")?, size: field("Size")?.parse().ok()? })
    })
}

/// All kernels of one suite's package list. Several packages may hold the same one, signed or not: the better comes first.
pub fn read(list: &str, release: &str, suite: &str, arch: &str) -> Vec<Offer> {
    let all: BTreeMap<(&str, &str), u64> =
        packages(list).map(|package| ((package.name, package.version), package.size)).collect();
    let mut found: Vec<(usize, Offer)> = Vec::new();
    for ((package, version), size) in &all {
        let Some(Image { rank, name, flavour }) = Image::of(package, arch) else { continue };
        let Some(series) = series(version).filter(|_| *size >= SMALLEST_IMAGE) else { continue };
        let more = ["linux-modules-", "linux-base-"].map(|prefix| format!("{prefix}{name}"));
        let more = more.into_iter().filter(|more| all.contains_key(&(more.as_str(), version)));
        let packages: Vec<String> = std::iter::once((*package).to_owned()).chain(more).collect();
        // A linux-binary package has no modules of its own.
        let is_complete = package.starts_with("linux-image-")
            || packages.iter().any(|name| name.starts_with("linux-modules-"));
        let bytes = packages.iter().filter_map(|package| all.get(&(package.as_str(), *version))).sum();
        let offer = Offer {
            releases: vec![release.to_owned()],
            suite: suite.to_owned(),
            name: name.to_owned(),
            version: (*version).to_owned(),
            series,
            flavour,
            packages,
            bytes,
            is_complete,
            instead: Vec::new(),
        };
        found.push((rank, offer));
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, offer)| offer).collect()
}

/// What the name of a package says that may hold a kernel's image.
struct Image<'a> {
    /// Of one version, the package with the lowest is taken.
    rank: usize,
    /// As `uname -r` will print it.
    name: &'a str,
    flavour: Flavour,
}

impl Image<'_> {
    fn of<'a>(package: &'a str, arch: &str) -> Option<Image<'a>> {
        let (place, rest) = IMAGES
            .iter()
            .enumerate()
            .find_map(|(place, prefix)| Some((place, package.strip_prefix(prefix)?)))?;
        let (is_signed, name) = match rest.strip_suffix("-unsigned") {
            Some(name) => (false, name),
            None => (true, rest),
        };
        name.starts_with(|first: char| first.is_ascii_digit()).then_some(())?;
        let flavour = Flavour::of(name, arch)?;
        // The unsigned one first: it is there as soon as a version is.
        Some(Image { rank: place * 2 + usize::from(is_signed), name, flavour })
    }
}

/// The series of a version: "6.12" of "6.12.118-1~deb12u1", "7.3" of "7.3~rc7-1".
fn series(version: &str) -> Option<String> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

/// The newest of each release, series and flavour, oldest series first, each with the others to take instead. What several
/// releases have is there once. A kernel that isn't complete is only taken where there is no other.
pub fn newest(all: Vec<Offer>, is_newer: impl Fn(&str, &str) -> bool) -> Vec<Offer> {
    let mut versions: Vec<String> = all.iter().map(|offer| offer.version.clone()).collect();
    versions.sort();
    versions.dedup();
    versions.sort_by(|a, b| match (is_newer(a, b), is_newer(b, a)) {
        (true, _) => Ordering::Less,
        (_, true) => Ordering::Greater,
        // Two ways to write one version.
        _ => a.cmp(b),
    });
    let place = |offer: &Offer| versions.iter().position(|version| *version == offer.version);
    let mut groups: Vec<Vec<Offer>> = Vec::new();
    for offer in all {
        let same = |group: &&mut Vec<Offer>| {
            let known = &group[0];
            known.releases == offer.releases && known.series == offer.series && known.flavour == offer.flavour
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(offer),
            None => groups.push(vec![offer]),
        }
    }
    let mut best = Vec::new();
    for mut group in groups {
        group.sort_by_key(|offer| (!offer.is_complete, place(offer)));
        let mut group = group.into_iter();
        let Some(first) = group.next() else { continue };
        let instead = group.filter(|offer| offer.is_complete).collect();
        best.push(Offer { instead, ..first });
    }
    let mut once: Vec<Offer> = Vec::new();
    for offer in best {
        match once.iter_mut().find(|known| known.name == offer.name && known.version == offer.version) {
            Some(known) => known.releases.extend(offer.releases),
            None => once.push(offer),
        }
    }
    let mut order: Vec<String> = Vec::new();
    for offer in &once {
        if !order.contains(&offer.releases[0]) {
            order.push(offer.releases[0].clone());
        }
    }
    once.sort_by_key(|offer| {
        let numbers: Vec<u32> = offer.series.split('.').filter_map(|number| number.parse().ok()).collect();
        (numbers, order.iter().position(|release| *release == offer.releases[0]), offer.flavour)
    });
    once
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What would be fetched first.
    fn first(offers: Vec<Offer>) -> Vec<Offer> {
        newest(offers, is_newer)
    }

    fn list(packages: &[(&str, &str, u64)]) -> String {
        let stanza = |(name, version, size): &(&str, &str, u64)| {
            format!("Package: {name}\nSource: linux\nVersion: {version}\nDescription: x\n y\nSize: {size}\n")
        };
        packages.iter().map(stanza).collect::<Vec<_>>().join("\n")
    }

    /// Enough of Debian's order of versions for these tests.
    fn is_newer(a: &str, b: &str) -> bool {
        let numbers = |text: &str| -> Vec<u32> {
            text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
        };
        numbers(a) > numbers(b)
    }

    #[test]
    fn kernels_are_told_from_metapackages_and_debug_symbols() {
        let text = list(&[
            ("linux-image-6.12.9+deb13-amd64-unsigned", "6.12.9-1", 100_000_000),
            ("linux-image-6.12.9+deb13-amd64", "6.12.9-1", 100_000_000),
            ("linux-image-6.12.9+deb13-amd64-dbg", "6.12.9-1", 900_000_000),
            ("linux-image-6.12.9+deb13-cloud-amd64", "6.12.9-1", 40_000_000),
            ("linux-image-6.12.9+deb13-rt-amd64-unsigned", "6.12.9-1", 100_000_000),
            ("linux-image-amd64", "6.12.9-1", 1_500),
            ("linux-image-6.12-amd64", "6.12.9-1", 1_500),
            ("linux-image-6.12.9+deb13-arm64", "6.12.9-1", 100_000_000),
            ("linux-headers-6.12.9+deb13-amd64", "6.12.9-1", 2_000_000),
        ]);
        let offers = first(read(&text, "trixie", "trixie-security", "amd64"));
        let seen: Vec<_> = offers
            .iter()
            .map(|offer| (offer.name.as_str(), offer.flavour, offer.packages[0].as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("6.12.9+deb13-cloud-amd64", Flavour::Cloud, "linux-image-6.12.9+deb13-cloud-amd64"),
                ("6.12.9+deb13-amd64", Flavour::Generic, "linux-image-6.12.9+deb13-amd64-unsigned"),
                ("6.12.9+deb13-rt-amd64", Flavour::Rt, "linux-image-6.12.9+deb13-rt-amd64-unsigned"),
            ]
        );
        assert_eq!(offers[1].label(), "trixie/6.12.9+deb13-amd64");
        let instead: Vec<_> = offers[1].instead.iter().map(|offer| offer.packages[0].as_str()).collect();
        assert_eq!(instead, ["linux-image-6.12.9+deb13-amd64"]);
        assert_eq!((offers[0].series.as_str(), offers[0].suite.as_str()), ("6.12", "trixie-security"));
        let arm = read(&text, "trixie", "trixie", "arm64");
        assert_eq!(arm.iter().map(|offer| offer.name.as_str()).collect::<Vec<_>>(), ["6.12.9+deb13-arm64"]);
    }

    #[test]
    fn a_kernel_in_several_packages_takes_all_of_them() {
        let text = list(&[
            ("linux-binary-unsigned-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", 14_000_000),
            ("linux-binary-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", 14_000_000),
            ("linux-image-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", 1_400),
            ("linux-modules-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", 105_000_000),
            ("linux-base-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", 1_000_000),
            ("linux-modules-7.3.4+deb13-amd64", "7.3.4-1~bpo13+1", 105_000_000),
        ]);
        let offers = first(read(&text, "trixie-backports", "trixie-backports", "amd64"));
        assert_eq!(offers.len(), 1);
        let names =
            ["binary-unsigned", "modules", "base"].map(|kind| format!("linux-{kind}-7.3.4+deb13-rt-amd64"));
        assert_eq!(offers[0].packages, names);
        assert_eq!((offers[0].bytes, offers[0].series.as_str()), (120_000_000, "7.3"));
    }

    #[test]
    fn of_each_release_series_and_flavour_the_newest_is_taken() {
        let sid = read(&list(&[("linux-image-6.13.2-amd64", "6.13.2-1", 9_000_000)]), "sid", "sid", "amd64");
        let main = list(&[
            ("linux-image-6.1.0-9-amd64", "6.1.90-1", 9_000_000),
            ("linux-image-6.1.0-10-amd64", "6.1.100-1", 9_000_000),
            ("linux-image-6.1.0-10-cloud-amd64", "6.1.100-1", 9_000_000),
            ("linux-image-6.13.2-amd64", "6.13.2-1", 9_000_000),
        ]);
        let security = list(&[("linux-image-6.1.0-11-amd64", "6.1.101-1", 9_000_000)]);
        let mut all = read(&main, "bookworm", "bookworm", "amd64");
        all.extend(read(&security, "bookworm", "bookworm-security", "amd64"));
        all.extend(sid);
        let chosen = newest(all, is_newer);
        let seen: Vec<_> =
            chosen.iter().map(|offer| format!("{} {}", offer.releases.join(" "), offer.name)).collect();
        assert_eq!(
            seen,
            ["bookworm 6.1.0-10-cloud-amd64", "bookworm 6.1.0-11-amd64", "bookworm sid 6.13.2-amd64"]
        );
        let instead: Vec<_> = chosen[1].instead.iter().map(|offer| offer.name.as_str()).collect();
        assert_eq!(instead, ["6.1.0-10-amd64", "6.1.0-9-amd64"]);
        assert!(chosen[1].is_wanted("nothing,6.1.0-11") && chosen[0].is_wanted("cloud"));
        assert!(!chosen[1].is_wanted("rt") && !chosen[1].is_wanted("cloud"));
    }

    #[test]
    fn a_kernel_whose_modules_are_gone_gives_way_to_an_older_one() {
        let mut packages = vec![
            ("linux-binary-7.1.3-amd64", "7.1.3-1", 14_000_000),
            ("linux-binary-7.1.2-amd64", "7.1.2-1", 14_000_000),
        ];
        let chosen = |packages: &[_]| newest(read(&list(packages), "sid", "sid", "amd64"), is_newer);
        let alone = chosen(&packages);
        assert_eq!((alone[0].version.as_str(), alone[0].is_complete, alone.len()), ("7.1.3-1", false, 1));
        packages.push(("linux-modules-7.1.2-amd64", "7.1.2-1", 100_000_000));
        let complete = chosen(&packages);
        assert_eq!((complete[0].version.as_str(), complete[0].is_complete), ("7.1.2-1", true));
    }

    #[test]
    fn series_come_from_versions() {
        assert_eq!(series("6.12.118-1~deb12u1").as_deref(), Some("6.12"));
        assert_eq!(series("7.3~rc7-1~exp1").as_deref(), Some("7.3"));
        assert_eq!(series("unknown"), None);
    }
}
