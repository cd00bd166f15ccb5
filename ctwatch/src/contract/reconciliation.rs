//! The kernel's counters beside ctwatch's: what is unexplained, and whether they agree.
//! What `state` worked out is only put side by side here.

use serde::Serialize;

use crate::model::{CounterArray, KernelCounters};

/// Per kernel counter: its move minus what ctwatch's causes explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unexplained {
    /// Of `drop`.
    pub drop: i64,
    /// Of `early_drop`.
    pub early_drop: i64,
    /// Of `insert_failed`.
    pub insert_failed: i64,
    /// Of `chaintoolong`.
    pub chaintoolong: i64,
}

impl Unexplained {
    /// From an array in the order of the fields.
    #[must_use]
    pub const fn from_array([drop, early_drop, insert_failed, chaintoolong]: CounterArray<i64>) -> Self {
        Self { drop, early_drop, insert_failed, chaintoolong }
    }

    /// As an array in the order of the fields.
    #[must_use]
    pub const fn as_array(&self) -> CounterArray<i64> {
        let Self { drop, early_drop, insert_failed, chaintoolong } = *self;
        [drop, early_drop, insert_failed, chaintoolong]
    }

    /// All is explained.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// How one of the kernel's counters compares with what ctwatch's causes say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// Nothing is unexplained.
    Agree,
    /// They differ: see [`Unexplained`].
    Differ,
    /// ctwatch counted losses where the kernel's counters can't be read.
    NotReadable,
}

/// A verdict for each of the kernel's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Agreements {
    /// On `drop`.
    pub drop: Agreement,
    /// On `early_drop`.
    pub early_drop: Agreement,
    /// On `insert_failed`.
    pub insert_failed: Agreement,
    /// On `chaintoolong`.
    pub chaintoolong: Agreement,
}

impl Agreements {
    /// `unheard`: counters of which some was counted where the kernel's word is missing, in the order of the fields.
    #[must_use]
    pub fn new(unexplained: &Unexplained, unheard: CounterArray<bool>) -> Self {
        let left = unexplained.as_array();
        let [drop, early_drop, insert_failed, chaintoolong] =
            std::array::from_fn(|counter| match (left[counter], unheard[counter]) {
                (0, false) => Agreement::Agree,
                (0, true) => Agreement::NotReadable,
                _ => Agreement::Differ,
            });
        Self { drop, early_drop, insert_failed, chaintoolong }
    }

    /// As an array in the order of the fields.
    #[must_use]
    pub const fn as_array(&self) -> CounterArray<Agreement> {
        let Self { drop, early_drop, insert_failed, chaintoolong } = *self;
        [drop, early_drop, insert_failed, chaintoolong]
    }
}

/// One of the kernel's counters beside ctwatch's count of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLine {
    /// What the kernel calls it.
    pub name: &'static str,
    /// What the kernel counted.
    pub kernel: u64,
    /// What ctwatch's causes make of it.
    pub ours: u64,
    /// See [`Unexplained`].
    pub unexplained: i64,
    /// The verdict.
    pub agreement: Agreement,
}

/// The kernel's counters and ours side by side, as every view shows them.
#[must_use]
pub fn reconciliation(
    kernel: &KernelCounters,
    ours: &KernelCounters,
    unexplained: &Unexplained,
    agreement: &Agreements,
) -> CounterArray<CounterLine> {
    let (kernel, ours) = (kernel.named(), ours.as_array());
    let (unexplained, agreement) = (unexplained.as_array(), agreement.as_array());
    std::array::from_fn(|counter| {
        let (name, kernel) = kernel[counter];
        let (ours, unexplained, agreement) = (ours[counter], unexplained[counter], agreement[counter]);
        CounterLine { name, kernel, ours, unexplained, agreement }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_numbers_of_its_own_counter() {
        let unexplained = Unexplained::from_array([0, 0, -1, 2]);
        let lines = reconciliation(
            &KernelCounters::from_array([10, 20, 30, 42]),
            &KernelCounters::from_array([10, 21, 31, 40]),
            &unexplained,
            &Agreements::new(&unexplained, [false, true, false, false]),
        );
        let line = |name, kernel, ours, unexplained, agreement| CounterLine {
            name,
            kernel,
            ours,
            unexplained,
            agreement,
        };
        assert_eq!(
            lines,
            [
                line("drop", 10, 10, 0, Agreement::Agree),
                line("early_drop", 20, 21, 0, Agreement::NotReadable),
                line("insert_failed", 30, 31, -1, Agreement::Differ),
                line("chaintoolong", 42, 40, 2, Agreement::Differ),
            ]
        );
    }
}
