//! What rows of a census stand for, and the packing of an entry's part of that into a few words.
//! On the path of every entry: no allocation.

use crate::model::{Address, Direction, Protocol, TableEntry};

/// One thing rows can be told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Protocol and service port.
    Port,
    /// Protocol and state.
    State,
    /// Protocol.
    Proto,
    /// Where the flow goes, seen from the netns.
    Direction,
    /// Source address of the original direction.
    Src,
    /// Destination address of the original direction.
    Dst,
    /// Network namespace.
    Netns,
    /// What lives in the network namespace.
    Container,
    /// Conntrack zone.
    Zone,
    /// Conntrack mark.
    Mark,
}

impl Dimension {
    /// All of them, as help lists them.
    pub const ALL: [Self; 10] = [
        Self::Port,
        Self::State,
        Self::Proto,
        Self::Direction,
        Self::Src,
        Self::Dst,
        Self::Netns,
        Self::Container,
        Self::Zone,
        Self::Mark,
    ];

    /// Its spelling in flags and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::State => "state",
            Self::Proto => "proto",
            Self::Direction => "direction",
            Self::Src => "src",
            Self::Dst => "dst",
            Self::Netns => "netns",
            Self::Container => "container",
            Self::Zone => "zone",
            Self::Mark => "mark",
        }
    }

    /// Bits it takes in a packed key.
    const fn bits(self) -> u32 {
        match self {
            Self::Port => 24,
            Self::State => 16,
            Self::Proto => 8,
            Self::Direction => 2,
            Self::Zone => 16,
            Self::Mark => 32,
            // Addresses have words of their own; a netns is the same in all of its entries.
            Self::Src | Self::Dst | Self::Netns | Self::Container => 0,
        }
    }

    fn value(self, entry: &TableEntry, direction: Direction) -> u64 {
        match self {
            Self::Port => u64::from(entry.proto.0) << 16 | u64::from(entry.port),
            Self::State => u64::from(entry.proto.0) << 8 | u64::from(state_number(entry)),
            Self::Proto => entry.proto.0.into(),
            Self::Direction => direction as u64,
            Self::Zone => entry.zone.into(),
            Self::Mark => entry.mark.into(),
            Self::Src | Self::Dst | Self::Netns | Self::Container => 0,
        }
    }
}

/// What one row stands for: one dimension, or two crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    first: Dimension,
    second: Option<Dimension>,
}

impl Default for Keys {
    fn default() -> Self {
        Self::one(Dimension::Port)
    }
}

impl Keys {
    /// Rows by one dimension.
    #[must_use]
    pub const fn one(first: Dimension) -> Self {
        Self { first, second: None }
    }

    /// Rows by two, which must differ.
    #[must_use]
    pub fn two(first: Dimension, second: Dimension) -> Option<Self> {
        (first != second).then_some(Self { first, second: Some(second) })
    }

    /// The dimensions, in the order they were given.
    pub fn each(self) -> impl Iterator<Item = Dimension> {
        std::iter::once(self.first).chain(self.second)
    }

    /// Whether rows are told apart by this.
    #[must_use]
    pub fn has(self, dimension: Dimension) -> bool {
        self.each().any(|one| one == dimension)
    }

    /// All but the addresses, packed: 56 bits at most.
    #[inline]
    pub(super) fn narrow(self, entry: &TableEntry, direction: Direction) -> u64 {
        let first = self.first.value(entry, direction);
        match self.second {
            None => first,
            Some(second) => first << second.bits() | second.value(entry, direction),
        }
    }

    /// The packed value of one dimension.
    fn unpack(self, narrow: u64, dimension: Dimension) -> Option<u64> {
        let value = match self.second {
            Some(second) if second == dimension => narrow,
            second if self.first == dimension => narrow >> second.map_or(0, Dimension::bits),
            _ => return None,
        };
        Some(value & ((1 << dimension.bits()) - 1))
    }

    #[inline]
    pub(super) fn wide(self, entry: &TableEntry, narrow: u64) -> Wide {
        let words = |wanted, Address(address): Address| {
            if self.has(wanted) { [(address >> 64) as u64, address as u64] } else { [0; 2] }
        };
        let ([a, b], [c, d]) = (words(Dimension::Src, entry.src), words(Dimension::Dst, entry.dst));
        Wide([narrow, a, b, c, d])
    }

