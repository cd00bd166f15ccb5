//! End-to-end tests of ctwatch on real kernels: traffic, full tables and independent counts of what was lost.
//! Nothing here may take a number from ctwatch's own code: every expectation is counted by another way. (`notrack`,
//! `cases` and `difference` ask the library for its verdict, which is what is tested there.)

pub mod advice;
pub mod bench;
pub mod bench_record;
pub mod bpftrace;
pub mod cases;
pub mod census;
pub mod checks;
pub mod counters;
pub mod cpu_times;
pub mod ctnetlink;
pub mod ctwatch;
pub mod difference;
pub mod environments;
pub mod lab;
pub mod module_file;
pub mod native;
pub mod netns;
pub mod nfnetlink;
pub mod nfqueue;
pub mod nftables;
pub mod scenario;
pub mod shell;
pub mod sys;
pub mod sysctl;
pub mod table;
pub mod traffic;
