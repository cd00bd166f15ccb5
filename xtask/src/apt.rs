//! Debian packages: those the host needs are installed, those a guest needs are only fetched and unpacked.
//! No mirror may be named here (it comes from the machine's own sources), and only root's own request changes the host.

use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cache, progress, sh};

/// Installs the missing ones of `packages` on this machine, or says how to.
pub fn install_on_host(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let remedy = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !sh::is_root() {
        bail!("{purpose} needs Debian packages; run as root: {remedy}");
    }
    progress::say(&format!("{purpose} needs: {remedy}"));
    progress::say("fetching the package lists");
    let update = || sh::run_quiet(Command::new("apt-get").arg("update"));
    if let Err(error) = progress::watched(update, || "still fetching them".to_owned()) {
        // The lists on disk may be good enough; the installation itself will tell.
        progress::say(&format!("{error:#}"));
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "--yes", "--no-install-recommends"]).args(&missing);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    progress::say(&format!("downloading {} and installing them", Uris::of(&mut install())));
    progress::watched(|| sh::run_quiet(&mut install()), || "still at it".to_owned())
        .with_context(|| format!("installing what {purpose} needs; try by hand: {remedy}"))
}

/// What an apt command would fetch.
#[derive(Debug, Default, Eq, PartialEq)]
struct Uris {
    files: usize,
    bytes: u64,
}

impl Uris {
    /// Asks apt; when it can't tell, the command itself will say why.
    fn of(command: &mut Command) -> Uris {
        Uris::parse(&sh::capture(command.arg("--print-uris")).unwrap_or_default())
    }

    /// Adds up lines of `'ADDRESS' FILE SIZE CHECKSUM`.
    fn parse(text: &str) -> Uris {
        let sizes = text.lines().filter(|line| line.starts_with('\''));
        let sizes = sizes.filter_map(|line| line.rsplit(' ').nth(1)?.parse::<u64>().ok());
        sizes.fold(Uris::default(), |sum, size| Uris { files: sum.files + 1, bytes: sum.bytes + size })
    }
}

impl fmt::Display for Uris {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packages = if self.files == 1 { "package" } else { "packages" };
        write!(f, "{} {packages} ({})", self.files, progress::megabytes(self.bytes))
    }
}

fn is_installed(package: &str) -> bool {
    sh::capture(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status.trim() == "installed")
}

/// Debian suites that the private configurations draw from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Suite {
    /// A suite of the Debian archive.
    Archive(&'static str),
    /// A suite of the security archive.
    Security(&'static str),
}

impl Suite {
    /// As Debian calls it.
    pub fn name(self) -> &'static str {
        let (Suite::Archive(name) | Suite::Security(name)) = self;
        name
    }
}

fn named(suites: &[Suite]) -> String {
    suites.iter().map(|suite| suite.name()).collect::<Vec<_>>().join(", ")
}

/// Debian 12 with its point releases and security updates.
pub const BOOKWORM: [Suite; 3] =
    [Suite::Archive("bookworm"), Suite::Archive("bookworm-updates"), Suite::Security("bookworm-security")];

/// A release with its suites: all that somebody's sources list has for it.
pub struct Release {
    /// As Debian calls it.
    pub name: &'static str,
    /// Where its packages are.
    pub suites: &'static [Suite],
}

/// Those that users have, oldest first.
pub const RELEASES: [Release; 8] = [
    Release {
        name: "bullseye",
        suites: &[
            Suite::Archive("bullseye"),
            Suite::Archive("bullseye-updates"),
            Suite::Security("bullseye-security"),
        ],
    },
    Release { name: "bullseye-backports", suites: &[Suite::Archive("bullseye-backports")] },
    Release { name: "bookworm", suites: &BOOKWORM },
    Release { name: "bookworm-backports", suites: &[Suite::Archive("bookworm-backports")] },
    Release {
        name: "trixie",
        suites: &[
            Suite::Archive("trixie"),
            Suite::Archive("trixie-updates"),
            Suite::Security("trixie-security"),
        ],
    },
    Release { name: "trixie-backports", suites: &[Suite::Archive("trixie-backports")] },
    Release { name: "forky", suites: &[Suite::Archive("forky"), Suite::Security("forky-security")] },
    Release { name: "sid", suites: &[Suite::Archive("sid")] },
];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of its own: its own sources, lists and (empty) package status, so that it neither sees nor changes the host.
pub struct PrivateApt {
    dir: PathBuf,
    config: PathBuf,
}

