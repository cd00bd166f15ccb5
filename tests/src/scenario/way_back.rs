//! Advice tried by its script: it stays only if it is confirmed, whatever becomes of the terminal, the script or the watchdog.
//! Rules are compared as nft lists them, and connections are made all the time.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::notrack::{answer, serve};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::nftables;
use crate::shell::run;

const ID: &str = "notrack-6379-tcp-lo";
const PENDING: &str = "/run/ctwatch-advice/pending";
const LAST: &str = "/run/ctwatch-advice/last";
/// Emulation may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Connections to redis' port, one after the other, each of which has to be answered.
struct Talk {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Talk {
    fn start() -> Self {
        let (is_over, answered, failed) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (over, good, bad) = (is_over.clone(), answered.clone(), failed.clone());
        let thread = thread::spawn(move || {
            let redis = SocketAddr::from(([127, 0, 0, 1], 6379));
            while !over.load(Relaxed) {
                if answer(redis).is_some() { &good } else { &bad }.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { is_over, answered, failed, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A try that goes on; killed when dropped.
struct Try {
    child: Child,
    said: PathBuf,
}

impl Try {
    /// Starts it with a pipe for a terminal.
    fn start(shell: &[&str], script: &Path, ssh: Option<&str>) -> Result<Self> {
        let said = script.with_extension("said");
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(script).args(["try", ID]);
        if let Some(ssh) = ssh {
            command.env("SSH_CONNECTION", ssh);
        }
        let file = File::create(&said)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting the script")?;
        Ok(Self { child, said })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    fn wait_until_applied(&self) -> Result<()> {
        wait_for("the rules to be applied", || log().contains("Type yes") || self.said().contains("Type yes"))
            .with_context(|| format!("it said: {}", self.said()))
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its stdin")?;
        stdin.write_all(text.as_bytes()).context("typing")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("sending a signal")
    }

    /// Its exit code, and all it said.
    fn end(mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status.code(), self.said()));
            }
            ensure!(Instant::now() < until, "the script did not end; it said: {}", self.said());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log() -> String {
    fs::read_to_string(format!("{PENDING}/log")).unwrap_or_default()
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !is_there() {
        if Instant::now() > until {
            bail!("waiting for {what}; the log: {}", log());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits for the end of a try that nobody listens to: its last word.
fn last_word() -> Result<String> {
    wait_for("the watchdog's last word", || Path::new(LAST).exists() && !Path::new(PENDING).exists())?;
    fs::read_to_string(LAST).context("reading the last word")
}

fn rules() -> Result<String> {
    run(&["nft", "-s", "list", "ruleset"])
}

/// A connection such as sshd has one, both ends held here; and SSH_CONNECTION for it.
struct Ssh {
    client: TcpStream,
    server: TcpStream,
    variable: String,
}

impl Ssh {
    fn connect() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("a port for sshd")?;
        let client = TcpStream::connect(listener.local_addr()?).context("connecting to it")?;
        let (server, from) = listener.accept().context("accepting")?;
        let to = server.local_addr()?;
        let variable = format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port());
        Ok(Self { client, server, variable })
    }

    /// Sends all the time, as a terminal does that is written to.
    fn keep_moving(&self) -> Result<()> {
        let (mut from, mut to) = (self.server.try_clone()?, self.client.try_clone()?);
        thread::spawn(move || {
            while from.write_all(b"a line\n").is_ok() {
                thread::sleep(Duration::from_millis(200));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while to.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
        Ok(())
    }
}

pub(super) fn confirmed_or_taken_back(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    serve(*b"redi")?;
    let mut talk = Talk::start();
    thread::sleep(Duration::from_secs(1));
    let folder = tempfile::tempdir().context("a folder for scripts")?;
    let text = run(&["ctwatch", "advise", "--window", "4s", "--format", "sh", "--item", ID])?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text).context("writing a script")?;
        Ok(path)
    };
    let whole = write("whole.sh", &text)?;
    // Where a minute shows nothing that ten seconds don't.
    let short_text = text.replace("\npatience=60\n", "\npatience=10\n");
    ensure!(short_text != text, "the script has no patience");
    let short = write("short.sh", &short_text)?;
    let before = rules()?;
    let mut checks = Checks::new();
    let sh = &["sh"][..];
    let busybox = &["busybox", "sh"][..];

    // Confirmed where it was started.
    let mut tried = Try::start(sh, &short, None)?;
    tried.wait_until_applied()?;
    checks.that(rules()?.contains("notrack"), "it is not applied while it is tried");
    // A second one has to wait, whichever piece it is.
    let second = Command::new("sh").arg(&short).args(["try", ID]).stdin(Stdio::null()).output()?;
    checks.equal("exit code of a second try", second.status.code(), Some(1));
    let second = String::from_utf8_lossy(&second.stderr).into_owned();
    checks.that(second.contains("another piece is being tried"), format!("a second try: {second}"));
    tried.type_in("yes\n")?;
    let (code, said) = tried.end()?;
    checks.equal("exit code when confirmed", code, Some(0));
    checks.that(said.contains("applied and confirmed"), format!("when confirmed: {said}"));
    checks.that(rules()?.contains("notrack"), "it did not stay though it was confirmed");
    // Once more: it changes nothing, so nothing is taken back.
    let (code, said) = Try::start(sh, &short, None)?.end()?;
    checks.that(
        code == Some(0) && said.contains("applied already") && rules()?.contains("notrack"),
        format!("a try of what is there: {code:?} {said}"),
    );
    run(&["sh", path(&short)?, "undo"])?;
    checks.equal("rules after `undo`", rules()?, before.clone());

    // Not confirmed, for the whole minute, in the other shell, with an SSH connection that lives.
    let ssh = Ssh::connect()?;
    ssh.keep_moving()?;
    let began = Instant::now();
    let tried = Try::start(busybox, &whole, Some(&ssh.variable))?;
    tried.wait_until_applied()?;
    checks.that(rules()?.contains("notrack"), "busybox: it is not applied");
    let (code, said) = tried.end()?;
    let took = began.elapsed().as_secs();
    checks.figure("unconfirmed_s", took);
    checks.that(took >= 60, format!("it was taken back after {took} s"));
    checks.equal("exit code when not confirmed", code, Some(1));
    checks.that(
        said.contains("not confirmed within 60 s: rules and settings are as they were before"),
        format!("when not confirmed: {said}"),
    );
    checks.that(said.contains("SSH: moving"), format!("the SSH connection was not seen: {said}"));
    let figures = said.lines().find(|line| line.contains("packets refused in 5 s"));
    checks.that(figures.is_some(), format!("no figures of ctwatch: {said}"));
    checks.equal("rules when not confirmed", rules()?, before.clone());

    // The terminal goes: by hanging up, by kill -9 of the script, and the watchdog itself.
    let terminal = openpty(None, None).context("a terminal")?;
    let slave = File::from(terminal.slave);
    // As a copy that no child gets: a terminal hangs up when nobody holds this end any more.
    let original = File::from(terminal.master);
    let master = original.try_clone()?;
    drop(original);
    let mut child = Command::new("setsid")
        .args(["--ctty", "sh"])
        .arg(&short)
        .args(["try", ID])
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()
        .context("starting the script in a terminal")?;
    wait_for("the rules to be applied in a terminal", || log().contains("Type yes"))?;
    drop(master);
    let status = child.wait().context("the script in a terminal")?;
    checks.that(status.code().is_none(), format!("the terminal is gone, and the script ended with {status}"));
    checks.that(Path::new(PENDING).exists(), "the watchdog went with the terminal");
    checks.that(last_word()?.contains("as they were before"), "the terminal was cut off");
    checks.equal("rules after the terminal was cut off", rules()?, before.clone());

    let tried = Try::start(sh, &short, None)?;
    tried.wait_until_applied()?;
    tried.signal(Signal::SIGKILL)?;
    checks.that(last_word()?.contains("as they were before"), "the script was killed");
    drop(tried);
    checks.equal("rules after kill -9 of the script", rules()?, before.clone());

    // Killed, but confirmed from another terminal.
    let tried = Try::start(busybox, &short, None)?;
    tried.wait_until_applied()?;
    tried.signal(Signal::SIGKILL)?;
    let said = run(&["sh", path(&short)?, "confirm"])?;
    checks.that(said.contains("applied and confirmed"), format!("confirmed elsewhere: {said}"));
    drop(tried);
    checks.that(rules()?.contains("notrack"), "it did not stay though it was confirmed elsewhere");
    run(&["sh", path(&short)?, "undo"])?;

    // The watchdog is killed: the script takes it back in its place.
    let tried = Try::start(sh, &short, None)?;
    tried.wait_until_applied()?;
    let watchdog: i32 = fs::read_to_string(format!("{PENDING}/pid"))?.trim().parse()?;
    kill(Pid::from_raw(watchdog), Signal::SIGKILL).context("killing the watchdog")?;
    let (_, said) = tried.end()?;
    checks.that(said.contains("the watchdog is gone") && said.contains("as they were before"), said);
    checks.equal("rules after kill -9 of the watchdog", rules()?, before.clone());
    // Both are killed: nothing is left that could, but the next one is told, and `rollback` does it.
    let tried = Try::start(sh, &short, None)?;
    tried.wait_until_applied()?;
    tried.signal(Signal::SIGKILL)?;
    let watchdog: i32 = fs::read_to_string(format!("{PENDING}/pid"))?.trim().parse()?;
    kill(Pid::from_raw(watchdog), Signal::SIGKILL).context("killing the watchdog")?;
    drop(tried);
    let next = Command::new("sh").arg(&short).args(["try", ID]).stdin(Stdio::null()).output()?;
    let next = String::from_utf8_lossy(&next.stderr).into_owned();
    checks.that(next.contains("rollback"), format!("a try after both were killed: {next}"));
    let said = run(&["sh", path(&short)?, "rollback"])?;
    checks.that(said.contains("as they were before"), format!("rollback: {said}"));
    checks.equal("rules after `rollback`", rules()?, before.clone());

    broken(&short_text, &write, &before, &mut checks)?;
    locked_out(&text, &write, &before, &mut checks)?;

    talk.stop();
    checks.figure("answered", talk.answered.load(Relaxed));
    checks.equal("connections that were not answered", talk.failed.load(Relaxed), 0);
    // Nobody counts on after a try, whoever ended it.
    thread::sleep(Duration::from_secs(2));
    checks.equal("programs that go on counting", counting()?, Vec::new());
    Ok(Outcome::Passed(checks.finish()?))
}

/// The command lines of ctwatch's that run.
fn counting() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").context("listing processes")? {
        let folder = process?.path();
        // It may be none, or end meanwhile.
        if fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "ctwatch") {
            let words = fs::read(folder.join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&words).replace('\0', " "));
        }
    }
    Ok(found)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a script's path")
}

/// Commands that fail half way: what was done is undone, by `now` and by `try`.
fn broken(
    text: &str,
    write: &impl Fn(&str, &str) -> Result<PathBuf>,
    before: &str,
    checks: &mut Checks,
) -> Result<()> {
    let broken = text.replacen(
        "\n}\n\nkeep_1()",
        "\n    nft add rule inet no_such_table chain accept\n}\n\nkeep_1()",
        1,
    );
    ensure!(broken != text, "the script has no place for another command");
    let broken = write("broken.sh", &broken)?;
    let now = Command::new("sh").arg(&broken).arg("now").output()?;
    let said = String::from_utf8_lossy(&now.stderr).into_owned();
    checks.equal("exit code of a broken `now`", now.status.code(), Some(1));
    checks.that(said.contains("the host is as it was before"), format!("a broken `now`: {said}"));
    checks.equal("rules after a broken `now`", rules()?, before.to_owned());
    let (code, said) = Try::start(&["sh"], &broken, None)?.end()?;
    checks.equal("exit code of a broken `try`", code, Some(1));
    checks.that(said.contains("a command failed") && said.contains("as they were before"), said);
    checks.equal("rules after a broken `try`", rules()?, before.to_owned());
    Ok(())
}

/// A change that cuts off whoever made it is taken back before the minute is over.
fn locked_out(
    text: &str,
    write: &impl Fn(&str, &str) -> Result<PathBuf>,
    before: &str,
    checks: &mut Checks,
) -> Result<()> {
    let ssh = Ssh::connect()?;
    ssh.keep_moving()?;
    let port = ssh.server.local_addr()?.port();
    let lock_out = format!(
        "\n    nft 'table inet ctw_lock {{ chain out {{ type filter hook output priority 0; tcp sport {port} drop; }}; }}'\n}}\n\nkeep_1()"
    );
    let text = text.replacen("\n}\n\nkeep_1()", &lock_out, 1).replacen(
        "undo_1() {\n",
        "undo_1() {\n    nft delete table inet ctw_lock\n",
        1,
    );
    let script = write("lock.sh", &text)?;
    let began = Instant::now();
    let (code, said) = Try::start(&["sh"], &script, Some(&ssh.variable))?.end()?;
    let took = began.elapsed().as_secs();
    checks.figure("locked_out_s", took);
    checks.that(
        code == Some(1) && said.contains("does not move any more") && said.contains("as they were before"),
        format!("locked out: {code:?} {said}"),
    );
    checks.that(took < 60, format!("locked out for {took} s"));
    checks.equal("rules after being locked out", rules()?, before.to_owned());
    Ok(())
}