    /// What a key says.
    pub(super) fn fields(self, key: Wide) -> Fields {
        let Wide([narrow, a, b, c, d]) = key;
        let address = |wanted, high: u64, low: u64| {
            self.has(wanted).then(|| Address(u128::from(high) << 64 | u128::from(low)))
        };
        let port = self.unpack(narrow, Dimension::Port);
        let state = self.unpack(narrow, Dimension::State);
        let proto = self.unpack(narrow, Dimension::Proto);
        Fields {
            proto: port
                .map(|port| port >> 16)
                .or(state.map(|state| state >> 8))
                .or(proto)
                .map(|proto| proto as u8),
            port: port.map(|port| port as u16),
            state: state.map(|state| state as u8),
            direction: self
                .unpack(narrow, Dimension::Direction)
                .map(|direction| Direction::ALL[direction as usize]),
            src: address(Dimension::Src, a, b),
            dst: address(Dimension::Dst, c, d),
            zone: self.unpack(narrow, Dimension::Zone).map(|zone| zone as u16),
            mark: self.unpack(narrow, Dimension::Mark).map(|mark| mark as u32),
        }
    }
}

/// A packed key with room for two addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Wide(pub [u64; 5]);

impl Wide {
    pub fn narrow(narrow: u64) -> Self {
        Self([narrow, 0, 0, 0, 0])
    }
}

/// What a key says, as far as rows are told apart by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub proto: Option<u8>,
    pub port: Option<u16>,
    pub state: Option<u8>,
    pub direction: Option<Direction>,
    pub src: Option<Address>,
    pub dst: Option<Address>,
    pub zone: Option<u16>,
    pub mark: Option<u32>,
}

/// In the place of a state, for protocols without one.
const UNREPLIED: u8 = 0;
const REPLIED: u8 = 1;
const ASSURED: u8 = 2;

fn state_number(entry: &TableEntry) -> u8 {
    match entry.proto {
        Protocol::TCP => entry.tcp_state,
        Protocol::SCTP => entry.sctp_state,
        _ if entry.assured => ASSURED,
        _ if entry.seen_reply => REPLIED,
        _ => UNREPLIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dimension() -> impl Strategy<Value = Dimension> {
        (0..Dimension::ALL.len()).prop_map(|index| Dimension::ALL[index])
    }

    proptest! {
        #[test]
        fn any_two_dimensions_survive_packing(
            first in dimension(),
            second in dimension(),
            (proto, port, state) in (any::<u8>(), any::<u16>(), 0..11u8),
            (zone, mark, way) in (any::<u16>(), any::<u32>(), 0..4usize),
            (src, dst) in any::<(u128, u128)>(),
        ) {
            let entry = TableEntry {
                proto: Protocol(proto),
                port,
                tcp_state: state,
                sctp_state: state,
                zone,
                mark,
                src: Address(src),
                dst: Address(dst),
                ..TableEntry::default()
            };
            let direction = Direction::ALL[way];
            let keys = Keys::two(first, second).unwrap_or(Keys::one(first));
            let fields = keys.fields(keys.wide(&entry, keys.narrow(&entry, direction)));
            let has = |dimension| keys.has(dimension);
            let tells_proto = [Dimension::Port, Dimension::State, Dimension::Proto].into_iter().any(has);
            prop_assert_eq!(fields.proto, tells_proto.then_some(proto));
            prop_assert_eq!(fields.port, has(Dimension::Port).then_some(port));
            prop_assert_eq!(fields.state, has(Dimension::State).then(|| state_number(&entry)));
            prop_assert_eq!(fields.direction, has(Dimension::Direction).then_some(direction));
            prop_assert_eq!(fields.src, has(Dimension::Src).then_some(entry.src));
            prop_assert_eq!(fields.dst, has(Dimension::Dst).then_some(entry.dst));
            prop_assert_eq!(fields.zone, has(Dimension::Zone).then_some(zone));
            prop_assert_eq!(fields.mark, has(Dimension::Mark).then_some(mark));
        }
    }
}
