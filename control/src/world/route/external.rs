//! The ExternalAuth filter (GEP-1494): a service that says whether a rule's requests may go on.

use super::reference::Reference;
use super::{Unsupported, experimental, fault};
use crate::world::door::Cursor;
use crate::world::edge::{headers, path};

/// Who is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteExternal {
    /// The service.
    pub to: Reference,
    /// By plain HTTP; else by gRPC (`ext_authz`).
    pub http: bool,
    /// What stands before the request's path there.
    pub path: String,
    /// Headers that it is shown. By gRPC without any: all; by HTTP: those that it is always shown.
    pub request_headers: Vec<String>,
    /// Headers of its answer that count; without any: all.
    pub response_headers: Vec<String>,
    /// How much of a body it is shown; 0: nothing. Of a longer one the beginning.
    pub body_bytes_max: u32,
}

impl RouteExternal {
    /// What cannot be carried out lands in `failing`: without it the rule would be open.
    pub(super) fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Option<Self> {
        experimental(at, "the filter ExternalAuth");
        let mut fields = at.fields();
        let to = fields.need("backendRef").and_then(|at| {
            let mut reference = at.fields();
            let to = Reference::read(&mut reference);
            reference.done();
            to
        });
        let protocol = fields.need("protocol").and_then(|at| Some((at.text()?, at)));
        let (mut request_headers, mut response_headers, mut before) = (Vec::new(), Vec::new(), String::new());
        if let Some(at) = fields.get("grpc") {
            let mut grpc = at.fields();
            request_headers = grpc.get("allowedHeaders").map(|at| headers(&at, |_| true)).unwrap_or_default();
            grpc.done();
        }
        if let Some(at) = fields.get("http") {
            let mut http = at.fields();
            before = http.get("path").and_then(|at| path(&at)).unwrap_or_default();
            request_headers = http.get("allowedHeaders").map(|at| headers(&at, |_| true)).unwrap_or_default();
            let external_header = engine::filter::guard::external_header;
            response_headers = http.get("allowedResponseHeaders").map(|at| headers(&at, external_header)).unwrap_or_default();
            http.done();
        }
        let body_bytes_max = fields.get("forwardBody").and_then(|at| {
            let mut body = at.fields();
            let most = i64::from(engine::filter::guard::BODY_BYTES_MAX);
            let bytes = body.get("maxSize").and_then(|at| at.int(0..=most));
            body.done();
            bytes.and_then(|bytes| u32::try_from(bytes).ok())
        });
        fields.done();
        let http = match protocol.as_ref().map(|(word, _)| word.as_str()) {
            Some("GRPC") => Some(false),
            Some("HTTP") => Some(true),
            _ => None,
        };
        if let (Some((word, at)), None) = (&protocol, http) {
            failing.push(fault(at, format!("unknown protocol `{word}`")));
        }
        let body_bytes_max = body_bytes_max.unwrap_or_default();
        Some(Self { to: to?, http: http?, path: before, request_headers, response_headers, body_bytes_max })
    }
}
