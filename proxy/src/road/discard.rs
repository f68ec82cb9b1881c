//! An answer that is not taken.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use http::Response;
use http_body::Body as _;

use crate::ground::body::{Body, Cut, Follower, Received};
use crate::pool::Lease;

/// Largest rest of a body that is read so that its connection can be kept.
const DISCARDED_BYTES_MAX: usize = 64 << 10;
/// Longest such reading.
const DISCARD_WAIT: Duration = Duration::from_secs(1);

/// Reads what is left of an answer, within bounds, and gives its connection back; beyond them the connection is closed, or the stream reset.
pub fn discard(response: Response<Received>, lease: Option<Lease>) {
    let Some(mut lease) = lease else { return };
    let received = response.into_body();
    if received.is_end_stream() {
        lease.give_back();
        return;
    }
    tokio::task::spawn_local(async move {
        let mut body = Body::followed(received, Box::new(Nobody));
        let reading = async {
            let mut bytes = 0;
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(frame) = frame else { return false };
                bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
                if bytes > DISCARDED_BYTES_MAX {
                    return false;
                }
            }
            true
        };
        if tokio::time::timeout(DISCARD_WAIT, reading).await == Ok(true) {
            lease.give_back();
        }
    });
}

/// Is told of what nobody wants.
pub(super) struct Nobody;

impl Follower for Nobody {
    fn frame(&mut self, _: &http_body::Frame<bytes::Bytes>) {}

    fn ended(&mut self, _: Result<(), &Cut>) {}

    fn poll_overdue(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<engine::failure::Reason> {
        std::task::Poll::Pending
    }
}
