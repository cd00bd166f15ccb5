//! The postmortem in one sentence that needs no knowledge of conntrack: when, what was lost, why, and what filled the table.
//! It says nothing that the recording doesn't: what is unknown is called unknown, and a lower bound "at least".

use ctwatch_common::Cause;
use ctwatch_common::cause::Unit;
use jiff::{SignedDuration, Timestamp};

use super::at::At;
use super::clock::Clock;
use crate::foreign::Foreign;
use crate::model::{HOST_NETNS, KernelCounters, ServicePort};
use crate::text::{duration, percent, thousands};

/// A listing further from the worst moment than this doesn't tell what the table held then.
pub(super) const NEAR_S: f64 = 300.0;
/// From here on the minute is enough.
const MINUTES_S: f64 = 300.0;
/// Ticks that are longer make times coarse.
const COARSE_S: f64 = 10.0;

/// One in so many packets whose service is uncertain is worth mention.
const DOUBTFUL: u64 = 100;

/// What the sentence is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// What was looked at; none if no tick is in it.
    pub span: Option<(At, At)>,
    /// When something was lost.
    pub losing: Option<Losing>,
    /// Losses by cause.
    pub by_cause: Vec<(Cause, u64)>,
    /// Packets lost by service, most first.
    pub packets: Vec<(Service, u64)>,
    /// Entries evicted by service, most first.
    pub entries: Vec<(Service, u64)>,
    /// The namespaces that lost something, that with most losses first.
    pub netns: Vec<Foreign>,
    /// Causes are inferred.
    pub inferred: bool,
    /// Packets and entries that the kernel counted and ctwatch didn't.
    pub missed: (u64, u64),
    /// Packets whose service may be that of a packet the firewall dropped.
    pub ambiguous: u64,
    /// The kernel's counters, where nothing else counted.
    pub kernel_only: Option<KernelCounters>,
    /// Time that was not recorded, from the first loss to the last, or in all of the span if nothing was lost.
    pub gaps_s: f64,
    /// The highest fill, and in which netns.
    pub peak: Option<(f64, Foreign)>,
    /// The most entries of a table without a limit, and in which netns.
    pub unlimited: Option<(u32, Foreign)>,
    pub occupancy: Occupancy,
}

/// When something was lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losing {
    /// Beginning of the first tick that lost something.
    pub from: At,
    /// End of the last one.
    pub to: At,
    /// Time in ticks that lost something.
    pub seconds: f64,
    /// Length of the longer one of the first and the last tick.
    pub tick_s: f64,
    /// It is the first tick of the span.
    pub is_first: bool,
    /// The last tick of the span lost something, too.
    pub is_last: bool,
    /// Of some losses only the sum is left.
    pub is_untimed: bool,
}

/// Whom losses hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Service {
    Known { port: ServicePort, loopback: bool },
    Unknown,
}

/// What the table held at the worst moment.
#[derive(Clone, Debug, Default)]
pub(super) enum Occupancy {
    /// There is no table, or it doesn't matter.
    #[default]
    None,
    /// It was never listed.
    NeverListed,
    /// It was listed, but too long before or after to say.
    ListedFarAway { distance_s: f64 },
    Known {
        /// The table's netns.
        netns: Foreign,
        /// Who held most entries, and their part of the table.
        port: ServicePort,
        share: f64,
        exact: bool,
        /// Its TIME_WAIT entries as a part of that table when it was listed, and as a part of its own entries; when
        /// that was, and how many seconds from the worst moment.
        time_wait: Option<(f64, f64, Timestamp, f64)>,
    },
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Known { port, loopback } = self else { return f.write_str("unknown services") };
        match (port.service(), loopback) {
            (Some(service), true) => write!(f, "{port} ({service}, loopback)"),
            (Some(service), false) => write!(f, "{port} ({service})"),
            (None, true) => write!(f, "{port} (loopback)"),
            (None, false) => write!(f, "{port}"),
        }
    }
}

