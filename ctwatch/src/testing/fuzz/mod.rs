//! Everything that reads what somebody else wrote, a function a reader: the bodies of the fuzz targets in tests/fuzz, and of
//! the tests that run their corpus. One panics where a promise is broken, and only there: an error is an answer.

mod kernel;
mod recording;
mod rules;
mod source;
mod words;

/// A reader of foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its file in tests/fuzz/targets and of its folder in tests/fuzz/corpus.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// So many mutated inputs are tried in each run of the tests: seconds for an unoptimized build.
    pub rounds: u32,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "ring_record", run: kernel::ring_record, rounds: 6000 },
    Target { name: "proc", run: kernel::proc, rounds: 4000 },
    Target { name: "kallsyms", run: kernel::kallsyms, rounds: 4000 },
    Target { name: "btf", run: kernel::btf, rounds: 1500 },
    Target { name: "ctnetlink", run: kernel::ctnetlink, rounds: 6000 },
    Target { name: "nft", run: rules::nft, rounds: 250 },
    Target { name: "iptables", run: rules::iptables, rounds: 250 },
    Target { name: "kube_proxy", run: rules::kube_proxy, rounds: 6000 },
    Target { name: "recording", run: recording::bytes, rounds: 40 },
    Target { name: "recorded", run: recording::values, rounds: 40 },
    Target { name: "filter", run: words::filter, rounds: 400 },
];

/// Runs the target of this name.
///
/// # Panics
/// There is none, or it found something.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(bytes);
}
