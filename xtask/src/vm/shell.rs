//! A shell on the guest's serial line for whoever started xtask: keys go in, the screen comes out.
//! The terminal is given back as it was, and an end of input leaves the guest.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::qemu::Event;

/// How both prompts of the shell end, for input that isn't typed: it goes in line by line, one for each prompt.
const PROMPT: &[u8] = b"# ";
/// Ctrl-], which leaves a guest that no longer answers.
const LEAVE: u8 = 0x1d;
/// A guest without a terminal's size lays its text out for this one.
const SIZE: (u16, u16) = (24, 80);

/// Shell code that the guest reads first: the terminal's kind and size, and the prompts.
pub fn settings() -> String {
    let (rows, columns) = size().unwrap_or(SIZE);
    let kind = std::env::var("TERM").ok().filter(|kind| {
        io::stdin().is_terminal()
            && kind.chars().all(|character| character.is_ascii_alphanumeric() || character == '-')
    });
    let kind = kind.unwrap_or_else(|| "dumb".to_owned());
    format!(
        "$b stty rows {rows} cols {columns} < /dev/ttyS0\nexport PS1='guest# ' PS2='more# ' HISTFILE= TERM={kind}\n"
    )
}

fn size() -> Option<(u16, u16)> {
    // SAFETY: all bits zero are a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a winsize that lives here; a descriptor that is no terminal gives an error.
    let known = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } == 0;
    (known && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// The screen's side: takes over what comes from the serial line once the shell has begun.
pub struct Screen {
    on: AtomicBool,
}

impl Screen {
    /// Nothing is shown yet.
    pub fn off() -> Screen {
        Screen { on: AtomicBool::new(false) }
    }

    /// From now on the serial line is the shell's.
    pub fn switch_on(&self) {
        self.on.store(true, Ordering::Release);
    }

    /// Whether the serial line is the shell's.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }
}

/// Shows what the shell writes until the guest ends.
pub fn show(mut from: impl Read, to_guest: UnixStream, events: Sender<Event>) {
    let (prompt, prompts) = mpsc::channel();
    let raw = Raw::set();
    let typed = raw.is_some();
    // It may wait for a key for ever, so nobody waits for it.
    thread::spawn(move || if typed { keys(to_guest, &events) } else { lines(to_guest, &prompts) });
    let (mut buffer, mut last) = ([0; 4096], [0; PROMPT.len()]);
    let mut stdout = io::stdout();
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // A reader that goes away doesn't stop the guest.
        let _ = stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush());
        // A prompt may come in pieces.
        for byte in &buffer[..count] {
            last.rotate_left(1);
            last[PROMPT.len() - 1] = *byte;
        }
        if last == PROMPT {
            let _ = prompt.send(());
        }
    }
    drop(raw);
    println!();
}

/// Passes every key on as it is pressed: Ctrl-C and the arrows are the guest's.
fn keys(mut to: UnixStream, events: &Sender<Event>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        if buffer[..count].contains(&LEAVE) {
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    drop(events.send(Event::Exit(0)));
}

/// Passes a line on when the shell asks for one, and `exit` when there are no more.
fn lines(mut to: UnixStream, prompts: &Receiver<()>) {
    let mut input = io::stdin().lock().lines();
    while prompts.recv().is_ok() {
        let line = match input.next() {
            Some(Ok(line)) => line,
            _ => "exit".to_owned(),
        };
        if to.write_all(format!("{line}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// The terminal as a mere line to the guest; as it was before when dropped. None if stdin is no terminal.
struct Raw(libc::termios);

impl Raw {
    fn set() -> Option<Raw> {
        // SAFETY: all bits zero are a valid termios.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a termios that lives here; a descriptor that is no terminal gives an error.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut now) } != 0 {
            return None;
        }
        let before = now;
        // SAFETY: the pointer is to a termios that tcgetattr has filled.
        unsafe {
            libc::cfmakeraw(&raw mut now);
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &raw const now);
        }
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the pointer is to a termios that tcgetattr has filled.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &raw const self.0) };
    }
}
