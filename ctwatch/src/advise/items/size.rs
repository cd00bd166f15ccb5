//! A larger table: nf_conntrack_max, with buckets to match, and the memory it takes.
//! Computed from the demand, never by a rule of thumb.

use super::{ChangeKind, Draft, Item, Level, TARGET_FILL, limit, set_sysctl};
use crate::advise::case::Case;
use crate::advise::whatif::Changes;
use crate::firewall::Commands;
use crate::foreign::Shown as _;
use crate::machine::table::Module;
use crate::text::shell::quote;
use crate::text::{counted, mib, thousands};

/// Room for this multiple of the present peak; rounding up to a power of two adds more.
const HEADROOM: f64 = 1.5;
/// A table that takes a larger share of RAM is a high risk.
const MAX_RAM_SHARE: f64 = 0.1;

pub(super) fn items(case: &Case) -> Vec<Item> {
    let now = case.demand.after(&Changes::default());
    if now.max == 0 || now.peak <= TARGET_FILL * limit(now.max) {
        return Vec::new();
    }
    let wanted = (now.peak * HEADROOM).min(f64::from(1_u32 << 30)) as u32;
    let max = wanted.next_power_of_two().max(now.max.saturating_mul(2));
    vec![item(case, max)]
}

fn item(case: &Case, max: u32) -> Item {
    let before = case.demand.after(&Changes::default());
    let change = Changes { max: Some(max), ..Changes::default() };
    let full = case.machine.table.entry.memory(u64::from(max), u64::from(max)).1;
    let part_of_ram = case.machine.memory.map(|memory| full as f64 / memory.total as f64);
    let is_too_much = part_of_ram.is_some_and(|part| part > MAX_RAM_SHARE);
    let mut item = Draft {
        id: "max".to_owned(),
        kind: ChangeKind::Size,
        title: format!("raise nf_conntrack_max from {} to {max}, buckets to match", before.max),
        evidence: format!(
            "the present load needs {}{} on average, {} just before garbage collection; the limit is {}",
            case.demand.basis().word(),
            counted(before.needed as u64, "entry", "entries"),
            thousands(before.peak as u64),
            thousands(before.max.into())
        ),
        change,
        risk: if is_too_much { Level::High } else { Level::Low },
        risk_text: match part_of_ram {
            Some(part) if is_too_much => format!(
                "a full table takes {:.0} % of this host's memory, which the kernel can neither swap out nor reclaim",
                part * 100.0
            ),
            _ => "kernel memory while entries exist; changing the buckets stalls tracking during the rehash"
                .to_owned(),
        },
    }
    .on(case);
    item.notes.push(format!(
        "a full table takes at most {} of memory, {} bytes per entry",
        mib(full),
        case.entry_bytes()
    ));
    item.commands = buckets(case, max);
    set_sysctl(case, &mut item, "max", max, before.max);
    item
}

/// Buckets come first: a long hash chain drops packets too, whatever max is.
fn buckets(case: &Case, max: u32) -> Commands {
    const PARAMETER: &str = "/sys/module/nf_conntrack/parameters/hashsize";
    let (table, settings) = (&case.machine.table, &case.machine.settings);
    let Some(before) = table.buckets.filter(|before| *before < u64::from(max)) else {
        return Commands::default();
    };
    let set = |buckets: u64| format!("echo {buckets} > {PARAMETER}");
    let mut commands = Commands { now: vec![set(u64::from(max))], keep: Vec::new(), undo: vec![set(before)] };
    match table.module {
        Module::Loaded => {
            let file = quote(&settings.modprobe_file().shown().to_string());
            commands.keep.push("mkdir -p /etc/modprobe.d".to_owned());
            commands.keep.push(format!("echo options nf_conntrack hashsize={max} > {file}"));
            commands.undo.push(format!("rm -f {file}"));
        }
        Module::BuiltIn | Module::Absent => {
            commands.keep.push(format!(
                "# conntrack is built in: add nf_conntrack.hashsize={max} to the kernel command line"
            ));
        }
    }
    commands
}
