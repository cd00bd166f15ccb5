//! What runs inside the guest: a Debian root with real tools (shared, read-only) and a small boot archive for each run.
//! Nothing of one run may be left for the next: writes go to the guest's memory.

use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::cpio::Cpio;
use super::kernel::Kernel;
use super::tools::Tools;
use crate::apt::{BOOKWORM, PrivateApt};
use crate::{cache, progress};

const PACKAGES: [&str; 47] = [
    "apache2-utils",
    "base-files",
    "base-passwd",
    "bash",
    "bpftool",
    "bpftrace",
    "busybox-static",
    "conntrack",
    "coreutils",
    "curl",
    "dash",
    "debianutils",
    "diffutils",
    "ethtool",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "less",
    "libc-bin",
    "libcap2-bin",
    "libnginx-mod-http-lua",
    "lua-nginx-redis",
    "mawk",
    "mount",
    "ncurses-base",
    "netbase",
    "netcat-openbsd",
    "nftables",
    "nginx",
    "openvswitch-switch",
    "procps",
    "psmisc",
    "redis-server",
    "redis-tools",
    "runc",
    "sed",
    "socat",
    "sqlite3",
    "strace",
    "systemd",
    "tar",
];
const MORE_PACKAGES: [&str; 3] = ["gawk", "util-linux", "wrk"];

/// What nobody reads in a guest.
const UNWANTED: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/fonts",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
];

/// Links that a package's installation would have made.
const LINKS: [(&str, &str); 16] = [
    ("usr/sbin/iptables", "iptables-nft"),
    ("usr/sbin/iptables-save", "iptables-nft-save"),
    ("usr/sbin/iptables-restore", "iptables-nft-restore"),
    ("usr/sbin/ip6tables", "ip6tables-nft"),
    ("usr/sbin/ip6tables-save", "ip6tables-nft-save"),
    ("usr/sbin/ip6tables-restore", "ip6tables-nft-restore"),
    ("usr/sbin/arptables", "arptables-nft"),
    ("usr/sbin/ebtables", "ebtables-nft"),
    ("usr/bin/awk", "gawk"),
    ("usr/bin/nc", "nc.openbsd"),
    ("usr/bin/which", "which.debianutils"),
    ("usr/bin/pager", "less"),
    ("etc/mtab", "../proc/self/mounts"),
    (
        "etc/nginx/modules-enabled/10-mod-http-ndk.conf",
        "/usr/share/nginx/modules-available/mod-http-ndk.conf",
    ),
    (
        "etc/nginx/modules-enabled/50-mod-http-lua.conf",
        "/usr/share/nginx/modules-available/mod-http-lua.conf",
    ),
    ("var/run", "/run"),
];

const DIRS: [&str; 18] = [
    "ctw",
    "dev",
    "etc/nginx/modules-enabled",
    "lib/modules",
    "mnt",
    "out",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/local/bin",
    "usr/local/sbin",
    "var/lib/nginx",
    "var/lib/redis",
    "var/log/nginx",
    "var/log/redis",
    "var/tmp",
];

const FILES: [(&str, &str); 6] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nredis:x:100:100:redis:/var/lib/redis:/usr/sbin/nologin\n\
         user:x:1000:1000:user:/tmp:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nadm:x:4:\nwww-data:x:33:\nredis:x:100:\nuser:x:1000:\nnogroup:x:65534:\n",
    ),
    ("etc/hosts", "127.0.0.1 localhost guest\n::1 localhost ip6-localhost ip6-loopback\n"),
    ("etc/hostname", "guest\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n"),
    ("etc/resolv.conf", ""),
];

/// Runs as the first process, in the boot archive: finds the root and moves there.
const STAGE1: &str = include_str!("guest/stage1.sh");
/// Runs as the first process, in the real root: runs the command and reports how it ended.
const STAGE2: &str = include_str!("guest/stage2.sh");

/// The guest's root filesystem image; built when it is missing.
pub fn root_image(tools: &Tools, update: bool) -> Result<PathBuf> {
    let layout: Vec<&str> = UNWANTED
        .into_iter()
        .chain(LINKS.into_iter().flat_map(|(name, to)| [name, to]))
        .chain(DIRS)
        .chain(FILES.into_iter().flat_map(|(name, text)| [name, text]))
        .collect();
    let packages: Vec<&str> = PACKAGES.into_iter().chain(MORE_PACKAGES).collect();
    let dir = cache::dir()?.join(format!("guest-{}", cache::key(&layout, &packages)));
    cache::ensure("guest", &dir, update, |dir| {
        progress::say("fetching the guest's programs");
        let root = dir.join("root");
        fs::create_dir(&root).with_context(|| format!("creating {}", root.display()))?;
        PrivateApt::open("guest", &BOOKWORM)?.unpack_closure(&packages, None, &root)?;
        progress::say("making an image of them");
        finish_root(&root)?;
        tools.make_image(&root, &dir.join("root.erofs"))?;
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
    })
    .context("preparing the guest's root")?;
    Ok(dir.join("root.erofs"))
}

