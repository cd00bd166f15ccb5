#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ctwatch::testing::fuzz::run("iptables", bytes));
