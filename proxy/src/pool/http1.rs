//! An upstream HTTP/1 connection.

use std::sync::Arc;

use hyper::client::conn::http1;

use crate::ground::body::Body;
use crate::ground::line::Line;
use crate::tls::TlsFacts;

/// An HTTP/1 connection. Boxed once and then handed over: from its opening to a lease, to the slot, to the next lease.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) line: Arc<Line>,
    pub(super) tls: Option<TlsFacts>,
    /// The slot's before it was opened.
    pub(super) age: u64,
}
