//! The command line: raw arguments in, one resolved [`Config`] out.
//! No other room uses clap or reads arguments. Each command has one file with its arguments, its config and its examples;
//! `common` holds what they share. Help has to fit 80 columns.

mod advise;
mod check;
mod common;
mod drops;
mod export;
mod file_format;
mod record;
mod replay;
mod report;
mod table;
mod tips;

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind as IoErrorKind, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand};
use jiff::tz::TimeZone;

use crate::foreign::harmless;
use crate::kernel::roots::Roots;
use crate::stderr;
use crate::text::TextOptions;
pub use advise::{AdviceFormat, AdviseConfig};
pub use check::CheckConfig;
pub use common::{BackendChoice, Format, NetnsSpec};
pub use drops::{DropsConfig, TableFullBy};
pub use export::ExportConfig;
pub use file_format::ExportFormat;
pub use record::RecordConfig;
pub use replay::{ReplayConfig, Speed};
pub use report::ReportConfig;
pub use table::TableConfig;

/// Show which flows a full nf_conntrack table drops, and why.
#[derive(Debug, Parser)]
#[command(name = "ctwatch", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: CommandArgs,
}

#[derive(Debug, Args)]
struct GlobalArgs {
    /// Print more to stderr; -vv adds the eBPF programs' log
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 900)]
    verbose: u8,
    /// Where /proc is mounted
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true, global = true)]
    proc_root: PathBuf,
    /// Where /sys is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true, global = true)]
    sys_root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum CommandArgs {
    /// Stream conntrack drops: a status line per interval, a row per key
    Drops(drops::DropsArgs),
    /// Show what occupies the table now (no eBPF needed)
    Table(table::TableArgs),
    /// Recommend fixes: expected effect, risks, commands to apply and undo
    Advise(advise::AdviseArgs),
    /// Record continuously into one size-limited SQLite file
    Record(record::RecordArgs),
    /// Play a recording back as `drops` would have shown it
    Replay(replay::ReplayArgs),
    /// Convert a recording to NDJSON, CSV or Parquet
    Export(export::ExportArgs),
    /// Write a postmortem from recordings: text, Markdown, HTML or JSON
    Report(report::ReportArgs),
    /// Check whether ctwatch can run here; if not, why and what to do
    Check(check::CheckArgs),
}

/// Everything the command line and the environment decide.
#[derive(Clone, Debug)]
pub struct Config {
    /// 0, 1 for -v, 2 and more for -vv.
    pub verbosity: u8,
    /// Where /proc is mounted.
    pub proc_root: PathBuf,
    /// Where /sys is mounted.
    pub sys_root: PathBuf,
    /// How text looks on this terminal.
    pub look: TextOptions,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// `ctwatch drops`
    Drops(DropsConfig),
    /// `ctwatch table`
    Table(TableConfig),
    /// `ctwatch advise`
    Advise(AdviseConfig),
    /// `ctwatch record`
    Record(RecordConfig),
    /// `ctwatch replay`
    Replay(ReplayConfig),
    /// `ctwatch export`
    Export(ExportConfig),
    /// `ctwatch report`
    Report(ReportConfig),
    /// `ctwatch check`
    Check(CheckConfig),
}

/// The configuration of this process. Wrong usage and `--help` end the process here (codes 2 and 0; 1 if help can't be
/// written).
#[must_use]
pub fn from_command_line() -> Config {
    parse(std::env::args_os()).unwrap_or_else(|error| {
        if !error.use_stderr() {
            // A reader that went has read what it wanted.
            let written = error.print().and_then(|()| std::io::stdout().flush());
            let failed = written.err().filter(|error| error.kind() != IoErrorKind::BrokenPipe);
            if let Some(failed) = &failed {
                stderr::line(format_args!("error: writing to stdout: {failed}"));
                stderr::settle();
            }
            std::process::exit(i32::from(failed.is_some()))
        }
        if !std::env::args_os().any(|argument| acts(&argument)) {
            error.exit()
        }
        // clap repeats arguments as they are.
        stderr::line(error.render());
        stderr::settle();
        std::process::exit(error.exit_code())
    })
}

/// Whether a terminal would do something with this argument.
fn acts(argument: &OsStr) -> bool {
    argument.to_str().is_none_or(|text| harmless(text) != text)
}

/// The configuration these arguments mean (the first one is the program's name).
///
/// # Errors
/// What clap says about wrong usage, or the text of `--help` and `--version`.
pub fn parse<T: Into<OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Config, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let parsed = Cli::try_parse_from(&arguments).and_then(Config::resolve);
    parsed.map_err(|error| tips::with_tip(error, &command(), &arguments))
}

/// The clap command, for help goldens and man pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

impl Config {
    /// Where to look for what the kernel says.
    #[must_use]
    pub fn roots(&self) -> Roots {
        Roots { proc: self.proc_root.clone(), sys: self.sys_root.clone() }
    }

    fn resolve(cli: Cli) -> Result<Self, clap::Error> {
        let Cli { global, command } = cli;
        let GlobalArgs { verbose, proc_root, sys_root } = global;
        Ok(Self {
            verbosity: verbose,
            proc_root,
            sys_root,
            look: TextOptions { color: wants_color(), time_zone: TimeZone::system() },
            command: match command {
                CommandArgs::Drops(drops) => Command::Drops(DropsConfig::resolve(drops)),
                CommandArgs::Table(table) => Command::Table(TableConfig::resolve(table)),
                CommandArgs::Advise(advise) => Command::Advise(AdviseConfig::resolve(advise)),
                CommandArgs::Record(record) => {
                    let config = RecordConfig::resolve(record);
                    Command::Record(config.map_err(|text| conflict("record", text))?)
                }
                CommandArgs::Replay(replay) => Command::Replay(ReplayConfig::resolve(replay)),
                CommandArgs::Export(export) => {
                    let config = ExportConfig::resolve(export);
                    Command::Export(config.map_err(|text| missing("export", text))?)
                }
                CommandArgs::Report(report) => {
                    let config = ReportConfig::resolve(report);
                    Command::Report(config.map_err(|text| conflict("report", text))?)
                }
                CommandArgs::Check(check) => Command::Check(CheckConfig::resolve(check)),
            },
        })
    }
}

/// An error about arguments that exclude each other, with the usage of their command as clap does it.
fn conflict(name: &str, text: String) -> clap::Error {
    usage(name, ErrorKind::ArgumentConflict, text)
}

/// The same about an argument that is missing.
fn missing(name: &str, text: String) -> clap::Error {
    usage(name, ErrorKind::MissingRequiredArgument, text)
}

fn usage(name: &str, kind: ErrorKind, text: String) -> clap::Error {
    let mut all = command();
    all.build();
    match all.find_subcommand_mut(name) {
        Some(command) => command.error(kind, text),
        None => all.error(kind, text),
    }
}

/// Colour only on a terminal that supports it, and unless NO_COLOR is set (<https://no-color.org>).
fn wants_color() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

#[cfg(test)]
mod tests;
