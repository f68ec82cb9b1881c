//! What goes from the encoder to collectors.

use std::sync::Arc;

use engine::model::Settings;
use opentelemetry_sdk::trace::SpanData;

/// Size that one span of the proxy's own tasks is taken for.
const OWN_SPAN_BYTES: usize = 1024;

/// Spans that share a destination and a resource.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) settings: Option<Arc<Settings>>,
    pub(super) spans: Packed,
    pub(super) count: u64,
}

/// Of traffic, or of the proxy's own tasks.
#[derive(Debug, Clone)]
pub(super) enum Packed {
    /// As fields of `ScopeSpans`.
    Encoded(Arc<Vec<u8>>),
    Own(Arc<Vec<SpanData>>),
}

impl Parcel {
    /// In bytes.
    pub(super) fn size(&self) -> usize {
        match &self.spans {
            Packed::Encoded(bytes) => bytes.len(),
            Packed::Own(spans) => spans.len() * OWN_SPAN_BYTES,
        }
    }
}
