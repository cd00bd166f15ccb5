//! `ctwatch check` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use clap::Args;

use super::common::{Format, FormatArgs};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct CheckArgs {
    #[command(flatten)]
    output: FormatArgs,
    /// Load every program and print what the verifier says
    #[arg(long, hide = true)]
    verifier: bool,
}

const AFTER: &str = "Exit codes: 0 ctwatch can run here; 2 usage error; 3 it cannot";

/// `ctwatch check`
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// How to print.
    pub format: Format,
    /// Print what the verifier says about every program.
    pub verifier: bool,
}

impl CheckConfig {
    pub(super) fn resolve(args: CheckArgs) -> Self {
        let CheckArgs { output: FormatArgs { format }, verifier } = args;
        Self { format, verifier }
    }
}
