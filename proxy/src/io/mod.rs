//! The only door to the outside: sockets, clock and chance.
//!
//! Everything else in the proxy gets these as values. A simulation passes its own, and then runs the binary's own code.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the door itself")]

mod abrupt;
#[cfg(feature = "mimalloc")]
mod allocator;
mod called;
mod clock;
mod datagrams;
mod draw;
mod gathered;
mod inherited;
mod inserted;
mod local;
mod lossy;
mod mailbox;
mod memory;
mod network;
mod notes;
mod original;
mod peers;
mod pipe;
mod rewound;
mod served;
mod socket;
mod stream;
mod unstalled;

pub use abrupt::{Abrupt, Seen};
#[cfg(feature = "mimalloc")]
pub use allocator::Allocator;
pub use called::Called;
pub use clock::{Clock, Moment};
pub use datagrams::{adopt_datagrams, bind_datagrams, send_datagram};
pub use draw::Draw;
pub use gathered::{Gathered, Gathering, gather};
pub use inherited::{HandedOver, adopt_channel, receive_socket};
pub use local::{LocalDoor, LocalStream};
pub use lossy::Lossy;
pub use mailbox::Mailbox;
pub use memory::{Free, cpu_used, give_back_heap, give_back_program};
pub use network::{Accepted, Listening, Network, Queued, VirtualListening, VirtualNetwork, bind, is_this_machine, one_of};
pub use notes::{Notes, Pressure};
pub use original::original_destination;
pub use rewound::Rewound;
pub use served::Served;
pub use socket::{Socket, VirtualSocket, pipe};
pub use stream::Stream;
pub use unstalled::Unstalled;

/// A connection that HTTP is spoken on.
pub type Attended = Unstalled<Rewound<Stream>>;
