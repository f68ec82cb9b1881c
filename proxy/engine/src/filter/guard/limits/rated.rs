//! One question to a rate-limit service: as it is sent, and what its answer comes to.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header};
use proto::xds::core;
use proto::xds::descriptor::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use proto::xds::ratelimit::rate_limit_response::Code;
use proto::xds::ratelimit::{RateLimitRequest, RateLimitResponse};

use super::ObjectLimits;
use crate::Moment;
use crate::callout::{CalloutAnswer, CalloutAway, CalloutPlace};
use crate::filter::guard::{external_header, grpc};
use crate::limit::RemotePlace;

/// The method that is called.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Most headers of an answer that are passed on, each way.
const HEADERS_MAX: usize = 32;

/// Names and values that are asked about together.
pub type Descriptor = Vec<(Box<str>, String)>;

/// One question to a service, and its answer when that has come.
#[derive(Clone, Debug)]
pub(super) struct ServiceAsk {
    /// What it is asked about.
    descriptors: Arc<[Descriptor]>,
    answer: Arc<OnceLock<ServiceAnswer>>,
}

/// What a service says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// It is one too many.
    pub over: bool,
    /// When the limit that says so has some again.
    pub retry: Duration,
    /// What the client is told.
    pub response: Vec<(HeaderName, HeaderValue)>,
    /// What the backend is told.
    pub request: Vec<(HeaderName, HeaderValue)>,
}

impl ServiceAsk {
    /// About these together.
    pub(super) fn new(descriptors: impl Into<Arc<[Descriptor]>>) -> Self {
        Self { descriptors: descriptors.into(), answer: Arc::default() }
    }

    /// What it has answered.
    pub(super) fn answer(&self) -> Option<ServiceAnswer> {
        self.answer.get().cloned()
    }

    /// The service has answered; a second answer is none.
    fn answered(&self, answer: ServiceAnswer) {
        let _ = self.answer.set(answer);
    }
}

/// What a rate-limit service is asked of one request.
#[derive(Clone, Debug)]
pub struct RateAsk {
    pub(super) object: Arc<ObjectLimits>,
    pub(super) ask: ServiceAsk,
}

impl RateAsk {
    /// Place of the service among those that the rule's policies ask.
    pub fn place(&self) -> usize {
        self.object.service.as_ref().map_or(usize::MAX, |service| service.place)
    }

    /// How long it is waited for, connecting included.
    pub fn timeout(&self) -> Duration {
        self.object.wait().unwrap_or_default()
    }

    /// A place among the questions under way; `None`: there are as many as may be, and this one is not put.
    pub fn enter(&self) -> Option<CalloutPlace> {
        self.object.remote.as_ref()?.callout.enter()
    }

    /// What is sent.
    ///
    /// # Errors
    /// It cannot be written down; that is nobody's fault but this proxy's.
    pub fn request(&self) -> Result<Request<Bytes>, http::Error> {
        let (Some(service), Some(RemotePlace::Service(place))) =
            (&self.object.service, self.object.remote.as_ref().map(|remote| &remote.place))
        else {
            return Request::builder().body(Bytes::new());
        };
        let entry = |(key, value): &(Box<str>, String)| Entry { key: key.to_string(), value: value.clone() };
        let descriptors = self.ask.descriptors.iter();
        let descriptors = descriptors.map(|entries| RateLimitDescriptor { entries: entries.iter().map(entry).collect() }).collect();
        let message = RateLimitRequest { domain: service.domain.to_string(), descriptors, hits_addend: 0 };
        grpc::call((&place.address, SHOULD_RATE_LIMIT), &message, place.timeout)
    }