impl PrivateApt {
    /// Writes the configuration `name` for `suites` and fetches their package lists.
    pub fn open(name: &str, suites: &[Suite]) -> Result<PrivateApt> {
        let apt = PrivateApt::configure(name, suites)?;
        progress::say(&format!("fetching the package lists of {}", named(suites)));
        apt.update(&[])
            .with_context(|| format!("fetching the package lists of {suites:?}: is there a network?"))?;
        Ok(apt)
    }

    /// Fetches the lists also of a suite that its mirror no longer keeps fresh: its packages are signed as ever.
    pub fn open_however_old(name: &str, suite: Suite) -> Result<PrivateApt> {
        let apt = PrivateApt::configure(name, &[suite])?;
        apt.update(&["--option", "Acquire::Check-Valid-Until=false"])?;
        Ok(apt)
    }

    /// Writes the configuration `name` for `suites`, whose package lists stay as they were fetched last.
    pub fn configure(name: &str, suites: &[Suite]) -> Result<PrivateApt> {
        let dir = cache::dir()?.join("apt").join(name);
        for sub in ["lists/partial", "archives/partial", "etc"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("creating {}", sub.display()))?;
        }
        let mirrors = Mirrors::of_this_machine()?;
        let sources: String = suites.iter().map(|suite| mirrors.line(*suite)).collect();
        let quoted = |path: &str| format!("\"{}\"", dir.join(path).display());
        let config = format!(
            "Dir::Etc::sourcelist {sources};\nDir::Etc::sourceparts {etc};\nDir::Etc::preferences {none};\n\
             Dir::Etc::preferencesparts {etc};\nDir::State {state};\nDir::State::lists {lists};\n\
             Dir::State::status {status};\nDir::State::extended_states {extended};\nDir::Cache {state};\n\
             Dir::Cache::archives {archives};\n\
             # The host's hooks are about the host.\n\
             #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n\
             #clear DPkg::Pre-Install-Pkgs;\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Install-Recommends \"false\";\nAPT::Get::Assume-Yes \"true\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
            sources = quoted("sources.list"),
            etc = quoted("etc"),
            none = quoted("etc/preferences"),
            state = quoted("."),
            lists = quoted("lists"),
            status = quoted("status"),
            extended = quoted("extended_states"),
            archives = quoted("archives"),
        );
        let apt = PrivateApt { config: dir.join("apt.conf"), dir };
        for (file, text) in [("sources.list", sources.as_str()), ("status", ""), ("apt.conf", &config)] {
            let path = apt.dir.join(file);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(apt)
    }

    fn update(&self, options: &[&str]) -> Result<()> {
        let mut update = self.command("apt-get");
        update.args(["update", "--error-on=any"]).args(options);
        progress::watched(|| sh::run_quiet(&mut update), || "still fetching them".to_owned())
    }

    /// All that the fetched lists say of packages: stanzas of `Field: value` lines.
    pub fn lists(&self) -> Result<String> {
        let mut text = String::new();
        for path in self.list_files("_Packages")? {
            text += &sh::capture(Command::new("/usr/lib/apt/apt-helper").arg("cat-file").arg(&path))?;
            text.push('\n');
        }
        Ok(text)
    }

    /// The day on which the suite's lists were made, as the suite itself says.
    pub fn lists_are_of(&self) -> Result<String> {
        let path = self.list_files("_InRelease")?.pop().context("finding a fetched InRelease file")?;
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let date = text.lines().find_map(|line| line.strip_prefix("Date: "));
        let date = date.with_context(|| format!("{} has no date", path.display()))?;
        let day = sh::capture(Command::new("date").args(["--utc", "+%F", "--date", date]))?;
        Ok(day.trim().to_owned())
    }

