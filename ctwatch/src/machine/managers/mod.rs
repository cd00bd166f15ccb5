//! Programs that set conntrack's sysctls themselves: where one of them overwrites a sysctl, a sysctl file is no use.
//! Each is named with its evidence and with the place where the value must be set instead.

pub mod kube_proxy;
pub mod profiles;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::doubts::Doubts;
use super::{Host, Notes};
use crate::foreign::Foreign;
use crate::process::claim::Claim;
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
    pub evidence: Foreign,
    /// Its process, if it runs all the time.
    pub pid: Option<u32>,
    /// What it sets, by sysctl.
    pub sets: BTreeMap<String, u64>,
    /// Whether it overwrites what a sysctl file says.
    pub overwrites: bool,
    /// When it sets them.
    pub when: Foreign,
    /// Where its settings are.
    pub configured_in: Foreign,
}

/// nf_conntrack_max by its full name.
pub const MAX: &str = "net.netfilter.nf_conntrack_max";
/// The timeout of established connections by its full name.
pub const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
/// The timeout of half-closed connections by its full name.
pub const CLOSE_WAIT: &str = "net.netfilter.nf_conntrack_tcp_timeout_close_wait";

impl Manager {
    /// Where its settings are, as a word to be shown and typed: a recording may hold anything there.
    fn place(&self) -> &str {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-@+:".contains(&byte);
        let is_path =
            self.configured_in.raw().starts_with('/') && self.configured_in.raw().bytes().all(is_plain);
        match self.configured_in.raw() {
            known @ (kube_proxy::ITS_FLAGS | THE_CLUSTER) => known,
            path if is_path => path,
            // A relative path, or one with blanks: as it was written on its command line.
            _ => "its configuration file",
        }
    }

    /// The lines that set a sysctl through the manager; empty if it doesn't set that one.
    #[must_use]
    pub fn instead(&self, sysctl: &str, value: u64) -> Vec<String> {
        match self.kind {
            Kind::KubeProxy | Kind::K3s | Kind::Rke2 | Kind::MicroK8s => {
                kube_proxy::instead(self.kind, self.place(), sysctl, value)
            }
            Kind::Tuned if self.sets.contains_key(sysctl) => {
                profiles::tuned_instead(self.evidence.raw(), sysctl, value)
            }
            Kind::Ufw if self.sets.contains_key(sysctl) => profiles::ufw_instead(self.place(), sysctl, value),
            Kind::Tuned | Kind::Ufw | Kind::Kubelet => Vec::new(),
        }
    }
}

/// Where pods are told what to do.
const THE_CLUSTER: &str = "the cluster's DaemonSets";

/// Processes that set sysctls, as the kernel cuts their names.
const CLAIMS: [(Claim, Kind); 10] = [
    (Claim::of_root("kube-proxy", &["kube-proxy", "hyperkube"]), Kind::KubeProxy),
    (Claim::of_root("hyperkube", &["hyperkube"]), Kind::KubeProxy),
    (Claim::of_root("k3s", &["k3s"]), Kind::K3s),
    (Claim::of_root("k3s-server", &["k3s"]), Kind::K3s),
    (Claim::of_root("k3s-agent", &["k3s"]), Kind::K3s),
    (Claim::of_root("rke2", &["rke2"]), Kind::Rke2),
    (Claim::of_root("rke2-server", &["rke2"]), Kind::Rke2),
    (Claim::of_root("rke2-agent", &["rke2"]), Kind::Rke2),
    (Claim::of_root("kubelite", &["kubelite"]), Kind::MicroK8s),
    (Claim::of_root("kubelet", &["kubelet", "hyperkube"]), Kind::Kubelet),
];

