//! The table of nft and iptables versions in docs/advice.md: the cases and random rule sets, loaded and read by the tools of every
//! release of Debian, on this host's kernel. None of them is installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::apt::{PrivateApt, RELEASES, Release};
use crate::{cache, dist, markers, progress, sh, test, workspace};

const FILE: &str = "docs/advice.md";
const NAME: &str = "tools";
const HEAD: &str = "| from | nft | iptables | answers to the cases | rules that these tools don't take | random rule sets |\n\
                    |---|---|---|---|---|---|\n";
const PACKAGES: [&str; 2] = ["nftables", "iptables"];
/// Where the programs are, and the names by which one file is several.
const NFT: [&str; 1] = ["nft"];
const BY_NFT: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
const BY_X_TABLES: [&str; 6] = [
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Arguments of `cargo xtask tools`.
#[derive(clap::Args)]
pub struct Args {
    /// Only releases whose name contains this; prints their rows, and writes nothing
    #[arg(long)]
    only: Option<String>,
    /// How many random rule sets
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Fetch the tools anew
    #[arg(long)]
    update: bool,
}

/// Runs `cargo xtask tools`.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(sh::is_root(), "network namespaces need root");
    crate::apt::install_on_host(&["nftables", "iproute2", "iptables"], "rule sets in netns")?;
    dist::both()?;
    let only = args.only.as_deref().unwrap_or_default();
    let (mut rows, mut is_all_right) = (String::new(), true);
    for release in RELEASES.iter().filter(|release| release.name.contains(only)) {
        let root = match fetch(release, args.update) {
            Ok(root) => root,
            // Said in the table: a suite that is missing is no suite that was read.
            Err(error) => {
                progress::say(&format!("{}: {error:#}", release.name));
                rows += &format!("| {} | can't be had from this machine's mirror | | | | |\n", release.name);
                continue;
            }
        };
        let tools = Tools::of(release, &root)?;
        progress::say(&format!("{}: nft {}, iptables {}", release.name, tools.nft, tools.iptables));
        let (row, is_right) = tools.row(args.count)?;
        rows += &row;
        is_all_right &= is_right;
    }
    print!("{rows}");
    if args.only.is_none() {
        markers::put_rows(FILE, NAME, HEAD, &rows)?;
    }
    Ok(if is_all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Unpacks the programs of a release with what they depend on.
fn fetch(release: &Release, update: bool) -> Result<PathBuf> {
    let name = format!("rule-tools-{}", release.name);
    let root = cache::dir()?.join(&name);
    let mut suites = release.suites.to_vec();
    let base = release.name.strip_suffix("-backports");
    // What backports depend on is in the release itself.
    suites.extend(RELEASES.iter().filter(|other| Some(other.name) == base).flat_map(|other| other.suites));
    let target = base.map(|_| release.name);
    cache::ensure(&name, &root, update, |root| {
        PrivateApt::open(&name, &suites)?.unpack_closure(&PACKAGES, target, root)
    })?;
    Ok(root)
}

/// The programs of one release, called like those of the host.
struct Tools {
    release: &'static str,
    folder: PathBuf,
    nft: String,
    iptables: String,
}

impl Tools {
    /// Gives each program its name in a folder of this release's.
    fn of(release: &Release, root: &Path) -> Result<Self> {
        let folder = workspace::target().join("rule-tools").join(release.name);
        if folder.is_dir() {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        let named = root.join("ctwatch");
        fs::create_dir_all(&named).with_context(|| format!("creating {}", named.display()))?;
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        wrap(root, &folder, "nft", &NFT)?;
        wrap(root, &folder, "xtables-nft-multi", &BY_NFT)?;
        wrap(root, &folder, "xtables-legacy-multi", &BY_X_TABLES)?;
        let version = |program: &str| -> Result<String> {
            let said = sh::capture(Command::new(folder.join(program)).arg("--version"))?;
            Ok(said.split_whitespace().nth(1).context("no version")?.trim_start_matches('v').to_owned())
        };
        let (nft, iptables) = (version("nft")?, version("iptables")?);
        Ok(Self { release: release.name, folder, nft, iptables })
    }

    /// What the cases and random rule sets say with these tools.
    fn row(&self, count: u64) -> Result<(String, bool)> {
        let cases = test::on_host(&["cases", "--slowness", "3", "--other-tools"], Some(&self.folder))?;
        let count = count.to_string();
        let random = test::on_host(&["rules", "--count", &count, "--seed", test::SEED], Some(&self.folder))?;
        let answers = cases.lines.iter().find_map(|line| line.strip_suffix(" answers are right"));
        let answers = answers.context("the cases came to no end")?;
        let named = |start: &str| -> Vec<&str> {
            let lines = cases.lines.iter().filter_map(|line| line.strip_prefix(start));
            lines.filter_map(|line| line.split([' ', ':']).next()).collect()
        };
        let (wrong, unloadable) = (named("WRONG "), named("UNLOADABLE "));
        let wrong = if wrong.is_empty() { String::new() } else { format!(", wrong: {}", wrong.join(", ")) };
        let sets = random.lines.iter().find_map(|line| line.split_once(" rule sets (").map(|(_, rest)| rest));
        let sets = sets.context("the random rule sets came to no end")?;
        let (refused, pieces) = sets
            .split_once(" more were refused by the tools): ")
            .context("no figures of random rule sets")?;
        let bad = random.lines.iter().filter(|line| line.starts_with("COUNTEREXAMPLE ")).count();
        let row = format!(
            "| {} | {} | {} | {answers} right{wrong} | {} | {count} ({refused} more not taken): {pieces}; {bad} counterexamples |\n",
            self.release,
            self.nft,
            self.iptables,
            if unloadable.is_empty() { "–".to_owned() } else { unloadable.join(", ") },
        );
        Ok((row, cases.success && random.success))
    }
}

/// Scripts that run one program under these names with its own libraries and modules, and none of the host's.
fn wrap(root: &Path, folder: &Path, program: &str, names: &[&str]) -> Result<()> {
    let libraries = LIBRARIES.map(|dir| root.join(dir).display().to_string()).join(":");
    // The link in /lib64 is an absolute one in older releases.
    let loader = root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    ensure!(loader.exists(), "{} is missing", loader.display());
    for name in names {
        // One file acts by the name it is called with.
        let link = root.join("ctwatch").join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("../usr/sbin").join(program), &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
        let script = format!(
            "#!/bin/sh\nXTABLES_LIBDIR='{}' exec '{}' --library-path '{libraries}' '{}' \"$@\"\n",
            root.join("usr/lib/x86_64-linux-gnu/xtables").display(),
            loader.display(),
            link.display(),
        );
        let path = folder.join(name);
        fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} a program", path.display()))?;
    }
    Ok(())
}
