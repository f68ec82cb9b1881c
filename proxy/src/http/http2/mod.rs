//! HTTP/2 by the `h2` library, both ends. What hyper lays over it hides what a proxy has to know: windows that change while a connection
//! lives, what was refused unprocessed, interim answers, and how many streams a peer takes.

mod pings;
mod pump;
mod serve;

pub(crate) use pump::{Pump, Stopped};
pub(crate) use serve::serve;

use h2::{client, server};

use engine::model::Http2Rules;

use crate::ground::limits;
use crate::ground::tally::Sender;
use crate::ground::windows::Windows;

/// Whether a head is larger than a head may be. As HTTP/2 counts, with 32 bytes for each field (RFC 9113, section 6.5.2), but without the
/// fields that are the target's. `inner`: it comes from a peer of the mesh, which may have added something to it.
pub(crate) fn too_large(headers: &http::HeaderMap, target: Option<&http::Uri>, inner: bool) -> bool {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>();
    let target =
        target.map_or(0, |uri| uri.authority().map_or(0, |name| name.as_str().len()) + uri.path().len() + uri.query().map_or(0, str::len));
    fields + target > limits::HEAD_BYTES_MAX + if inner { limits::HEAD_BYTES_ADDED_MAX } else { 0 }
}

/// Headers that belong to one hop and that HTTP/2 forbids (RFC 9113, section 8.2.2): routes may have set them.
const FORBIDDEN: [http::HeaderName; 5] = [
    http::header::CONNECTION,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    http::HeaderName::from_static("keep-alive"),
    http::HeaderName::from_static("proxy-connection"),
];

/// Takes off what HTTP/2 forbids; `te` may be `trailers` in a request and nothing in an answer.
fn fit(headers: &mut http::HeaderMap, request: bool) {
    let mut forbidden = false;
    for name in headers.keys() {
        let name = name.as_str();
        forbidden |= match name.len() {
            2 => name == "te",
            7 => name == "upgrade",
            10 => name == "connection" || name == "keep-alive",
            16 => name == "proxy-connection",
            17 => name == "transfer-encoding",
            _ => false,
        };
    }
    if forbidden {
        FORBIDDEN.into_iter().for_each(|name| drop(headers.remove(name)));
        if !request || headers.get(http::header::TE).is_some_and(|te| te != "trailers") {
            headers.remove(http::header::TE);
        }
    }
}

/// As a server. `sender` sends requests, by these rules if it is a client from outside.
fn server_builder(windows: &Windows, sender: Sender, rules: Option<&Http2Rules>) -> server::Builder {
    let mut builder = server::Builder::new();
    if sender == Sender::Stranger {
        builder.data_frame_budget(limits::SMALL_FRAMES_BYTES);
    }
    builder
        .initial_window_size(windows.first())
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .max_send_buffer_size(limits::STREAM_SEND_BYTES_MAX)
        .max_header_list_size(limits::HEAD_BYTES_READ_MAX);
    if let Some(rules) = rules {
        builder.max_concurrent_streams(rules.max_streams);
        if let Some((stream, connection)) = rules.windows {
            builder.initial_window_size(stream).initial_connection_window_size(connection);
        }
    }
    builder
}

/// What the library says of a peer that has not said how many streams it takes: a number that no peer can say.
pub(crate) const STREAMS_MAX_UNTOLD: usize = usize::MAX - 1;

/// As a client.
pub(crate) fn client_builder(windows: &Windows) -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .initial_window_size(windows.first())
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .initial_max_send_streams(STREAMS_MAX_UNTOLD)
        .max_send_buffer_size(limits::STREAM_SEND_BYTES_MAX)
        .max_header_list_size(limits::HEAD_BYTES_READ_MAX)
        .enable_push(false);
    builder
}

/// Makes an answer's head, or its trailers, fit for a stream; HTTP/3 forbids the same (RFC 9114, section 4.2).
#[cfg(feature = "http3")]
pub(crate) fn fit_answer(headers: &mut http::HeaderMap) {
    fit(headers, false);
}

/// Makes a request's head fit for a stream.
pub(crate) fn fit_request(headers: &mut http::HeaderMap) {
    fit(headers, true);
}
