//! The thread that writes the recording, so that a slow disk never holds up the watch.
//! Ticks skipped meanwhile lose nothing: the next one written says how far everything moved since the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use rusqlite::params;

use super::full::{DiskFull, is_full};
use super::retention::{Retention, RetentionLimits};
use super::rows::{EndReason, Incident, RunEnd};
use super::writer::{Batch, Writer};
use super::{Fault, Lock};
use crate::children::threads;
use crate::foreign::Shown as _;
use crate::model::{NetnsId, WallMono};

/// Batches that may wait for the disk.
const WAITING: usize = 16;

/// The number an incident has in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncidentNumber {
    /// The incident's condition.
    pub condition: String,
    /// The tick it fired in.
    pub tick: i64,
    /// As `report --incident` takes it.
    pub number: i64,
}

/// Hands batches to the thread.
#[derive(Debug)]
pub struct WriterThread {
    sender: SyncSender<Message>,
    /// Receives the numbers of incidents once they are in the file.
    numbers: Option<Receiver<IncidentNumber>>,
    forgotten: Receiver<NetnsId>,
    waiting: Arc<AtomicUsize>,
    full: Arc<AtomicBool>,
    thread: JoinHandle<Option<Result<()>>>,
}

#[derive(Debug)]
enum Message {
    Batch(Box<Batch>),
    End(RunEnd),
}

impl WriterThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(writer: Writer, limits: RetentionLimits, lock: Arc<Lock>) -> Result<Self> {
        let (sender, receiver) = sync_channel(WAITING * 2);
        let waiting = Arc::new(AtomicUsize::new(0));
        let behind = Arc::clone(&waiting);
        let full = Arc::new(AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        let (number_sender, numbers) = channel();
        let (forget, forgotten) = channel();
        let thread = threads::start("recorder", 1 << 20, move || {
            write_all(writer, limits, &lock, &receiver, &behind, &is_full, (&number_sender, &forget))
        })
        .context("starting the writer thread")?;
        Ok(Self { sender, numbers: Some(numbers), forgotten, waiting, full, thread })
    }

    /// Namespaces whose settings and rules were dropped since the last call.
    pub(super) fn forgotten(&self) -> impl Iterator<Item = NetnsId> + '_ {
        self.forgotten.try_iter()
    }

    /// Numbers of incidents that were written since the last call.
    pub fn numbers(&self) -> impl Iterator<Item = IncidentNumber> + '_ {
        self.numbers.iter().flat_map(Receiver::try_iter)
    }

    /// The receiver of the numbers, for those written after the last call of [`WriterThread::numbers`].
    pub(super) const fn take_numbers(&mut self) -> Option<Receiver<IncidentNumber>> {
        self.numbers.take()
    }

    /// Whether the disk keeps up.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < WAITING
    }

    /// Whether slots or namespaces had no room in the file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Hands over a batch. Once writing has failed, every call fails.
    ///
    /// # Errors
    /// Writing failed: [`WriterThread::finish`] says why.
    pub fn send(&self, batch: Batch) -> Result<()> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.sender.send(Message::Batch(Box::new(batch))).map_err(|_| anyhow!("the recording has ended"))
    }

    /// Ends the run.
    ///
    /// # Errors
    /// The reason writing failed, now or earlier.
    pub fn finish(self, end: RunEnd) -> Result<()> {
        let _ = self.sender.send(Message::End(end));
        self.thread.join().ok().flatten().context("the writer thread panicked")?
    }
}

fn write_all(
    mut writer: Writer,
    limits: RetentionLimits,
    lock: &Lock,
    messages: &Receiver<Message>,
    waiting: &AtomicUsize,
    full: &AtomicBool,
    (numbers, forget): (&Sender<IncidentNumber>, &Sender<NetnsId>),
) -> Result<()> {
    let mut retention = Retention::new(limits);
    for message in messages {
        let written = match message {
            Message::Batch(batch) => {
                let mut written = writer.write(&batch).map_err(anyhow::Error::from);
                waiting.fetch_sub(1, Ordering::AcqRel);
                full.fetch_or(writer.is_full(), Ordering::Relaxed);
                if written.is_ok() {
                    send_numbers(&mut writer, &batch.incidents, numbers);
                }
                if let (Ok(()), Some(tick)) = (&written, &batch.tick) {
                    written = retention.step(&mut writer, tick.mono_us);
                    for netns in retention.take_forgotten() {
                        let _ = forget.send(netns);
                    }
                }
                written
            }
            Message::End(end) => return end_run(writer, &end),
        };
        if let Err(error) = written {
            return Err(give_up(writer, lock, error));
        }
    }
    Ok(())
}

/// An incident may be updated in many batches: the receiver knows which numbers are new to it.
fn send_numbers(writer: &mut Writer, incidents: &[Incident], numbers: &Sender<IncidentNumber>) {
    let run = writer.run();
    let (_, connection) = writer.parts();
    for Incident { condition, tick, .. } in incidents {
        let sql = "SELECT id FROM incident WHERE run = ?1 AND condition = ?2 AND tick = ?3";
        if let Ok(number) = connection.query_row(sql, params![run, condition, tick], |row| row.get(0)) {
            let _ =
                numbers.send(IncidentNumber { condition: condition.raw().to_owned(), tick: *tick, number });
        }
    }
}

fn end_run(writer: Writer, end: &RunEnd) -> Result<()> {
    let path = writer.path().to_owned();
    writer.end(end).map_err(|error| failure(&path, error.into()))
}

/// Writes why the run ended, into the space reserved for that.
fn give_up(writer: Writer, lock: &Lock, error: anyhow::Error) -> anyhow::Error {
    lock.release_space();
    let path = writer.path().to_owned();
    let error = failure(&path, error);
    let reason = if error.is::<DiskFull>() { EndReason::DiskFull } else { EndReason::Failed };
    let last_tick = writer.next_tick() - 1;
    let _ = writer.end(&RunEnd { at: WallMono::now(), reason, last_tick });
    error
}

fn failure(path: &std::path::Path, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<rusqlite::Error>() {
        Ok(error) if is_full(&error) => DiskFull::later(path).into(),
        Ok(error) => anyhow::Error::from(error).context(format!("writing {}", path.shown())),
        Err(error) if error.is::<Fault>() => error,
        Err(error) => error.context(format!("writing {}", path.shown())),
    }
}
