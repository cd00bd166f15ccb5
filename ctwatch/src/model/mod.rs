//! The ground: plain data that all rooms speak of, live or replayed.
//! Only `clock` reads a clock; nothing else here does I/O.

mod address;
mod backend;
mod census;
mod clock;
mod counters;
mod direction;
mod entry;
mod event;
mod ids;
mod packet;
mod protocol;
mod service_port;
mod state_name;
mod timeout;

pub use address::{Address, LocalAddress};
pub use backend::Backend;
pub use census::{
    Census, CensusKey, FlowOffset, FlowSample, HiddenEntries, PortDetail, StateCounts, TimeoutHistogram,
};
pub use clock::{Clock, LAST_US, WallMono, monotonic_ns};
pub use counters::{CounterArray, CounterSource, KernelCounters};
pub use direction::{Direction, Locals};
pub use entry::{EntryFields, TableEntry};
pub use event::{FromKernel, Insert, Loss, NetnsAccess, NetnsSample, Sample, SlotSample};
pub use ids::{HOST_NETNS, NetnsId, NetnsNumber, Owner, ProcessId, Role, THIS_NETNS, is_home_netns};
pub use packet::{Device, EntryState, Flow, Hook, Name, Packet, Sender, Tuple, Zone};
pub use protocol::{Protocol, number as protocol_number, port_of_service, service};
pub use service_port::{PortParts, ServicePort};
pub use state_name::{TCP_STATES, state_name};
pub use timeout::{TimeoutKind, Timeouts};
