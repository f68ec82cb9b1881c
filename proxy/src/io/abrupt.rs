//! Ends that are cuts.

use std::io;
use std::task::{Context, Poll};

/// A byte stream that can end by a cut, which a reader must not take for an end: what came before it may not be all.
pub trait Abrupt {
    /// Makes the drop that is to follow a cut: the peer sees a reset, or TLS that ends without its goodbye. What was written and has not left
    /// may be lost, as it is when a program dies.
    fn abort(&mut self);

    /// Looks whether the peer has cut the connection, without reading from it.
    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen>;

    /// Ready with an error once the peer has reset the connection, where that is watched for although nobody reads.
    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

/// What can be known of a peer without reading what it said. Pending: nothing has come, and the task is woken when something does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It has reset the connection.
    Reset,
    /// Bytes or an end have come that nobody has read yet, and what comes after them wakes nobody.
    Unread,
}
