//! The file of a kernel module, with symbols that lead elsewhere: how a kernel looks that compiled conntrack otherwise.
//! Only names are exchanged; the code and what refers to it stay as they are.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::{FileHeader64, SHT_SYMTAB, STT_FUNC, Sym64};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};

/// What comes after a signed module, with a signature that no longer holds before it.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// A module's file.
pub struct ModuleFile {
    bytes: Vec<u8>,
    /// Where the names stand that lead elsewhere.
    exchanged: Vec<usize>,
}

/// A function's symbol.
struct Function {
    name: String,
    /// Where in the file its name's offset stands.
    at: usize,
    name_offset: u32,
}

impl ModuleFile {
    /// nf_conntrack as this kernel's package has it.
    pub fn of_conntrack() -> Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
        let path =
            PathBuf::from("/lib/modules").join(release.trim()).join("kernel/net/netfilter/nf_conntrack.ko");
        let mut bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if bytes.ends_with(SIGNED) {
            bytes.truncate(bytes.len() - SIGNED.len());
        }
        Ok(Self { bytes, exchanged: Vec::new() })
    }

    /// Has a function's name stand for code that the kernel lets nobody probe: the cold part of another function, which
    /// ftrace knows nothing of (within_notrace_func, kernel/trace/trace_kprobe.c).
    pub fn make_notrace(&mut self, function: &str) -> Result<()> {
        let functions = self.functions()?;
        let named = |one: &&Function| one.name == function;
        let this = functions.iter().find(named).with_context(|| format!("no function {function}"))?;
        let is_cold = |one: &&Function| one.name.ends_with(".cold") && !self.exchanged.contains(&one.at);
        let other = functions.iter().find(is_cold).context("no function has a cold part")?;
        let (this, other) = ((this.at, other.name_offset), (other.at, this.name_offset));
        for (at, name_offset) in [this, other] {
            self.bytes[at..at + 4].copy_from_slice(&name_offset.to_le_bytes());
            self.exchanged.push(at);
        }
        Ok(())
    }

    fn functions(&self) -> Result<Vec<Function>> {
        let (data, endian) = (&*self.bytes, LittleEndian);
        let header = FileHeader64::<LittleEndian>::parse(data).context("the module's header")?;
        let sections = header.sections(endian, data).context("the module's sections")?;
        let symbols = sections.symbols(endian, data, SHT_SYMTAB).context("the module's symbols")?;
        let table = sections.section(symbols.section())?.sh_offset(endian) as usize;
        let mut functions = Vec::new();
        for (index, symbol) in symbols.enumerate() {
            if symbol.st_type() == STT_FUNC {
                functions.push(Function {
                    name: String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?).into_owned(),
                    at: table + index.0 * size_of::<Sym64<LittleEndian>>(),
                    name_offset: symbol.st_name(endian),
                });
            }
        }
        ensure!(!functions.is_empty(), "the module has no functions");
        Ok(functions)
    }

    /// Writes it to a file.
    pub fn write(&self, path: &std::path::Path) -> Result<()> {
        fs::write(path, &self.bytes).with_context(|| format!("writing {}", path.display()))
    }
}