    fn list_files(&self, what: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("lists");
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(what)) {
                files.push(path);
            }
        }
        Ok(files)
    }

    /// The packages whose name begins with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(sh::capture(self.command("apt-cache").args(["pkgnames", prefix]))?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// The newest known version of `package`.
    pub fn version(&self, package: &str) -> Result<String> {
        let text = sh::capture(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .with_context(|| format!("the package {package} has no version"))
    }

    /// Unpacks exactly `packages` over the folder `root`: names, or NAME=VERSION.
    pub fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        self.download(&packages.join(" "), || {
            let mut command = self.command("apt-get");
            command.arg("download").args(packages).current_dir(self.archives());
            command
        })?;
        self.unpack_archives(root)
    }

    /// Unpacks `packages` and all they depend on over the folder `root`. With `release`, everything comes from that suite
    /// where it has it.
    pub fn unpack_closure(&self, packages: &[&str], release: Option<&str>, root: &Path) -> Result<()> {
        let what = format!("{} of them with what they depend on", packages.len());
        self.download(&what, || {
            let mut command = self.command("apt-get");
            if let Some(release) = release {
                command.args(["--target-release", release]);
            }
            command.args(["install", "--download-only"]).args(packages);
            command
        })
        .with_context(|| format!("fetching {}", packages.join(" ")))?;
        self.unpack_archives(root)
    }

    /// Has apt fetch packages into the folder of archives, saying how much that is and how far it got.
    fn download(&self, what: &str, command: impl Fn() -> Command) -> Result<()> {
        self.clean()?;
        let uris = Uris::of(&mut command());
        progress::say(&format!("downloading {uris}: {what}"));
        let so_far = || {
            let folders = [self.archives(), self.archives().join("partial")];
            let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
            let bytes = files.filter_map(|file| file.metadata().ok()).filter(fs::Metadata::is_file);
            format!("{} of {uris}", progress::megabytes(bytes.map(|file| file.len()).sum()))
        };
        let mut fetch = command();
        progress::watched(|| sh::run_quiet(&mut fetch), so_far).with_context(|| format!("downloading {what}"))
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    fn clean(&self) -> Result<()> {
        sh::run_quiet(self.command("apt-get").arg("clean"))
    }

    /// Unpacks and then forgets the downloaded packages. No script of theirs is run.
    fn unpack_archives(&self, root: &Path) -> Result<()> {
        // Debian 12 still ships files under /bin and /lib; as in an installed system these are links into /usr.
        for name in ["bin", "sbin", "lib", "lib64"] {
            let dir = root.join("usr").join(name);
            fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
            let link = root.join(name);
            if !link.exists() {
                symlink(Path::new("usr").join(name), &link)
                    .with_context(|| format!("linking {}", link.display()))?;
            }
        }
        progress::say("unpacking");
        let archives = self.archives();
        for entry in fs::read_dir(&archives).with_context(|| format!("listing {}", archives.display()))? {
            let path = entry.with_context(|| format!("listing {}", archives.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let script = "set -o pipefail; dpkg-deb --fsys-tarfile \"$1\" | \
                              tar --extract --keep-directory-symlink --no-same-owner --directory \"$2\"";
                sh::run_quiet(Command::new("bash").args(["-c", script, "unpack"]).arg(&path).arg(root))
                    .with_context(|| format!("unpacking {}", path.display()))?;
            }
        }
        self.clean()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--config-file")
            .arg(&self.config)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    }
}

/// Is the Debian version `a` newer than `b`?
pub fn is_newer(a: &str, b: &str) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", a, "gt", b])
        .status()
        .is_ok_and(|status| status.success())
}

/// Where this machine gets Debian packages from.
#[derive(Debug, Eq, PartialEq)]
struct Mirrors {
    archive: String,
    security: String,
}

