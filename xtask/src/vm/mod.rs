//! Boots a stock kernel under emulation and runs a command in it: nf_conntrack's limits are global, so only a guest of
//! our own may be hurt. Nothing here may touch the host's network or leave a QEMU behind.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::dist;
use crate::progress::Steps;
use qemu::{End, Streams};
use tools::Tools;

mod cpio;
mod image;
mod kernel;
mod qemu;
mod shell;
mod tools;

pub use image::GuestFile;
pub use kernel::{Kernel, Series};

/// Emulated, `rep movsb` copies byte by byte, and a fifth level of page tables is one more look-up at each miss: without
/// either a guest's kernel does the same in two thirds of the time.
const QUICK_CPU: &str = "max,-erms,-fsrm,-fsrs,-la57";
/// A boot that fails before the command starts is the emulator's fault; so often it is tried again.
const RETRIES: u32 = 2;
/// The exit status for a guest that died under the command.
const EXIT_DIED: u8 = 70;
/// The exit status for a time limit, as timeout(1) has it.
const EXIT_TIMED_OUT: u8 = 124;

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// Number of CPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MB
    #[arg(long, default_value_t = 2048)]
    mem: u32,
    /// One guest nanosecond per instruction on one CPU, so that clocks in the guest count instructions
    #[arg(long)]
    icount: bool,
    /// Seconds until the guest is stopped (exit status 124)
    #[arg(long, default_value_t = 600, value_name = "SECS")]
    timeout: u64,
    /// Copy a file or folder of the host into the guest
    #[arg(long = "file", value_name = "HOST=GUEST", value_parser = parse_file)]
    files: Vec<GuestFile>,
    /// Unpack here what the command leaves in /out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Leave out the ctwatch binary instead of building it
    #[arg(long)]
    no_ctwatch: bool,
    /// Fetch newer kernels and tools than the cached ones
    #[arg(long)]
    update: bool,
    /// Show the kernel's console on stderr
    #[arg(long, short)]
    verbose: bool,
    /// Run as root in the guest: a program with its arguments, or a bash script in one word
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn parse_file(text: &str) -> Result<GuestFile, String> {
    match text.split_once('=') {
        Some((host, guest)) if guest.starts_with('/') => {
            Ok(GuestFile { host: PathBuf::from(host), guest: guest.to_owned() })
        }
        _ => Err("expected HOST=GUEST with an absolute GUEST".to_owned()),
    }
}

/// Runs `cargo xtask vm`.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut vm = Vm::new(args.kernel);
    vm.cpus = args.cpus;
    vm.mem = args.mem;
    vm.icount = args.icount;
    vm.timeout = Duration::from_secs(args.timeout);
    vm.files = args.files;
    vm.out_dir = args.out;
    vm.update = args.update;
    vm.verbose = args.verbose;
    if !args.no_ctwatch {
        match dist::ctwatch() {
            Ok(binary) => vm.files.push(GuestFile { host: binary, guest: "/ctw/ctwatch".to_owned() }),
            Err(error) => eprintln!("xtask: the guest has no ctwatch: {error:#}"),
        }
    }
    let status = vm.run(&args.command, &mut io::stdout(), &mut io::stderr())?;
    Ok(status.exit_code())
}

/// Which kernel a machine boots.
#[derive(Clone, Debug)]
pub enum Which {
    /// The newest of a series, from the cache.
    Newest(Series),
    /// One that was made ready.
    Ready(Kernel),
}

impl Which {
    fn get(&self, tools: &Tools, update: bool) -> Result<Kernel> {
        match self {
            Which::Newest(series) => Kernel::get(*series, tools, update),
            Which::Ready(kernel) => Ok(kernel.clone()),
        }
    }
}

impl From<Series> for Which {
    fn from(series: Series) -> Which {
        Which::Newest(series)
    }
}

impl From<Kernel> for Which {
    fn from(kernel: Kernel) -> Which {
        Which::Ready(kernel)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Newest(series) => series.fmt(f),
            Which::Ready(kernel) => f.write_str(&kernel.release),
        }
    }
}

/// Makes the kernel whose packages are unpacked in `root` bootable in `dir`, small and for throwing away.
pub fn make_kernel(root: &Path, dir: &Path) -> Result<Kernel> {
    Kernel::make_small(root, &Tools::get(false)?, dir)
}

/// A machine to be booted.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Which kernel.
    pub kernel: Which,
    /// How many CPUs; one with `icount`.
    pub cpus: u32,
    /// Memory in MB.
    pub mem: u32,
    /// Count instructions: one per guest nanosecond.
    pub icount: bool,
    /// How long the whole run may take.
    pub timeout: Duration,
    /// What is copied into the guest.
    pub files: Vec<GuestFile>,
    /// Where the guest's /out goes.
    pub out_dir: Option<PathBuf>,
    /// Look for newer kernels and tools.
    pub update: bool,
    /// Show the kernel's console.
    pub verbose: bool,
    /// When the command has ended, go on with a shell that this process's stdin speaks to.
    pub shell: bool,
}