impl Facts {
    /// The sentence, with times as this clock writes them.
    pub fn sentence(&self, clock: &Clock) -> String {
        let Some((from, to)) = self.span else {
            return "No tick of the recording is in this span: there is nothing to report.".to_owned();
        };
        let losing = self.losing.map(|losing| when(&losing, clock));
        if let Some(KernelCounters { drop, early_drop, insert_failed, .. }) = self.kernel_only
            && drop + early_drop + insert_failed > 0
        {
            // A failed insert may count as a drop as well: see `Cause`.
            let bound = if insert_failed > 0 { "at least " } else { "" };
            return format!(
                "{}, the kernel counted {bound}{} dropped and {} evicted early; which services were affected is \
                 unknown, as only the kernel's own counters were recorded{}.",
                losing.unwrap_or_else(|| between(from, to, clock)),
                counted(drop.max(insert_failed), Unit::Packets),
                counted(early_drop, Unit::Entries),
                self.unrecorded()
            );
        }
        match losing.filter(|_| self.lost(Unit::Packets) + self.lost(Unit::Entries) > 0) {
            Some(when) => format!("{when}, {}{}.", self.losses(), self.occupancy(clock)),
            None => self.quiet(from, to, clock),
        }
    }

    fn quiet(&self, from: At, to: At, clock: &Clock) -> String {
        let when = between(from, to, clock);
        let fill = match (&self.peak, &self.unlimited) {
            (Some((fill, netns)), _) => {
                format!("the fullest table ({netns}) was {} full at most", percent(*fill))
            }
            (None, Some((count, netns))) => {
                let entries = counted(u64::from(*count), Unit::Entries);
                format!("the table ({netns}) had no limit, and {entries} at most")
            }
            (None, None) => "how full the table was is unknown".to_owned(),
        };
        let (packets, entries) = self.missed;
        if packets + entries > 0 {
            return format!(
                "{when}, ctwatch saw no losses, but the kernel counted {} dropped and {} evicted early; {fill}{}.",
                counted(packets, Unit::Packets),
                counted(entries, Unit::Entries),
                self.unrecorded()
            );
        }
        format!("{when}, conntrack lost nothing{}; {fill}.", self.unrecorded())
    }

    fn unrecorded(&self) -> String {
        if self.gaps_s > 0.0 {
            format!(" ({} of that time was not recorded)", duration(self.gaps_s))
        } else {
            String::new()
        }
    }

    fn lost(&self, unit: Unit) -> u64 {
        self.causes(unit).map(|(_, count)| count).sum()
    }

    /// A packet that passes untracked isn't lost.
    fn causes(&self, unit: Unit) -> impl Iterator<Item = (Cause, u64)> {
        let counts = move |(cause, count): &(Cause, u64)| {
            cause.unit() == unit && *cause != Cause::Invalid && *count > 0
        };
        self.by_cause.iter().copied().filter(counts)
    }

    /// "at least" where some may be missing.
    fn amount(&self, unit: Unit) -> String {
        let missed = match unit {
            Unit::Packets => self.missed.0,
            Unit::Entries => self.missed.1,
        };
        let bound = if missed > 0 || self.gaps_s > 0.0 { "at least " } else { "" };
        format!("{bound}{}", counted(self.lost(unit), unit))
    }

    fn losses(&self) -> String {
        let (packets, entries) = (self.lost(Unit::Packets), self.lost(Unit::Entries));
        let place = match self.netns.as_slice() {
            [] => String::new(),
            [one] if *one == HOST_NETNS => String::new(),
            [one] => format!(" in network namespace {one}"),
            [most, ..] => format!(" in {} network namespaces (most of them in {most})", self.netns.len()),
        };
        let missing = self.unrecorded();
        if packets == 0 {
            let of = of_services("of", &self.entries, entries);
            let also = match self.missed.0 {
                0 if self.gaps_s > 0.0 => "no packet was seen to be dropped".to_owned(),
                0 => "no packet was dropped".to_owned(),
                missed => format!("the kernel also counted {} dropped", counted(missed, Unit::Packets)),
            };
            let evicted = self.evicted();
            return match of {
                Of::One(service) => format!(
                    "{} of {service}{place} {} {evicted}{missing}; {also}",
                    self.amount(Unit::Entries),
                    were(entries)
                ),
                Of::Some(part) => {
                    format!(
                        "{}{place} {} {evicted}{part}{missing}; {also}",
                        self.amount(Unit::Entries),
                        were(entries)
                    )
                }
            };
        }
        let evicted = if entries > 0 {
            format!(", and {} {} evicted early", self.amount(Unit::Entries), were(entries))
        } else {
            String::new()
        };
        let amount = self.amount(Unit::Packets);
        let known = self.packets.iter().any(|(service, _)| *service != Service::Unknown);
        let doubt = if known && self.ambiguous.saturating_mul(DOUBTFUL) >= packets {
            format!(" (the service is uncertain for {} of them)", thousands(self.ambiguous.min(packets)))
        } else {
            String::new()
        };
        let dropped = format!("{} {}", were(packets), self.dropped());
        match of_services("to", &self.packets, packets) {
            Of::One(service) => format!("{amount} to {service}{doubt}{place} {dropped}{evicted}{missing}"),
            Of::Some(part) => format!("{amount}{place} {dropped}{part}{doubt}{evicted}{missing}"),
        }
    }