impl Mirrors {
    fn of_this_machine() -> Result<Mirrors> {
        let mut entries = Vec::new();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(parts.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => entries.extend(parse_one_line(&text)),
                Some("sources") => entries.extend(parse_deb822(&text)),
                _ => {}
            }
        }
        Mirrors::choose(&entries).context(
            "finding a Debian mirror in /etc/apt/sources.list and /etc/apt/sources.list.d: add Debian's own sources",
        )
    }

    /// Debian's own entries are those of a suite of Debian with the component `main`.
    fn choose(entries: &[Entry]) -> Option<Mirrors> {
        let is_release = |suite: &str| {
            ["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"]
                .contains(&suite)
        };
        let first = |accepts: &dyn Fn(&Entry) -> bool| {
            entries
                .iter()
                .find(|entry| entry.has_main && accepts(entry))
                .map(|entry| entry.uri.trim_end_matches('/').to_owned())
        };
        let archive = first(&|entry| is_release(&entry.suite) && entry.uri.contains("debian"))
            .or_else(|| first(&|entry| is_release(&entry.suite)))?;
        let security = first(&|entry| {
            entry
                .suite
                .strip_suffix("-security")
                .or(entry.suite.strip_suffix("/updates"))
                .is_some_and(is_release)
        })
        // A mirror of one usually has the other beside it.
        .unwrap_or_else(|| format!("{archive}-security"));
        Some(Mirrors { archive, security })
    }

    fn line(&self, suite: Suite) -> String {
        let (uri, suite) = match suite {
            Suite::Archive(suite) => (&self.archive, suite),
            Suite::Security(suite) => (&self.security, suite),
        };
        format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
    }
}

/// One source of packages: an address with one suite.
#[derive(Debug, Eq, PartialEq)]
struct Entry {
    uri: String,
    suite: String,
    has_main: bool,
}

/// Parses `deb [options] URI SUITE COMPONENT…` lines.
fn parse_one_line(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[').and_then(|options| options.split_once(']')) {
            Some((_, rest)) => rest,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            let has_main = words.any(|component| component == "main");
            entries.push(Entry { uri: uri.to_owned(), suite: suite.to_owned(), has_main });
        }
    }
    entries
}

/// Parses stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            let mut words = Vec::new();
            let mut inside = false;
            for line in stanza.lines() {
                if !line.starts_with([' ', '\t']) {
                    inside =
                        line.split_once(':').is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case(name));
                    if inside {
                        words.extend(
                            line.split_once(':').into_iter().flat_map(|(_, value)| value.split_whitespace()),
                        );
                    }
                } else if inside {
                    words.extend(line.split_whitespace());
                }
            }
            words.into_iter().map(str::to_owned).collect()
        };
        let disabled = field("Enabled").first().is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if disabled || !field("Types").iter().any(|kind| kind == "deb") {
            continue;
        }
        let has_main = field("Components").iter().any(|component| component == "main");
        for uri in field("URIs") {
            for suite in field("Suites") {
                entries.push(Entry { uri: uri.clone(), suite, has_main });
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_sources_give_the_mirrors() {
        let one_line = "# comment\ndeb [arch=amd64] https://third.example/apt bookworm stable\n\
                        deb [signed-by=/k.gpg] http://mirror.example/debian/ bookworm main contrib\n\
                        deb-src http://mirror.example/debian bookworm main\n\
                        deb http://mirror.example/debian-security bookworm-security main\n";
        let deb822 = "Types: deb\nURIs: https://third.example/node\nSuites: nodistro\nComponents: main\n\n\
                      Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm\n \
                      bookworm-updates\nComponents: main\n\nTypes: deb\nURIs: http://mirror.example/debian-security\n\
                      Suites: bookworm-security\nComponents: main\n";
        let expected = Some(Mirrors {
            archive: "http://mirror.example/debian".to_owned(),
            security: "http://mirror.example/debian-security".to_owned(),
        });
        assert_eq!(Mirrors::choose(&parse_one_line(one_line)), expected);
        assert_eq!(Mirrors::choose(&parse_deb822(deb822)), expected);
    }

    #[test]
    fn what_would_be_fetched_is_added_up() {
        let text = "Reading package lists...\n'http://mirror.example/pool/a_1.deb' a_1_amd64.deb 60000000 SHA256:0a\n\
                    'http://mirror.example/pool/b_2.deb' b_2_amd64.deb 1500 MD5Sum:1b\n";
        let uris = Uris::parse(text);
        assert_eq!(uris, Uris { files: 2, bytes: 60_001_500 });
        assert_eq!(uris.to_string(), "2 packages (60 MB)");
        assert_eq!(Uris::parse("E: Unable to locate package c\n"), Uris::default());
    }

    #[test]
    fn the_security_archive_is_looked_for_beside_the_archive() {
        let mirrors = Mirrors::choose(&parse_one_line("deb http://mirror.example/debian bookworm main\n"));
        assert_eq!(
            mirrors.map(|mirrors| mirrors.security).as_deref(),
            Some("http://mirror.example/debian-security")
        );
    }
}
