//! The thread that writes, so that a slow disk never holds up the watch.
//! What doesn't get through for a while isn't lost: the next tick that does says how far everything moved until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use rusqlite::params;

use super::full::{DiskFull, is_full};
use super::retention::{Retention, RetentionLimits};
use super::rows::{EndReason, Incident, RunEnd};
use super::writer::{Batch, Writer};
use super::{Fault, Lock};
use crate::model::WallMono;

/// Batches that may wait for the disk.
const WAITING: usize = 16;

/// The number that an incident has got in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncidentNumber {
    /// Its condition,
    pub condition: String,
    /// and the tick it fired in.
    pub tick: i64,
    /// As `report --incident` takes it.
    pub number: i64,
}

/// Hands batches over to the thread.
#[derive(Debug)]
pub struct WriterThread {
    sender: SyncSender<Message>,
    /// Numbers of the incidents that are in the file.
    numbers: Option<Receiver<IncidentNumber>>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
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
    /// No thread can be had.
    pub fn start(writer: Writer, limits: RetentionLimits, lock: Arc<Lock>) -> Result<Self> {
        let (sender, receiver) = sync_channel(WAITING * 2);
        let waiting = Arc::new(AtomicUsize::new(0));
        let behind = Arc::clone(&waiting);
        let (teller, numbers) = channel();
        let thread = std::thread::Builder::new()
            .name("writer_thread".to_owned())
            .stack_size(1 << 20)
            .spawn(move || write_all(writer, limits, &lock, &receiver, &behind, &teller))
            .context("starting the thread that writes")?;
        Ok(Self { sender, numbers: Some(numbers), waiting, thread })
    }

    /// Numbers of incidents that were written since the last call.
    pub fn numbers(&self) -> impl Iterator<Item = IncidentNumber> + '_ {
        self.numbers.iter().flat_map(Receiver::try_iter)
    }

    /// Where those come that are written until the end.
    pub(super) const fn take_numbers(&mut self) -> Option<Receiver<IncidentNumber>> {
        self.numbers.take()
    }

    /// Whether the disk keeps up.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < WAITING
    }

    /// Hands a batch over. Once writing failed, every call does.
    ///
    /// # Errors
    /// Writing has failed: [`WriterThread::finish`] says why.
    pub fn send(&self, batch: Batch) -> Result<()> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.sender.send(Message::Batch(Box::new(batch))).map_err(|_| anyhow!("the recording has ended"))
    }

    /// Ends the run.
    ///
    /// # Errors
    /// What writing failed of, also earlier.
    pub fn finish(self, end: RunEnd) -> Result<()> {
        let _ = self.sender.send(Message::End(end));
        self.thread.join().map_err(|_| anyhow!("the thread that writes panicked"))?
    }
}

fn write_all(
    mut writer: Writer,
    limits: RetentionLimits,
    lock: &Lock,
    messages: &Receiver<Message>,
    waiting: &AtomicUsize,
    numbers: &Sender<IncidentNumber>,
) -> Result<()> {
    let mut retention = Retention::new(limits);
    for message in messages {
        let written = match message {
            Message::Batch(batch) => {
                let mut written = writer.write(&batch).map_err(anyhow::Error::from);
                waiting.fetch_sub(1, Ordering::AcqRel);
                if written.is_ok() {
                    tell_numbers(&mut writer, &batch.incidents, numbers);
                }
                if let (Ok(()), Some(tick)) = (&written, &batch.tick) {
                    written = retention.step(&mut writer, tick.time);
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

/// An incident may go on in many batches: whoever listens knows which ones are news.
fn tell_numbers(writer: &mut Writer, incidents: &[Incident], numbers: &Sender<IncidentNumber>) {
    let run = writer.run();
    let (_, connection) = writer.parts();
    for Incident { condition, tick, .. } in incidents {
        let sql = "SELECT id FROM incident WHERE run = ?1 AND condition = ?2 AND tick = ?3";
        if let Ok(number) = connection.query_row(sql, params![run, condition, tick], |row| row.get(0)) {
            let _ = numbers.send(IncidentNumber { condition: condition.clone(), tick: *tick, number });
        }
    }
}

fn end_run(writer: Writer, end: &RunEnd) -> Result<()> {
    let path = writer.path().to_owned();
    writer.end(end).map_err(|error| failure(&path, error.into()))
}

/// Writes why it ended into the room that was kept for that.
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
        Ok(error) => anyhow::Error::from(error).context(format!("writing {}", path.display())),
        Err(error) if error.is::<Fault>() => error,
        Err(error) => error.context(format!("writing {}", path.display())),
    }
}
