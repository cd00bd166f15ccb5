//! Builds the eBPF object that is committed, so that everyone else needs stable Rust only.
//! Nothing of this machine (paths, user, folder) may get into the object: the same sources must give the same bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{apt, cache, progress, sh, workspace};

#[path = "../../ctwatch/build/source_hash.rs"]
mod source_hash;

/// Architectures an object is committed for. Function arguments are read per architecture: one object each.
const ARCHITECTURES: [&str; 1] = ["x86_64"];
const MANIFEST: &str = "manifest.json";
const TARGET: &str = "bpfel-unknown-none";
/// A matched compiler, cargo and library source in Debian 12; rustup's stable has no rust-src to build `core` from.
const RUST_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const LLVM_PACKAGES: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";
const BPF_LINKER_VERSION: &str = "0.13.0";
/// What `--check` returns when this machine's toolchain is not the recorded one, so bytes say nothing.
const OTHER_TOOLCHAIN: u8 = 3;

/// Arguments of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Compare a fresh build with the committed object instead of replacing it; with another toolchain than the
    /// recorded one, exit with status 3
    #[arg(long)]
    check: bool,
}

/// The outcome of [`check`].
#[derive(Debug)]
pub enum Check {
    /// The rebuilt objects are the committed ones, byte for byte.
    Identical,
    /// The toolchain differs from the recorded one: the rebuilt objects must prove themselves by loading instead.
    OtherToolchain {
        /// What the committed objects were built with.
        recorded: Toolchain,
        /// What is installed here.
        here: Toolchain,
        /// A folder like ctwatch/prebuilt with what was built here.
        prebuilt: PathBuf,
    },
}

/// What the objects were built with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Toolchain {
    /// First line of `rustc --version`.
    pub rustc: String,
    /// Version of the LLVM that bpf-linker and llvm-objcopy use.
    pub llvm: String,
    /// Version of bpf-linker.
    pub bpf_linker: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, LLVM {}, {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

/// The file next to the committed objects that says where they come from.
#[derive(Debug, Deserialize, Serialize)]
struct Manifest {
    source_hash: String,
    toolchain: Toolchain,
    objects: BTreeMap<String, Object>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Object {
    file: String,
    sha256: String,
    size: u64,
}

/// Runs `cargo xtask ebpf`.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.check {
        return Ok(match check()? {
            Check::Identical => {
                println!("the committed eBPF object is what its sources give, byte for byte");
                ExitCode::SUCCESS
            }
            Check::OtherToolchain { recorded, here, prebuilt } => {
                println!("built with another toolchain, so the bytes may differ");
                println!("recorded: {recorded}\nhere:     {here}\nto be tested: {}", prebuilt.display());
                ExitCode::from(OTHER_TOOLCHAIN)
            }
        });
    }
    let builder = Builder::prepare()?;
    for object in builder.build_into(&prebuilt())?.objects.values() {
        println!("ctwatch/prebuilt/{} ({} bytes)", object.file, object.size);
    }
    Ok(ExitCode::SUCCESS)
}

/// Rebuilds the objects and compares them with the committed ones.
pub fn check() -> Result<Check> {
    let path = prebuilt().join(MANIFEST);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("reading {}: build it with `cargo xtask ebpf`", path.display()))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .with_context(|| format!("parsing {}: rebuild with `cargo xtask ebpf`", path.display()))?;
    ensure!(
        manifest.source_hash == hash_sources()?,
        "the eBPF sources changed after the object was built: run `cargo xtask ebpf` and commit ctwatch/prebuilt"
    );
    for (architecture, recorded) in &manifest.objects {
        let bytes = read_committed(&recorded.file)?;
        ensure!(
            describe(architecture, &bytes) == *recorded,
            "{} is not the object its manifest describes: run `cargo xtask ebpf`",
            recorded.file
        );
    }
    let builder = Builder::prepare()?;
    let rebuilt_dir = workspace::target().join("ebpf/prebuilt");
    let rebuilt = builder.build_into(&rebuilt_dir)?;
    if builder.toolchain != manifest.toolchain {
        return Ok(Check::OtherToolchain {
            recorded: manifest.toolchain,
            here: builder.toolchain,
            prebuilt: rebuilt_dir,
        });
    }
    for architecture in ARCHITECTURES {
        ensure!(
            rebuilt.objects.get(architecture) == manifest.objects.get(architecture),
            "the object for {architecture} in {} differs from the committed one although the toolchain is the \
             recorded one: run `cargo xtask ebpf` and commit ctwatch/prebuilt",
            rebuilt_dir.display()
        );
    }
    Ok(Check::Identical)
}

