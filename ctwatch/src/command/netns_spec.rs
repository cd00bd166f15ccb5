//! From the namespaces a user named to those that are there.
//! What can't be found is wrong usage, and the error says how to look it up.

use anyhow::Result;

use crate::cli::NetnsSpec;
use crate::error::{ExitContext as _, Failure};
use crate::kernel::capabilities::Capability;
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;
use crate::model::NetnsId;
use crate::netns;

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
            NetnsSpec::Inode(id) if namespaces.contains_key(id) => Ok(*id),
            NetnsSpec::Inode(id) => Err(Failure::usage(format!(
                "--netns: no process and no name leads to {id}; `lsns -t net` lists them"
            ))
            .into()),
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