/// How a command in a guest ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// With this status.
    Exited(i32),
    /// The guest's kernel died.
    Died,
    /// The time was up.
    TimedOut,
}

impl Status {
    /// Did the command end well?
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }

    /// The status for xtask itself to exit with.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Status::Exited(status) => u8::try_from(status).unwrap_or(u8::MAX),
            Status::Died => EXIT_DIED,
            Status::TimedOut => EXIT_TIMED_OUT,
        })
    }
}

impl Vm {
    /// A machine with two CPUs, 2 GB and ten minutes.
    pub fn new(kernel: impl Into<Which>) -> Vm {
        Vm {
            kernel: kernel.into(),
            cpus: 2,
            mem: 2048,
            icount: false,
            timeout: Duration::from_secs(600),
            files: Vec::new(),
            out_dir: None,
            update: false,
            verbose: false,
            shell: false,
        }
    }

    /// Fetches what a boot needs and the cache lacks, beside other steps.
    pub fn fetch_ahead(&self) -> Result<()> {
        let tools = Tools::get(false)?;
        image::root_image(&tools, false)?;
        self.kernel.get(&tools, false).map(drop)
    }

    /// Fetches what a boot needs and the cache lacks, in steps of their own.
    pub fn fetch(&self, steps: &Steps) -> Result<()> {
        let tools = steps.step("QEMU", || Tools::get(self.update))?;
        steps.step("the guest's programs", || image::root_image(&tools, self.update))?;
        steps.step(&format!("kernel {}", self.kernel), || self.kernel.get(&tools, self.update))?;
        Ok(())
    }

    /// Boots, runs `command`, streams its output.
    pub fn run(
        &self,
        command: &[String],
        out: &mut (dyn Write + Send),
        err: &mut (dyn Write + Send),
    ) -> Result<Status> {
        let tools = Tools::get(self.update)?;
        let root = image::root_image(&tools, self.update)?;
        let kernel = self.kernel.get(&tools, self.update)?;
        let shell = self.shell.then(shell::settings);
        let initrd = image::write_initrd(&tools, &kernel, &self.files, command, shell.as_deref())?;
        for attempt in 0.. {
            let mut qemu = tools.qemu();
            qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
            if self.icount {
                qemu.args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1", "-cpu", "max"]);
            } else {
                qemu.args(["-accel", "tcg,thread=multi", "-smp", &self.cpus.to_string(), "-cpu", QUICK_CPU]);
            }
            qemu.args(["-m", &self.mem.to_string()]);
            qemu.arg("-kernel")
                .arg(kernel.image())
                .arg("-initrd")
                .arg(format!("/proc/self/fd/{}", initrd.as_raw_fd()));
            // What the kernel doesn't know it hands to /init as environment.
            qemu.arg("-append").arg(format!(
                "console=ttyS0 panic=-1 oops=panic {} CTW_RELEASE={}",
                if self.verbose { "loglevel=6" } else { "quiet" },
                kernel.release
            ));
            for (index, disk) in [&root, &kernel.modules_image()].into_iter().enumerate() {
                // A comma separates options; two stand for one.
                let file = disk.display().to_string().replace(',', ",,");
                qemu.arg("-drive").arg(format!("if=none,id=disk{index},format=raw,readonly=on,file={file}"));
                qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{index}"));
            }
            let streams = Streams {
                out: &mut *out,
                err: &mut *err,
                show_console: self.verbose,
                shell: self.shell,
                files: self.out_dir.as_deref(),
            };
            let boot = qemu::boot(qemu, &initrd, self.timeout, streams)?;
            if self.verbose
                && let Some(ready) = boot.ready
            {
                eprintln!("xtask: the command started after {:.1} s", ready.as_secs_f64());
            }
            match boot.end {
                End::Exited(status) => {
                    report_complaints(&boot.console);
                    return Ok(Status::Exited(status));
                }
                End::TimedOut => {
                    report_console(&boot.console);
                    eprintln!("xtask: stopped the guest after {} s", self.timeout.as_secs());
                    return Ok(Status::TimedOut);
                }
                End::NotReady if attempt < RETRIES => {
                    report_console(&boot.console);
                    eprintln!(
                        "xtask: the guest died before the command started: the emulator's fault, trying again"
                    );
                }
                End::NotReady | End::Died => {
                    report_console(&boot.console);
                    eprintln!("xtask: the guest died: its last words are above");
                    return Ok(Status::Died);
                }
            }
        }
        unreachable!("the loop ends by returning")
    }
}

fn report_console(console: &[String]) {
    for line in console {
        eprintln!("[console] {line}");
    }
}

/// A kernel that complains but lives on is worth a look.
fn report_complaints(console: &[String]) {
    for line in console.iter().filter(|line| line.contains("WARNING:") || line.contains("BUG:")) {
        eprintln!("[console] {line}");
    }
}
