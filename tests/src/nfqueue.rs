//! A program behind NFQUEUE, over NETLINK_NETFILTER: it gives every packet of one queue the same verdict.
//! It looks at no packet; which ones it gets is the ruleset's business.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::nfnetlink::{
    self, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, error_of, find, message, next_message,
};
use crate::sys;

// enum nfqnl_msg_types and friends, include/uapi/linux/netfilter/nfnetlink_queue.h; NFNL_SUBSYS_QUEUE is 3.
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = 3 << 8 | 1;
const CONFIG: u16 = 3 << 8 | 2;
const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQA_CFG_QUEUE_MAXLEN: u16 = 3;
const NFQNL_CFG_CMD_BIND: u8 = 1;
const NFQNL_COPY_META: u8 = 1;

/// More packets than any scenario has waiting: a queue that is full drops by itself.
const MAX_LENGTH: u32 = 1 << 16;
const SOCKET_BUFFER: i32 = 64 << 20;
/// Emulation is slow; a queue that stands still this long has lost something.
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of the packets, include/uapi/linux/netfilter.h.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// NF_DROP
    Drop = 0,
    /// NF_ACCEPT: they go on behind the rule that queued them.
    Accept = 1,
}

/// A thread that answers one queue of the netns it was started in; it ends when dropped.
pub struct Queue {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Queue {
    /// Binds the queue with this number.
    pub fn answer(number: u16, verdict: Verdict) -> Result<Self> {
        let socket = nfnetlink::open()?;
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER)
            .context("room for what is queued")?;
        let mut socket = std::fs::File::from(socket);
        configure(&mut socket, number, |out| attribute(out, NFQA_CFG_CMD, &[NFQNL_CFG_CMD_BIND, 0, 0, 0]))
            .with_context(|| format!("binding queue {number}"))?;
        configure(&mut socket, number, |out| {
            attribute(out, NFQA_CFG_PARAMS, &[0, 0, 0, 0, NFQNL_COPY_META]);
            attribute(out, NFQA_CFG_QUEUE_MAXLEN, &MAX_LENGTH.to_be_bytes());
        })
        .with_context(|| format!("setting queue {number} up"))?;
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = thread::spawn(move || answer_all(socket, number, verdict, &shared.0, &shared.1));
        Ok(Self { answered, stop, thread: Some(thread) })
    }

    /// Waits until so many packets have their verdict.
    pub fn wait_for(&self, packets: u64) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let answered = self.answered.load(Ordering::Acquire);
            if answered >= packets {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{answered} of {packets} queued packets came within {PATIENCE:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the thread; packets that are still queued are dropped by the kernel.
    pub fn end(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the thread behind the queue panicked"))?
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            eprintln!("{error:#}");
        }
    }
}

fn answer_all(
    mut socket: std::fs::File,
    number: u16,
    verdict: Verdict,
    answered: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Acquire) {
        let Some(got) = sys::receive_now(&socket, &mut buffer).context("reading a queue")? else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut rest = &buffer[..got];
        while let Some((kind, body)) = next_message(&mut rest) {
            if kind == PACKET
                && let Some(id) = packet_id(body)
            {
                let header = [(verdict as u32).to_be_bytes(), id].concat();
                let mut answer = Vec::new();
                message(&mut answer, (VERDICT, NLM_F_REQUEST), libc::AF_UNSPEC, number, |out| {
                    attribute(out, NFQA_VERDICT_HDR, &header);
                });
                socket.write_all(&answer).context("giving a verdict")?;
                answered.fetch_add(1, Ordering::Release);
            }
        }
    }
    Ok(())
}

/// Sends a configuration and waits for the kernel's word on it.
fn configure(socket: &mut std::fs::File, number: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut request = Vec::new();
    message(&mut request, (CONFIG, NLM_F_REQUEST | NLM_F_ACK), libc::AF_UNSPEC, number, fill);
    socket.write_all(&request)?;
    let mut buffer = [0; 4096];
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let Some(got) = sys::receive_now(socket, &mut buffer)? else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut rest = &buffer[..got];
        while let Some((kind, body)) = next_message(&mut rest) {
            if kind == NLMSG_ERROR {
                let code = error_of(body).context("a short answer")?;
                ensure!(code == 0, "{}", std::io::Error::from_raw_os_error(code));
                return Ok(());
            }
        }
    }
    bail!("no answer from nfnetlink_queue within {PATIENCE:?}")
}

/// The packet's id, big-endian as it came.
fn packet_id(body: &[u8]) -> Option<[u8; 4]> {
    find(body, NFQA_PACKET_HDR)?.get(..4)?.try_into().ok()
}
