//! A program behind NFQUEUE, over NETLINK_NETFILTER: it gives every packet of one queue the same verdict.
//! It looks at no packet; which ones it gets is the ruleset's business.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sys;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLMSG_ERROR: u16 = 2;

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
        let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
            .context("a socket for NFQUEUE")?;
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER)
            .context("room for what is queued")?;
        let mut socket = std::fs::File::from(socket);
        let command = attribute(NFQA_CFG_CMD, &[NFQNL_CFG_CMD_BIND, 0, 0, 0]);
        configure(&mut socket, number, &command).with_context(|| format!("binding queue {number}"))?;
        let mut parameters = attribute(NFQA_CFG_PARAMS, &[0, 0, 0, 0, NFQNL_COPY_META]);
        parameters.extend(attribute(NFQA_CFG_QUEUE_MAXLEN, &MAX_LENGTH.to_be_bytes()));
        configure(&mut socket, number, &parameters).with_context(|| format!("setting queue {number} up"))?;
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
                let mut answer = (verdict as u32).to_be_bytes().to_vec();
                answer.extend(id);
                let answer = message(VERDICT, NLM_F_REQUEST, number, &attribute(NFQA_VERDICT_HDR, &answer));
                socket.write_all(&answer).context("giving a verdict")?;
                answered.fetch_add(1, Ordering::Release);
            }
        }
    }
    Ok(())
}

/// Sends a configuration and waits for the kernel's word on it.
fn configure(socket: &mut std::fs::File, number: u16, attributes: &[u8]) -> Result<()> {
    socket.write_all(&message(CONFIG, NLM_F_REQUEST | NLM_F_ACK, number, attributes))?;
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
                let code: [u8; 4] = body.get(..4).context("a short answer")?.try_into()?;
                let code = i32::from_ne_bytes(code);
                ensure!(code == 0, "{}", std::io::Error::from_raw_os_error(-code));
                return Ok(());
            }
        }
    }
    bail!("no answer from nfnetlink_queue within {PATIENCE:?}")
}

/// Type and body of the next message.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let body = rest.get(16..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The packet's id, big-endian as it came, out of a message's `struct nfgenmsg` and attributes.
fn packet_id(body: &[u8]) -> Option<[u8; 4]> {
    let mut rest = body.get(4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        if u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) == NFQA_PACKET_HDR {
            return rest.get(4..8)?.try_into().ok();
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn message(kind: u16, flags: u16, number: u16, attributes: &[u8]) -> Vec<u8> {
    let length = 16 + 4 + attributes.len() as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    // struct nfgenmsg: AF_UNSPEC, NFNETLINK_V0, the queue's number.
    message.extend([0, 0]);
    message.extend(number.to_be_bytes());
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let mut attribute = length.to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_known_by_its_id_wherever_the_attribute_stands() {
        let mut attributes = attribute(9, &[1, 2, 3, 4, 5]);
        attributes.extend(attribute(NFQA_PACKET_HDR, &[0, 0, 1, 44, 8, 0, 3]));
        let message = message(PACKET, 0, 7, &attributes);
        let mut rest = message.as_slice();
        let (kind, body) = next_message(&mut rest).expect("one message");
        assert_eq!((kind, packet_id(body), rest.len()), (PACKET, Some([0, 0, 1, 44]), 0));
        assert_eq!(packet_id(&[0; 4]), None);
    }
}
