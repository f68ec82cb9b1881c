//! `retry`.

use engine::retry::BODY_BUFFER_BYTES_MAX;

use super::{TrafficSettings, each_once, grpc_code, method, positive, whole};
use crate::world::door::{Cursor, Fields};

/// Most attempts beyond the first.
const ATTEMPTS_MAX: u32 = 10;
/// Most status codes, HTTP's or gRPC's.
const CODES_MAX: usize = 32;
/// Highest floor of a budget.
const BUDGET_PER_SECOND_MAX: u32 = 1_000_000;
/// Methods that may be sent twice at once (RFC 9110, 9.2.1).
const SAFE: [&str; 4] = ["GET", "HEAD", "OPTIONS", "TRACE"];
/// As many as Gateway API knows.
const METHODS_MAX: usize = 9;

/// What makes another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// No connection came about.
    ConnectFailure,
    /// The connection or stream ended before the head of the answer.
    Reset,
    /// The server said that it has not begun (REFUSED_STREAM, GOAWAY).
    RefusedStream,
    /// One of the status codes.
    RetriableStatus,
    /// One of the gRPC statuses.
    GrpcStatus,
}

impl RetryCause {
    /// Every value with its word.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("ConnectFailure", Self::ConnectFailure),
        ("Reset", Self::Reset),
        ("RefusedStream", Self::RefusedStream),
        ("RetriableStatus", Self::RetriableStatus),
        ("GrpcStatus", Self::GrpcStatus),
    ];

    /// The word.
    pub fn text(self) -> &'static str {
        Self::WORDS.iter().find(|(_, cause)| *cause == self).map_or("", |(word, _)| word)
    }
}

impl std::fmt::Display for RetryCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// A second attempt beside a slow first one.
#[derive(Clone, Debug, PartialEq)]
pub struct Hedging {
    /// The latency, as a quantile of those seen, after which it starts; 0 to 100, exclusive.
    pub at_quantile: f64,
    /// Most second attempts, per cent of requests.
    pub max_percent: f64,
    /// For these methods.
    pub methods: Vec<String>,
}

pub(super) fn read(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    into.attempts = fields.get("attempts").and_then(|at| whole(&at, 0..=ATTEMPTS_MAX));
    into.per_try = fields.get("perTryTimeout").and_then(|at| positive(&at));
    into.causes = fields.get("on").map(|at| unique(&at, RetryCause::WORDS.len(), |at| at.word(&RetryCause::WORDS)));
    into.status_codes = fields.get("statusCodes").map(|at| unique(&at, CODES_MAX, |at| whole(at, 400..=599)));
    into.grpc_statuses = fields.get("grpcStatuses").map(|at| unique(&at, CODES_MAX, grpc_code));
    if let Some(at) = fields.get("backoff") {
        let mut backoff = at.fields();
        into.backoff_base = backoff.get("base").and_then(|at| positive(&at));
        into.backoff_max = backoff.get("max").and_then(|at| positive(&at));
        backoff.done();
        if let (Some(base), Some(max)) = (into.backoff_base, into.backoff_max)
            && base > max
        {
            at.error("base is longer than max", "make it shorter");
        }
    }
    into.body_buffer_bytes = fields.get("bodyBufferBytes").and_then(|at| whole(&at, 0..=BODY_BUFFER_BYTES_MAX));
    if let Some(at) = fields.get("budget") {
        let mut budget = at.fields();
        into.budget_percent = budget.get("percent").and_then(|at| at.percent());
        into.budget_per_second = budget.get("minPerSecond").and_then(|at| whole(&at, 0..=BUDGET_PER_SECOND_MAX));
        budget.done();
    }
    into.hedge = fields.get("hedge").and_then(|at| hedge(at.fields()));
    let listed = |cause| into.causes.as_ref().is_none_or(|causes| causes.contains(&cause));
    for (name, said, cause) in [
        ("statusCodes", into.status_codes.is_some(), RetryCause::RetriableStatus),
        ("grpcStatuses", into.grpc_statuses.is_some(), RetryCause::GrpcStatus),
    ] {
        if said && !listed(cause) {
            fields.at().below(name).warn(format!("without {cause} in `on` it has no effect"), format!("add {cause} to `on`"));
        }
    }
    fields.done();
}

fn unique<T: PartialEq + std::fmt::Display>(at: &Cursor<'_>, max: usize, read: impl Fn(&Cursor<'_>) -> Option<T>) -> Vec<T> {
    let items: Vec<_> = at.list(max).into_iter().filter_map(|at| read(&at).map(|item| (at, item))).collect();
    each_once(items)
}

fn hedge(mut fields: Fields<'_>) -> Option<Hedging> {
    let mut read = Hedging { at_quantile: 95.0, max_percent: 5.0, methods: vec!["GET".to_owned(), "HEAD".to_owned()] };
    if let Some(at) = fields.get("atQuantile") {
        read.at_quantile = at.percent()?;
        if read.at_quantile <= 0.0 || read.at_quantile >= 100.0 {
            at.error("a quantile lies between 0 and 100", "write for example 95");
        }
    }
    if let Some(percent) = fields.get("maxPercent").and_then(|at| at.percent()) {
        read.max_percent = percent;
    }
    if let Some(at) = fields.get("methods") {
        read.methods = unique(&at, METHODS_MAX, method);
        let unsafe_ones: Vec<&str> = read.methods.iter().map(String::as_str).filter(|method| !SAFE.contains(method)).collect();
        if !unsafe_ones.is_empty() {
            at.warn(format!("{} may be carried out twice", unsafe_ones.join(", ")), "hedge safe methods, such as GET and HEAD");
        }
    }
    fields.done();
    Some(read)
}
