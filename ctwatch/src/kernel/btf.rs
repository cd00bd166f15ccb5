//! A reader for the kernel's type information (BTF): offsets of fields, sizes of structs.
//! It answers by name and holds one index of 4 bytes a type; it resolves nothing it isn't asked for.

use std::collections::BTreeMap;
use std::path::Path;

use crate::foreign::{Foreign, Shown as _};
use anyhow::{Context, Result, bail, ensure};

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

/// BTF kinds (include/uapi/linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The kernel's types, or those that a module adds to them.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    strings_length: u32,
    /// Where each type's record starts; type 0 (void) has none.
    records: Vec<u32>,
    /// Which of them are structs: one in ten, and only these are looked up by name.
    structs: Vec<u32>,
    /// The typedef of [`TRACEPOINT`].
    tracepoint: Option<u32>,
}

/// What the arguments of the tracepoint kfree_skb are called.
const TRACEPOINT: &str = "btf_trace_kfree_skb";

/// Anonymous structs and unions in one another: those of struct sk_buff are four deep (6.12). Types that contain themselves have no
/// end.
const DEEPEST: u32 = 8;
/// Anonymous members that are looked into for one name.
const MOST: u32 = 4096;
/// A function with more arguments is none that ctwatch hooks.
const MOST_ARGUMENTS: usize = 16;

/// One type's record.
#[derive(Clone, Copy)]
struct Record {
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    bitfields: bool,
    /// Size of a struct, or the type a modifier stands for.
    size_or_type: u32,
}

impl Btf {
    /// Reads and indexes a BTF file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("reading the kernel's BTF, {}", path.shown()))?;
        Self::parse(bytes).with_context(|| format!("parsing the kernel's BTF, {}", path.shown()))
    }

    /// Indexes BTF already in memory.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(bytes.len() >= HEADER, "it is shorter than its header");
        ensure!(u16::from_le_bytes([bytes[0], bytes[1]]) == MAGIC, "its magic number is wrong");
        let header = word(&bytes, 4)? as usize;
        let types = header + word(&bytes, 8)? as usize;
        let types_end = types + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        ensure!(types_end <= bytes.len() && strings <= bytes.len(), "a section lies outside the file");
        let strings_length = word(&bytes, 20)?;
        let mut btf = Self {
            bytes,
            strings,
            strings_length,
            records: vec![u32::MAX],
            structs: Vec::new(),
            tracepoint: None,
        };
        let mut at = types;
        while at < types_end {
            let record = btf.record_at(at)?;
            if record.kind == kind::STRUCT && record.name != 0 {
                btf.structs.push(u32::try_from(btf.records.len())?);
            } else if record.kind == kind::TYPEDEF && btf.has_name(record.name, TRACEPOINT) {
                btf.tracepoint = Some(u32::try_from(btf.records.len())?);
            }
            btf.records.push(u32::try_from(at)?);
            at += 12 + trailing(&record)?;
        }
        Ok(btf)
    }

    fn record_at(&self, at: usize) -> Result<Record> {
        let info = word(&self.bytes, at + 4)?;
        Ok(Record {
            at,
            name: word(&self.bytes, at)?,
            kind: info >> 24 & 0x1f,
            vlen: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            size_or_type: word(&self.bytes, at + 8)?,
        })
    }

    fn record(&self, id: u32) -> Option<Record> {
        let at = *self.records.get(id as usize)?;
        if at == u32::MAX { None } else { self.record_at(at as usize).ok() }
    }

    fn has_name(&self, name: u32, wanted: &str) -> bool {
        let start = self.strings + name as usize;
        let end = start + wanted.len();
        self.bytes.get(start..end) == Some(wanted.as_bytes()) && self.bytes.get(end) == Some(&0)
    }

    /// The struct of this name (never its forward declaration).
    fn structure(&self, name: &str) -> Option<Record> {
        self.structs.iter().filter_map(|id| self.record(*id)).find(|record| self.has_name(record.name, name))
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Record> {
        for _ in 0..32 {
            let record = self.record(id)?;
            match record.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => id = record.size_or_type,
                _ => return Some(record),
            }
        }
        None
    }

    /// A member's byte offset and type, looked for in anonymous structs and unions too.
    fn member(&self, of: Record, name: &str) -> Option<(u32, u32)> {
        self.member_within(of, name, DEEPEST, &mut { MOST })
    }

    fn member_within(&self, of: Record, name: &str, depth: u32, left: &mut u32) -> Option<(u32, u32)> {
        for index in 0..of.vlen {
            let at = of.at + 12 + index * 12;
            let member_name = word(&self.bytes, at).ok()?;
            let member_type = word(&self.bytes, at + 4).ok()?;
            let offset = word(&self.bytes, at + 8).ok()?;
            let bits = if of.bitfields { offset & 0x00ff_ffff } else { offset };
            if member_name == 0 {
                *left = left.checked_sub(1)?;
                let inner = self.resolve(member_type)?;
                if (inner.kind == kind::STRUCT || inner.kind == kind::UNION)
                    && depth > 0
                    && let Some((deeper, found)) = self.member_within(inner, name, depth - 1, left)
                {
                    return Some(((bits / 8).checked_add(deeper)?, found));
                }
            } else if self.has_name(member_name, name) {
                return Some((bits / 8, member_type));
            }
        }
        None
    }

    /// The offset of a field, bytes: `offset("net", "ns.inum")`.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        self.find(structure, path).map(|(offset, _)| offset)
    }

    /// The size of a field, bytes; `None` if it isn't there, or is neither a number, a pointer nor a struct.
    #[must_use]
    pub fn field_size(&self, structure: &str, path: &str) -> Option<u32> {
        let (_, record) = self.find(structure, path)?;
        match record.kind {
            kind::PTR => Some(8),
            kind::INT | kind::ENUM | kind::ENUM64 | kind::STRUCT | kind::UNION => Some(record.size_or_type),
            _ => None,
        }
    }

    /// A field's offset and type.
    fn find(&self, structure: &str, path: &str) -> Option<(u32, Record)> {
        let mut record = self.structure(structure)?;
        let mut offset = 0;
        for (depth, name) in path.split('.').enumerate() {
            if depth > 0 && record.kind != kind::STRUCT && record.kind != kind::UNION {
                return None;
            }
            let (at, member_type) = self.member(record, name)?;
            offset = u32::checked_add(offset, at)?;
            record = self.resolve(member_type)?;
        }
        Some((offset, record))
    }

    /// The size of a struct, bytes.
    #[must_use]
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.structure(structure).map(|record| record.size_or_type)
    }
}

