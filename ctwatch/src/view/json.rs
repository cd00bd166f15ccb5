//! One JSON object a line, as docs/schema/ describes them, in which what a terminal would act on stands as \uXXXX.
//! Nothing is decided here: the reports are the contract.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::View;
use crate::advise::report::Advice;
use crate::contract::breakdown::TableReport;
use crate::contract::{Check, End, Event, Notice, Start, Tick};
use crate::foreign::write_json;

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
        self.record(&Record::Tick(tick))
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
