//! Stock Debian cloud kernels: what users run, found by name, fetched, unpacked and made bootable.
//! No exact version may be written down: point releases vanish from the archive.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::tools::Tools;
use crate::apt::{self, BOOKWORM, PrivateApt, Suite};
use crate::{cache, progress, sh};

/// Modules that are needed before the guest's root filesystem is there. Some kernels have some of them built in.
const BOOT_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay"];
/// Changes whenever [`prepare`] makes something else out of the same packages.
const LAYOUT: &str = "2";

/// The kernel series under test.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Series {
    /// Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, also offered to Debian 12
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has packaged for a stable release
    #[value(name = "7")]
    V7,
    /// 6.12, with conntrack as without CONFIG_NF_CONNTRACK_PROCFS: what Ubuntu and NixOS have
    #[value(name = "6.12-no-procfs")]
    NoProcfs,
}

impl Series {
    /// Where packages of this series are.
    fn suites(self) -> Vec<Suite> {
        match self {
            Series::V5_10 => vec![Suite::Archive("bullseye"), Suite::Security("bullseye-security")],
            Series::V6_1 => BOOKWORM.to_vec(),
            Series::V6_12 | Series::NoProcfs => {
                [BOOKWORM.as_slice(), &[Suite::Archive("bookworm-backports")]].concat()
            }
            Series::V7 => vec![Suite::Archive("trixie-backports")],
        }
    }

    /// How the name of a package with a kernel image of this series begins. From 7 on a kernel is split into three packages.
    fn image_prefixes(self) -> &'static [&'static str] {
        match self {
            Series::V5_10 => &["linux-image-5.10."],
            Series::V6_1 => &["linux-image-6.1."],
            Series::V6_12 | Series::NoProcfs => &["linux-image-6.12."],
            Series::V7 => &["linux-binary-unsigned-7.", "linux-binary-7."],
        }
    }

    fn image_suffix(self) -> &'static str {
        match self {
            Series::V7 => "-cloud-amd64",
            _ => "-cloud-amd64-unsigned",
        }
    }

    /// The packages that make up the kernel of the package `image`.
    fn packages(self, image: &str) -> Vec<String> {
        let mut packages = vec![image.to_owned()];
        if self == Series::V7 {
            let abi = image.trim_start_matches("linux-binary-").trim_start_matches("unsigned-");
            packages.extend([format!("linux-modules-{abi}"), format!("linux-base-{abi}")]);
        }
        packages
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Series::V5_10 => "5.10",
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
            Series::V7 => "7",
            Series::NoProcfs => "6.12-no-procfs",
        })
    }
}

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    has_procfs: bool,
    /// The kernel's own name, as `uname -r` prints it.
    pub release: String,
}

impl Kernel {
    /// Takes the kernel from the cache, fetching the newest of its series when it is missing.
    pub fn get(series: Series, tools: &Tools, update: bool) -> Result<Kernel> {
        if series == Series::NoProcfs {
            return Ok(Kernel { has_procfs: false, ..Kernel::get(Series::V6_12, tools, update)? });
        }
        let dir = cache::dir()?.join(format!("kernel-{series}-{}", cache::key(&[LAYOUT], &BOOT_MODULES)));
        cache::ensure(&format!("kernel-{series}"), &dir, update, |dir| fetch(series, tools, dir))
            .with_context(|| format!("getting the kernel {series}"))?;
        Kernel::prepared(dir)
    }

    /// Makes the kernel whose packages are unpacked in `root` bootable in `dir`, without the modules that no guest loads.
    pub fn make_small(root: &Path, tools: &Tools, dir: &Path) -> Result<Kernel> {
        let modules = modules_of(root)?;
        leave_out_unneeded(&modules)?;
        prepare(root, tools, dir)?;
        Kernel::prepared(dir.to_owned())
    }

