//! `ctwatch advise --recording`: the same advice from a file, the morning after, on any host.
//! Needs no rights but to read it.

use std::path::Path;

use anyhow::Result;

use super::{VERSION, confine, show};
use crate::advise::recorded::{Question, Which, case};
use crate::cli::{AdviseConfig, Config, NetnsSpec};
use crate::error::{Exit, Failure};
use crate::model::HOST_NETNS;
use crate::record::{Recording, ticks_read};
use crate::sandbox::{Files, Work};
use crate::stderr::Progress;
use crate::text::thousands;

pub(super) fn run(config: &Config, advise: &AdviseConfig, path: &Path) -> Result<Exit> {
    confine(config, Work::Reads, &Files::read([path]));
    let progress = Progress::show(|| format!("reading the recording: {} ticks", thousands(ticks_read())));
    let recording = Recording::open(path)?;
    let question = Question {
        netns: advise.netns.as_ref().map(which).transpose()?,
        window_s: advise.window.as_secs_f64(),
        ticks: i64::MIN..=i64::MAX,
        times: advise.times,
        bare: false,
    };
    let (case, source) = case(&recording, VERSION, &question)?;
    drop(progress);
    show(config, advise, &case, source)
}

fn which(spec: &NetnsSpec) -> Result<Which> {
    match spec {
        NetnsSpec::Host => Ok(Which::Name(HOST_NETNS.to_owned())),
        NetnsSpec::Name(name) => Ok(Which::Name(name.clone())),
        NetnsSpec::Inode(number) => Ok(Which::Number(*number)),
        NetnsSpec::Pid(pid) => {
            let text = format!("--netns pid:{pid}: a recording knows no processes; give a name or an inode");
            Err(Failure::usage(text).into())
        }
    }
}
