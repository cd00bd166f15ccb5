//! From the namespaces a user named to those that are there.
//! What can't be found is wrong usage, and the error says how to look it up.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::cli::NetnsSpec;
use crate::error::{ExitContext as _, Failure};
use crate::kernel::capabilities::Capability;
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;
use crate::model::{NetnsId, NetnsNumber};
use crate::netns::{self, Netns};

/// The namespaces the user named; `None` if none.
pub(super) fn resolve(specs: &[NetnsSpec]) -> Result<Option<Vec<NetnsId>>> {
    if specs.is_empty() {
        return Ok(None);
    }
    let namespaces = netns::discover()?;
    specs
        .iter()
        .map(|spec| match spec {
            NetnsSpec::Host => netns::host().map_err(|error| Failure::usage(format!("{error:#}")).into()),
            NetnsSpec::Name(name) => netns::find(&namespaces, name)
                .map_err(|error| Failure::usage(format!("--netns: {error:#}")).into()),
            NetnsSpec::Inode(number) => by_number(&namespaces, *number).map_err(|why| Failure::usage(why).into()),
            NetnsSpec::Pid(pid) => netns::id_of(format!("/proc/{pid}/ns/net").as_ref()).or_usage(|| {
                let how = Standing::look(&Roots::default()).how_to_get(&[Capability::SysPtrace]);
                format!(
                    "--netns pid:{pid}: no such process, or no permission to read its namespace (this needs CAP_SYS_PTRACE: {how})"
                )
            }),
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}

/// The netns that has this inode number now.
fn by_number(namespaces: &BTreeMap<NetnsId, Netns>, number: NetnsNumber) -> Result<NetnsId, String> {
    if number.generation.is_some_and(|generation| generation > 0) {
        return Err(format!(
            "--netns {number}: # counts the namespaces that had this inode number since a ctwatch started, so only a recording \
             can tell them apart; for the one that has it now: net:[{}]",
            number.inode
        ));
    }
    let id = NetnsId::from_inode(number.inode);
    if namespaces.contains_key(&id) {
        return Ok(id);
    }
    Err(format!("--netns: no process and no name leads to {id}; `lsns -t net` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_namespaces_with_one_number_only_a_recording_knows_the_later_ones() {
        let id = NetnsId::from_inode(4_026_532_299);
        let netns = Netns { id, path: "/x".into(), name: None, container: None };
        let namespaces = BTreeMap::from([(id, netns)]);
        let found = |text: &str| by_number(&namespaces, NetnsNumber::from_words(text).expect("a number"));
        for now in ["4026532299", "net:[4026532299]", "net:[4026532299]#0"] {
            assert_eq!(found(now), Ok(id), "{now}");
        }
        let error = found("net:[4026532299]#1").expect_err("it is no longer there, or not yet");
        assert!(error.contains("for the one that has it now: net:[4026532299]"), "{error}");
        let error = found("4026532300").expect_err("it isn't there");
        assert!(error.contains("leads to net:[4026532300];"), "{error}");
    }
}
