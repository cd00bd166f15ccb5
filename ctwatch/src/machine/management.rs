//! By which port people log in: while the table is full, no new login gets through.
//! Found by the process that listens in this netns; a port number alone says nothing but where systemd listens for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::doubts::Doubts;
use super::listening::Listening;
use super::{Host, Notes, file};
use crate::foreign::Foreign;
use crate::model::Protocol;
use crate::process::claim::Claim;
use crate::process::handle::Process;
use crate::process::procfs;

/// What serves logins, as the kernel cuts its name.
const SERVERS: [Claim; 3] = [
    Claim::of_root("sshd", &["sshd"]),
    Claim::of_root("dropbear", &["dropbear"]),
    Claim::of_root("tinysshd", &["tinysshd"]),
];
/// Where a socket that systemd holds is for sshd (ssh.socket), unless a unit says otherwise.
const USUAL_PORT: u16 = 22;

/// A port for logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// It listens there.
    pub port: u16,
    /// The program: "sshd (pid 812)".
    pub who: String,
}

/// The ports of this thread's netns by which people log in from elsewhere, by port; and notes on who only says it serves logins.
#[must_use]
pub fn logins(host: &Host) -> (Vec<Login>, Vec<String>) {
    let (mut doubts, mut notes) = (Doubts::new(), Notes::default());
    let roots = &host.roots;
    let mut listening = Listening::read(roots, &[Protocol::TCP]);
    // What listens on loopback alone lets nobody in.
    listening.by_inode.retain(|_, (_, address, _)| !address.to_canonical().is_loopback());
    let listening = Arc::new(listening);
    let mut is_cut = listening.is_cut;
    let mut found: BTreeMap<u16, String> = BTreeMap::new();
    let mut pids = procfs::processes(roots);
    pids.sort_unstable();
    for pid in pids {
        let Some(name) = procfs::name(roots, pid) else { continue };
        let name = Foreign::from_bytes(&name).raw().trim_end_matches('\0').to_owned();
        let server = SERVERS.iter().find(|known| known.name == name);
        let (ports, has_more) = match server {
            // Whose sockets they are is judged before they are looked at. sshd has a process for each login, which is its
            // user's: only one that listens is worth a note.
            Some(claim) => {
                let (judged, asked) = (Arc::clone(&listening), Arc::clone(&listening));
                let matters = move |process: &Process| judged.is_of(process);
                let said = doubts.ask(host, pid, claim, matters, move |process| Some(asked.of(process)));
                said.unwrap_or_default()
            }
            None if pid == 1 => {
                Process::open(roots, pid).map(|process| listening.of(&process)).unwrap_or_default()
            }
            None => continue,
        };
        is_cut |= has_more;
        for (_, _, port) in ports {
            if server.is_some() {
                // Who starts it for each connection holds the same socket.
                found.insert(port, format!("{name} (pid {pid})"));
            } else if port == USUAL_PORT || is_of_a_socket_unit(host, port) {
                found.entry(port).or_insert_with(|| format!("{name}, which starts sshd for each login"));
            }
        }
    }
    is_cut |= doubts.unseen;
    doubts.tell(&mut notes);
    if is_cut {
        notes.add("there are more sockets or processes than could be looked at: ports for logins may be missing; name them with --keep");
    }
    (found.into_iter().map(|(port, who)| Login { port, who }).collect(), notes.0)
}

/// Whether ssh.socket or what changes it names this port.
fn is_of_a_socket_unit(host: &Host, port: u16) -> bool {
    let folders = ["etc/systemd/system/ssh.socket.d", "run/systemd/generator/ssh.socket.d"];
    let mut files: Vec<_> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(host.file(folder)).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .collect();
    files.extend(
        ["etc/systemd/system/ssh.socket", "etc/systemd/system/sshd.socket"].map(|file| host.file(file)),
    );
    files.iter().any(|file| names_port(file, port))
}

fn names_port(path: &Path, port: u16) -> bool {
    let text = file::text(path).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().strip_prefix("ListenStream=")).any(|at| {
        // "2222", "0.0.0.0:2222", "[::]:2222"
        at.trim().rsplit(':').next().and_then(|last| last.parse().ok()) == Some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st\n";

    fn listens(address: &str, port: u16, inode: u64) -> String {
        format!(
            "   0: {address}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
        )
    }

    fn found(files: &[(&str, &str)]) -> Vec<(u16, String)> {
        logins(&Fixture::of(files).host).0.into_iter().map(|login| (login.port, login.who)).collect()
    }

    #[test]
    fn sshd_is_found_by_its_sockets_and_others_are_not() {
        let table = HEAD.to_owned()
            + &listens("00000000", 2222, 11)
            + &listens("0100007F", 6010, 12)
            + &listens("00000000", 80, 13);
        let files = [
            ("proc/thread-self/net/tcp", table.as_str()),
            ("proc/812/comm", "sshd\n"),
            ("proc/812/fd/3", "-> socket:[11]"),
            ("proc/812/fd/4", "-> socket:[12]"),
            ("proc/900/comm", "nginx\n"),
            ("proc/900/fd/3", "-> socket:[13]"),
        ];
        assert_eq!(found(&files), [(2222, "sshd (pid 812)".to_owned())]);
    }

    #[test]
    fn a_socket_that_systemd_holds_is_sshd_s_on_its_usual_port_or_where_its_unit_says() {
        let table = HEAD.to_owned()
            + &listens("00000000", 22, 11)
            + &listens("00000000", 2022, 12)
            + &listens("00000000", 631, 13);
        let files = [
            ("proc/thread-self/net/tcp", table.as_str()),
            ("proc/1/comm", "systemd\n"),
            ("proc/1/fd/3", "-> socket:[11]"),
            ("proc/1/fd/4", "-> socket:[12]"),
            ("proc/1/fd/5", "-> socket:[13]"),
            (
                "etc/systemd/system/ssh.socket.d/port.conf",
                "[Socket]\nListenStream=\nListenStream=[::]:2022\n",
            ),
        ];
        let ports: Vec<u16> = found(&files).into_iter().map(|(port, _)| port).collect();
        assert_eq!(ports, [22, 2022]);
    }

    #[test]
    fn who_only_calls_itself_sshd_opens_no_way_in() {
        use crate::process::claim::Doubt;
        let table = HEAD.to_owned() + &listens("00000000", 2222, 11);
        let mut fixture = Fixture::of(&[
            ("proc/thread-self/net/tcp", table.as_str()),
            ("proc/812/comm", "sshd\n"),
            ("proc/812/fd/3", "-> socket:[11]"),
            // It holds nothing, so nothing is said of it.
            ("proc/813/comm", "sshd\n"),
        ]);
        fixture.host.judge = |_, _| Err(Doubt::User(1000));
        let (logins, notes) = logins(&fixture.host);
        assert_eq!(logins, []);
        assert_eq!(
            notes,
            [
                "a process calls itself sshd (pid 812) and is not believed, so what it says is left out: it runs as uid 1000"
            ]
        );
    }

    #[test]
    fn a_host_without_one_has_none() {
        assert_eq!(found(&[("proc/900/comm", "nginx\n")]), []);
    }
}