/// All managers that are found here. `cpus`: as kube-proxy counts them.
pub(super) fn read(host: &Host, cpus: Option<u32>, notes: &mut Notes) -> Vec<Manager> {
    let mut found = Vec::new();
    let mut kubelet = None;
    let mut doubts = Doubts::new();
    for pid in procfs::processes(&host.roots) {
        let Some(name) = procfs::name(&host.roots, pid) else { continue };
        let name = Foreign::from_bytes(&name).raw().trim_end_matches('\0').to_owned();
        let Some((claim, kind)) = CLAIMS.iter().find(|(claim, _)| claim.name == name) else { continue };
        let said = doubts.ask(
            host,
            pid,
            claim,
            |_| true,
            move |process| match kind {
                Kind::KubeProxy => kube_proxy::of_process(process, claim.name, cpus),
                Kind::K3s | Kind::Rke2 => Some(kube_proxy::of_rancher(process, *kind, cpus)),
                Kind::MicroK8s => Some(kube_proxy::of_microk8s(process, cpus)),
                Kind::Kubelet | Kind::Tuned | Kind::Ufw => Some(of_kubelet(process.pid)),
            },
        );
        match said {
            Some(manager) if manager.kind == Kind::Kubelet => kubelet = Some(manager),
            said => found.extend(said),
        }
    }
    doubts.tell(notes);
    if let Some(kubelet) = kubelet.filter(|_| found.is_empty()) {
        found.push(kubelet);
    }
    // A server and its children go by one name each; the first of a kind speaks for all.
    found.sort_by_key(|manager| (manager.kind, manager.pid));
    found.dedup_by_key(|manager| manager.kind);
    found.extend(profiles::tuned(host));
    found.extend(profiles::ufw(host));
    found
}

fn of_kubelet(pid: u32) -> Manager {
    Manager {
        kind: Kind::Kubelet,
        evidence: format!("kubelet (pid {pid})").into(),
        pid: Some(pid),
        sets: BTreeMap::new(),
        overwrites: false,
        when: "never itself, but a privileged pod may, and a kube-proxy that starts later will".into(),
        configured_in: THE_CLUSTER.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture};
    use super::*;

    #[test]
    fn a_plain_server_has_no_manager() {
        for (kernel, fixture) in fixture::kernels() {
            assert_eq!(read(&fixture.host, Some(2), &mut Notes::default()), [], "{kernel}");
        }
    }

    #[test]
    fn a_kubelet_alone_sets_nothing_but_is_worth_a_word() {
        let fixture = Fixture::of(&[("proc/900/comm", "kubelet\n")]);
        let found = read(&fixture.host, Some(4), &mut Notes::default());
        assert_eq!((found[0].kind, found[0].overwrites, found.len()), (Kind::Kubelet, false, 1));
        assert!(found[0].instead(MAX, 1).is_empty());
    }

    #[test]
    fn a_crowd_that_is_not_believed_owns_nothing_and_is_said_in_few_words() {
        use crate::process::claim::Doubt;
        let names: Vec<String> = (100..160).map(|pid| format!("proc/{pid}/comm")).collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "kube-proxy\n")).collect();
        let mut fixture = Fixture::of(&files);
        fixture.host.judge = |_, _| Err(Doubt::Powerless);
        let mut notes = Notes::default();
        assert_eq!(read(&fixture.host, Some(4), &mut notes), []);
        assert_eq!(notes.0.len(), 4, "{:?}", notes.0);
        assert!(notes.0[3].starts_with("57 more processes call themselves kube-proxy"), "{:?}", notes.0);
    }

    #[test]
    fn with_a_kube_proxy_the_kubelet_is_no_news() {
        let fixture = Fixture::of(&[
            ("proc/900/comm", "kubelet\n"),
            ("proc/1200/comm", "kube-proxy\n"),
            ("proc/1200/cmdline", "/usr/local/bin/kube-proxy\0--v=2\0"),
        ]);
        let kinds: Vec<Kind> =
            read(&fixture.host, Some(4), &mut Notes::default()).iter().map(|manager| manager.kind).collect();
        assert_eq!(kinds, [Kind::KubeProxy]);
    }
}
