//! One rate-limit service (`envoy.service.ratelimit.v3`), while an object names it: each request is a call of its own, on one connection.

use std::sync::Arc;
use std::time::Duration;

use engine::authenticate::KeysUri;
use engine::filter::guard::{ServiceAnswer, ServiceAsk, external_header};
use engine::limit::{RemotePlace, ServicePlace, StoreLive, StoreTrouble};
use http::{HeaderName, HeaderValue, header};
use hyper_util::rt::TokioIo;
use proto::xds::core;
use proto::xds::descriptor::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use proto::xds::ratelimit::rate_limit_response::Code;
use proto::xds::ratelimit::rate_limit_service_client::RateLimitServiceClient;
use proto::xds::ratelimit::{RateLimitRequest, RateLimitResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::fault::StoreFault;
use crate::callout::{CONNECT_MAX, Callout};
use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::{Posed, unanswered};
use crate::tls::Carries;
use crate::xds::Backoff;

/// Calls under way to one service; a further request is treated as if it were away.
const CALLS_MAX: usize = 1_000;
/// Calls one after the other that were not answered in time: then it is away for a while. One alone was slow.
const SILENT_MAX: u32 = 3;
/// Longest pause before it is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most headers of an answer that are passed on, each way.
const HEADERS_MAX: usize = 32;
/// See the module.
pub(super) struct ServiceStore {
    pub(super) place: Arc<ServicePlace>,
    pub(super) live: Arc<StoreLive>,
    pub(super) trouble: Arc<StoreTrouble>,
    pub(super) callout: Callout,
    pub(super) telemetry: Arc<Telemetry>,
}

/// A question that is under way.
struct Call {
    domain: String,
    ask: ServiceAsk,
    told: Option<oneshot::Sender<()>>,
}

impl ServiceStore {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(self, mut questions: mpsc::Receiver<Posed>, draw: Draw) {
        let name = RemotePlace::Service(Arc::clone(&self.place)).name();
        let channel = match self.channel(draw.next()) {
            Ok(channel) => channel,
            Err(fault) => return self.trouble.failed(&fault.to_string(), self.wall_secs()),
        };
        let (mut calls, mut backoff, mut silent) = (JoinSet::<Result<(), StoreFault>>::new(), Backoff::default(), 0);
        let mut rest = None;
        self.live.is_here();
        loop {
            tokio::select! {
                biased;
                Some(done) = calls.join_next(), if !calls.is_empty() => {
                    let fault = match done {
                        Ok(Ok(())) => {
                            (silent, backoff) = (0, Backoff::default());
                            self.trouble.over();
                            continue;
                        }
                        Ok(Err(fault)) => fault,
                        Err(_) => continue,
                    };
                    self.trouble.failed(&fault.to_string(), self.wall_secs());
                    silent += 1;
                    let patient = matches!(fault, StoreFault::Silent(_)) && silent < SILENT_MAX;
                    if rest.is_none() && !patient {
                        if backoff.failures() == 0 {
                            tracing::warn!(store = name, why = %fault, "a rate-limit service does not answer; each limit there goes by its onError");
                        }
                        self.live.is_away(self.telemetry.moment());
                        rest = Some(Box::pin(sleep(backoff.next(draw.next()).min(PAUSE_MAX))));
                    }
                }
                () = async { if let Some(rest) = &mut rest { rest.await } }, if rest.is_some() => {
                    rest = None;
                    self.live.is_here();
                }
                posed = questions.recv() => {
                    let Some(posed) = posed else { return };
                    if let Some(call) = Call::of(posed).filter(|_| rest.is_none() && calls.len() < CALLS_MAX) {
                        calls.spawn(call.make(channel.clone(), self.place.timeout));
                    }
                }
            }
        }
    }

    /// Connects at its first use, and again after each loss.
    fn channel(&self, draw: u64) -> Result<Channel, StoreFault> {
        let unreadable = |why: &dyn ToString| StoreFault::unreadable(&why.to_string());
        let at = format!("http://{}/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", self.place.address);
        let at = Arc::new(KeysUri::read(&at).map_err(|why| unreadable(&why))?);
        let endpoint = Endpoint::from_shared(format!("http://{}", self.place.address)).map_err(|error| unreadable(&error))?;
        let callout = self.callout.clone();
        let connector = service_fn(move |_: http::Uri| {
            let (callout, at) = (callout.clone(), Arc::clone(&at));
            async move { callout.open(&at, Carries::H2, draw).await.map(TokioIo::new).map_err(std::io::Error::other) }
        });
        Ok(endpoint.connect_timeout(CONNECT_MAX).connect_with_connector_lazy(connector))
    }

    fn wall_secs(&self) -> u64 {
        self.telemetry.times().0.unix().as_secs()
    }
}

impl Call {
    /// `None`: it is no question to a service.
    fn of(posed: Posed) -> Option<Self> {
        let Posed { ask, told } = posed;
        match (&ask.object.service, &ask.service) {
            (Some(service), Some(asked)) => Some(Self { domain: service.domain.to_string(), ask: asked.clone(), told }),
            _ => {
                unanswered(&Posed { ask, told });
                None
            }
        }
    }

    async fn make(self, channel: Channel, within: Duration) -> Result<(), StoreFault> {
        let entry = |(key, value): &(Box<str>, String)| Entry { key: key.to_string(), value: value.clone() };
        let descriptors = self.ask.descriptors.iter();
        let descriptors = descriptors.map(|entries| RateLimitDescriptor { entries: entries.iter().map(entry).collect() }).collect();
        let request = RateLimitRequest { domain: self.domain, descriptors, hits_addend: 0 };
        let mut client = RateLimitServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answered = timeout(within, client.should_rate_limit(request)).await.map_err(|_| StoreFault::Silent(within))?;
        let response = answered.map_err(|status| StoreFault::refused(&format!("{:?} {}", status.code(), status.message())))?;
        self.ask.answered(answer(response.into_inner())?);
        // Who asked may have left.
        let _ = self.told.map(|told| told.send(()));
        Ok(())
    }
}

/// Reads an answer. One that is neither yes nor no is none.
pub(super) fn answer(response: RateLimitResponse) -> Result<ServiceAnswer, StoreFault> {
    let RateLimitResponse { overall_code, statuses, response_headers_to_add, request_headers_to_add } = response;
    let over = match Code::try_from(overall_code) {
        Ok(Code::Ok) => false,
        Ok(Code::OverLimit) => true,
        Ok(Code::Unknown) | Err(_) => return Err(StoreFault::unreadable(&format!("its answer has the code {overall_code}"))),
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