    fn prepared(dir: PathBuf) -> Result<Kernel> {
        let release = dir.join("release");
        let release = fs::read_to_string(&release)
            .with_context(|| format!("reading {}", release.display()))?
            .trim()
            .to_owned();
        Ok(Kernel { dir, has_procfs: true, release })
    }

    /// The compressed kernel image.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The filesystem image of /lib/modules/RELEASE.
    pub fn modules_image(&self) -> PathBuf {
        self.dir.join("modules.erofs")
    }

    /// What nf_conntrack.ko is to be replaced by.
    pub fn other_conntrack(&self) -> Option<PathBuf> {
        (!self.has_procfs).then(|| self.dir.join("nf_conntrack-no-procfs.ko"))
    }

    /// The modules to load before the root filesystem is mounted, in this order.
    pub fn boot_modules(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("boot");
        let mut modules = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            modules.push(entry.with_context(|| format!("listing {}", dir.display()))?.path());
        }
        modules.sort();
        Ok(modules)
    }
}

fn fetch(series: Series, tools: &Tools, dir: &Path) -> Result<()> {
    progress::say(&format!("looking for the newest kernel {series}"));
    let apt = PrivateApt::open(&format!("kernel-{series}"), &series.suites())?;
    let mut candidates: Vec<(String, String)> = Vec::new();
    for prefix in series.image_prefixes() {
        for name in apt.names(prefix)? {
            if name.ends_with(series.image_suffix()) {
                candidates.push((apt.version(&name)?, name));
            }
        }
    }
    // Newest first; of one version the unsigned package first, as everywhere else.
    candidates.sort_by(|(a, a_name), (b, b_name)| {
        if a == b {
            b_name.cmp(a_name)
        } else if apt::is_newer(a, b) {
            std::cmp::Ordering::Less
        } else {
            std::cmp::Ordering::Greater
        }
    });
    ensure!(!candidates.is_empty(), "no cloud kernel {series} in {:?}", series.suites());
    for (version, image) in &candidates {
        let root = tempfile::tempdir_in(dir).context("creating a temporary folder in the cache")?;
        // An index may name packages that have left the pool (an archived release's security updates).
        if apt.unpack(&series.packages(image), root.path()).is_err() {
            progress::say(&format!("{image} {version} cannot be fetched, trying the next older one"));
            continue;
        }
        progress::say(&format!("making {image} {version} bootable"));
        return prepare(root.path(), tools, dir);
    }
    bail!("none of the {} packaged kernels {series} can be fetched", candidates.len())
}

