//! Inputs made of others, as a fuzzer makes them, but the same in each run.

/// Numbers at which something may go over.
const EDGES: [&str; 12] = [
    "0",
    "-1",
    "255",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "1e308",
    "ffffffffffffffff",
];
const BYTES: [u8; 10] = [0, 1, 0x7F, 0x80, 0xFF, b'\n', b' ', b':', b'"', b'/'];

/// Makes them.
pub struct Mutator(u64);

impl Mutator {
    /// Others for each name.
    pub fn new(name: &str) -> Self {
        let mix = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        Self(name.bytes().fold(0xCBF2_9CE4_8422_2325, mix) | 1)
    }

    /// xorshift64*
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Less than this; 0 of nothing.
    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.number() >> 33) as usize % end }
    }

    /// The next one.
    pub fn next(&mut self, inputs: &[(String, Vec<u8>)]) -> Vec<u8> {
        let (_, input) = &inputs[self.below(inputs.len())];
        let mut bytes = input.clone();
        for _ in 0..=self.below(6) {
            let other = &inputs[self.below(inputs.len())].1;
            self.change(&mut bytes, other);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len());
        let length = 1 + self.below((bytes.len() - at).min(64));
        let end = (at + length).min(bytes.len());
        match self.below(10) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            2 if !bytes.is_empty() => bytes[at] = BYTES[self.below(BYTES.len())],
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => bytes.truncate(at),
            6 => {
                let from = self.below(other.len());
                let to = from + self.below((other.len() - from).min(256) + 1);
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            7 if at + 4 <= bytes.len() => {
                let word = [0, 1, u32::MAX, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF][self.below(6)];
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            _ => self.exchange_number(bytes, at),
        }
    }

    /// Another number in place of the next one that is written out.
    fn exchange_number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(from) = bytes[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else {
            return;
        };
        let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let edge = EDGES[self.below(EDGES.len())];
        bytes.splice(from..from + digits, edge.bytes());
    }
}