    /// How packets were lost, and why.
    fn dropped(&self) -> String {
        let mut causes: Vec<_> = self.causes(Unit::Packets).collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let table = if self.netns.len() > 1 { "their tables were full" } else { "the table was full" };
        let probably = if self.inferred { "probably " } else { "" };
        if let [(cause, _)] = causes.as_slice() {
            let verb = if *cause == Cause::TableFull { "refused" } else { "dropped" };
            return match reason(*cause, table) {
                Some(reason) if self.inferred => format!("{verb}, {probably}because {reason}"),
                Some(reason) => format!("{verb} because {reason}"),
                None => format!("{verb} for an unknown reason"),
            };
        }
        let part = |(cause, count): &(Cause, u64)| {
            let count = thousands(*count);
            match reason(*cause, table) {
                Some(reason) => format!("{count} {probably}because {reason}"),
                None => format!("{count} for an unknown reason"),
            }
        };
        let (named, others) = causes.split_at(causes.len().min(2));
        let mut parts: Vec<String> = named.iter().map(part).collect();
        let others: u64 = others.iter().map(|(_, count)| count).sum();
        if others > 0 {
            parts.push(format!("{} for other reasons", thousands(others)));
        }
        format!("dropped ({})", parts.join(", "))
    }

    /// How entries were lost, and why.
    fn evicted(&self) -> String {
        let of = |wanted: Cause| self.causes(Unit::Entries).any(|(cause, _)| cause == wanted);
        let probably = if self.inferred { ", probably" } else { "" };
        match (of(Cause::Evicted), of(Cause::GcEvicted)) {
            (_, false) => format!("evicted early{probably} to make room for new connections"),
            (false, true) => format!("evicted early{probably} because the table was nearly full"),
            (true, true) => format!("evicted early{probably} because the table was full or nearly full"),
        }
    }

    /// Whether it matters what filled the table.
    fn was_full(&self) -> bool {
        let full = |cause| matches!(cause, Cause::TableFull | Cause::Evicted | Cause::GcEvicted);
        self.by_cause.iter().any(|(cause, count)| full(*cause) && *count > 0)
    }

    fn occupancy(&self, clock: &Clock) -> String {
        if !self.was_full() {
            return String::new();
        }
        let (netns, port, share, exact, time_wait) = match &self.occupancy {
            Occupancy::None => return "; what filled the table is unknown".to_owned(),
            Occupancy::NeverListed => {
                return "; what filled the table is unknown, as the recording has no listing of it"
                    .to_owned();
            }
            Occupancy::ListedFarAway { distance_s } => {
                return format!(
                    "; what filled the table then is unknown, as its nearest listing is {} away",
                    duration(*distance_s)
                );
            }
            Occupancy::Known { netns, port, share, exact, time_wait } => {
                (netns, *port, *share, exact, time_wait)
            }
        };
        let victims = if self.lost(Unit::Packets) > 0 { &self.packets } else { &self.entries };
        let victim = victims.iter().find_map(|(service, _)| match service {
            Service::Known { port, .. } => Some(*port),
            Service::Unknown => None,
        });
        let same = victim == Some(port);
        let service = if same {
            "the same service".to_owned()
        } else {
            Service::Known { port, loopback: false }.to_string()
        };
        let table =
            if self.netns.len() > 1 { format!("the table of {netns}") } else { "the table".to_owned() };
        let about = if *exact { "" } else { "about " };
        let belonged = format!("{about}{} of {table} belonged to {service}", percent(share));
        match time_wait {
            Some((of_table, of_service, at, distance_s)) if *distance_s <= NEAR_S && *of_service >= 0.5 => {
                format!(
                    "; {} of {table} were TIME_WAIT entries of {service} (as listed at {})",
                    percent(*of_table),
                    clock.time(*at)
                )
            }
            None if port.is_tcp() => format!("; {belonged}, how much of it in TIME_WAIT is unknown"),
            Some((.., distance_s)) if *distance_s > NEAR_S => format!(
                "; {belonged}, how much of it in TIME_WAIT is unknown, as the nearest listing is {} away",
                duration(*distance_s)
            ),
            _ => format!("; {belonged}"),
        }
    }
}

