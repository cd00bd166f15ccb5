//! Which files set conntrack's settings at boot, which of them wins, and what a new file must be named to be read last.
//! Reads configuration as systemd-sysctl, sysctl(8) and modprobe do; writes none.

pub mod modprobe;
pub mod sysctl_d;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Host, Notes, file};
use crate::foreign::{Foreign, Shown as _};
pub use modprobe::ModuleOption;
pub use sysctl_d::Assignment;

/// The files that set conntrack's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSettings {
    /// By sysctl: "net.netfilter.nf_conntrack_max".
    pub sysctls: BTreeMap<String, Setting>,
    /// A sysctl file of this name is read after all that set conntrack's settings now.
    pub new_sysctl_file: PathBuf,
    /// Options of the module nf_conntrack, in the order modprobe passes them: the last one wins.
    pub module_options: Vec<ModuleOption>,
    /// An options file of this name is read after all of them.
    pub new_modprobe_file: PathBuf,
    /// The hash table's size on the kernel's command line.
    pub cmdline_hashsize: Option<u64>,
    /// The file that loads nf_conntrack before sysctls are set at boot. Without one, a sysctl file may come too early: the
    /// names don't exist until the module is loaded, and what sets them is skipped.
    pub loaded_at_boot: Option<PathBuf>,
    /// A modprobe.d file that sets all sysctls again whenever nf_conntrack is loaded (firewalld brings one).
    pub set_again_on_load: Option<PathBuf>,
    /// Whether systemd sets sysctls here. It doesn't read /etc/sysctl.conf, sysctl(8) does.
    pub systemd: bool,
}

impl BootSettings {
    /// The file of sysctls for what is advised. Facts may be those of a recording, which is not to choose what is written to.
    #[must_use]
    pub fn sysctl_file(&self) -> PathBuf {
        checked(&self.new_sysctl_file, "/etc/sysctl.d")
    }

    /// The file of modprobe's options for what is advised, likewise.
    #[must_use]
    pub fn modprobe_file(&self) -> PathBuf {
        checked(&self.new_modprobe_file, "/etc/modprobe.d")
    }
}

/// A file in this folder as [`name_after`] names them, or else the usual one.
fn checked(file: &Path, folder: &str) -> PathBuf {
    let name = file.strip_prefix(folder).ok().and_then(Path::to_str);
    let name = name.filter(|name| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@+".contains(&byte);
        name.ends_with("ctwatch.conf") && name.len() <= 128 && name.bytes().all(is_plain)
    });
    Path::new(folder).join(name.unwrap_or("99-ctwatch.conf"))
}

/// One setting and the files that set it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The assignment in force after boot.
    pub winner: Assignment,
    /// What it overrides, the first read first.
    pub overridden: Vec<Assignment>,
    /// In force now.
    pub live: Option<String>,
}

impl Setting {
    /// Whether something changed it after the files were applied, or they never were.
    #[must_use]
    pub fn differs(&self) -> bool {
        let plain = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.live.as_deref().is_some_and(|live| plain(live) != plain(&self.winner.value))
    }
}

/// Reads all of them.
pub(super) fn read(host: &Host, notes: &mut Notes) -> BootSettings {
    let systemd = host.file("run/systemd/system").exists();
    let files = sysctl_d::files(host, systemd);
    let mut sysctls: BTreeMap<String, Setting> = BTreeMap::new();
    for assignment in sysctl_d::assignments(host, &files) {
        let live = || file::text(&host.roots.proc(format!("sys/{}", assignment.key.replace('.', "/"))));
        match sysctls.get_mut(&assignment.key) {
            None => {
                let setting = Setting { live: live(), overridden: Vec::new(), winner: assignment.clone() };
                sysctls.insert(assignment.key, setting);
            }
            Some(setting) => {
                let loser = std::mem::replace(&mut setting.winner, assignment);
                setting.overridden.push(loser);
            }
        }
    }
    for (key, setting) in sysctls.iter().filter(|(_, setting)| setting.differs()) {
        notes.add(format!(
            "{} is {}, but {}:{} says {}: it was changed since, or the file was applied before the module was loaded",
            Foreign::from(key.as_str()),
            Foreign::from(setting.live.as_deref().unwrap_or("unknown")),
            setting.winner.file.shown(),
            setting.winner.line,
            Foreign::from(setting.winner.value.as_str())
        ));
    }
    let last = sysctls.values().flat_map(|setting| setting.overridden.iter().chain([&setting.winner]));
    let last = last.filter_map(|assignment| assignment.read_as.as_deref()).max();
    let modprobe = modprobe::read(host);
    let last_option = modprobe.options.iter().filter_map(|option| option.file.file_name()?.to_str()).max();
    BootSettings {
        new_sysctl_file: PathBuf::from("/etc/sysctl.d").join(name_after(last)),
        sysctls,
        new_modprobe_file: PathBuf::from("/etc/modprobe.d").join(name_after(last_option)),
        cmdline_hashsize: modprobe::cmdline_hashsize(host),
        loaded_at_boot: modprobe::loaded_at_boot(host),
        set_again_on_load: modprobe.set_again_on_load,
        module_options: modprobe.options,
        systemd,
    }
}

