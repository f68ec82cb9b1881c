//! HTTP/3 by the `h3` library over quinn, as a server. The library frames and packs fields; what stands between it and a client that means harm is
//! here: bounds on its frames, the time for a head, what a body says of its length, and what a stream's end means.

mod exchange;
mod frames;
mod incoming;
mod requests;
mod serve;
mod transport;

pub(crate) use requests::QuicTerms;
pub(crate) use serve::serve;