fn hash_sources() -> Result<String> {
    source_hash::source_hash(workspace::root()).context("hashing the eBPF sources")
}

fn prebuilt() -> PathBuf {
    workspace::root().join("ctwatch/prebuilt")
}

fn read_committed(file: &str) -> Result<Vec<u8>> {
    let path = prebuilt().join(file);
    fs::read(&path).with_context(|| format!("reading {}: build it with `cargo xtask ebpf`", path.display()))
}

fn describe(architecture: &str, bytes: &[u8]) -> Object {
    Object {
        file: format!("ctwatch-ebpf.{architecture}.o"),
        sha256: Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        size: bytes.len() as u64,
    }
}

/// A complete toolchain, ready to build.
struct Builder {
    cargo_home: PathBuf,
    linker_dir: PathBuf,
    rust_src: PathBuf,
    toolchain: Toolchain,
}

impl Builder {
    fn prepare() -> Result<Builder> {
        apt::install_on_host(
            &[RUST_PACKAGES.as_slice(), LLVM_PACKAGES.as_slice()].concat(),
            "building the eBPF object",
        )?;
        let rustc = packaged_program("rustc-web", "rustc")?;
        let linker_dir = bpf_linker()?;
        let rust_src = sysroot(&rustc)?.join("lib/rustlib/src/rust");
        ensure!(
            rust_src.join("library/core").is_dir(),
            "the Rust library source is not at {}: reinstall the package rust-web-src",
            rust_src.display()
        );
        let toolchain = Toolchain {
            rustc: version(Command::new(&rustc).arg("--version"))?,
            llvm: version(Command::new(Path::new(LLVM_PREFIX).join("bin/llvm-config")).arg("--version"))?,
            bpf_linker: version(Command::new(linker_dir.join("bpf-linker")).arg("--version"))?,
        };
        Ok(Builder { cargo_home: cargo_home()?, linker_dir, rust_src, toolchain })
    }

