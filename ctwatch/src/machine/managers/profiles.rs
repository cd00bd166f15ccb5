//! TuneD and ufw: managers that set whatever a profile or a file of theirs says.
//! They only count where that names one of conntrack's sysctls.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::settings::sysctl_d::conntrack_lines;
use super::super::{Host, file};
use super::{Kind, Manager};
use crate::foreign::Foreign;

/// Where profiles are looked for, the administrator's first; newer releases have folders of their own for them.
const PROFILES: [&str; 4] = ["etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned"];
/// Profiles that include others do so a few levels deep.
const DEPTH: usize = 8;

/// TuneD, if its active profile sets conntrack's sysctls.
pub(super) fn tuned(host: &Host) -> Option<Manager> {
    let active = file::text(&host.file("etc/tuned/active_profile"))?;
    let mut sets = BTreeMap::new();
    for profile in active.split_ascii_whitespace() {
        collect(host, profile, DEPTH, &mut sets);
    }
    if sets.is_empty() {
        return None;
    }
    // On by default: files below /etc and /run are applied once more after the profile, those below /usr are not.
    let main = file::text(&host.file("etc/tuned/tuned-main.conf")).unwrap_or_default();
    let reapplies = main.lines().filter_map(|line| line.split_once('=')).all(|(key, value)| {
        key.trim() != "reapply_sysctl" || matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true")
    });
    let after = if reapplies {
        "; it then reapplies /etc/sysctl.d (reapply_sysctl), so a file there wins"
    } else {
        "; it does not reapply sysctl.d (reapply_sysctl is off)"
    };
    Some(Manager {
        kind: Kind::Tuned,
        evidence: format!("TuneD's active profile {}", Foreign::from(active)).into(),
        pid: None,
        sets,
        overwrites: !reapplies,
        when: format!("at boot and whenever a profile is chosen{after}").into(),
        configured_in: "/etc/tuned".into(),
    })
}

fn collect(host: &Host, profile: &str, depth: usize, sets: &mut BTreeMap<String, u64>) {
    // A name from a file may not lead out of the folders.
    if depth == 0 || profile.contains('/') || profile.is_empty() {
        return;
    }
    let files = PROFILES.iter().map(|folder| host.file(folder).join(profile).join("tuned.conf"));
    let Some(text) = files.into_iter().find_map(|path: PathBuf| file::text(&path)) else { return };
    for (section, key, value) in ini(&text) {
        if section == "main" && key == "include" {
            for included in value.split([',', ' ']) {
                collect(host, included, depth - 1, sets);
            }
        }
    }
    for (section, key, value) in ini(&text) {
        if section == "sysctl" {
            sets.extend(numbers(&format!("{key}={value}")));
        }
    }
}

fn ini(text: &str) -> Vec<(&str, &str, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with(['#', ';'])) {
            found.push((section, key.trim(), value.trim()));
        }
    }
    found
}

/// conntrack's sysctls that lines set to a number.
fn numbers(lines: &str) -> impl Iterator<Item = (String, u64)> {
    let found = conntrack_lines(lines).into_iter();
    // TuneD's ">" means: if that is more than what is set.
    found.filter_map(|(key, value, _)| Some((key, value.trim_start_matches(['>', '<', '=']).parse().ok()?)))
}

/// A profile on top of the active one.
pub(super) fn tuned_instead(evidence: &str, sysctl: &str, value: u64) -> Vec<String> {
    let active = evidence.rsplit("profile ").next().unwrap_or_default();
    // Names of folders; a recording may hold anything there.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.- ".contains(&byte);
    let active = if active.bytes().all(is_plain) { active } else { "the active profile" };
    vec![
        "in /etc/tuned/profiles/conntrack/tuned.conf (where there is no such folder: /etc/tuned/conntrack/tuned.conf):"
            .to_owned(),
        "[main]".to_owned(),
        format!("include={}", active.replace(' ', ",")),
        "[sysctl]".to_owned(),
        format!("{sysctl}={value}"),
        "tuned-adm profile conntrack".to_owned(),
    ]
}

