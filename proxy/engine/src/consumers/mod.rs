//! Who may call from outside the mesh: consumers, what they show, and who of them somebody is that proved it. Nothing of theirs is secret here: keys
//! are known by their hashes, passwords by theirs. What the proxy itself shows to a server is ([`ShownSecret`]), and is never printed.

mod addresses;
mod book;
mod certificate;
mod choice;
mod consumer;
mod digest;
mod identified;
mod password;
mod verified;

pub use addresses::{AddressList, LISTED_MAX as ADDRESSES_MAX};
pub(crate) use book::Page;
pub use book::{Book, BookCell, CREDENTIALS_MAX, KEY_BYTES_MAX, Owner, SECRET_BYTES_MAX, ShownSecret};
pub use certificate::ClientCertificate;
pub use choice::ConsumerChoice;
pub use consumer::{AuthMethod, Consumer, Credential, Lapsed};
pub use digest::{Digest, digest};
pub use identified::{CONSUMER_HEADER, Identified};
pub use password::{Password, check_password_hash};
pub use verified::{VERIFIED_MAX, Verified};