/// Does what the packages' own installation scripts would have done, as far as a guest needs it.
fn finish_root(root: &Path) -> Result<()> {
    for name in UNWANTED {
        let path = root.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for name in DIRS {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    for (name, target) in LINKS {
        let path = root.join(name);
        if fs::symlink_metadata(&path).is_err() {
            symlink(target, &path).with_context(|| format!("linking {}", path.display()))?;
        }
    }
    for (name, text) in FILES {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// A file that a run brings into the guest.
#[derive(Clone, Debug)]
pub struct GuestFile {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Its absolute path in the guest.
    pub guest: String,
}

/// Writes the boot archive of one run, into a file without a name: nothing is left of it when xtask is killed.
pub fn write_initrd(
    tools: &Tools,
    kernel: &Kernel,
    files: &[GuestFile],
    command: &[String],
    shell: Option<&str>,
) -> Result<fs::File> {
    let busybox = tools.busybox();
    let busybox = fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let mut content: Vec<(String, Vec<u8>)> = vec![
        ("init".to_owned(), STAGE1.as_bytes().to_vec()),
        ("busybox".to_owned(), busybox),
        ("files/ctw/.init".to_owned(), STAGE2.as_bytes().to_vec()),
        ("files/ctw/.command".to_owned(), shell_line(command).into_bytes()),
    ];
    if let Some(settings) = shell {
        content.push(("files/ctw/.shell".to_owned(), settings.as_bytes().to_vec()));
    }
    for module in kernel.boot_modules()? {
        let name = module.file_name().expect("a listed file has a name").to_string_lossy().into_owned();
        let bytes = fs::read(&module).with_context(|| format!("reading {}", module.display()))?;
        content.push((format!("boot/{name}"), bytes));
    }
    if let Some(module) = kernel.other_conntrack() {
        let bytes = fs::read(&module).with_context(|| format!("reading {}", module.display()))?;
        content.push(("files/ctw/.nf_conntrack.ko".to_owned(), bytes));
    }
    for file in files {
        ensure!(file.guest.starts_with('/'), "the guest path {} of --file must be absolute", file.guest);
        collect(&file.host, &format!("files{}", file.guest.trim_end_matches('/')), &mut content)?;
    }
    let file = tempfile::tempfile().context("creating a temporary file for the boot archive")?;
    write_archive(&file, &content).context("writing the boot archive: is the temporary folder full?")?;
    Ok(file)
}

fn collect(host: &Path, name: &str, content: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if host.is_dir() {
        for entry in fs::read_dir(host).with_context(|| format!("listing {}", host.display()))? {
            let entry = entry.with_context(|| format!("listing {}", host.display()))?;
            collect(&entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()), content)?;
        }
        return Ok(());
    }
    let bytes =
        fs::read(host).with_context(|| format!("reading {} to copy it into the guest", host.display()))?;
    content.push((name.to_owned(), bytes));
    Ok(())
}

fn write_archive(file: &fs::File, content: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    let mut cpio = Cpio::new(BufWriter::new(file));
    let mut dirs: Vec<String> = Vec::new();
    for name in content.iter().map(|(name, _)| name).chain([&"dev/".to_owned(), &"new/".to_owned()]) {
        for (end, _) in name.match_indices('/') {
            let dir = &name[..end];
            if !dirs.iter().any(|known| known == dir) {
                cpio.dir(dir)?;
                dirs.push(dir.to_owned());
            }
        }
    }
    for (name, bytes) in content {
        cpio.file(name, bytes)?;
    }
    cpio.finish()
}

/// The command as a shell script: one word is a script of its own, several are a program and its arguments.
fn shell_line(command: &[String]) -> String {
    match command {
        [script] => format!("{script}\n"),
        words => {
            let words: Vec<String> =
                words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            format!("exec {}\n", words.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_unchanged() {
        let words = ["printf", "%s\n", "it's", "$HOME", ""].map(str::to_owned);
        assert_eq!(shell_line(&words), "exec 'printf' '%s\n' 'it'\\''s' '$HOME' ''\n");
        assert_eq!(shell_line(&["exit 3".to_owned()]), "exit 3\n");
    }
}
