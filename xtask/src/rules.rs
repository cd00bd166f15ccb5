//! The judge of NOTRACK on this host: random rule sets by the thousand, and the cases that people have.
//! Everything happens in netns of its own; no sysctl and no file of the host is written.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::{apt, dist, sh, test};

/// Arguments of `cargo xtask rules`.
#[derive(clap::Args)]
pub struct Args {
    /// How many random rule sets
    #[arg(long, default_value_t = 2000)]
    count: u64,
    /// Which ones [default: others each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Only the one with this number, made as small as it gets
    #[arg(long, requires = "seed")]
    only: Option<u64>,
    /// Tell which refusals were harmless
    #[arg(long)]
    harmless: bool,
    /// Not random ones: those of tests/cases whose names begin so, all with \"\"
    #[arg(long, value_name = "NAME", conflicts_with_all = ["seed", "only", "count", "harmless"])]
    cases: Option<String>,
}

/// Runs `cargo xtask rules`.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(sh::is_root(), "network namespaces need root");
    apt::install_on_host(&["nftables", "iproute2", "iptables"], "rule sets in netns")?;
    dist::both()?;
    let mut words = Vec::new();
    if let Some(name) = &args.cases {
        words.push("cases".to_owned());
        words.extend(Some(name.clone()).filter(|name| !name.is_empty()));
    } else {
        words.extend(["rules".to_owned(), "--count".to_owned(), args.count.to_string()]);
        for (option, value) in [("--seed", args.seed), ("--only", args.only)] {
            words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value.to_string()]));
        }
    }
    if args.harmless {
        words.push("--harmless".to_owned());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(if test::on_host(&words, None)?.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
