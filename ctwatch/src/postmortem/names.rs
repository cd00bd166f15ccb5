//! What the namespaces of a recording are called.
//! One without a name is called by its number, as `lsns` prints it.

use std::collections::HashMap;

use crate::foreign::Foreign;
use crate::model::NetnsId;
use crate::record::rows::Names;

pub(super) type AllNames = HashMap<NetnsId, Names>;

pub(super) fn name(names: &AllNames, id: NetnsId) -> Foreign {
    let known = names.get(&id).and_then(|names| names.name.clone());
    known.unwrap_or_else(|| id.to_string().into())
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
