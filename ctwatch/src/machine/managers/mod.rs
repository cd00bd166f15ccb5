//! Programs that set conntrack's sysctls themselves: where one of them overwrites a sysctl, a sysctl file is no use.
//! Each is named with its evidence and with the place where the value must be set instead.

pub mod kube_proxy;
pub mod profiles;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Host, software};
use crate::foreign::Foreign;
use crate::process::procfs;

/// Who sets sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Kubernetes' kube-proxy as a process of its own.
    KubeProxy,
    /// K3s, which has kube-proxy inside.
    K3s,
    /// RKE2, which sets the sysctls for its kube-proxy.
    Rke2,
    /// MicroK8s, which has kube-proxy inside.
    MicroK8s,
    /// A kubelet without a kube-proxy: it sets none of these, but a pod may.
    Kubelet,
    /// TuneD, by its active profile.
    Tuned,
    /// ufw, each time it is enabled or reloaded.
    Ufw,
}

/// A program that sets some of conntrack's sysctls, or may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manager {
    /// Which.
    pub kind: Kind,
    /// How it is known to be here: a process, a configuration file.
    pub evidence: String,
    /// Its process, if it runs all the time.
    pub pid: Option<u32>,
    /// What it sets, by sysctl.
    pub sets: BTreeMap<String, u64>,
    /// Whether it overwrites what a sysctl file says.
    pub overwrites: bool,
    /// When it sets them.
    pub when: String,
    /// Where its settings are.
    pub configured_in: String,
}

/// nf_conntrack_max by its full name.
pub const MAX: &str = "net.netfilter.nf_conntrack_max";
/// The timeout of established connections by its full name.
pub const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
/// The timeout of half-closed connections by its full name.
pub const CLOSE_WAIT: &str = "net.netfilter.nf_conntrack_tcp_timeout_close_wait";

impl Manager {
    /// The lines that set a sysctl through the manager; empty if it doesn't set that one.
    #[must_use]
    pub fn instead(&self, sysctl: &str, value: u64) -> Vec<String> {
        match self.kind {
            Kind::KubeProxy | Kind::K3s | Kind::Rke2 | Kind::MicroK8s => {
                kube_proxy::instead(self.kind, &self.configured_in, sysctl, value)
            }
            Kind::Tuned if self.sets.contains_key(sysctl) => {
                profiles::tuned_instead(&self.evidence, sysctl, value)
            }
            Kind::Ufw if self.sets.contains_key(sysctl) => {
                profiles::ufw_instead(&self.configured_in, sysctl, value)
            }
            Kind::Tuned | Kind::Ufw | Kind::Kubelet => Vec::new(),
        }
    }
}

/// All managers that are found here. `cpus`: as kube-proxy counts them.
pub(super) fn read(host: &Host, cpus: Option<u32>) -> Vec<Manager> {
    let mut found = Vec::new();
    let mut kubelet = None;
    for pid in procfs::processes(&host.roots) {
        let Some(name) = procfs::name(&host.roots, pid) else { continue };
        let name = Foreign::from_bytes(&name).raw().trim_end_matches('\0').to_owned();
        let arguments = || software::arguments(&host.roots, pid);
        match name.as_str() {
            "kube-proxy" | "hyperkube" => {
                found.extend(kube_proxy::of_process(host, pid, &name, &arguments(), cpus))
            }
            "k3s" | "k3s-server" | "k3s-agent" => {
                found.push(kube_proxy::of_rancher(host, Kind::K3s, pid, &arguments(), cpus))
            }
            "rke2" | "rke2-server" | "rke2-agent" => {
                found.push(kube_proxy::of_rancher(host, Kind::Rke2, pid, &arguments(), cpus));
            }
            "kubelite" => found.push(kube_proxy::of_microk8s(host, pid, cpus)),
            "kubelet" => kubelet = Some(pid),
            _ => {}
        }
    }
    if let Some(pid) = kubelet.filter(|_| found.is_empty()) {
        found.push(Manager {
            kind: Kind::Kubelet,
            evidence: format!("kubelet (pid {pid})"),
            pid: Some(pid),
            sets: BTreeMap::new(),
            overwrites: false,
            when: "never itself, but a privileged pod may, and a kube-proxy that starts later will"
                .to_owned(),
            configured_in: "the cluster's DaemonSets".to_owned(),
        });
    }
    // A server and its children go by one name each; the first of a kind speaks for all.
    found.sort_by_key(|manager| (manager.kind, manager.pid));
    found.dedup_by_key(|manager| manager.kind);
    found.extend(profiles::tuned(host));
    found.extend(profiles::ufw(host));
    found
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture};
    use super::*;

    #[test]
    fn a_plain_server_has_no_manager() {
        for (kernel, fixture) in fixture::kernels() {
            assert_eq!(read(&fixture.host, Some(2)), [], "{kernel}");
        }
    }

    #[test]
    fn a_kubelet_alone_sets_nothing_but_is_worth_a_word() {
        let fixture = Fixture::of(&[("proc/900/comm", "kubelet\n")]);
        let found = read(&fixture.host, Some(4));
        assert_eq!((found[0].kind, found[0].overwrites, found.len()), (Kind::Kubelet, false, 1));
        assert!(found[0].instead(MAX, 1).is_empty());
    }

    #[test]
    fn with_a_kube_proxy_the_kubelet_is_no_news() {
        let fixture = Fixture::of(&[
            ("proc/900/comm", "kubelet\n"),
            ("proc/1200/comm", "kube-proxy\n"),
            ("proc/1200/cmdline", "/usr/local/bin/kube-proxy\0--v=2\0"),
        ]);
        let kinds: Vec<Kind> = read(&fixture.host, Some(4)).iter().map(|manager| manager.kind).collect();
        assert_eq!(kinds, [Kind::KubeProxy]);
    }
}
