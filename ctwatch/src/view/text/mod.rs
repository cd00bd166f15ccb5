//! Reports for an 80-column terminal, read under pressure: the fill first, then what is dropped.
//! Whatever is not exact carries a mark.

pub(crate) mod advice;
mod census;
mod check;
pub(crate) mod occupant_line;
mod row_lines;
mod screen;
pub(crate) mod summary;
mod table_line;

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::time::Duration;

use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use self::screen::Screen;
use super::View;
use crate::advise::report::Advice;
use crate::contract::breakdown::TableReport;
use crate::contract::{
    Certainty, Check, DropEvent, End, Event, InsertEvent, Notice, Occupied, Packet, Row, Start, TableStatus,
    TablesLeftOut, Tick, Tuple, Unexplained,
};
use crate::model::{Backend, KernelCounters, NetnsId, Role};
use crate::state::By;
use crate::text::{
    COLUMNS, FAINT, Paint, TextOptions, WARN, counted, duration, percent, thousands, width, wrap,
};

/// Row lines between two headers.
const HEADER_EVERY: usize = 20;
/// Tables of one tick that get a line though none of the rows is theirs.
const MOST_TABLES: usize = 32;
/// Names kept for rows of later ticks.
const MOST_NAMES: usize = 1 << 12;

/// Writes for a person at a terminal.
#[derive(Debug)]
pub struct TextView<W: Write> {
    out: Screen<W>,
    paint: Paint,
    time_zone: TimeZone,
    /// What a row stands for, derived from the rows.
    by: By,
    /// The namespaces asked for; `None` means all.
    selected: Option<Vec<NetnsId>>,
    /// That of the run shown; none before its start record.
    backend: Option<Backend>,
    names: HashMap<NetnsId, String>,
    lines_since_header: Option<usize>,
    unexplained: Unexplained,
    /// A table was shown before: separate the next one by a blank line.
    again: bool,
    /// Times have tenths of seconds: the interval that was asked for decides, so that columns stay where they are however late
    /// a tick comes.
    with_tenths: bool,
    /// The offset from UTC of the last time that was shown.
    offset: Option<Offset>,
}

impl<W: Write> TextView<W> {
    /// A view that writes there.
    pub fn new(out: W, look: TextOptions) -> Self {
        let TextOptions { color, time_zone } = look;
        Self {
            out: Screen::new(out, color),
            paint: Paint(color),
            time_zone,
            by: By::Port,
            selected: None,
            backend: None,
            names: HashMap::new(),
            lines_since_header: None,
            unexplained: Unexplained::default(),
            again: false,
            with_tenths: false,
            offset: None,
        }
    }

    /// The same, for a reader who asked for these namespaces: each gets a line whether it is filling or not.
    #[must_use]
    pub fn selecting(self, selected: Option<Vec<NetnsId>>) -> Self {
        Self { selected, ..self }
    }

