//! From a cgroup's path to what people call it: a container, a systemd unit, somebody's session.
//! Pure: paths as runtimes make them; a path nobody is known to make has no name.

use crate::foreign::Foreign;

/// What kind of thing a cgroup belongs to, the more telling ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CgroupKind {
    /// A container runtime's.
    Container,
    /// A systemd unit.
    Unit,
    /// What a user calls a container of his.
    OfUser,
    /// A user's session.
    Session,
}

/// Whom a cgroup belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// "docker:3f2a9c0b1d2e", "unit:redis.service", "user:1000", "user:1000/podman:3f2a9c0b1d2e"
    pub name: Foreign,
    /// What it is.
    pub kind: CgroupKind,
    /// "pod:" and the uid of the Kubernetes pod it is part of.
    pod: Option<Foreign>,
}

impl Container {
    /// What the netns of its processes is called: all containers of a pod share one.
    #[must_use]
    pub fn netns_name(&self) -> Foreign {
        self.pod.clone().unwrap_or_else(|| self.name.clone())
    }
}

/// As many digits of an id as `docker ps` shows.
const SHORT: usize = 12;
/// Scopes that runtimes make under systemd's cgroup driver: prefix and runtime. `crio-conmon-`, `libpod-conmon-` and the
/// like are watchers outside of the container; what follows their prefix is no id.
const SCOPES: [(&str, &str); 7] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("crio-", "crio"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
    ("nerdctl-", "nerdctl"),
    ("lxc.payload.", "lxc"),
];
/// What a unit with processes of its own ends in.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// Whom the cgroup with this path belongs to. What is below a user's slice, or below a container, was named by that user or by
/// who is root in there: such a name only counts behind theirs, so that nobody passes for another one's container.
#[must_use]
pub fn of_path(path: &str) -> Option<Container> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // Root's own sessions are no others'.
    let user = (0..parts.len()).find_map(|at| Some((at, user(parts[at]).filter(|uid| *uid != "0")?)));
    let end = user.map_or(parts.len(), |(at, _)| at);
    let outer = (0..end).find_map(|at| Some((at, of_part(&parts, at)?)));
    // The innermost container: they nest (kind, docker in docker).
    let innermost = |from: usize, to: usize| (from..to).rev().find_map(|at| of_part(&parts, at));
    let pod_in = |parts: &[&str]| Some(format!("pod:{}", pod(parts)?));
    let both = |outer: &str, inner: Option<&str>| {
        Foreign::from(inner.map_or_else(|| outer.to_owned(), |inner| format!("{outer}/{inner}")))
    };
    if let Some((at, name)) = outer {
        let inner = innermost(at + 1, end);
        let (pod, inner_pod) = (pod_in(&parts[..=at]), pod_in(&parts[at + 1..end]).or_else(|| inner.clone()));
        return Some(Container {
            pod: (pod.is_some() || inner_pod != inner)
                .then(|| both(pod.as_ref().unwrap_or(&name), inner_pod.as_deref())),
            name: both(&name, inner.as_deref()),
            kind: CgroupKind::Container,
        });
    }
    let of_kind = |name: String, kind| Some(Container { name: name.into(), pod: None, kind });
    if let Some((at, uid)) = user {
        let name = format!("user:{uid}");
        let below = &parts[at + 1..];
        let Some(inner) = innermost(at + 1, parts.len()) else { return of_kind(name, CgroupKind::Session) };
        return Some(Container {
            pod: pod_in(below).map(|pod| both(&name, Some(&pod))),
            name: both(&name, Some(&inner)),
            kind: CgroupKind::OfUser,
        });
    }
    if let Some(uid) = parts.iter().find_map(|part| self::user(part)) {
        return of_kind(format!("user:{uid}"), CgroupKind::Session);
    }
    let unit = parts.iter().rev().find(|part| UNITS.iter().any(|end| part.ends_with(end)))?;
    of_kind(format!("unit:{unit}"), CgroupKind::Unit)
}

/// "user-1000.slice"
fn user(part: &str) -> Option<&str> {
    let uid = part.strip_prefix("user-")?.strip_suffix(".slice")?;
    (!uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit())).then_some(uid)
}

