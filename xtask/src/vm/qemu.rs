//! One boot: starts QEMU, streams what the guest's command says, learns how it ended.
//! QEMU may not outlive this process, and a guest that died may not look like a command that ended.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::shell::{self, Screen};
use crate::sh;

/// How many lines of the kernel's console are kept to explain a death.
const CONSOLE_LINES: usize = 80;

/// How a boot ended.
#[derive(Debug)]
pub enum End {
    /// The command ran and exited with this status.
    Exited(i32),
    /// The guest died before the command started.
    NotReady,
    /// The guest died while the command ran.
    Died,
    /// The time was up.
    TimedOut,
}

/// What one boot gave.
#[derive(Debug)]
pub struct Boot {
    /// How it ended.
    pub end: End,
    /// From QEMU's start to the command's.
    pub ready: Option<Duration>,
    /// The last lines of the kernel's console.
    pub console: Vec<String>,
}

/// Where the guest's streams go.
pub struct Streams<'a> {
    /// The command's stdout.
    pub out: &'a mut (dyn Write + Send),
    /// The command's stderr.
    pub err: &'a mut (dyn Write + Send),
    /// Show the kernel's console on stderr.
    pub show_console: bool,
    /// The guest ends with a shell on its serial line.
    pub shell: bool,
    /// Where files that the guest leaves in /out are unpacked.
    pub files: Option<&'a Path>,
}

/// What happens while a guest runs.
pub enum Event {
    /// The command starts.
    Ready,
    /// The command, and the shell after it, have ended with the command's status.
    Exit(i32),
    /// The guest is gone.
    ControlClosed,
}

/// Adds the machine's serial ports to `qemu`, runs it and waits for the command's end. QEMU inherits the descriptor of
/// `initrd`.
pub fn boot(mut qemu: Command, initrd: &File, timeout: Duration, streams: Streams<'_>) -> Result<Boot> {
    let mut ports = Vec::new();
    qemu.args(["-device", "virtio-serial-pci"]);
    for name in ["control", "out", "err", "files", "console"] {
        let (ours, theirs) = UnixStream::pair().context("creating a channel to the guest")?;
        let fd = theirs.as_raw_fd();
        qemu.arg("-chardev").arg(format!("socket,id={name},fd={fd}"));
        if name == "console" {
            qemu.args(["-serial", "chardev:console"]);
        } else {
            qemu.arg("-device").arg(format!("virtserialport,chardev={name},name=ctw.{name}"));
        }
        ports.push((ours, theirs));
    }
    let mut fds: Vec<i32> = ports.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect();
    fds.push(initrd.as_raw_fd());
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; the descriptors are open.
    unsafe {
        qemu.pre_exec(move || {
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    sh::die_with_parent(&mut qemu);
    let started = Instant::now();
    let mut qemu = Guard(qemu.spawn().context("starting QEMU")?);
    let mut ours = ports.into_iter().map(|(ours, _)| ours);
    let mut next = || ours.next().expect("one channel for each port");
    let (control, out, err, files, console) = (next(), next(), next(), next(), next());

    let lines = Mutex::new(VecDeque::new());
    let (sender, events) = mpsc::channel();
    let mut ready = None;
    let mut end = None;
    let Streams { out: out_to, err: err_to, show_console, shell, files: files_to } = streams;
    let keys =
        if shell { Some(console.try_clone().context("a second end of the serial line")?) } else { None };
    let screen = Screen::off();
    let result = thread::scope(|scope| {
        let copies = [scope.spawn(move || copy(out, out_to)), scope.spawn(move || copy(err, err_to))];
        let unpacking = scope.spawn(move || unpack(files, files_to));
        let (screen, lines) = (&screen, &lines);
        let to_shell = keys.map(|keys| (keys, sender.clone()));
        scope.spawn(move || {
            let rest = keep_lines(console, lines, show_console, screen);
            if let (Some(rest), Some((keys, sender))) = (rest, to_shell) {
                shell::show(rest, keys, sender);
            }
        });
        scope.spawn(move || read_control(control, &sender, screen));
        while end.is_none() {
            let left = timeout.saturating_sub(started.elapsed());
            match events.recv_timeout(left) {
                Ok(Event::Ready) => ready = Some(started.elapsed()),
                Ok(Event::Exit(status)) => end = Some(End::Exited(status)),
                Ok(Event::ControlClosed) => {
                    end = Some(if ready.is_some() { End::Died } else { End::NotReady })
                }
                Err(RecvTimeoutError::Timeout) => end = Some(End::TimedOut),
                Err(RecvTimeoutError::Disconnected) => end = Some(End::Died),
            }
        }
        // The guest has handed over all its output before it tells its status, so there is nothing left to wait for.
        qemu.stop();
        for copy in copies {
            copy.join().expect("a copying thread does not panic").context("writing the guest's output")?;
        }
        unpacking.join().expect("the unpacking thread does not panic")
    });
    result?;
    let console = lines.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).into();
    Ok(Boot { end: end.unwrap_or(End::Died), ready, console })
}

/// Kills QEMU when dropped.
struct Guard(Child);

impl Guard {
    fn stop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Copies until the guest closes, without waiting for a buffer to fill. A reader that goes away doesn't stop the guest.
fn copy(mut from: UnixStream, to: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut result = Ok(());
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return result,
            Ok(count) if result.is_ok() => result = to.write_all(&buffer[..count]).and_then(|()| to.flush()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A killed QEMU may reset the socket; what was sent before has been read.
            Err(_) => return result,
        }
    }
}

fn unpack(mut from: UnixStream, to: Option<&Path>) -> Result<()> {
    let mut archive = Vec::new();
    drop(from.read_to_end(&mut archive));
    let (false, Some(dir)) = (archive.is_empty(), to) else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut tar = Command::new("tar")
        .args([OsString::from("--extract"), "--no-same-owner".into(), "--directory".into(), dir.into()])
        .stdin(Stdio::piped())
        .spawn()
        .context("starting tar to unpack the guest's files")?;
    let mut input = tar.stdin.take().expect("stdin is piped");
    input.write_all(&archive).context("unpacking the guest's files")?;
    drop(input);
    let status = tar.wait().context("waiting for tar")?;
    anyhow::ensure!(status.success(), "unpacking the guest's files failed ({status})");
    Ok(())
}

/// Keeps the console's last lines until the guest ends, or until a shell takes the line over: then the rest is its.
fn keep_lines(
    mut console: UnixStream,
    lines: &Mutex<VecDeque<String>>,
    show: bool,
    screen: &Screen,
) -> Option<impl Read + use<>> {
    let (mut buffer, mut line) = ([0; 4096], Vec::new());
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        if screen.is_on() {
            let first = buffer[..count].to_vec();
            return Some(io::Cursor::new(first).chain(console));
        }
        for byte in &buffer[..count] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if show {
                eprintln!("[console] {text}");
            }
            let mut lines = lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if lines.len() == CONSOLE_LINES {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    }
    None
}

fn read_control(control: UnixStream, events: &Sender<Event>, screen: &Screen) {
    for line in BufReader::new(control).lines() {
        let Ok(line) = line else { break };
        let event = match line.split_once(' ') {
            None if line == "ready" => Event::Ready,
            None if line == "shell" => {
                screen.switch_on();
                continue;
            }
            Some(("exit", status)) => Event::Exit(status.parse().unwrap_or(255)),
            _ => continue,
        };
        // The receiver is gone once the end is known.
        drop(events.send(event));
    }
    drop(events.send(Event::ControlClosed));
}