    /// The same, with a tick after each of these intervals.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { with_tenths: interval < Duration::from_secs(1), ..self }
    }

    /// What clocks show; where they were put forward or back since the last time shown, or the first one comes twice, that is
    /// said first.
    fn clock(&mut self, time: Timestamp, format: &str) -> io::Result<String> {
        let zoned = time.to_zoned(self.time_zone.clone());
        let offset = self.offset.replace(zoned.offset());
        let clock = zoned.strftime(format).to_string();
        if offset.is_none() && comes_twice(&zoned) {
            let text =
                format!("{clock} clocks show this hour twice today: it is {}", zoned.strftime("%H:%M:%S %Z"));
            let text = self.paint.on(WARN, &text);
            writeln!(self.out, "{text}")?;
        }
        if let Some(before) = offset.filter(|before| *before != zoned.offset()) {
            let was = time.to_zoned(TimeZone::fixed(before)).strftime("%H:%M:%S").to_string();
            let text = format!(
                "{clock} clocks were put {}: until now it was {was}, now it is {}",
                if before < zoned.offset() { "forward" } else { "back" },
                zoned.strftime("%H:%M:%S %Z")
            );
            let text = self.paint.on(WARN, &text);
            writeln!(self.out, "{text}")?;
        }
        Ok(clock)
    }

    fn clock_format(&self) -> &'static str {
        if self.with_tenths { "%H:%M:%S%.1f" } else { "%H:%M:%S" }
    }

    fn wrapped(&mut self, text: &str) -> io::Result<()> {
        for line in wrap(text, 2) {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    /// Rows of one netns, or those without one.
    fn rows<'a>(&mut self, rows: impl Iterator<Item = &'a Row>) -> io::Result<()> {
        for row in rows {
            if self.lines_since_header.is_none_or(|lines| lines >= HEADER_EVERY) {
                writeln!(self.out, "{}", row_lines::header(self.by, self.paint))?;
                self.lines_since_header = Some(0);
            }
            let name = row.netns.map(|netns| self.name_of(netns)).unwrap_or_default();
            for line in row_lines::lines(self.by, row, &name, self.paint) {
                writeln!(self.out, "{line}")?;
                self.lines_since_header = self.lines_since_header.map(|lines| lines + 1);
            }
        }
        Ok(())
    }

    fn name_of(&self, netns: NetnsId) -> String {
        self.names.get(&netns).cloned().unwrap_or_else(|| netns.to_string())
    }

    /// Whether a table is worth a line in this tick.
    fn is_worth_a_line(&self, table: &TableStatus, rows: &[Row]) -> bool {
        table_line::is_host(table)
            || table_line::loses(table)
            || table_line::is_filling(table)
            || self.selected.as_ref().is_some_and(|selected| selected.contains(&table.netns))
            || rows.iter().any(|row| row.netns == Some(table.netns))
    }

    fn table_lines(&mut self, clock: &str, tick: &Tick) -> io::Result<()> {
        let mut shown: Vec<&TableStatus> =
            tick.tables.iter().filter(|table| self.is_worth_a_line(table, &tick.rows)).collect();
        let quiet = tick.rows.is_empty() && !shown.iter().any(|table| table_line::loses(table) || table.gone);
        let mut others = 0;
        if quiet {
            // One line for a quiet tick: the fullest table, the host's if none is filling.
            let filling = shown.iter().copied().filter(|table| table_line::is_filling(table));
            let fullest = filling.max_by(|a, b| a.fill.unwrap_or(0.0).total_cmp(&b.fill.unwrap_or(0.0)));
            let one = fullest.or(shown.first().copied()).or(tick.tables.first());
            others = shown.iter().filter(|table| table_line::is_filling(table)).count().saturating_sub(1);
            shown = one.into_iter().collect();
        }
        if shown.is_empty() {
            writeln!(self.out, "{clock} no conntrack table yet")?;
        }
        let left_out = self.leave_out(&mut shown, &tick.rows);
        let names = shown.iter().map(|table| width(&table_line::name(table))).max().unwrap_or(0);
        for table in &shown {
            let mut line = table_line::line(clock, table, names, self.paint);
            let note = format!("  and {others} more netns over 50 %");
            if others > 0 && width(&line) + width(&note) <= COLUMNS {
                line += &note;
            }
            writeln!(self.out, "{line}")?;
            self.occupants(table)?;
            self.rows(tick.rows.iter().filter(|row| row.netns == Some(table.netns)))?;
        }
        let is_shown =
            |row: &Row| row.netns.is_some_and(|netns| shown.iter().any(|table| table.netns == netns));
        let mut last = None;
        for row in tick.rows.iter().filter(|row| !is_shown(row)) {
            if row.netns != last
                && let Some(netns) = row.netns
                && self.by != By::Netns
            {
                writeln!(self.out, "{clock} {}  table size unknown", self.name_of(netns))?;
            }
            last = row.netns;
            self.rows([row].into_iter())?;
        }
        match left_out {
            Some(text) => self.wrapped(&format!("{clock} {text}")),
            None => Ok(()),
        }
    }

    /// However many namespaces lose something at once, they don't fill the screen: those that have rows stay, and of the
    /// others the first. What is left out, in words.
    fn leave_out(&self, shown: &mut Vec<&TableStatus>, rows: &[Row]) -> Option<String> {
        let of_rows: HashSet<NetnsId> = rows.iter().filter_map(|row| row.netns).collect();
        let is_certain = |table: &&TableStatus| {
            let is_asked_for = self.selected.as_ref().is_some_and(|selected| selected.contains(&table.netns));
            table_line::is_host(table) || is_asked_for || of_rows.contains(&table.netns)
        };
        let (mut stay, mut others): (Vec<&TableStatus>, Vec<&TableStatus>) =
            shown.iter().copied().partition(is_certain);
        if others.len() <= MOST_TABLES {
            return None;
        }
        let TablesLeftOut { netns, packets_lost, entries_lost } =
            TablesLeftOut::sum(others.split_off(MOST_TABLES));
        stay.append(&mut others);
        *shown = stay;
        Some(format!(
            "and {} more netns: {} lost, {} evicted",
            thousands(netns),
            counted(packets_lost, "packet", "packets"),
            counted(entries_lost, "entry", "entries")
        ))
    }

    /// Top occupants of a table that is filling or dropping.
    fn occupants(&mut self, table: &TableStatus) -> io::Result<()> {
        if !table_line::is_filling(table) && !table_line::loses(table) {
            return Ok(());
        }
        let known = table.occupants.as_deref().zip(table.occupancy_exact);
        match known.and_then(|(occupants, exact)| occupant_line::line(occupants, exact)) {
            Some(line) => writeln!(self.out, "{line}"),
            None => Ok(()),
        }
    }

    /// The same at the end of a run.
    fn occupied(&mut self, occupied: &Occupied, heading: Option<String>) -> io::Result<()> {
        let Some(line) = occupant_line::line(&occupied.occupants, occupied.occupancy_exact) else {
            return Ok(());
        };
        if let Some(heading) = heading {
            writeln!(self.out, "{heading}:")?;
        }
        writeln!(self.out, "{line}")
    }

    /// Differences from the kernel's counters, shown whenever they change.
    fn discrepancies(&mut self, clock: &str, tick: &Tick) -> io::Result<()> {
        if tick.unexplained != self.unexplained {
            self.unexplained = tick.unexplained;
            let text = match summary::differences(&tick.unexplained).as_slice() {
                [] => "kernel counters and ctwatch agree again".to_owned(),
                differences => format!("unexplained so far: {}", differences.join(", ")),
            };
            if self.backend != Some(Backend::Counters) {
                let text = self.paint.on(WARN, &text);
                writeln!(self.out, "{clock} {text}")?;
            }
        }
        Ok(())
    }

    fn drop_line(&mut self, event: &DropEvent) -> io::Result<()> {
        let doubt = if event.certainty == Certainty::Inferred { "?" } else { "" };
        let hook = event.hook.map(|hook| format!(" {hook}")).unwrap_or_default();
        let device = match (&event.input, &event.output) {
            (Some(device), _) | (None, Some(device)) => format!(" {device}"),
            (None, None) => String::new(),
        };
        let fill = event.fill.map(|fill| format!(" {}", percent(fill).replace(' ', ""))).unwrap_or_default();
        let head = format!("{}{doubt}", event.cause.name());
        let tail = format!("{hook}{device}{fill}{}{}", owner(event), of_entry(event));
        self.packet_line(event.time, &head, &event.packet, &tail)
    }

    fn insert_line(&mut self, event: &InsertEvent) -> io::Result<()> {
        self.packet_line(event.time, "new", &event.packet, "")
    }

    fn packet_line(&mut self, time: Timestamp, head: &str, packet: &Packet, tail: &str) -> io::Result<()> {
        let clock = self.clock(time, "%H:%M:%S%.3f")?;
        let proto = packet.proto.map(|proto| proto.to_string()).unwrap_or_default();
        let src = row_lines::endpoint(packet.src, packet.sport);
        let dst = row_lines::endpoint(packet.dst, packet.dport);
        let icmp = icmp(packet.icmp_type, packet.icmp_code, packet.icmp_id);
        let zone = row_lines::zone(packet.zone_original, packet.zone_reply);
        let text = if packet.unattributed {
            format!("{clock} {head} {proto} tuple unknown{tail}")
        } else {
            format!("{clock} {head} {proto} {src} -> {dst}{icmp}{zone}{tail}")
        };
        for line in wrap(&text, 13) {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }
}

/// Whether clocks show this time a second time, before or after.
fn comes_twice(time: &Zoned) -> bool {
    let offset = time.time_zone().to_ambiguous_timestamp(time.datetime()).offset();
    matches!(offset, AmbiguousOffset::Fold { .. })
}

/// The process and container whose packet it was, as far as known.
fn owner(event: &DropEvent) -> String {
    let container = event.container.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
    let process = event.process.as_ref().map(|process| {
        let preposition = match process.role {
            Role::Sender => "by",
            Role::Listener => "to",
        };
        format!(" {preposition} {}", row_lines::process(process))
    });
    format!("{}{container}", process.unwrap_or_default())
}

/// The entry that was lost or not created, and the flow it was evicted for.
fn of_entry(event: &DropEvent) -> String {
    let mut text = String::new();
    if let Some(entry) = &event.entry {
        text += &entry.tcp_state.map(|state| format!(" {state}")).unwrap_or_default();
        text += if entry.assured { " assured" } else { "" };
        text += &entry.timeout_left_s.map(|left| format!(" {left:.0}s left")).unwrap_or_default();
    }
    if let (Some(true), Some(reply)) = (event.nat, &event.reply) {
        text += &format!(" NAT, reply {}", arrow(reply));
    }
    if let Some(Some(flow)) = &event.pushed_out_by {
        let icmp = icmp(flow.icmp_type, flow.icmp_code, flow.icmp_id);
        text += &format!(" displaced by {} {}{icmp}", flow.proto, arrow(&flow.tuple));
    }
    text
}

fn icmp(kind: Option<u8>, code: Option<u8>, id: Option<u16>) -> String {
    match (kind, code, id) {
        (Some(kind), Some(code), Some(id)) => format!(" type {kind} code {code} id {id}"),
        _ => String::new(),
    }
}

fn arrow(tuple: &Tuple) -> String {
    let Tuple { src, sport, dst, dport } = *tuple;
    format!("{} -> {}", row_lines::endpoint(Some(src), sport), row_lines::endpoint(Some(dst), dport))
}

impl<W: Write> View for TextView<W> {
    fn start(&mut self, start: &Start) -> io::Result<()> {
        let Start {
            schema: _,
            version,
            time: _,
            kernel_release,
            backend,
            backend_reason,
            hooks,
            since_boot,
            kernel_counters_from,
        } = start;
        self.backend = Some(*backend);
        self.wrapped(&format!("ctwatch {version} on Linux {kernel_release}, {} backend", backend.name()))?;
        if let Some(reason) = backend_reason {
            self.wrapped(&format!("Why this backend: {}", reason.sentence()))?;
        }
        if *backend == Backend::Tracepoint {
            self.wrapped("? marks an inferred cause.")?;
        }
        if !hooks.is_empty() {
            let attached: Vec<String> = hooks
                .iter()
                .filter(|hook| hook.missing.is_none())
                .map(|hook| format!("{} ({})", hook.function, hook.kind))
                .collect();
            self.wrapped(&format!("Hooks: {}", attached.join(", ")))?;
        }
        let KernelCounters { drop, early_drop, insert_failed, chaintoolong } = *since_boot;
        let source = kernel_counters_from.map(|source| format!(" ({})", source.title())).unwrap_or_default();
        self.wrapped(&format!(
            "Kernel counters{source} since boot, before ctwatch: drop {}, early_drop {}, insert_failed {}, chaintoolong {}",
            thousands(drop),
            thousands(early_drop),
            thousands(insert_failed),
            thousands(chaintoolong)
        ))?;
        let legend = "Columns: time, netns, entries/max, fill, entries added and removed, losses";
        let legend = self.paint.on(FAINT, legend);
        writeln!(self.out, "{legend}\n")?;
        self.out.flush()
    }

    fn tick(&mut self, tick: &Tick) -> io::Result<()> {
        if self.names.len() + tick.tables.len() > MOST_NAMES {
            self.names.retain(|netns, _| tick.rows.iter().any(|row| row.netns == Some(*netns)));
        }
        for table in tick.tables.iter().take(MOST_NAMES) {
            self.names.insert(table.netns, table_line::name(table));
        }
        let clock = self.clock(tick.time, self.clock_format())?;
        self.by = row_lines::by(&tick.rows).unwrap_or(self.by);
        self.table_lines(&clock, tick)?;
        self.discrepancies(&clock, tick)?;
        self.out.flush()
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Drop(event) => self.drop_line(event),
            Event::Insert(event) => self.insert_line(event),
        }
    }

    fn notice(&mut self, notice: &Notice) -> io::Result<()> {
        let clock = self.clock(notice.time, self.clock_format())?;
        for line in wrap(&format!("{clock} {}", notice.text.sentence()), 9) {
            let line = self.paint.on(WARN, &line);
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn end(&mut self, end: &End) -> io::Result<()> {
        let title = format!("Summary of {}", duration(end.duration_s));
        writeln!(self.out, "\n{title}\n{}", "-".repeat(width(&title)))?;
        self.lines_since_header = None;
        self.by = row_lines::by(&end.rows).unwrap_or(self.by);
        if end.rows.is_empty() {
            let text = if self.backend == Some(Backend::Counters) {
                "This backend has no ports and no causes."
            } else {
                "Nothing was lost."
            };
            writeln!(self.out, "{text}")?;
        }
        let mut of_netns: Vec<Option<NetnsId>> = Vec::new();
        for row in &end.rows {
            if !of_netns.contains(&row.netns) {
                of_netns.push(row.netns);
            }
        }
        let headings = self.by != By::Netns && of_netns.iter().flatten().count() > 1;
        let is_one = of_netns.iter().flatten().count() <= 1;
        if is_one {
            // What sums up the rest stands with the rows that it sums up.
            self.rows(end.rows.iter())?;
        }
        for netns in &of_netns {
            if headings {
                let heading = netns.map_or_else(|| "all netns".to_owned(), |netns| self.name_of(netns));
                writeln!(self.out, "{heading}:")?;
            }
            if !is_one {
                self.rows(end.rows.iter().filter(|row| row.netns == *netns))?;
            }
            if let Some(occupied) = end.occupied.iter().find(|occupied| Some(occupied.netns) == *netns) {
                self.occupied(occupied, None)?;
            }
        }
        let others = end.occupied.iter().filter(|occupied| !of_netns.contains(&Some(occupied.netns)));
        for occupied in others.take(MOST_TABLES) {
            let name = self.name_of(occupied.netns);
            self.occupied(occupied, (end.occupied.len() > 1 || self.by != By::Port).then_some(name))?;
        }
        writeln!(self.out)?;
        for line in summary::lines(end, self.backend, self.paint) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn check(&mut self, check: &Check) -> io::Result<()> {
        for line in check::lines(check, self.paint) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn advice(&mut self, report: &Advice) -> io::Result<()> {
        for line in advice::lines(report, self.paint) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn table(&mut self, report: &TableReport) -> io::Result<()> {
        if std::mem::replace(&mut self.again, true) {
            writeln!(self.out)?;
        }
        let clock = self.clock(report.time, "%H:%M:%S")?;
        for line in census::lines(report, &clock, self.paint) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_interval_asked_for_decides_on_tenths_however_late_the_first_tick_is() {
        for (asked, width) in [(500, "00:00:00.0".len()), (1_000, "00:00:00".len())] {
            let mut shown = Vec::new();
            let look = TextOptions { color: false, time_zone: TimeZone::UTC };
            let mut view = TextView::new(&mut shown, look).every(Duration::from_millis(asked));
            for interval_s in [1.2, 0.5] {
                view.tick(&Tick {
                    interval_s,
                    ..testing::tick_of_tables(vec![testing::table_status(NetnsId::from_inode(1))])
                })
                .expect("a vector takes all");
            }
            drop(view);
            let text = String::from_utf8(shown).expect("it is text");
            let clocks: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
            let clocks: Vec<_> = clocks.into_iter().filter(|word| word.starts_with("00:")).collect();
            assert!(clocks.len() >= 2 && clocks.iter().all(|clock| clock.len() == width), "{text}");
        }
    }

    /// Keeps how much came at a time.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for &mut Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn ten_thousand_namespaces_with_hostile_names_that_all_lose_something_fill_no_screen() {
        let name = "\u{202e}\u{1b}[2J\n".repeat(40);
        let table = |number: u32| TableStatus {
            name: Some(if number == 0 { "host".into() } else { name.as_str().into() }),
            packets_lost: 7,
            entries_lost: 1,
            ..testing::table_status(NetnsId::from_inode(4_026_532_000 + number))
        };
        let mut writes = Writes::default();
        let mut view = TextView::new(&mut writes, TextOptions { color: false, time_zone: TimeZone::UTC });
        for _ in 0..3 {
            view.tick(&testing::tick_of_tables((0..10_000).map(table).collect())).expect("memory takes all");
        }
        assert!(view.names.len() <= MOST_NAMES, "{} names", view.names.len());
        drop(view);
        assert!(writes.0.iter().all(|one| one.len() <= 16 << 10), "no write is enormous");
        let text = String::from_utf8(writes.0.concat()).expect("UTF-8");
        assert!(text.lines().count() < 3 * 50, "{} lines", text.lines().count());
        assert!(text.lines().all(|line| width(line) <= COLUMNS), "{text}");
        assert_eq!(
            text.matches("and 9,967 more netns: 69,769 packets lost, 9,967 entries evicted").count(),
            3,
            "{text}"
        );
    }
}
