//! Clients of an edge, before any rule is asked: who they are (`address`), how somebody in front of us tells where a connection comes from
//! (`proxy_protocol`), and how many may come (`admission`). What holds at a port is [`crate::model::ClientPolicy`].

mod address;
mod admission;
pub mod proxy_protocol;

pub use address::{ClientAddress, ClientFound, ForwardedHeader, HOPS_MAX, elements, elements_of};
pub use admission::{Admission, AdmissionBounds, Admitted, NotAdmitted};
