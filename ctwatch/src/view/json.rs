//! One JSON object a line, as docs/schema/ describes them, in which what a terminal would act on stands as \uXXXX.
//! Nothing is decided here: the reports are the contract.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::View;
use crate::advise::report::Advice;
use crate::contract::breakdown::TableReport;
use crate::contract::{Check, End, Event, Notice, Start, TablesLeftOut, Tick};
use crate::foreign::write_json;

/// Tables in one line: about 1 MB with all that can be said of them. A line that is longer than what waits for a slow reader
/// would never get through.
const MOST_TABLES: usize = 1024;

/// Writes one JSON object a line.
#[derive(Debug)]
pub struct JsonView<W: Write> {
    out: BufWriter<W>,
}

/// A report under its `type`. Events bring their own.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Record<'a> {
    Start(&'a Start),
    Tick(&'a Tick),
    Notice(&'a Notice),
    End(&'a End),
    Check(&'a Check),
    Table(&'a TableReport),
}

impl<W: Write> JsonView<W> {
    /// A view that writes there.
    pub fn new(out: W) -> Self {
        Self { out: BufWriter::new(out) }
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        write_json(&mut self.out, record)?;
        self.out.write_all(b"\n")
    }

    fn record(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.line(record)?;
        self.out.flush()
    }
}

impl<W: Write> View for JsonView<W> {
    fn start(&mut self, start: &Start) -> io::Result<()> {
        self.record(&Record::Start(start))
    }

    fn tick(&mut self, tick: &Tick) -> io::Result<()> {
        if tick.tables.len() <= MOST_TABLES {
            return self.record(&Record::Tick(tick));
        }
        // Those that lost most come first, the host's before them.
        let (listed, others) = tick.tables.split_at(MOST_TABLES);
        let tables_left_out = Some(TablesLeftOut::sum(others));
        self.record(&Record::Tick(&Tick { tables: listed.to_vec(), tables_left_out, ..tick.clone() }))
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.line(event)
    }

    fn notice(&mut self, notice: &Notice) -> io::Result<()> {
        self.record(&Record::Notice(notice))
    }

    fn end(&mut self, end: &End) -> io::Result<()> {
        self.record(&Record::End(end))
    }

    fn check(&mut self, check: &Check) -> io::Result<()> {
        self.record(&Record::Check(check))
    }

    fn advice(&mut self, report: &Advice) -> io::Result<()> {
        self.line(report)?;
        self.out.flush()
    }

    fn table(&mut self, report: &TableReport) -> io::Result<()> {
        self.record(&Record::Table(report))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::TableStatus;
    use crate::model::NetnsId;
    use crate::testing;

    #[test]
    fn however_many_namespaces_there_are_a_line_gets_through_and_says_what_it_lacks() {
        let name = "\u{202e}".repeat(255);
        let table = |lost| TableStatus {
            name: Some(name.as_str().into()),
            packets_lost: lost,
            ..testing::table_status(NetnsId::from_inode(7))
        };
        let mut out = Vec::new();
        let mut view = JsonView::new(&mut out);
        let tables = (0..16_384).map(|number| table(16_384 - number)).collect();
        view.tick(&testing::tick_of_tables(tables)).expect("memory takes all");
        view.tick(&testing::tick_of_tables(vec![table(1)])).expect("memory takes all");
        drop(view);
        let lines: Vec<&[u8]> = out.split_inclusive(|byte| *byte == b'\n').collect();
        assert!(lines.len() == 2 && lines[0].len() < 3 << 20, "{} bytes", lines[0].len());
        let tick: serde_json::Value = serde_json::from_slice(lines[0]).expect("JSON");
        assert_eq!(tick["tables"].as_array().map(Vec::len), Some(1024));
        assert_eq!(tick["tables_left_out"]["netns"], 16_384 - 1024);
        assert_eq!(tick["tables_left_out"]["packets_lost"], (1..=16_384_u64 - 1024).sum::<u64>());
        assert!(!String::from_utf8_lossy(lines[1]).contains("left_out"));
    }
}
