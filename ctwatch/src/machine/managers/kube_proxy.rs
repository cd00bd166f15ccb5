//! kube-proxy, alone or inside K3s, RKE2 and MicroK8s: what it sets at start, and how to configure it.
//! Its configuration is read from this host; the cluster is not queried.

use std::collections::BTreeMap;

use super::super::{Host, file, software};
use super::{CLOSE_WAIT, ESTABLISHED, Kind, MAX, Manager};

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
    fn by_configuration(text: &str) -> Self {
        let mut config = Self::default();
        let mut inside = false;
        for line in text.lines() {
            let line = line.split(" #").next().unwrap_or(line);
            if !line.starts_with([' ', '\t']) {
                inside = line.trim_end() == "conntrack:";
            } else if let Some((key, value)) = line.trim().split_once(':').filter(|_| inside) {
                let flag = match key {
                    "maxPerCore" => "conntrack-max-per-core",
                    "min" => "conntrack-min",
                    "tcpEstablishedTimeout" => "conntrack-tcp-timeout-established",
                    "tcpCloseWaitTimeout" => "conntrack-tcp-timeout-close-wait",
                    _ => continue,
                };
                if value.trim() != "null" {
                    config.set(flag, value);
                }
            }
        }
        config
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
    let listed = Config::by_flags(&yaml_list(text, "kube-proxy-arg"));
    let configs = [Config::by_configuration(text), Config::by_flags(&flags), listed];
    configs.iter().flat_map(|config| config.sets(Some(8), CAP)).collect()
}

/// A process kube-proxy, or `hyperkube kube-proxy`.
pub(super) fn of_process(
    host: &Host,
    pid: u32,
    name: &str,
    arguments: &[String],
    cpus: Option<u32>,
) -> Option<Manager> {
    if name == "hyperkube" && !arguments.iter().any(|word| word == "kube-proxy" || word == "proxy") {
        return None;
    }
    let (config, configured_in) = match software::option(arguments, "config") {
        // Its file system may be a container's. A configuration file overrides the flags.
        Some(path) => {
            let seen = host.roots.proc(format!("{pid}/root")).join(path.trim_start_matches('/'));
            let text = file::text(&seen).or_else(|| file::text(&host.file(path.trim_start_matches('/'))));
            (text.map_or_else(Config::default, |text| Config::by_configuration(&text)), path.to_owned())
        }
        None => (Config::by_flags(arguments), "its flags".to_owned()),
    };
    let evidence = format!("kube-proxy (pid {pid}): {}", arguments.join(" "));
    Some(manager(Kind::KubeProxy, evidence, pid, config, cpus, configured_in))
}

/// K3s and RKE2 set them for the kube-proxy inside, from `kube-proxy-arg` on the command line or in config.yaml.
pub(super) fn of_rancher(
    host: &Host,
    kind: Kind,
    pid: u32,
    arguments: &[String],
    cpus: Option<u32>,
) -> Manager {
    let name = if kind == Kind::K3s { "k3s" } else { "rke2" };
    let file = format!("/etc/rancher/{name}/config.yaml");
    let path = software::option(arguments, "config").unwrap_or(&file).to_owned();
    let mut flags = Vec::new();
    let mut files = file::files(&host.file(&format!("etc/rancher/{name}/config.yaml.d")), ".yaml");
    files.sort();
    for file in [host.file(path.trim_start_matches('/'))].iter().chain(&files) {
        flags.extend(yaml_list(&file::text(file).unwrap_or_default(), "kube-proxy-arg"));
    }
    for (at, word) in arguments.iter().enumerate() {
        match word.trim_start_matches('-').split_once('=') {
            Some(("kube-proxy-arg", flag)) => flags.push(flag.to_owned()),
            None if word == "--kube-proxy-arg" => flags.extend(arguments.get(at + 1).cloned()),
            _ => {}
        }
    }
    let evidence = format!("{name} (pid {pid})");
    manager(kind, evidence, pid, Config::by_flags(&flags), cpus, path)
}

/// MicroK8s keeps the flags of its services in files.
pub(super) fn of_microk8s(host: &Host, pid: u32, cpus: Option<u32>) -> Manager {
    const FLAGS: &str = "/var/snap/microk8s/current/args/kube-proxy";
    let text = file::text(&host.file(FLAGS.trim_start_matches('/'))).unwrap_or_default();
    let flags: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    let evidence = format!("kubelite of MicroK8s (pid {pid})");
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
    Manager { kind, evidence, pid: Some(pid), sets, overwrites, when: WHEN.to_owned(), configured_in }
}

/// The items of a list in YAML, "key: [a, b]" or one a line, or the single value; also after "key+:".
fn yaml_list(text: &str, key: &str) -> Vec<String> {
    let plain = |item: &str| item.trim().trim_matches(['"', '\'']).to_owned();
    let mut items = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(item) = trimmed.strip_prefix("- ").filter(|_| inside) {
            items.push(plain(item));
            continue;
        }
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let Some((found, value)) = line.split_once(':') else { continue };
        inside = found.trim_end_matches('+') == key;
        if inside && !value.trim().is_empty() {
            let value = value.trim().trim_start_matches('[').trim_end_matches(']');
            items.extend(value.split(',').map(plain));
        }
    }
    items
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
        Kind::KubeProxy if configured_in == "its flags" => {
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
    use super::super::super::fixture::Fixture;
    use super::*;
    use proptest::prelude::*;

    fn sets(files: &[(&str, &str)], cpus: u32) -> Vec<(Kind, BTreeMap<String, u64>)> {
        let fixture = Fixture::of(files);
        let found = super::super::read(&fixture.host, Some(cpus));
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
        assert_eq!(Config::by_configuration(&lines[1..].join("\n")).established, 7440);
        let lines = instead(Kind::K3s, "/etc/rancher/k3s/config.yaml", CLOSE_WAIT, 60);
        assert_eq!(
            yaml_list(&lines[1..].join("\n"), "kube-proxy-arg"),
            ["conntrack-tcp-timeout-close-wait=60s"]
        );
        let other = "net.netfilter.nf_conntrack_tcp_timeout_time_wait";
        assert!(instead(Kind::KubeProxy, "its flags", other, 30).is_empty(), "it has no say in that");
    }

    #[test]
    fn lists_in_yaml_come_in_three_shapes() {
        for text in
            ["a: [x=1, \"y=2\"]\nb: z", "a:\n- x=1\n- 'y=2'\nb:\n- z", "c: 1\na+:\n  - x=1\n  - y=2\n"]
        {
            assert_eq!(yaml_list(text, "a"), ["x=1", "y=2"], "{text}");
        }
        assert_eq!(yaml_list("a: x=1", "a"), ["x=1"]);
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_go_writes_it(total in 0u64..1_000_000_000) {
            let text = format!("{}h{}m{}s", total / 3600, total / 60 % 60, total % 60);
            prop_assert_eq!(seconds(&text), Some(total));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = (seconds(&text), yaml_list(&text, "a"), Config::by_configuration(&text));
            Config::by_flags(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }
}
