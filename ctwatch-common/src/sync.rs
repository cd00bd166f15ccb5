//! What user space asks of the `sync` program, which it runs by BPF_PROG_TEST_RUN.
//! Object and binary are built from one source and nothing records these numbers, so they may change.

/// First argument of the program. The second is the address of a netns, the third a cause's number.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncOp {
    /// Find address and id of the netns at the second argument, or of the calling thread's if that is 0.
    Locate = 0,
    /// Register a netns on this CPU; what it has counted so far is not ours.
    BaselineCurrent = 1,
    /// Register a netns that came up while we watched: all it has counted is ours.
    BaselineZero = 2,
    /// Count the losses of one cause that the kernel counted on this CPU and the programs missed.
    Reconcile = 3,
    /// Note where the kernel keeps the per-CPU data of the CPU that is the second argument: it is offline, so nothing runs
    /// there that could.
    NoteOffset = 4,
}

impl SyncOp {
    /// Every operation, in the order of its number.
    pub const ALL: [Self; 5] =
        [Self::Locate, Self::BaselineCurrent, Self::BaselineZero, Self::Reconcile, Self::NoteOffset];

    /// The operation with this number.
    #[must_use]
    #[inline(always)]
    pub const fn from_u64(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Locate,
            1 => Self::BaselineCurrent,
            2 => Self::BaselineZero,
            3 => Self::Reconcile,
            4 => Self::NoteOffset,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_as_a_program_argument() {
        for op in SyncOp::ALL {
            assert_eq!(SyncOp::from_u64(op as u64), Some(op));
        }
        assert_eq!(SyncOp::from_u64(SyncOp::ALL.len() as u64), None);
        assert_eq!(SyncOp::from_u64(u64::MAX), None);
    }
}
