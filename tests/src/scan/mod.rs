//! A scanner of TLS servers: hellos in bytes of its own making, one after the other, and what a server makes of each. It has no keys and ends no
//! handshake; what is asked is told by the server's first words, in the clear.

mod answer;
mod hello;
mod names;
mod survey;

pub use answer::{FirstWords, ServerHello, listen, say};
pub use hello::{Hello, RECORD_BYTES_MAX, SSL2_HELLO, Version, records};
pub use names::{Kind, named};
pub use survey::{Spoken, survey};