/// The functions of the kernel, or of a module whose types continue the kernel's.
#[derive(Clone, Copy)]
pub struct Functions<'a> {
    /// The kernel's types.
    pub kernel: &'a Btf,
    /// The module's, if they are known.
    pub module: Option<&'a Btf>,
    /// The functions are part of the kernel itself.
    pub built_in: bool,
}

impl Functions<'_> {
    /// The arguments of those functions that are known, each as C writes its type, without qualifiers.
    #[must_use]
    pub fn arguments(&self, wanted: &[&'static str]) -> BTreeMap<&'static str, Vec<String>> {
        let mut found = BTreeMap::new();
        // The kernel's own types are many, and are gone through only where the functions can be among them.
        let Some(those) = self.module.or_else(|| self.built_in.then_some(self.kernel)) else { return found };
        for at in &those.records[1..] {
            let Ok(record) = those.record_at(*at as usize) else { continue };
            if record.kind != kind::FUNC {
                continue;
            }
            let Some(name) = wanted.iter().copied().find(|name| self.has_name(record.name, name)) else {
                continue;
            };
            if let Some(arguments) = self.arguments_of(record.size_or_type) {
                found.insert(name, arguments);
            }
        }
        found
    }

    /// The arguments of the tracepoint kfree_skb, as programs get them.
    #[must_use]
    pub fn of_kfree_skb(&self) -> Option<Vec<String>> {
        let (_, typedef) = self.record(self.kernel.tracepoint?)?;
        let (_, pointer) = self.record(typedef.size_or_type)?;
        // The first is the tracepoint's own.
        Some(self.arguments_of(pointer.size_or_type)?.split_off(1))
    }

    fn arguments_of(&self, prototype: u32) -> Option<Vec<String>> {
        let (those, record) = self.record(prototype)?;
        if record.kind != kind::FUNC_PROTO || record.vlen == 0 || record.vlen > MOST_ARGUMENTS {
            return None;
        }
        let one = |index: usize| self.text(word(&those.bytes, record.at + 12 + index * 8 + 4).ok()?, 0);
        (0..record.vlen).map(one).collect()
    }

    /// A type as C writes it.
    fn text(&self, id: u32, depth: u32) -> Option<String> {
        if id == 0 {
            return Some("void".to_owned());
        }
        if depth > 16 {
            return None;
        }
        let (_, record) = self.record(id)?;
        let name = || self.name(record.name);
        Some(match record.kind {
            kind::PTR => {
                let to = self.text(record.size_or_type, depth + 1)?;
                if to.ends_with('*') { format!("{to}*") } else { format!("{to} *") }
            }
            kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG => {
                self.text(record.size_or_type, depth + 1)?
            }
            kind::STRUCT => format!("struct {}", name()?),
            kind::UNION => format!("union {}", name()?),
            kind::ENUM | kind::ENUM64 => format!("enum {}", name()?),
            _ => name()?,
        })
    }

    fn record(&self, id: u32) -> Option<(&Btf, Record)> {
        let own = self.kernel.records.len() as u32;
        match self.module {
            // A module's first type follows the kernel's last.
            Some(module) if id >= own => Some((module, module.record(id - own + 1)?)),
            _ => Some((self.kernel, self.kernel.record(id)?)),
        }
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let (those, offset) = match self.module {
            Some(module) if offset >= self.kernel.strings_length => {
                (module, offset - self.kernel.strings_length)
            }
            _ => (self.kernel, offset),
        };
        those.bytes.get(those.strings + offset as usize..)?.split(|byte| *byte == 0).next()
    }

    fn has_name(&self, offset: u32, wanted: &str) -> bool {
        self.string(offset) == Some(wanted.as_bytes())
    }

    fn name(&self, offset: u32) -> Option<String> {
        self.string(offset).map(|name| Foreign::from_bytes(name).into_raw())
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let slice = bytes.get(at..at + 4).context("it ends in the middle of a record")?;
    Ok(u32::from_le_bytes([slice[0], slice[1], slice[2], slice[3]]))
}

/// How many bytes follow the common part of a record.
fn trailing(record: &Record) -> Result<usize> {
    Ok(match record.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => record.vlen * 12,
        kind::ENUM | kind::FUNC_PROTO => record.vlen * 8,
        1..=19 => 0,
        unknown => bail!("it has a type of kind {unknown}, which is newer than this ctwatch"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Builds BTF by hand: enough to pin the walk through typedefs, anonymous members and bitfields.
    pub(crate) struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Builder {
        pub fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        pub fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        pub fn words(&mut self, words: &[u32]) {
            for word in words {
                self.types.extend(word.to_le_bytes());
            }
        }

        pub fn aggregate(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) {
            let name = self.name(name);
            self.words(&[name, kind << 24 | members.len() as u32, size]);
            for (member, of, bits) in members {
                let member = self.name(member);
                self.words(&[member, *of, *bits]);
            }
        }

        pub fn build(self) -> Btf {
            let mut bytes = Vec::new();
            bytes.extend(MAGIC.to_le_bytes());
            bytes.extend([1, 0]);
            let lengths = [HEADER, 0, self.types.len(), self.types.len(), self.strings.len()];
            for length in lengths {
                bytes.extend((length as u32).to_le_bytes());
            }
            bytes.extend(self.types);
            bytes.extend(self.strings);
            Btf::parse(bytes).expect("well-formed BTF")
        }
    }

    #[test]
    fn a_modules_function_is_read_with_the_kernels_types_and_names() {
        let mut builder = Builder::new();
        builder.aggregate(kind::STRUCT, "nf_conn", 8, &[]); // 1
        builder.words(&[0, kind::CONST << 24, 1]); // 2
        builder.words(&[0, kind::PTR << 24, 2]); // 3
        builder.words(&[0, kind::FUNC_PROTO << 24 | 2, 0, 0, 0, 0, 3]); // 4: (void, const struct nf_conn *)
        builder.words(&[0, kind::PTR << 24, 4]); // 5
        let tracepoint = builder.name(TRACEPOINT);
        builder.words(&[tracepoint, kind::TYPEDEF << 24, 5]); // 6
        let kernel = builder.build();
        let mut builder = Builder::new();
        let own = |name: u32| name + kernel.strings_length;
        let u32_name = own(builder.name("u32"));
        builder.words(&[u32_name, kind::INT << 24, 4, 32]); // 7, after the kernel's
        builder.words(&[0, kind::FUNC_PROTO << 24 | 2, 7, 0, 3, 0, 7]); // 8
        let function = own(builder.name("nf_ct_delete"));
        builder.words(&[function, kind::FUNC << 24, 8]); // 9
        let module = builder.build();
        let functions = Functions { kernel: &kernel, module: Some(&module), built_in: false };
        let found = functions.arguments(&["nf_ct_delete", "early_drop"]);
        assert_eq!(found.len(), 1);
        assert_eq!(found["nf_ct_delete"], ["struct nf_conn *", "u32"]);
        assert_eq!(functions.of_kfree_skb(), Some(vec!["struct nf_conn *".to_owned()]));
        let built_in = Functions { kernel: &kernel, module: None, built_in: true };
        assert!(built_in.arguments(&["nf_ct_delete"]).is_empty());
    }

    #[test]
    fn a_field_is_found_through_anonymous_members_and_typedefs() {
        let mut builder = Builder::new();
        let int = builder.name("int");
        builder.words(&[int, kind::INT << 24, 4, 32]); // 1
        builder.aggregate(kind::STRUCT, "inner", 8, &[("pad", 1, 0), ("inum", 1, 32)]); // 2
        let alias = builder.name("inner_t");
        builder.words(&[alias, kind::TYPEDEF << 24, 2]); // 3
        builder.aggregate(kind::UNION, "", 8, &[("dev", 1, 0), ("dev_scratch", 1, 0)]); // 4
        builder.aggregate(kind::STRUCT, "outer", 24, &[("", 4, 64), ("ns", 3, 128)]); // 5
        let btf = builder.build();
        assert_eq!(btf.offset("outer", "dev"), Some(8));
        assert_eq!(btf.offset("outer", "ns.inum"), Some(20));
        assert_eq!(btf.offset("outer", "nothing"), None);
        assert_eq!(btf.offset("nobody", "dev"), None);
        assert_eq!(btf.size("outer"), Some(24));
        assert_eq!((btf.field_size("outer", "dev"), btf.field_size("outer", "ns")), (Some(4), Some(8)));
        assert_eq!(btf.field_size("outer", "nothing"), None);
    }

    #[test]
    fn types_that_contain_themselves_have_an_end() {
        let mut builder = Builder::new();
        builder.aggregate(kind::STRUCT, "", 8, &[("", 1, 0), ("", 1, 8)]); // 1, in itself twice
        builder.aggregate(kind::STRUCT, "sk_buff", 8, &[("", 1, 0), ("dev", 1, u32::MAX)]); // 2
        builder.aggregate(kind::STRUCT, "outer", 8, &[("", 2, u32::MAX), ("inner", 2, u32::MAX)]); // 3
        let btf = builder.build();
        assert_eq!(btf.offset("outer", "nothing"), None);
        assert_eq!(btf.offset("sk_buff", "dev"), Some(u32::MAX / 8));
    }

    #[test]
    fn damaged_btf_is_an_error_not_a_panic() {
        assert!(Btf::parse(vec![0; 10]).is_err());
        assert!(Btf::parse(vec![0; 64]).is_err());
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&24u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&1000u32.to_le_bytes());
        assert!(Btf::parse(bytes).is_err());
    }
}
