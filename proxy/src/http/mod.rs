//! hyper, and the rules of HTTP that a proxy has to keep: what belongs to one hop, versions, upgrades, the mesh's own answers.

mod convert;
mod date;
mod deadline;
mod dots;
mod forwarded;
mod grpc_web;
pub(crate) mod health;
mod hop;
pub(crate) mod http2;
#[cfg(feature = "http3")]
pub(crate) mod http3;
mod hygiene;
mod judge;
mod kept;
mod packed;
mod reply;
mod serve;
mod upgrade;

pub use convert::{frame_for_http1, to_http1, to_http2};
pub use date::WrittenDate;
pub use deadline::{Neighbour, Patient, take_patience, tell_patience};
pub use forwarded::{CLIENT_CERT_HEADER, Outsider, mark_outside};
pub use grpc_web::WebForm;
pub use hop::{OfHop, Upgrade, clean_request, clean_response, clean_trailers, names_http};
pub use hygiene::inspect;
pub use judge::{Hop, Raw, declared_length, judge_answer, judge_request};
pub use packed::{pack, unpack};
pub use reply::{CutOff, grpc_status, grpc_trailers, local_reply, problem, takes_json};
pub use serve::{Caller, Serving, serve};
pub use upgrade::{Tunnel, tunnel};
