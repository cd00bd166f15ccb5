//! For how many namespaces the programs have room, and how much memory of the kernel's that takes.
//! Pure. Each record has a copy for every CPU that this kernel may ever have, so a bound is needed.

use ctwatch_common::netns::NetCpu;

/// Namespaces that lose packets at once, at least.
const AT_LEAST: usize = 1024;
/// Kernel memory that records may take.
const MEMORY: usize = 64 << 20;
/// However many CPUs there may be.
const HARDLY_ANY: usize = 64;
/// What a map takes for an element beside its value: the element itself and its bucket, rounded up.
const ELEMENT: usize = 80;

/// The room for namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsRoom {
    /// How many can have a record at once.
    pub namespaces: u32,
    /// What that takes, bytes.
    pub bytes: u64,
}

impl NetnsRoom {
    /// For a host that has so many namespaces now, and may have so many CPUs.
    #[must_use]
    pub fn new(present: usize, possible_cpus: u32) -> Self {
        let record = size_of::<NetCpu>() * possible_cpus.max(1) as usize + ELEMENT;
        let namespaces = (present * 2).max(AT_LEAST).min(MEMORY / record).max(HARDLY_ANY);
        Self { namespaces: namespaces as u32, bytes: (namespaces * record) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memory_is_bounded_whatever_a_host_has(present in 0..1_000_000usize, cpus in 0..=8192u32) {
            let room = NetnsRoom::new(present, cpus);
            let least = (HARDLY_ANY * (size_of::<NetCpu>() * cpus.max(1) as usize + ELEMENT)) as u64;
            prop_assert!(room.bytes <= least.max(MEMORY as u64), "{room:?}");
            prop_assert!(room.namespaces as usize >= HARDLY_ANY);
        }
    }

    #[test]
    fn a_usual_host_has_room_for_twice_its_namespaces() {
        assert_eq!(NetnsRoom::new(3, 8).namespaces, 1024);
        assert_eq!(NetnsRoom::new(2000, 64).namespaces, 4000);
        assert_eq!(NetnsRoom::new(2000, 512).namespaces, 1635);
    }
}
