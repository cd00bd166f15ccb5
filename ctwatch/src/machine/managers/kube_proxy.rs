//! kube-proxy, alone or inside K3s, RKE2 and MicroK8s: what it sets at start, and how to configure it.
//! Its configuration is read from this host; the cluster is not queried.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::super::software;
use super::super::yaml::Yaml;
use super::{CLOSE_WAIT, ESTABLISHED, Kind, MAX, Manager};
use crate::foreign::{Foreign, Shown as _};
use crate::process::handle::Process;
use crate::text::shorten;

/// Where it is configured, if by its command line alone.
pub(super) const ITS_FLAGS: &str = "its flags";
/// Letters of its arguments that are shown.
const ARGUMENTS_SHOWN: usize = 300;
/// Files beside config.yaml that are read.
const FILES: usize = 64;

/// kube-proxy's configuration; what isn't configured has these defaults (pkg/proxy/apis/config/v1alpha1/defaults.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    max_per_core: u64,
    min: u64,
    established: u64,
    close_wait: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_per_core: 32_768, min: 131_072, established: 86_400, close_wait: 3600 }
    }
}

/// Where the limit per core times cores ends in kube-proxy's newest code (getConntrackMax, pkg/proxy/conntrack/sysctls.go);
/// older releases, K3s and RKE2 (getConntrackMax, pkg/agent/syssetup/setup.go) know no end.
const CAP: u64 = 1_048_576;

const WHEN: &str =
    "each time it starts (some releases keep a larger nf_conntrack_max; buckets become max / 4 if fewer)";

impl Config {
    /// Zero leaves a sysctl as it is.
    fn sets(&self, cpus: Option<u32>, cap: u64) -> BTreeMap<String, u64> {
        let mut sets = BTreeMap::new();
        if let Some(cpus) = cpus.filter(|_| self.max_per_core > 0) {
            let scaled = self.max_per_core.saturating_mul(cpus.into());
            // What ends there ends there even if the least is more.
            sets.insert(MAX.to_owned(), if scaled > cap { cap } else { scaled.max(self.min) });
        }
        for (sysctl, seconds) in [(ESTABLISHED, self.established), (CLOSE_WAIT, self.close_wait)] {
            if seconds > 0 {
                sets.insert(sysctl.to_owned(), seconds);
            }
        }
        sets
    }

    /// One setting by its flag's name.
    fn set(&mut self, flag: &str, value: &str) {
        let value = value.trim_matches(['"', '\'', ' ']);
        let number = || value.parse().ok();
        match flag {
            "conntrack-max-per-core" => self.max_per_core = number().unwrap_or(self.max_per_core),
            "conntrack-min" => self.min = number().unwrap_or(self.min),
            "conntrack-tcp-timeout-established" => {
                self.established = seconds(value).unwrap_or(self.established)
            }
            "conntrack-tcp-timeout-close-wait" => self.close_wait = seconds(value).unwrap_or(self.close_wait),
            _ => {}
        }
    }

    /// Flags, however they are given.
    fn by_flags(flags: &[String]) -> Self {
        let mut config = Self::default();
        for (at, flag) in flags.iter().enumerate() {
            let flag = flag.trim_start_matches('-');
            match flag.split_once('=') {
                Some((flag, value)) => config.set(flag, value),
                None => config.set(flag, flags.get(at + 1).map_or("", String::as_str)),
            }
        }
        config
    }

