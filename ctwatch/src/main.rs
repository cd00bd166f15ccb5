//! `ctwatch`: which flows a full nf_conntrack table hurts, who filled it, and what would fix it.
//! Parses, runs, maps the exit code; nothing else.

// These panic where nobody reads.
#![deny(clippy::print_stderr, clippy::print_stdout)]

use std::process::ExitCode;

use ctwatch::cli::{self, Command};
use ctwatch::command::{advise, check, drops, export, record, replay, report, table};
use ctwatch::error::shortage;
use ctwatch::{error, memory, stderr};

fn main() -> ExitCode {
    memory::give_back_large_pieces();
    let config = cli::from_command_line();
    let result = shortage::ensure_room().map_err(Into::into).and_then(|()| match &config.command {
        Command::Drops(arguments) => drops::run(&config, arguments),
        Command::Advise(arguments) => advise::run(&config, arguments),
        Command::Report(arguments) => report::run(&config, arguments),
        Command::Table(arguments) => table::run(&config, arguments),
        Command::Record(arguments) => record::run(&config, arguments),
        Command::Replay(arguments) => replay::run(&config, arguments),
        Command::Export(arguments) => export::run(&config, arguments),
        Command::Check(arguments) => check::run(&config, arguments),
    });
    let exit = result.unwrap_or_else(|error| {
        if let Some(message) = error::message(&error) {
            stderr::line(message);
        }
        error::exit(&error)
    });
    stderr::settle();
    ExitCode::from(exit as u8)
}