/// The container whose cgroup is the directory `parts[at]`.
fn of_part(parts: &[&str], at: usize) -> Option<String> {
    let part = parts[at].strip_suffix(".scope").unwrap_or(parts[at]);
    // containerd told to use cgroupfs under systemd's names: "kubepods-….slice:cri-containerd:<id>".
    if let Some((runtime, id)) = part.split_once(".slice:").and_then(|(_, rest)| rest.split_once(':'))
        && is_id(id)
    {
        return Some(named(runtime.trim_start_matches("cri-"), id));
    }
    for (prefix, runtime) in SCOPES {
        if let Some(id) = part.strip_prefix(prefix) {
            let is_lxc = runtime == "lxc";
            return (is_lxc || is_id(id))
                .then(|| if is_lxc { format!("lxc:{id}") } else { named(runtime, id) });
        }
    }
    let parent = at.checked_sub(1).map_or("", |above| parts[above]);
    match parent {
        "lxc" | "lxc.payload" => return Some(format!("lxc:{part}")),
        "machine.slice" => {
            if let Some(machine) = part.strip_prefix("machine-") {
                return Some(format!("machine:{machine}"));
            }
        }
        _ => {}
    }
    if !is_id(part) || part.len() != 64 {
        return None;
    }
    let runtime = if parent == "docker" {
        "docker"
    } else if parts[..at].iter().any(|part| part.starts_with("kubepods")) {
        // Under cgroupfs the path doesn't say which runtime it was.
        "cri"
    } else {
        "container"
    };
    Some(named(runtime, part))
}

fn named(runtime: &str, id: &str) -> String {
    format!("{runtime}:{}", &id[..SHORT.min(id.len())])
}

