//! What a user, or a script with foreign words in it, writes on the command line.

use ctwatch_common::Cause;
use jiff::Timestamp;

use crate::cli::{self, Command};
use crate::model::{Backend, Loss};
use crate::state::{PortRange, State};
use crate::testing;

/// An argument a line, the subcommand first: what filters, conditions, spans and changes mean, and which losses pass.
pub(super) fn filter(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let arguments = std::iter::once("ctwatch").chain(text.lines().take(64));
    let drops = match cli::parse(arguments) {
        Err(error) => return drop(error.to_string()),
        Ok(config) => match config.command {
            Command::Drops(drops) => drops,
            _ => return,
        },
    };
    let wanted = drops.filter.clone();
    let mut state = State::new(drops.settings(Backend::Kprobe, None));
    let time = Timestamp::UNIX_EPOCH;
    for cause in Cause::ALL {
        let loss = Loss { cause, ..testing::loss(time) };
        if state.loss(&loss).is_some() {
            let port = |range: &PortRange| (range.first..=range.last).contains(&6379);
            assert!(wanted.ports.is_empty() || wanted.ports.iter().any(port));
            assert!(wanted.causes.is_empty() || wanted.causes.contains(&cause));
            assert_ne!(wanted.loopback, Some(false));
        }
    }
    drop(state.end(time));
}