    /// Builds all objects and their manifest into the folder `dir`.
    fn build_into(&self, dir: &Path) -> Result<Manifest> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut objects = BTreeMap::new();
        // Taken first: a source that changes during the build then leaves a hash that build.rs refuses.
        let source_hash = hash_sources()?;
        for architecture in ARCHITECTURES {
            let built = self.build(architecture)?;
            let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
            let object = describe(architecture, &bytes);
            let path = dir.join(&object.file);
            fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
            objects.insert(architecture.to_owned(), object);
        }
        let manifest = Manifest { source_hash, toolchain: self.toolchain.clone(), objects };
        let path = dir.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).context("formatting the manifest")? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(manifest)
    }

    /// Builds the object of one architecture and returns where it is.
    fn build(&self, architecture: &str) -> Result<PathBuf> {
        let target_dir = workspace::target().join("ebpf").join(architecture);
        // Fetch first: which registry folders exist decides which path prefixes are to be remapped.
        sh::run_quiet(self.cargo()?.args(["fetch", "--target", TARGET]))
            .context("fetching the crates of ctwatch-ebpf")?;
        let mut flags = vec![
            format!("--cfg=bpf_target_arch=\"{architecture}\""),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
        ];
        flags.extend(self.remappings()?);
        sh::run(
            self.cargo()?
                .args(["build", "--release", "--package", "ctwatch-ebpf", "-Z", "build-std=core"])
                .args(["--target", TARGET, "--target-dir"])
                .arg(&target_dir)
                .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
        )
        .context("building ctwatch-ebpf")?;
        let linked = target_dir.join(TARGET).join("release/ctwatch-ebpf");
        let object = target_dir.join(format!("ctwatch-ebpf.{architecture}.o"));
        // BTF stays (it is no debug section); DWARF is two thirds of the file and nobody reads it.
        sh::run_quiet(
            Command::new(Path::new(LLVM_PREFIX).join("bin/llvm-objcopy"))
                .arg("--strip-debug")
                .arg(&linked)
                .arg(&object),
        )
        .context("stripping the eBPF object")?;
        Ok(object)
    }

    fn cargo(&self) -> Result<Command> {
        let mut command = Command::new(packaged_program("cargo-web", "cargo")?);
        let mut path = self.linker_dir.clone().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")));
        sh::without_toolchain(&mut command)
            .current_dir(workspace::root())
            .env("PATH", path)
            .env("RUSTC", packaged_program("rustc-web", "rustc")?)
            // The packages are stable releases; building `core` is a nightly switch of theirs.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_HOME", &self.cargo_home)
            .env("CARGO_PROFILE_RELEASE_STRIP", "none");
        Ok(command)
    }

    /// Flags that keep this machine's folders out of panic locations and BTF line information. Later flags win.
    fn remappings(&self) -> Result<Vec<String>> {
        let mut prefixes = vec![
            (workspace::root().to_owned(), "/ctwatch".to_owned()),
            (self.rust_src.clone(), "/rust".to_owned()),
            (self.cargo_home.clone(), "/cargo".to_owned()),
        ];
        // A registry's folder carries a hash of its address, which differs behind a mirror.
        let sources = self.cargo_home.join("registry/src");
        for entry in fs::read_dir(&sources).with_context(|| format!("listing {}", sources.display()))? {
            prefixes.push((
                entry.with_context(|| format!("listing {}", sources.display()))?.path(),
                "/cargo".to_owned(),
            ));
        }
        Ok(prefixes
            .into_iter()
            .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
            .collect())
    }
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(version(Command::new(rustc).args(["--print", "sysroot"]))?))
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => {
            Ok(std::env::home_dir().context("finding cargo's home: set HOME or CARGO_HOME")?.join(".cargo"))
        }
    }
}

/// The path of a program of a Debian package; on PATH rustup's program of that name usually comes first.
fn packaged_program(package: &str, name: &str) -> Result<PathBuf> {
    let files = sh::capture(Command::new("dpkg").args(["--listfiles", package]))?;
    let suffix = format!("/bin/{name}");
    // The shortest path is the public one: /usr/bin/cargo, not /usr/share/cargo/bin/cargo.
    files
        .lines()
        .filter(|file| file.ends_with(&suffix))
        .min_by_key(|file| file.len())
        .map(PathBuf::from)
        .with_context(|| {
            format!("the package {package} has no program {name}: is it for another Debian release?")
        })
}

fn version(command: &mut Command) -> Result<String> {
    let text = sh::capture(sh::without_toolchain(command))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The folder of bpf-linker; builds it into the cache the first time.
fn bpf_linker() -> Result<PathBuf> {
    let root = cache::dir()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}-{LLVM_FEATURE}"));
    let bin = root.join("bin");
    cache::ensure("bpf-linker", &root, false, |dir| {
        progress::say(&format!("building bpf-linker {BPF_LINKER_VERSION}, once (a minute or two)"));
        let target = tempfile::tempdir().context("creating a temporary folder")?;
        let mut command = Command::new("cargo");
        sh::run(
            sh::without_toolchain(&mut command)
                .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER_VERSION])
                .args(["--no-default-features", "--features", LLVM_FEATURE, "--root"])
                .arg(dir)
                .current_dir(target.path())
                .env("CARGO_TARGET_DIR", target.path())
                .env("LLVM_PREFIX", LLVM_PREFIX)
                .env("RUSTFLAGS", format!("-L native={LLVM_PREFIX}/lib")),
        )
        .context("building bpf-linker")
    })?;
    if !bin.join("bpf-linker").is_file() {
        bail!("cargo install left no bpf-linker in {}: remove the folder and try again", bin.display());
    }
    Ok(bin)
}