/// ufw, if it is enabled and its file sets conntrack's sysctls.
pub(super) fn ufw(host: &Host) -> Option<Manager> {
    let enabled = file::text(&host.file("etc/ufw/ufw.conf"))?;
    if !enabled.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")) {
        return None;
    }
    let defaults = file::text(&host.file("etc/default/ufw")).unwrap_or_default();
    let file = defaults.lines().find_map(|line| line.trim().strip_prefix("IPT_SYSCTL="));
    let file =
        file.map(|file| file.trim_matches('"').to_owned()).unwrap_or("/etc/ufw/sysctl.conf".to_owned());
    let text = file::text(&host.file(file.trim_start_matches('/')))?;
    let sets: BTreeMap<_, _> = numbers(&text).collect();
    (!sets.is_empty()).then(|| Manager {
        kind: Kind::Ufw,
        evidence: format!(
            "ufw is enabled (/etc/ufw/ufw.conf), and {} sets conntrack's sysctls",
            Foreign::from(file.as_str())
        )
        .into(),
        pid: None,
        sets,
        overwrites: true,
        when: "at boot, and whenever ufw is enabled or reloaded".into(),
        configured_in: file.into(),
    })
}

/// The line for ufw's own file.
pub(super) fn ufw_instead(file: &str, sysctl: &str, value: u64) -> Vec<String> {
    vec![format!("in {file}:"), format!("{}={value}", sysctl.replace('.', "/")), "ufw reload".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::Fixture;
    use super::super::MAX;
    use super::*;

    #[test]
    fn a_profile_s_sysctls_count_with_those_it_includes() {
        let included = (
            "usr/lib/tuned/openshift/tuned.conf",
            "[sysctl]\nnet.netfilter.nf_conntrack_max=1048576\nvm.swappiness=1\n",
        );
        let own = (
            "etc/tuned/node/tuned.conf",
            "[main]\ninclude=openshift\n[sysctl]\n# net.netfilter.nf_conntrack_max=5\nnet.netfilter.nf_conntrack_udp_timeout = 20\n",
        );
        let active = ("etc/tuned/active_profile", "node\n");
        let found = tuned(&Fixture::of(&[active, own, included]).host).unwrap();
        assert_eq!(found.sets.len(), 2, "{found:?}");
        assert_eq!(found.sets[MAX], 1_048_576);
        assert!(!found.overwrites, "/etc/sysctl.d is applied after it");
        assert!(found.instead(MAX, 9).contains(&"include=node".to_owned()));
        let off = ("etc/tuned/tuned-main.conf", "daemon = 1\nreapply_sysctl = 0\n");
        assert!(tuned(&Fixture::of(&[active, own, included, off]).host).unwrap().overwrites);
        assert_eq!(tuned(&Fixture::of(&[("etc/tuned/active_profile", "balanced\n")]).host), None);
        let loops = [("etc/tuned/active_profile", "a\n"), ("etc/tuned/a/tuned.conf", "[main]\ninclude=a\n")];
        assert_eq!(tuned(&Fixture::of(&loops).host), None);
    }

    #[test]
    fn ufw_counts_while_it_is_enabled_and_names_one() {
        let conf = |text| ("etc/ufw/ufw.conf", text);
        let sysctl = ("etc/ufw/sysctl.conf", "net/ipv4/ip_forward=1\nnet/netfilter/nf_conntrack_max=65536\n");
        let found = ufw(&Fixture::of(&[conf("ENABLED=yes\n"), sysctl]).host).unwrap();
        assert_eq!(found.sets[MAX], 65_536);
        assert_eq!(found.instead(MAX, 7)[1], "net/netfilter/nf_conntrack_max=7");
        assert!(
            found.instead("net.netfilter.nf_conntrack_udp_timeout", 7).is_empty(),
            "a sysctl file does that"
        );
        assert_eq!(ufw(&Fixture::of(&[conf("ENABLED=no\n"), sysctl]).host), None);
        assert_eq!(ufw(&Fixture::of(&[conf("ENABLED=yes\n")]).host), None);
    }
}