/// A file name that sorts after `last`, as plain as possible.
#[must_use]
pub fn name_after(last: Option<&str>) -> String {
    let plain = ["99-ctwatch.conf", "99-zz-ctwatch.conf", "zz-ctwatch.conf"];
    let Some(last) = last else { return plain[0].to_owned() };
    let found = plain.into_iter().find(|name| *name > last);
    found.map_or_else(|| format!("{last}-ctwatch.conf"), str::to_owned)
}

/// Files of the same kind in several folders: a name counts once, in the first folder that has it, and all are read in
/// the order of their names. A link to /dev/null, or an empty file, hides the files of that name in later folders.
pub(super) fn by_name(host: &Host, folders: &[&str]) -> Vec<(String, PathBuf)> {
    let mut files = BTreeMap::new();
    for folder in folders {
        for path in file::files(&host.file(folder), ".conf") {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                files.entry(name.to_owned()).or_insert(path);
            }
        }
    }
    files.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture};
    use super::*;
    use proptest::prelude::*;

    const MAX: &str = "net.netfilter.nf_conntrack_max";

    fn settings(files: &[(&str, &str)]) -> (BootSettings, Vec<String>) {
        let fixture = Fixture::of(files);
        let mut notes = Notes::default();
        let settings = read(&fixture.host, &mut notes);
        (settings, notes.0)
    }

    fn winner(settings: &BootSettings, key: &str) -> (String, String) {
        let winner = &settings.sysctls[key].winner;
        (winner.file.display().to_string(), winner.value.clone())
    }

    #[test]
    fn the_last_name_wins_whichever_folder_it_is_in() {
        let (settings, _) = settings(&[
            ("run/systemd/system/x", ""),
            ("etc/sysctl.d/10-network.conf", "net.netfilter.nf_conntrack_max = 100000\n"),
            ("usr/lib/sysctl.d/50-vendor.conf", "# vendor\nnet/netfilter/nf_conntrack_max=200000\n"),
        ]);
        assert_eq!(
            winner(&settings, MAX),
            ("/usr/lib/sysctl.d/50-vendor.conf".to_owned(), "200000".to_owned())
        );
        assert_eq!(settings.sysctls[MAX].overridden.len(), 1);
        assert_eq!(settings.new_sysctl_file, PathBuf::from("/etc/sysctl.d/99-ctwatch.conf"));
    }

    #[test]
    fn a_file_in_etc_replaces_the_vendor_s_of_the_same_name() {
        let (settings, _) = settings(&[
            ("run/systemd/system/x", ""),
            ("etc/sysctl.d/50-vendor.conf", "net.netfilter.nf_conntrack_tcp_timeout_time_wait = 30\n"),
            ("usr/lib/sysctl.d/50-vendor.conf", "net.netfilter.nf_conntrack_max = 200000\n"),
        ]);
        assert_eq!(
            settings.sysctls.keys().collect::<Vec<_>>(),
            ["net.netfilter.nf_conntrack_tcp_timeout_time_wait"]
        );
    }

    #[test]
    fn systemd_reads_sysctl_conf_only_through_a_link() {
        let conf = ("etc/sysctl.conf", "net.nf_conntrack_max = 300000\n");
        let early = ("etc/sysctl.d/99-a.conf", "net.netfilter.nf_conntrack_max = 100000\n");
        let (unread, _) = settings(&[("run/systemd/system/x", ""), conf, early]);
        assert_eq!(winner(&unread, MAX), ("/etc/sysctl.d/99-a.conf".to_owned(), "100000".to_owned()));
        let (linked, _) = settings(&[
            ("run/systemd/system/x", ""),
            conf,
            early,
            ("etc/sysctl.d/99-sysctl.conf", "-> ../sysctl.conf"),
        ]);
        assert_eq!(winner(&linked, MAX).1, "300000");
        assert_eq!(linked.new_sysctl_file, PathBuf::from("/etc/sysctl.d/99-zz-ctwatch.conf"));
        let (without_systemd, _) = settings(&[conf, early]);
        assert_eq!(winner(&without_systemd, MAX), ("/etc/sysctl.conf".to_owned(), "300000".to_owned()));
    }

    #[test]
    fn what_is_in_force_but_in_no_file_is_said() {
        let (settings, notes) = settings(&[
            ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
            ("etc/sysctl.d/a.conf", "net.netfilter.nf_conntrack_max = 100000\n"),
        ]);
        assert!(settings.sysctls[MAX].differs());
        assert!(
            notes.iter().any(|note| note.contains("is 262144, but /etc/sysctl.d/a.conf:1 says 100000")),
            "{notes:?}"
        );
    }

    #[test]
    fn a_host_without_any_file_gets_plain_names() {
        let (settings, _) = settings(&[]);
        assert_eq!(settings.new_sysctl_file, PathBuf::from("/etc/sysctl.d/99-ctwatch.conf"));
        assert_eq!(settings.new_modprobe_file, PathBuf::from("/etc/modprobe.d/99-ctwatch.conf"));
        assert_eq!(settings.loaded_at_boot, None);
    }

    #[test]
    fn only_files_of_ours_are_written_to() {
        for (file, expected) in [
            ("/etc/sysctl.d/99-zz-ctwatch.conf", "/etc/sysctl.d/99-zz-ctwatch.conf"),
            ("/etc/sysctl.d/zzz.conf-ctwatch.conf", "/etc/sysctl.d/zzz.conf-ctwatch.conf"),
            ("/etc/passwd", "/etc/sysctl.d/99-ctwatch.conf"),
            ("/etc/sysctl.d/../passwd/ctwatch.conf", "/etc/sysctl.d/99-ctwatch.conf"),
            ("/etc/sysctl.d/x/ctwatch.conf", "/etc/sysctl.d/99-ctwatch.conf"),
            ("/etc/sysctl.d/$(id)ctwatch.conf", "/etc/sysctl.d/99-ctwatch.conf"),
            ("/etc/sysctl.d/99-vendor.conf", "/etc/sysctl.d/99-ctwatch.conf"),
            ("/etc/modprobe.d/ctwatch.conf", "/etc/sysctl.d/99-ctwatch.conf"),
            ("", "/etc/sysctl.d/99-ctwatch.conf"),
        ] {
            let settings = BootSettings { new_sysctl_file: file.into(), ..BootSettings::default() };
            assert_eq!(settings.sysctl_file(), PathBuf::from(expected), "{file}");
            assert_eq!(settings.modprobe_file(), PathBuf::from("/etc/modprobe.d/99-ctwatch.conf"));
        }
    }

    #[test]
    fn real_machines_have_no_file_that_sets_it() {
        for (_, fixture) in fixture::kernels() {
            assert!(read(&fixture.host, &mut Notes::default()).sysctls.is_empty());
        }
    }

    proptest! {
        #[test]
        fn a_new_file_always_comes_last(last in "[ -~]{0,12}\\.conf") {
            let name = name_after(Some(&last));
            prop_assert!(name.as_str() > last.as_str());
            prop_assert!(name.ends_with("ctwatch.conf"));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let fixture = Fixture::of(&[("etc/sysctl.d/a.conf", &text), ("etc/modprobe.d/a.conf", &text)]);
            read(&fixture.host, &mut Notes::default());
        }
    }
}
