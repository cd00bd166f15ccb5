//! What is said beside clap's own suggestions: words of other tools, and of ctwatch where they don't belong.
//! A tip is only told, never taken.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::text::nearest;

/// Words for what a command does.
const COMMANDS: &[(&str, &str)] = &[
    ("top", "drops"),
    ("watch", "drops"),
    ("live", "drops"),
    ("monitor", "drops"),
    ("stream", "drops"),
    ("trace", "drops"),
    ("events", "drops"),
    ("list", "table"),
    ("dump", "table"),
    ("show", "table"),
    ("entries", "table"),
    ("fix", "advise"),
    ("advice", "advise"),
    ("recommend", "advise"),
    ("tune", "advise"),
    ("doctor", "check"),
    ("preflight", "check"),
    ("play", "replay"),
    ("postmortem", "report"),
    ("capture", "record"),
    ("convert", "export"),
];

/// Flags of other tools, and what stands for them here. The second is told of commands that have it.
const FLAGS: &[(&str, &str)] = &[
    ("--json", "--format json"),
    ("--json", "--to ndjson"),
    ("--text", "--format text"),
    ("--html", "--format html"),
    ("--markdown", "--format md"),
    ("--md", "--format md"),
    ("--csv", "--to csv"),
    ("--parquet", "--to parquet"),
    ("--output-format", "--format"),
    ("--namespace", "--netns"),
    ("--ns", "--netns"),
    ("--source", "--src"),
    ("--saddr", "--src"),
    ("--destination", "--dst"),
    ("--daddr", "--dst"),
    ("--dport", "--port"),
    ("--group-by", "--by"),
    ("--sort", "--by"),
    ("--limit", "--top"),
    ("-n", "--top"),
    ("--timeout", "--duration"),
    ("--time", "--duration"),
    ("--follow", "--watch"),
    ("-f", "--watch"),
    ("--since", "--from"),
    ("--start", "--from"),
    ("--end", "--until"),
    ("--out", "--output"),
    ("--file", "--recording"),
    ("--reason", "--cause"),
    ("--lo", "--loopback"),
];

/// The same error, with a tip if there is one and clap has none.
pub(super) fn with_tip(mut error: clap::Error, all: &Command, arguments: &[OsString]) -> clap::Error {
    let tip = match error.kind() {
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            command(&error, all)
        }
        ErrorKind::UnknownArgument if error.get(ContextKind::SuggestedArg).is_none() => {
            flag(&error, all, arguments)
        }
        _ => None,
    };
    if let Some(tip) = tip {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

fn command(error: &clap::Error, all: &Command) -> Option<String> {
    let word = text(error, ContextKind::InvalidSubcommand)?.to_lowercase();
    let known = COMMANDS.iter().find(|(known, _)| *known == word).map(|(_, command)| *command);
    let command = known.or_else(|| nearest(&word, all.get_subcommands().map(Command::get_name)))?;
    Some(format!("did you mean 'ctwatch {command}'?"))
}

fn flag(error: &clap::Error, all: &Command, arguments: &[OsString]) -> Option<String> {
    let word = text(error, ContextKind::InvalidArg)?;
    let word = word.split('=').next().unwrap_or(word);
    let command = arguments.iter().skip(1).find_map(|argument| all.find_subcommand(argument))?;
    if command.get_name() == "record" && word == "--json" {
        return Some("record always prints JSON, a line for each thing that happens".to_owned());
    }
    let (_, flag) = FLAGS.iter().find(|(known, flag)| *known == word && has_flag(command, flag))?;
    Some(format!("did you mean '{flag}'?"))
}

/// Whether a command has this flag, which a value may follow.
fn has_flag(command: &Command, flag: &str) -> bool {
    let name = flag.trim_start_matches('-').split(' ').next();
    command.get_arguments().any(|argument| {
        let longs = argument.get_long_and_visible_aliases().unwrap_or_default();
        longs.into_iter().any(|long| Some(long) == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tips_name_what_is_there() {
        let all = super::super::command();
        for (_, command) in COMMANDS {
            assert!(all.find_subcommand(command).is_some(), "{command}");
        }
        let has = |flag: &str| all.get_subcommands().any(|command| has_flag(command, flag));
        for (word, flag) in FLAGS {
            assert!(has(flag), "{flag}");
            assert!(!has(word) || word.len() == 2, "{word} is a flag of ours");
        }
    }

    #[test]
    fn a_tip_fits_the_command() {
        let said = |line: &str| super::super::parse(line.split(' ')).unwrap_err().to_string();
        assert!(
            said("ctwatch drops --json").contains("did you mean '--format json'?"),
            "{}",
            said("ctwatch drops --json")
        );
        assert!(said("ctwatch export x --json").contains("did you mean '--to ndjson'?"));
        assert!(said("ctwatch record -o x --json").contains("always prints JSON"));
        assert!(said("ctwatch top").contains("did you mean 'ctwatch drops'?"));
        assert!(said("ctwatch drop").contains("'drops'"), "{}", said("ctwatch drop"));
        assert!(!said("ctwatch check --csv").contains("did you mean"));
    }
}