    /// What came of it. True: the service is away from now on, and was not before.
    pub fn told(&self, told: Result<CalloutAnswer, CalloutAway>, (now, wall_secs): (Moment, u64)) -> bool {
        let Some(remote) = &self.object.remote else { return false };
        let away = match told.and_then(|told| grpc::message(&told)).and_then(answer) {
            Ok(answer) => {
                remote.rests.answered();
                // Its lock is for who has something to take back.
                if remote.trouble.is_told() {
                    remote.trouble.over();
                }
                self.ask.answered(answer);
                return false;
            }
            Err(away) => away,
        };
        let why = match away {
            CalloutAway::Unreached => "it is not reached, or refuses".to_owned(),
            CalloutAway::Silent => format!("there is no answer within {} ms", self.timeout().as_millis()),
            CalloutAway::Garbled => "what it says is no answer of a rate-limit service".to_owned(),
            CalloutAway::Full => return false,
        };
        remote.trouble.failed(&why, wall_secs);
        remote.rests.failed(away == CalloutAway::Silent, now)
    }

    /// The store's name, for the log.
    pub fn store(&self) -> String {
        self.object.remote.as_ref().map(|remote| remote.place.name()).unwrap_or_default()
    }
}

/// Reads an answer. One that is neither yes nor no is none.
fn answer(response: RateLimitResponse) -> Result<ServiceAnswer, CalloutAway> {
    let RateLimitResponse { overall_code, statuses, response_headers_to_add, request_headers_to_add } = response;
    let over = match Code::try_from(overall_code) {
        Ok(Code::Ok) => false,
        Ok(Code::OverLimit) => true,
        Ok(Code::Unknown) | Err(_) => return Err(CalloutAway::Garbled),
    };
    let full = statuses.into_iter().filter(|status| status.code == Code::OverLimit as i32);
    let until = full.filter_map(|status| Duration::try_from(status.duration_until_reset?).ok());
    Ok(ServiceAnswer {
        over,
        retry: until.max().unwrap_or_default(),
        response: headers(response_headers_to_add),
        request: headers(request_headers_to_add),
    })
}

/// What is no header, or not a service's to say, is left out.
fn headers(raw: Vec<core::HeaderValue>) -> Vec<(HeaderName, HeaderValue)> {
    let one = |core::HeaderValue { key, value }: core::HeaderValue| {
        let name: HeaderName = key.parse().ok()?;
        // How a body is coded is the body's to say.
        let own = external_header(name.as_str()) && name != header::CONTENT_ENCODING;
        own.then_some((name, HeaderValue::try_from(value).ok()?))
    };
    raw.into_iter().filter_map(one).take(HEADERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proto::xds::core::HeaderValue as RawHeader;
    use proto::xds::ratelimit::rate_limit_response::DescriptorStatus;

    use super::*;

    #[test]
    fn an_answer_is_read_with_what_it_may_say() {
        // Aim: the longest time of limits that are full; headers that are none, or none of its business, are left out; an unknown code is no answer.
        let status = |code: Code, seconds| DescriptorStatus {
            code: code.into(),
            duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..DescriptorStatus::default()
        };
        let header = |key: &str, value: &str| RawHeader { key: key.into(), value: value.into() };
        let read = answer(RateLimitResponse {
            overall_code: Code::OverLimit.into(),
            statuses: vec![status(Code::OverLimit, 5), status(Code::Ok, 90), status(Code::OverLimit, 30), status(Code::OverLimit, -7)],
            response_headers_to_add: [
                ("x-ratelimit-limit", "10"),
                ("Content-Length", "7"),
                ("transfer-encoding", "chunked"),
                ("x-meshwright-reason", "x"),
                ("a b", "c"),
                ("x-a", "b\r\nc: d"),
            ]
            .map(|(key, value)| header(key, value))
            .to_vec(),
            request_headers_to_add: vec![
                header("X-Plan", "gold"),
                header("x-forwarded-client-cert", "URI=spiffe://partner/acme"),
                header("x-forwarded-for", "127.0.0.1"),
                header("expect", "100-continue"),
            ],
        })
        .unwrap();
        let names = |headers: &[(HeaderName, HeaderValue)]| headers.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        assert_eq!((read.over, read.retry), (true, Duration::from_secs(30)));
        assert_eq!((names(&read.response), names(&read.request)), (vec!["x-ratelimit-limit".to_owned()], vec!["x-plan".to_owned()]));
        for code in [0, 3, -1] {
            assert!(answer(RateLimitResponse { overall_code: code, ..RateLimitResponse::default() }).is_err());
        }
    }
}
