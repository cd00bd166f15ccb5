//! A file system of one folder in memory, served through /dev/fuse without a library (include/uapi/linux/fuse.h), that lacks
//! what it is told to lack. Only what a recorder asks for is there.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// What it can't do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    Nothing,
    /// Locks of whole files.
    Flock,
    /// Locks of parts of files.
    PosixLocks,
    /// mmap with MAP_SHARED.
    SharedMemory,
    /// What root makes there belongs to nobody, as on NFS with root_squash.
    Ownership,
}

const ROOT: u64 = 1;

struct Node {
    bytes: Vec<u8>,
    mode: u32,
    uid: u32,
}

#[derive(Default)]
struct Folder {
    names: BTreeMap<String, u64>,
    nodes: HashMap<u64, Node>,
}

/// Shared by whoever looks and the thread that answers.
#[derive(Clone)]
pub struct Server {
    lacking: Lacking,
    folder: Arc<Mutex<Folder>>,
}

/// The numbers of a request or an answer, one after the other.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn u32(&mut self) -> u32 {
        let (number, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        u32::from_ne_bytes(*number)
    }

    fn u64(&mut self) -> u64 {
        let (number, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        u64::from_ne_bytes(*number)
    }

    fn name(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let name = String::from_utf8(self.0[..end].to_vec()).unwrap();
        self.0 = &self.0[end + 1..];
        name
    }
}

#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    fn u32s(mut self, numbers: &[u32]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_ne_bytes()));
        self
    }

    fn u64s(mut self, numbers: &[u64]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_ne_bytes()));
        self
    }
}

type Answered = Result<Option<Answer>, i32>;

impl Server {
    pub fn new(lacking: Lacking) -> Self {
        Self { lacking, folder: Arc::default() }
    }

