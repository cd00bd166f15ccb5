//! A bpftrace beside ctwatch: as a neighbour on the same functions, and as the price to compare with.
//! It starts and ends here; what its script counts is its caller's idea.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::shell::interrupt;

/// A running bpftrace, stopped when dropped.
pub struct Bpftrace {
    child: Child,
    _words: TempDir,
}

impl Bpftrace {
    /// Starts a script and waits until all its probes are attached.
    pub fn start(script: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for bpftrace's words")?;
        let words = folder.path().join("words");
        let file = fs::File::create(&words)?;
        // Probes attach in the script's order or against it: when the timers at both ends ran, so did all between.
        let script = format!(
            "interval:ms:500 {{ @head = 1; if (@tail == 1) {{ printf(\"attached\\n\"); @tail = 2; }} }}\n\
             {script}\n\
             interval:ms:500 {{ if (@head == 1 && @tail == 0) {{ @tail = 1; }} }}\n"
        );
        let child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &script])
            // 5.10 has no BTF of modules, and bpftrace 0.17 then overlooks the kernel's own unless told where it is.
            .env("BPFTRACE_BTF", "/sys/kernel/btf/vmlinux")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting bpftrace")?;
        let mut bpftrace = Self { child, _words: folder };
        let until = Instant::now() + Duration::from_secs(240);
        loop {
            let said = fs::read_to_string(&words)?;
            if said.contains("attached\n") {
                return Ok(bpftrace);
            }
            ensure!(bpftrace.child.try_wait()?.is_none(), "bpftrace ended: {}", said.trim());
            ensure!(Instant::now() < until, "bpftrace did not attach within 240 s: {}", said.trim());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = interrupt(&mut self.child);
    }
}