/// The folder of the modules among the packages unpacked in `root`.
fn modules_of(root: &Path) -> Result<PathBuf> {
    let all = root.join("usr/lib/modules");
    fs::read_dir(&all)
        .with_context(|| format!("listing {}", all.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("kernel").is_dir())
        .context("the kernel package has no modules")
}

/// What a guest may load besides what is outside these folders: a generic kernel has 4,000 modules more, for hardware.
const NEEDED_IN: [(&str, &[&str]); 3] =
    [("drivers", &["block", "char", "net", "virtio"]), ("fs", &["erofs", "overlayfs"]), ("sound", &[])];

/// Removes drivers and filesystems that no guest has a use for. Of network drivers the virtual ones stay, which have no
/// folders of their own.
fn leave_out_unneeded(modules: &Path) -> Result<()> {
    let kernel = modules.join("kernel");
    for (folder, needed) in NEEDED_IN {
        remove_folders(&kernel.join(folder), needed)?;
    }
    remove_folders(&kernel.join("drivers/net"), &[])
}

/// Removes the folders in `dir` but for some.
fn remove_folders(dir: &Path, but_for: &[&str]) -> Result<()> {
    // Cloud kernels lack whole kinds of drivers.
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !but_for.iter().any(|name| path.ends_with(name)) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes the bootable parts in `dir` out of the packages unpacked in `root`.
fn prepare(root: &Path, tools: &Tools, dir: &Path) -> Result<()> {
    let modules = modules_of(root)?;
    let release = modules.file_name().expect("a listed folder has a name").to_string_lossy().into_owned();
    let boot = root.join("boot").join(format!("vmlinuz-{release}"));
    let image = [boot, modules.join("vmlinuz.unsigned"), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .context("the kernel package has no vmlinuz")?;
    fs::copy(&image, dir.join("vmlinuz")).with_context(|| format!("copying {}", image.display()))?;
    for name in ["vmlinuz.unsigned", "vmlinuz", "build", "source"] {
        drop(fs::remove_file(modules.join(name)));
    }
    decompress(&modules, tools)?;
    depmod(root, &release, tools)?;
    tools.make_image(&modules, &dir.join("modules.erofs"))?;
    let conntrack = modules.join("kernel/net/netfilter/nf_conntrack.ko");
    let bytes = fs::read(&conntrack).with_context(|| format!("reading {}", conntrack.display()))?;
    fs::write(dir.join("nf_conntrack-no-procfs.ko"), without_procfs(bytes)?)
        .context("writing the conntrack module without files in /proc")?;
    fs::create_dir(dir.join("boot")).context("creating the folder for boot modules")?;
    for (index, module) in load_order(&modules)?.iter().enumerate() {
        let name = module.file_name().expect("a module has a name").to_string_lossy();
        let target = dir.join("boot").join(format!("{index:02}-{name}"));
        fs::copy(module, &target).with_context(|| format!("copying {}", module.display()))?;
    }
    fs::write(dir.join("release"), &release).context("writing the kernel's release")
}

/// Makes a conntrack module as without CONFIG_NF_CONNTRACK_PROCFS: its files in /proc/net and /proc/net/stat get a name that
/// nobody reads. Only the string itself is renamed, not the module's name and not messages that begin with it. The
/// signature goes: it no longer holds.
fn without_procfs(mut module: Vec<u8>) -> Result<Vec<u8>> {
    const NAME: &[u8] = b"nf_conntrack\0";
    const SIGNED: &[u8] = b"~Module signature appended~\n";
    let mut renamed = 0;
    for at in 2..module.len().saturating_sub(NAME.len()) {
        if module[at..].starts_with(NAME) && module[at - 1] == 0 && module[at - 2] != 0 {
            module[at] = b'x';
            renamed += 1;
        }
    }
    ensure!(renamed > 0, "nf_conntrack.ko names no file nf_conntrack");
    if module.ends_with(SIGNED) {
        module.truncate(module.len() - SIGNED.len());
    }
    Ok(module)
}

/// Decompresses modules now rather than at every boot under emulation.
fn decompress(modules: &Path, tools: &Tools) -> Result<()> {
    let list = sh::capture(Command::new("find").arg(modules).args(["-name", "*.ko.xz"]))?;
    let files: Vec<&str> = list.lines().collect();
    for chunk in files.chunks(200) {
        sh::run_quiet(tools.command("usr/bin/xz").args(["--decompress", "--threads=0"]).args(chunk))?;
    }
    Ok(())
}

fn depmod(root: &Path, release: &str, tools: &Tools) -> Result<()> {
    // kmod is one program that goes by the name it is called with.
    sh::run_quiet(tools.command_named("usr/bin/kmod", "depmod").arg("--basedir").arg(root).arg(release))
        .context("indexing the kernel modules")
}

/// The files of [`BOOT_MODULES`], each after those it depends on.
fn load_order(modules: &Path) -> Result<Vec<PathBuf>> {
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let index = Index {
        dependencies: &read("modules.dep")?,
        soft: &read("modules.softdep")?,
        aliases: &read("modules.alias")?,
    };
    let mut order = Vec::new();
    for module in BOOT_MODULES {
        index.add(module, &mut order);
    }
    Ok(order.into_iter().map(|file| modules.join(file)).collect())
}

/// What depmod found out about modules.
struct Index<'a> {
    dependencies: &'a str,
    soft: &'a str,
    aliases: &'a str,
}

impl<'a> Index<'a> {
    /// Adds the file of a module after all that it needs; one that is built in has none.
    fn add(&self, module: &str, order: &mut Vec<&'a str>) {
        let Some((file, needs)) = self
            .dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| name_of(file) == module)
        else {
            return;
        };
        // modules.dep lists the nearest dependency first, so the farthest one has to be loaded first.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                for wanted in self.wanted_before(&name_of(file)) {
                    self.add(&wanted, order);
                }
                order.push(file);
            }
        }
    }

    /// What a module asks modprobe for, by name or alias, and nobody gives it in a boot archive: `softdep NAME pre: WANTED…`.
    fn wanted_before(&self, module: &str) -> Vec<String> {
        let mut wanted = Vec::new();
        for line in self.soft.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") || words.next().is_none_or(|name| name_of(name) != module) {
                continue;
            }
            let before =
                words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| !word.ends_with(':'));
            wanted.extend(before.map(|name| self.module_called(name)));
        }
        wanted
    }

    /// The module that has this alias, or this name. Of several the one that runs on any CPU.
    fn module_called(&self, name: &str) -> String {
        let has_it: Vec<&str> = self
            .aliases
            .lines()
            .filter_map(|line| line.strip_prefix("alias ")?.strip_prefix(name)?.strip_prefix(' '))
            .collect();
        let any_cpu = has_it.iter().find(|module| module.ends_with("_generic"));
        any_cpu.or(has_it.first()).map_or_else(|| name_of(name), |module| name_of(module))
    }
}