fn is_id(text: &str) -> bool {
    text.len() >= SHORT && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// "kubepods-burstable-pod4c8f_….slice" or "kubepods/burstable/pod4c8f-…"
fn pod(parts: &[&str]) -> Option<String> {
    let first = parts.iter().position(|part| part.starts_with("kubepods"))?;
    parts[first..].iter().rev().find_map(|part| {
        let part = part.split(':').next().unwrap_or(part);
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match part.split_once("-pod") {
            Some((_, uid)) => uid,
            None => part.strip_prefix("pod")?,
        };
        let uid = uid.replace('_', "-");
        // Static pods have a plain hash for a uid.
        let plausible =
            matches!(uid.len(), 32 | 36) && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        plausible.then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a9c0b1d2e4f5061728394a5b6c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8";
    const POD: &str = "4c8f1e2d-0a1b-4c3d-8e5f-a1b2c3d4e5f6";

    fn name(path: &str) -> Option<Foreign> {
        of_path(&path.replace("ID", ID)).map(|container| container.name)
    }

    #[track_caller]
    fn is(path: &str, expected: &str) {
        assert_eq!(name(path).as_ref().map(Foreign::raw), Some(expected), "{path}");
    }

    #[test]
    fn docker_with_either_cgroup_driver() {
        is("/system.slice/docker-ID.scope", "docker:3f2a9c0b1d2e");
        is("/docker/ID", "docker:3f2a9c0b1d2e");
        is("/docker/ID/system.slice/nginx.service", "docker:3f2a9c0b1d2e");
        is("/../../docker/ID", "docker:3f2a9c0b1d2e");
    }

    #[test]
    fn podman_with_and_without_root() {
        is("/machine.slice/libpod-ID.scope", "podman:3f2a9c0b1d2e");
        is("/machine.slice/libpod-ID.scope/container", "podman:3f2a9c0b1d2e");
        is(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "user:1000/podman:3f2a9c0b1d2e",
        );
        is("/libpod_parent/libpod-ID", "podman:3f2a9c0b1d2e");
        is(
            "/machine.slice/libpod-conmon-ID.scope",
            "unit:libpod-conmon-3f2a9c0b1d2e4f5061728394a5b6c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8.scope",
        );
    }

    #[test]
    fn kubernetes_names_the_pod_too() {
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod4c8f1e2d_0a1b_4c3d_8e5f_a1b2c3d4e5f6.slice";
        for (path, expected) in [
            (format!("{slice}/cri-containerd-ID.scope"), "containerd:3f2a9c0b1d2e"),
            (format!("{slice}/crio-ID.scope"), "crio:3f2a9c0b1d2e"),
            (format!("{slice}/docker-ID.scope"), "docker:3f2a9c0b1d2e"),
            (format!("/kubepods/besteffort/pod{POD}/ID"), "cri:3f2a9c0b1d2e"),
            (
                format!(
                    "/system.slice/containerd.service/{}:cri-containerd:ID",
                    &slice[slice.rfind('/').unwrap() + 1..]
                ),
                "containerd:3f2a9c0b1d2e",
            ),
        ] {
            let container = of_path(&path.replace("ID", ID)).expect(&path);
            assert_eq!(container.name, expected, "{path}");
            assert_eq!(container.netns_name(), format!("pod:{POD}"), "{path}");
        }
        let statically = format!("/kubepods/burstable/pod0123456789abcdef0123456789abcdef/{ID}");
        assert_eq!(of_path(&statically).unwrap().netns_name(), "pod:0123456789abcdef0123456789abcdef");
    }

    #[test]
    fn a_container_in_a_container_is_named_behind_the_outer_one() {
        let outer = "0".repeat(64);
        let inner = format!("/docker/{outer}/kubelet/kubepods/pod{POD}/cri-containerd-{ID}.scope");
        let found = of_path(&inner).unwrap();
        assert_eq!(found.name, "docker:000000000000/containerd:3f2a9c0b1d2e");
        assert_eq!(found.netns_name(), format!("docker:000000000000/pod:{POD}"));
        let in_a_pod = of_path(&format!("/kubepods/pod{POD}/{outer}/docker/{ID}")).unwrap();
        assert_eq!(in_a_pod.name, "cri:000000000000/docker:3f2a9c0b1d2e");
        assert_eq!(in_a_pod.netns_name(), format!("pod:{POD}/docker:3f2a9c0b1d2e"));
        is("/lxc.payload.web/system.slice/docker-ID.scope", "lxc:web/docker:3f2a9c0b1d2e");
    }

    #[test]
    fn nobody_passes_for_another_one_s_container() {
        let own = "/user.slice/user-1000.slice/user@1000.service";
        let others = format!("docker-{ID}.scope");
        for (below, expected) in [
            (others.clone(), "user:1000/docker:3f2a9c0b1d2e"),
            (format!("app.slice/docker/{ID}"), "user:1000/docker:3f2a9c0b1d2e"),
            ("lxc/web".to_owned(), "user:1000/lxc:web"),
            ("machine.slice/machine-build.scope".to_owned(), "user:1000/machine:build"),
            (format!("user-0.slice/{others}"), "user:1000/docker:3f2a9c0b1d2e"),
            (format!("user-1001.slice/{others}"), "user:1000/docker:3f2a9c0b1d2e"),
            ("redis.service".to_owned(), "user:1000"),
        ] {
            let found = of_path(&format!("{own}/{below}")).unwrap();
            assert_eq!(found.name, expected, "{below}");
            assert!(found.kind > CgroupKind::Unit, "{below}: a unit's word is worth more");
            assert_eq!(found.netns_name(), expected, "{below}");
        }
        let pods =
            of_path(&format!("{own}/kubepods.slice/kubepods-pod{}.slice/{others}", POD.replace('-', "_")));
        assert_eq!(pods.unwrap().netns_name(), format!("user:1000/pod:{POD}"));
        // A container's own users, and its root.
        let outer = format!("/system.slice/docker-{}.scope", "0".repeat(64));
        is(&format!("{outer}{own}/{others}"), "docker:000000000000");
        is(&format!("{outer}/{others}"), "docker:000000000000/docker:3f2a9c0b1d2e");
        // Root's own.
        is(&format!("/user.slice/user-0.slice/{others}"), "docker:3f2a9c0b1d2e");
        is("/user.slice/user-0.slice/session-1.scope", "user:0");
    }

    #[test]
    fn lxc_and_machines_have_names() {
        is("/lxc/web", "lxc:web");
        is("/lxc.payload.web", "lxc:web");
        is("/lxc.payload/web/init.scope", "lxc:web");
        is("/lxc.payload.web/system.slice/nginx.service", "lxc:web");
        is("/machine.slice/machine-build.scope", "machine:build");
        assert_eq!(name("/lxc.monitor.web"), None);
    }

    #[test]
    fn units_and_sessions() {
        is("/system.slice/redis.service", "unit:redis.service");
        is(
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            "unit:postgresql@15-main.service",
        );
        is("/system.slice/nginx.service/worker", "unit:nginx.service");
        is("/init.scope", "unit:init.scope");
        is("/user.slice/user-1000.slice/session-3.scope", "user:1000");
        is("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "user:1000");
        assert_eq!(of_path("/system.slice/redis.service").unwrap().kind, CgroupKind::Unit);
    }

    #[test]
    fn other_paths_have_no_name() {
        for path in ["/", "", "/system.slice", "/docker", "/docker/buildx", "/lxc", "/kubepods"] {
            assert_eq!(name(path), None, "{path}");
        }
        is("/ecs/1234/ID", "container:3f2a9c0b1d2e");
    }
}