    fn folder(&self) -> MutexGuard<'_, Folder> {
        self.folder.lock().unwrap()
    }

    /// What is there.
    pub fn names(&self) -> Vec<String> {
        self.folder().names.keys().cloned().collect()
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.make(name.to_owned(), 0o100_600).bytes = bytes.to_vec();
    }

    /// Mounts it here, and answers until the mount namespace of this thread ends.
    pub fn mount(&self, at: &Path) {
        let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0", fuse.as_raw_fd());
        let (at, options) = (CString::new(at.to_str().unwrap()).unwrap(), CString::new(options).unwrap());
        // SAFETY: strings that end with a NUL.
        let mounted = unsafe {
            libc::mount(c"none".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        let server = self.clone();
        std::thread::spawn(move || server.answer_all(fuse));
    }

    fn answer_all(&self, mut fuse: File) {
        let mut request = vec![0; 1 << 20];
        while let Ok(length) = fuse.read(&mut request) {
            let mut numbers = Numbers(&request[..length]);
            let (_, opcode, unique, node) = (numbers.u32(), numbers.u32(), numbers.u64(), numbers.u64());
            let _uid_gid_pid_rest = [numbers.u32(), numbers.u32(), numbers.u32(), numbers.u32()];
            let (error, bytes) = match self.answer(opcode, node, numbers) {
                Ok(Some(Answer(bytes))) => (0, bytes),
                Ok(None) => continue,
                Err(error) => (-error, Vec::new()),
            };
            let mut answer = Vec::new();
            answer.extend((16 + bytes.len() as u32).to_ne_bytes());
            answer.extend(i32::to_ne_bytes(error));
            answer.extend(unique.to_ne_bytes());
            answer.extend(bytes);
            // Whoever asked may have gone.
            let _ = fuse.write_all(&answer);
        }
    }

    fn answer(&self, opcode: u32, node: u64, mut request: Numbers<'_>) -> Answered {
        let done = || Ok(Some(Answer::default()));
        match opcode {
            // LOOKUP
            1 => {
                let id = self.folder().names.get(&request.name()).copied().ok_or(libc::ENOENT)?;
                Ok(Some(self.entry(id)))
            }
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => Ok(None),
            // GETATTR
            3 => Ok(Some(self.attributes(Answer::default().u64s(&[0, 0]), node))),
            // SETATTR
            4 => {
                let (valid, _) = (request.u32(), request.u32());
                let (_, size) = (request.u64(), request.u64());
                if valid & 1 << 3 != 0
                    && let Some(node) = self.folder().nodes.get_mut(&node)
                {
                    node.bytes.resize(size as usize, 0);
                }
                Ok(Some(self.attributes(Answer::default().u64s(&[0, 0]), node)))
            }
            // UNLINK
            10 => self.folder().names.remove(&request.name()).ok_or(libc::ENOENT).and_then(|_| done()),
            // RENAME
            12 => {
                let _ = request.u64();
                let (from, to) = (request.name(), request.name());
                let mut folder = self.folder();
                let id = folder.names.remove(&from).ok_or(libc::ENOENT)?;
                folder.names.insert(to, id);
                done()
            }
            // OPEN, OPENDIR
            14 | 27 => Ok(Some(self.opened(Answer::default()))),
            // READ
            15 => {
                let (_, offset, size) = (request.u64(), request.u64() as usize, request.u32() as usize);
                let folder = self.folder();
                let bytes = &folder.nodes[&node].bytes;
                let from = offset.min(bytes.len());
                Ok(Some(Answer(bytes[from..bytes.len().min(from + size)].to_vec())))
            }
            // WRITE
            16 => {
                let (_, offset, size) = (request.u64(), request.u64() as usize, request.u32());
                let _flags_owner_flags = (request.u32(), request.u64(), request.u64());
                let mut folder = self.folder();
                let bytes = &mut folder.nodes.get_mut(&node).ok_or(libc::ENOENT)?.bytes;
                bytes.resize(bytes.len().max(offset + size as usize), 0);
                bytes[offset..offset + size as usize].copy_from_slice(&request.0[..size as usize]);
                Ok(Some(Answer::default().u32s(&[size, 0])))
            }
            // STATFS
            17 => Ok(Some(Answer::default().u64s(&[1 << 20; 5]).u32s(&[4096, 255, 4096]).u32s(&[0; 7]))),
            // RELEASE, FSYNC, FLUSH, RELEASEDIR, FSYNCDIR, DESTROY
            18 | 20 | 25 | 29 | 30 | 38 => done(),
            // INIT: POSIX_LOCKS, BIG_WRITES and FLOCK_LOCKS; who lacks locks says so when asked for one.
            26 => {
                let numbers = [7, 31, 1 << 17, 1 << 1 | 1 << 5 | 1 << 10, 0, 1 << 17, 1, 0];
                Ok(Some(Answer::default().u32s(&numbers).u32s(&[0; 8])))
            }
            // SETLK, SETLKW: of one process at a time, there is no conflict.
            32 | 33 => {
                let _ = [request.u64(), request.u64(), request.u64(), request.u64(), request.u64()];
                let lacks = if request.u32() & 1 == 1 { Lacking::Flock } else { Lacking::PosixLocks };
                if self.lacking == lacks { Err(libc::ENOLCK) } else { done() }
            }
            // GETLK: nobody holds one.
            31 => {
                let _ = [request.u64(), request.u64(), request.u64(), request.u64()];
                Ok(Some(Answer::default().u64s(&[0, 0]).u32s(&[libc::F_UNLCK as u32, 0])))
            }
            // CREATE
            35 => {
                let (_, mode, _, _) = (request.u32(), request.u32(), request.u32(), request.u32());
                let name = request.name();
                drop(self.make(name.clone(), mode));
                let id = self.folder().names[&name];
                Ok(Some(self.opened(self.entry(id))))
            }
            // Extended attributes, RENAME2 and all else.
            _ => Err(libc::ENOSYS),
        }
    }

    /// A new file by this name.
    fn make(&self, name: String, mode: u32) -> Made<'_> {
        let mut folder = self.folder();
        let id = folder.nodes.len() as u64 + ROOT + 1;
        let uid = if self.lacking == Lacking::Ownership { 65_534 } else { 0 };
        folder.nodes.insert(id, Node { bytes: Vec::new(), mode, uid });
        folder.names.insert(name, id);
        Made { folder, id }
    }

    fn entry(&self, id: u64) -> Answer {
        self.attributes(Answer::default().u64s(&[id, 0, 0, 0]).u32s(&[0, 0]), id)
    }

    fn attributes(&self, answer: Answer, id: u64) -> Answer {
        let folder = self.folder();
        let (size, mode, uid) = match folder.nodes.get(&id) {
            Some(node) => (node.bytes.len() as u64, node.mode, node.uid),
            None => (0, 0o40_755, 0),
        };
        let times = [0; 3];
        let answer = answer.u64s(&[id, size, size.div_ceil(512)]).u64s(&times).u32s(&[0; 3]);
        answer.u32s(&[mode, 1, uid, 0, 0, 4096, 0])
    }

    fn opened(&self, answer: Answer) -> Answer {
        let direct = u32::from(self.lacking == Lacking::SharedMemory);
        answer.u64s(&[0]).u32s(&[direct, 0])
    }
}

/// A file that was just made.
struct Made<'a> {
    folder: MutexGuard<'a, Folder>,
    id: u64,
}

impl std::ops::Deref for Made<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.folder.nodes[&self.id]
    }
}

impl std::ops::DerefMut for Made<'_> {
    fn deref_mut(&mut self) -> &mut Node {
        self.folder.nodes.get_mut(&self.id).unwrap()
    }
}