/// A module's name by its file.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.trim_end_matches(".ko").replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_all_that_it_needs() {
        let index = Index {
            dependencies: "kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko kernel/lib/lz4.ko\n\
                           kernel/lib/libcrc32c.ko:\nkernel/lib/lz4.ko:\nkernel/crypto/crc32c_generic.ko:\n\
                           kernel/arch/crc32c-intel.ko:\n",
            soft: "# comment\nsoftdep libcrc32c pre: crc32c absent post: later\nsoftdep other pre: lz4\n",
            aliases: "alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias crc32cx wrong\n",
        };
        let mut order = Vec::new();
        index.add("virtio_blk", &mut order);
        index.add("erofs", &mut order);
        index.add("lz4", &mut order);
        assert_eq!(
            order,
            [
                "kernel/lib/lz4.ko",
                "kernel/crypto/crc32c_generic.ko",
                "kernel/lib/libcrc32c.ko",
                "kernel/fs/erofs/erofs.ko",
            ]
        );
    }

    #[test]
    fn modules_for_hardware_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let kept = ["drivers/block", "drivers/net", "fs/erofs", "net/netfilter"];
        let removed = ["drivers/net/ethernet", "drivers/gpu", "fs/ext4", "sound/core"];
        for folder in kept.iter().chain(&removed) {
            fs::create_dir_all(root.path().join("kernel").join(folder)).unwrap();
        }
        let veth = root.path().join("kernel/drivers/net/veth.ko");
        fs::write(&veth, "").unwrap();
        leave_out_unneeded(root.path()).unwrap();
        let there = |folder: &&str| root.path().join("kernel").join(folder).exists();
        assert!(kept.iter().all(there) && veth.exists());
        assert!(!removed.iter().any(there));
    }

    #[test]
    fn only_the_files_in_proc_are_renamed() {
        let module = b"name=nf_conntrack\0a\0nf_conntrack\0\0nf_conntrack\0nf_conntrack: full\0~Module signature appended~\n";
        let made = without_procfs(module.to_vec()).unwrap();
        assert_eq!(made, b"name=nf_conntrack\0a\0xf_conntrack\0\0nf_conntrack\0nf_conntrack: full\0");
        assert!(without_procfs(b"nothing".to_vec()).is_err());
    }
}