    /// The section `conntrack` of a KubeProxyConfiguration.
    fn by_configuration(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        let read = Yaml::read(text)?;
        for (key, flag) in [
            ("maxPerCore", "conntrack-max-per-core"),
            ("min", "conntrack-min"),
            ("tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
            ("tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
        ] {
            // What is null has its default.
            let value = read.get("conntrack").and_then(|conntrack| conntrack.get(key)).and_then(Yaml::text);
            if let Some(value) = value {
                config.set(flag, value);
            }
        }
        Ok(config)
    }
}

/// A duration as Go writes it: "24h0m0s", "1h", "90s".
fn seconds(text: &str) -> Option<u64> {
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    // Whole seconds, as kube-proxy itself rounds them.
    (!text.is_empty() && total.is_finite() && total >= 0.0).then_some(total as u64)
}

/// What a text says, whichever of its readers gets it.
pub(crate) fn of_text(text: &str) -> BTreeMap<String, u64> {
    let flags: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    let listed = Yaml::read(text).map(|yaml| arguments_for_kube_proxy(&yaml)).unwrap_or_default();
    let configured = Config::by_configuration(text).unwrap_or_default();
    let configs = [configured, Config::by_flags(&flags), Config::by_flags(&listed)];
    configs.iter().flat_map(|config| config.sets(Some(8), CAP)).collect()
}

/// A process kube-proxy, or `hyperkube kube-proxy`.
pub(super) fn of_process(process: &Process, name: &str, cpus: Option<u32>) -> Option<Manager> {
    let (pid, arguments) = (process.pid, process.arguments());
    if name == "hyperkube" && !arguments.iter().any(|word| word == "kube-proxy" || word == "proxy") {
        return None;
    }
    let mut evidence = format!(
        "kube-proxy (pid {pid}): {}",
        shorten(&Foreign::from(arguments.join(" ")).to_string(), ARGUMENTS_SHOWN)
    );
    let (config, configured_in) = match software::option(&arguments, "config") {
        // A configuration file overrides the flags.
        Some(path) => {
            let text = process.configuration(Path::new(path)).map_err(|error| error.to_string());
            let config = text.and_then(|text| Config::by_configuration(&text)).unwrap_or_else(|why| {
                evidence +=
                    &format!("; its configuration can't be read ({why}), so its defaults are assumed");
                Config::default()
            });
            (config, path.to_owned())
        }
        None => (Config::by_flags(&arguments), ITS_FLAGS.to_owned()),
    };
    Some(manager(Kind::KubeProxy, evidence, pid, config, cpus, configured_in))
}

/// K3s and RKE2 set them for the kube-proxy inside, from `kube-proxy-arg` on the command line or in config.yaml.
pub(super) fn of_rancher(process: &Process, kind: Kind, cpus: Option<u32>) -> Manager {
    let (pid, arguments) = (process.pid, process.arguments());
    let name = if kind == Kind::K3s { "k3s" } else { "rke2" };
    let mut evidence = format!("{name} (pid {pid})");
    let main = format!("/etc/rancher/{name}/config.yaml");
    let given = software::option(&arguments, "config");
    let path = given.unwrap_or(&main).to_owned();
    let folder = PathBuf::from(format!("/etc/rancher/{name}/config.yaml.d"));
    let names = process.root().and_then(|root| root.names(&folder)).unwrap_or_default();
    let is_yaml = |name: &std::ffi::OsString| name.as_encoded_bytes().ends_with(b".yaml");
    let more = names.into_iter().filter(is_yaml).take(FILES).map(|name| folder.join(name));
    let mut flags = Vec::new();
    for file in std::iter::once(PathBuf::from(&path)).chain(more) {
        let read = match process.configuration(&file) {
            Ok(text) => Yaml::read(&text),
            // Not everybody has one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => continue,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(yaml) => flags.extend(arguments_for_kube_proxy(&yaml)),
            Err(why) => {
                evidence += &format!("; {} can't be read ({why}), so defaults are assumed", file.shown());
            }
        }
    }
    for (at, word) in arguments.iter().enumerate() {
        match word.trim_start_matches('-').split_once('=') {
            Some(("kube-proxy-arg", flag)) => flags.push(flag.to_owned()),
            None if word == "--kube-proxy-arg" => flags.extend(arguments.get(at + 1).cloned()),
            _ => {}
        }
    }
    manager(kind, evidence, pid, Config::by_flags(&flags), cpus, path)
}

/// The list `kube-proxy-arg`, and what "kube-proxy-arg+" adds to it.
fn arguments_for_kube_proxy(yaml: &Yaml) -> Vec<String> {
    let lists = ["kube-proxy-arg", "kube-proxy-arg+"].map(|key| yaml.get(key).map(Yaml::words));
    lists.into_iter().flatten().flatten().collect()
}

/// MicroK8s keeps the flags of its services in files.
pub(super) fn of_microk8s(process: &Process, cpus: Option<u32>) -> Manager {
    const FLAGS: &str = "/var/snap/microk8s/current/args/kube-proxy";
    let pid = process.pid;
    let mut evidence = format!("kubelite of MicroK8s (pid {pid})");
    let text = process.configuration(Path::new(FLAGS)).unwrap_or_else(|error| {
        evidence += &format!("; its flags can't be read ({error}), so defaults are assumed");
        String::new()
    });
    let flags: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    manager(Kind::MicroK8s, evidence, pid, Config::by_flags(&flags), cpus, FLAGS.to_owned())
}

fn manager(
    kind: Kind,
    evidence: String,
    pid: u32,
    config: Config,
    cpus: Option<u32>,
    configured_in: String,
) -> Manager {
    let cap = if matches!(kind, Kind::K3s | Kind::Rke2) { u64::MAX } else { CAP };
    let sets = config.sets(cpus, cap);
    let overwrites = !sets.is_empty();
    let (evidence, configured_in) = (evidence.into(), configured_in.into());
    Manager { kind, evidence, pid: Some(pid), sets, overwrites, when: WHEN.into(), configured_in }
}

/// The lines that make kube-proxy give a sysctl this value.
pub(super) fn instead(kind: Kind, configured_in: &str, sysctl: &str, value: u64) -> Vec<String> {
    // min counts where it is more than the limit per core times cores, so a limit of 1 per core makes it exact.
    let settings: &[(&str, &str, String)] = match sysctl {
        MAX => &[
            ("maxPerCore", "conntrack-max-per-core", "1".to_owned()),
            ("min", "conntrack-min", value.to_string()),
        ],
        ESTABLISHED => &[("tcpEstablishedTimeout", "conntrack-tcp-timeout-established", format!("{value}s"))],
        CLOSE_WAIT => &[("tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", format!("{value}s"))],
        _ => return Vec::new(),
    };
    let flags = settings.iter().map(|(_, flag, value)| format!("{flag}={value}"));
    let (mut lines, restart): (Vec<String>, &str) = match kind {
        Kind::KubeProxy if configured_in == ITS_FLAGS => {
            (flags.map(|flag| format!("--{flag}")).collect(), "restart kube-proxy with these flags")
        }
        Kind::KubeProxy => {
            let mut lines = vec![
                "in the KubeProxyConfiguration (kubectl -n kube-system edit configmap kube-proxy):"
                    .to_owned(),
                "conntrack:".to_owned(),
            ];
            lines.extend(settings.iter().map(|(key, _, value)| format!("  {key}: {value}")));
            (lines, "kubectl -n kube-system rollout restart daemonset kube-proxy")
        }
        Kind::MicroK8s => {
            let mut lines = vec![format!("in {configured_in}:")];
            lines.extend(flags.map(|flag| format!("--{flag}")));
            (lines, "snap restart microk8s.daemon-kubelite")
        }
        _ => {
            let mut lines = vec![format!("in {configured_in}:"), "kube-proxy-arg:".to_owned()];
            lines.extend(flags.map(|flag| format!("  - {flag}")));
            let name = if kind == Kind::K3s { "k3s" } else { "rke2" };
            let restart = if name == "k3s" {
                "systemctl restart k3s (on an agent: k3s-agent)"
            } else {
                "systemctl restart rke2-server (on an agent: rke2-agent)"
            };
            (lines, restart)
        }
    };
    lines.push(restart.to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::super::super::Notes;
    use super::super::super::fixture::Fixture;
    use super::*;
    use proptest::prelude::*;

    fn sets(files: &[(&str, &str)], cpus: u32) -> Vec<(Kind, BTreeMap<String, u64>)> {
        let fixture = Fixture::of(files);
        let found = super::super::read(&fixture.host, Some(cpus), &mut Notes::default());
        found.into_iter().map(|manager| (manager.kind, manager.sets)).collect()
    }

    fn of(max: Option<u64>, established: u64, close_wait: u64) -> BTreeMap<String, u64> {
        let timeouts = [(ESTABLISHED.to_owned(), established), (CLOSE_WAIT.to_owned(), close_wait)];
        max.map(|max| (MAX.to_owned(), max)).into_iter().chain(timeouts).collect()
    }

    #[test]
    fn by_default_it_sets_32768_a_core_but_no_less_than_131072() {
        let process = [("proc/12/comm", "kube-proxy\n"), ("proc/12/cmdline", "kube-proxy\0--v=2\0")];
        assert_eq!(sets(&process, 2), [(Kind::KubeProxy, of(Some(131_072), 86_400, 3600))]);
        assert_eq!(sets(&process, 16), [(Kind::KubeProxy, of(Some(524_288), 86_400, 3600))]);
        assert_eq!(sets(&process, 128), [(Kind::KubeProxy, of(Some(CAP), 86_400, 3600))]);
    }

    #[test]
    fn its_configuration_is_read_in_its_own_file_system() {
        let configuration = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nconntrack:\n  maxPerCore: 0\n  min: null\n  \
            tcpCloseWaitTimeout: 60s\n  tcpEstablishedTimeout: 2h4m0s # RFC 5382\nkind: KubeProxyConfiguration\nmin: 7\n";
        let files = [
            ("proc/12/comm", "kube-proxy\n"),
            ("proc/12/cmdline", "/usr/local/bin/kube-proxy\0--config=/var/lib/kube-proxy/config.conf\0"),
            ("proc/12/root/var/lib/kube-proxy/config.conf", configuration),
        ];
        assert_eq!(sets(&files, 8), [(Kind::KubeProxy, of(None, 7440, 60))]);
    }

    #[test]
    fn k3s_takes_flags_from_its_file_and_its_command_line() {
        let files = [
            ("proc/12/comm", "k3s-server\n"),
            ("proc/12/cmdline", "/usr/local/bin/k3s server\0--kube-proxy-arg=conntrack-min=400000\0"),
            (
                "etc/rancher/k3s/config.yaml",
                "kube-proxy-arg:\n  - \"conntrack-max-per-core=1\"\ntls-san: a\n",
            ),
        ];
        assert_eq!(sets(&files, 8), [(Kind::K3s, of(Some(400_000), 86_400, 3600))]);
    }

    #[test]
    fn on_128_cores_kube_proxy_has_an_end_that_k3s_has_not() {
        let on_128 = |name: &'static str| sets(&[("proc/12/comm", name)], 128).remove(0).1[MAX];
        assert_eq!(on_128("kube-proxy\n"), 1_048_576);
        assert_eq!(on_128("k3s-agent\n"), 4_194_304);
    }

    #[test]
    fn microk8s_keeps_its_flags_in_a_file() {
        let files = [
            ("proc/12/comm", "kubelite\n"),
            ("var/snap/microk8s/current/args/kube-proxy", "--conntrack-max-per-core=0\n--v=1\n"),
        ];
        assert_eq!(sets(&files, 8), [(Kind::MicroK8s, of(None, 86_400, 3600))]);
    }

    #[test]
    fn what_it_is_told_instead_gives_exactly_that_value() {
        let lines = instead(Kind::KubeProxy, "its flags", MAX, 1_500_000);
        assert_eq!(lines[..2], ["--conntrack-max-per-core=1", "--conntrack-min=1500000"]);
        assert_eq!(Config::by_flags(&lines).sets(Some(64), CAP)[MAX], 1_500_000);
        let lines = instead(Kind::KubeProxy, "/var/lib/kube-proxy/config.conf", ESTABLISHED, 7440);
        // The last line is what makes it count.
        let said = lines[1..lines.len() - 1].join("\n");
        assert_eq!(Config::by_configuration(&said).unwrap().established, 7440);
        let lines = instead(Kind::K3s, "/etc/rancher/k3s/config.yaml", CLOSE_WAIT, 60);
        let said = Yaml::read(&lines[1..lines.len() - 1].join("\n")).unwrap();
        assert_eq!(arguments_for_kube_proxy(&said), ["conntrack-tcp-timeout-close-wait=60s"]);
        let other = "net.netfilter.nf_conntrack_tcp_timeout_time_wait";
        assert!(instead(Kind::KubeProxy, "its flags", other, 30).is_empty(), "it has no say in that");
    }

    #[test]
    fn lists_in_yaml_come_in_three_shapes() {
        for text in [
            "kube-proxy-arg: [x=1, \"y=2\"]\nb: z",
            "kube-proxy-arg:\n- x=1\n- 'y=2'\nb:\n- z",
            "c: 1\nkube-proxy-arg+:\n  - x=1\n  - y=2\n",
        ] {
            assert_eq!(arguments_for_kube_proxy(&Yaml::read(text).unwrap()), ["x=1", "y=2"], "{text}");
        }
        assert_eq!(arguments_for_kube_proxy(&Yaml::read("kube-proxy-arg: x=1").unwrap()), ["x=1"]);
    }

    #[test]
    fn a_configuration_that_is_no_file_or_no_yaml_is_said_to_be_unknown() {
        let found = |files: &[(&str, &str)]| {
            let cmdline = ("proc/12/cmdline", "kube-proxy\0--config=/etc/proxy.yaml\0");
            let files = [&[("proc/12/comm", "kube-proxy\n"), cmdline], files].concat();
            super::super::read(&Fixture::of(&files).host, Some(2), &mut Notes::default()).remove(0)
        };
        let long = "a: b\n".repeat(1 << 18);
        for (files, why) in [
            (&[][..], "No such file"),
            (&[("etc/proxy.yaml", "-> /dev/zero")], "No such file"),
            (&[("etc/proxy.yaml/x", "")], "not a regular file"),
            (&[("etc/proxy.yaml", long.as_str())], "larger than"),
            (&[("etc/proxy.yaml", "conntrack: [\n")], "can't be read"),
        ] {
            let found = found(files);
            assert!(found.evidence.raw().contains(why), "{}", found.evidence);
            assert_eq!(found.sets, of(Some(131_072), 86_400, 3600), "its defaults");
        }
        assert!(
            !found(&[("etc/proxy.yaml", "conntrack: {min: 7}")]).evidence.raw().contains("can't be read")
        );
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_go_writes_it(total in 0u64..1_000_000_000) {
            let text = format!("{}h{}m{}s", total / 3600, total / 60 % 60, total % 60);
            prop_assert_eq!(seconds(&text), Some(total));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = (seconds(&text), Config::by_configuration(&text));
            Config::by_flags(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }
}