/// Whose the losses are.
enum Of {
    /// All of one service.
    One(Service),
    /// How many of the one that has most.
    Some(String),
}

fn of_services(preposition: &str, services: &[(Service, u64)], total: u64) -> Of {
    let unknown =
        services.iter().find(|(service, _)| *service == Service::Unknown).map_or(0, |(_, lost)| *lost);
    let known: u64 = services.iter().map(|(_, lost)| lost).sum::<u64>().saturating_sub(unknown);
    // Those without a port of their own may be anybody's.
    let unknown = unknown.max(total.saturating_sub(known));
    match services.iter().find(|(service, _)| *service != Service::Unknown) {
        None => Of::Some(format!(", {preposition} services that are unknown")),
        Some((service, lost)) if *lost >= total => Of::One(*service),
        Some((service, lost)) => {
            let bound = if unknown > 0 { "at least " } else { "" };
            Of::Some(format!(
                ", {bound}{} of them {preposition} {service}",
                percent(*lost as f64 / total.max(1) as f64)
            ))
        }
    }
}

fn when(losing: &Losing, clock: &Clock) -> String {
    let Losing { from, to, seconds, tick_s, is_first, is_last, is_untimed } = *losing;
    let lasted_s = to.since(from);
    let (begin, end) = times(from, to, clock);
    let mut remarks = Vec::new();
    if seconds < lasted_s / 2.0 && !is_untimed {
        remarks.push(format!("with losses during {}", duration(seconds)));
    }
    if tick_s >= COARSE_S && !is_untimed {
        remarks.push(format!("times are accurate to {}", duration(tick_s)));
    }
    let remarks = if remarks.is_empty() { String::new() } else { format!(" ({})", remarks.join("; ")) };
    let until = if is_last { "until at least" } else { "to" };
    if is_untimed {
        let until = if is_last { "at least " } else { "" };
        return format!("Until {until}{end}, from a time that is unknown");
    }
    let or_earlier = if is_first { " or earlier" } else { "" };
    format!("From {begin}{or_earlier} {until} {end}{remarks}")
}

fn between(from: At, to: At, clock: &Clock) -> String {
    let (begin, end) = times(from, to, clock);
    format!("From {begin} to {end}")
}

/// Two times, the second with its zone. Minutes where these are enough: then the span is widened to them.
fn times(from: At, to: At, clock: &Clock) -> (String, String) {
    let is_short = to.since(from) < MINUTES_S;
    let (from, to) = (from.time, to.time);
    if is_short {
        return (clock.time(from), clock.time_and_zone(to));
    }
    let up = to + SignedDuration::from_secs(59);
    (clock.minute(from), clock.minute_and_zone(up))
}

fn reason(cause: Cause, table: &str) -> Option<String> {
    let reason = match cause {
        Cause::TableFull => table,
        Cause::NoMemory => "the kernel had no memory for an entry",
        Cause::Clash => "two CPUs inserted the same connection at once",
        Cause::ChainTooLong => "a hash chain of the table was too long",
        Cause::Dying => "their entries were already being deleted",
        Cause::TcpRace => "a closing connection was reopened",
        Cause::ExpectFull => "a helper found no room for an expected connection",
        Cause::Other | Cause::Evicted | Cause::GcEvicted | Cause::Invalid => return None,
    };
    Some(reason.to_owned())
}

const fn were(count: u64) -> &'static str {
    if count == 1 { "was" } else { "were" }
}

fn counted(count: u64, unit: Unit) -> String {
    let name = match (unit, count) {
        (Unit::Packets, 1) => "packet",
        (Unit::Packets, _) => "packets",
        (Unit::Entries, 1) => "table entry",
        (Unit::Entries, _) => "table entries",
    };
    format!("{} {name}", thousands(count))
}

#[cfg(test)]
mod tests;
