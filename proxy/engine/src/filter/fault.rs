//! Faults on purpose: delays, and answers or cuts in place of the upstream's.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use proto::mesh::abort::Kind;

use super::chance::{Chance, MILLION, below, salted};
use super::{Exchange, Filter, Remote, Stage, Verdict};
use crate::failure::{LocalReply, Reason};
use crate::matching::{self, Match, PathMatch, compile};
use crate::raw::{duration, methods};
use crate::rejected::{Wrong, refuse};

/// Most faults of one policy.
pub const FAULTS_MAX: usize = 64;
/// Longest delay: what waits longer holds a client's connection for nothing.
pub const DELAY_MAX: Duration = Duration::from_secs(3600);
/// Most paths, and most methods, of one fault.
const CONDITIONS_MAX: usize = 64;
/// Sets the length of a delay apart from whether there is one.
const LENGTH_SALT: u64 = 1 << 32;

/// Which requests a fault is for, how likely, and who asks for it.
#[derive(Debug)]
struct Target {
    headers: Match,
    paths: Vec<PathMatch>,
    methods: Vec<Method>,
    chance: Chance,
    policy: String,
}

/// Holds a request back.
#[derive(Clone, Debug)]
pub struct Delay {
    target: Arc<Target>,
    salt: u64,
    min: Duration,
    max: Duration,
}

/// Answers a request, or cuts it.
#[derive(Clone, Debug)]
pub struct Abort {
    target: Arc<Target>,
    /// `None`: cut.
    reply: Option<LocalReply>,
}

/// The stages of all faults of a policy: every delay, then every abort.
#[derive(Debug, Default)]
pub(crate) struct FaultSteps {
    delays: Vec<Stage>,
    aborts: Vec<Stage>,
}

impl FaultSteps {
    pub(crate) fn compile(raw: &[proto::mesh::Fault]) -> Result<Self, Wrong> {
        if raw.len() > FAULTS_MAX {
            return Err(Wrong::new("faults", format!("holds more than {FAULTS_MAX} faults")));
        }
        let mut steps = Self::default();
        for (index, raw) in raw.iter().enumerate() {
            steps.add(raw, index as u64).map_err(|wrong| wrong.within(format!("faults[{index}]")))?;
        }
        Ok(steps)
    }

    fn add(&mut self, raw: &proto::mesh::Fault, salt: u64) -> Result<(), Wrong> {
        let proto::mesh::Fault { headers, paths, methods: raw_methods, per_million, delay, abort, policy } = raw;
        if *per_million > MILLION {
            return Err(Wrong::new("per_million", format!("{per_million} is more than {MILLION}")));
        }
        if paths.len() > CONDITIONS_MAX {
            return Err(Wrong::new("paths", format!("holds more than {CONDITIONS_MAX}")));
        }
        let path = |(index, raw)| compile::path_alone(raw).map_err(|wrong: Wrong| wrong.within(format!("paths[{index}]")));
        let target = Arc::new(Target {
            headers: compile::headers(headers)?,
            paths: paths.iter().enumerate().map(path).collect::<Result<_, _>>()?,
            methods: methods(raw_methods, CONDITIONS_MAX)?,
            chance: Chance::new(*per_million, salt),
            policy: policy.clone(),
        });
        if delay.is_none() && abort.is_none() {
            return Err(Wrong::new("", "holds neither delay nor abort"));
        }
        if let Some(proto::mesh::Delay { min, max }) = delay {
            let at = |wrong: Wrong| wrong.within("delay");
            let times = (duration(min.as_ref(), "min").map_err(at)?, duration(max.as_ref(), "max").map_err(at)?);
            let (min, max) = (times.0.unwrap_or_default(), times.1.unwrap_or_default());
            if max < min || max > DELAY_MAX {
                return Err(at(Wrong::new("max", format!("is not between min and {} s", DELAY_MAX.as_secs()))));
            }
            self.delays.push(Stage::Remote(Remote::Delay(Delay { target: Arc::clone(&target), salt: LENGTH_SALT | salt, min, max })));
        }
        if let Some(proto::mesh::Abort { kind }) = abort {
            let reply = reply(kind.as_ref()).map_err(|wrong| wrong.within("abort"))?;
            self.aborts.push(Stage::Local(Filter::Abort(Abort { target, reply })));
        }
        Ok(())
    }

    /// In their order.
    pub(crate) fn into_stages(self) -> impl Iterator<Item = Stage> {
        self.delays.into_iter().chain(self.aborts)
    }
}

fn reply(kind: Option<&Kind>) -> Result<Option<LocalReply>, Wrong> {
    let with = |status, code| Ok(Some(LocalReply { status, grpc_status: Some(code), ..LocalReply::of(Reason::Fault) }));
    match kind {
        None => Err(Wrong::new("kind", "is missing: http_status, grpc_status or reset")),
        Some(Kind::Reset(reset)) => refuse(!reset, "reset").map(|()| None),
        Some(Kind::HttpStatus(status)) => {
            let code = u16::try_from(*status).ok().filter(|code| (200..600).contains(code));
            let status = code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or_else(|| Wrong::new("http_status", "is not a status from 200 to 599"))?;
            with(status, grpc_of(status))
        }
        Some(Kind::GrpcStatus(code)) => {
            let code = u8::try_from(*code).ok().filter(|code| (1..=16).contains(code));
            let code = code.ok_or_else(|| Wrong::new("grpc_status", "is not a code from 1 to 16"))?;
            with(http_of(code), code)
        }
    }
}

/// gRPC, "HTTP to gRPC status code mapping".
fn grpc_of(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// What a caller that does not speak gRPC sees of a code, as gateways in front of gRPC have it.
const fn http_of(code: u8) -> StatusCode {
    match code {
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whether a fault hits requests like one, whatever is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It is not for them.
    Never,
    /// It hits a share of them.
    Perhaps,
    /// It hits all of them.
    Certain,
}

impl Target {
    fn hit(&self, exchange: &Exchange<'_>) -> bool {
        self.chance.falls(exchange.draw) && self.is_for(exchange)
    }

    fn outlook(&self, exchange: &Exchange<'_>) -> Outlook {
        match self.chance.per_million() {
            0 => Outlook::Never,
            _ if !self.is_for(exchange) => Outlook::Never,
            MILLION => Outlook::Certain,
            _ => Outlook::Perhaps,
        }
    }

    fn is_for(&self, exchange: &Exchange<'_>) -> bool {
        let request = &*exchange.request;
        (self.methods.is_empty() || self.methods.contains(&request.method))
            && (self.paths.is_empty() || self.paths.iter().any(|wanted| matching::path(wanted, request.uri.path())))
            && self.headers.headers.iter().all(|(name, wanted)| matching::header(wanted, &request.headers, name))
    }

    fn story(&self, what: &str) -> String {
        let narrowed = !(self.headers.headers.is_empty() && self.paths.is_empty() && self.methods.is_empty());
        let some = if narrowed { " where it matches" } else { "" };
        let whose = if self.policy.is_empty() { String::new() } else { format!(", by {}", self.policy) };
        format!("{what}{}{some}{whose}", self.chance.story())
    }
}

impl Delay {
    /// How long the request is held back, if it is.
    pub fn wait(&self, exchange: &Exchange<'_>) -> Option<Duration> {
        if !self.target.hit(exchange) {
            return None;
        }
        let span = u64::try_from((self.max - self.min).as_nanos()).unwrap_or(u64::MAX);
        Some(self.min + Duration::from_nanos(below(salted(exchange.draw, self.salt), span)))
    }

    /// The object that asks for it, `NAMESPACE/NAME`.
    pub fn policy(&self) -> &str {
        &self.target.policy
    }

    /// Whether it hits requests like this one.
    pub fn outlook(&self, exchange: &Exchange<'_>) -> Outlook {
        self.target.outlook(exchange)
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let time = if self.min == self.max { format!("waits {:?}", self.min) } else { format!("waits {:?} to {:?}", self.min, self.max) };
        self.target.story(&time)
    }
}

impl Abort {
    /// Ends the exchange where the fault hits.
    pub fn on_request(&self, exchange: &Exchange<'_>) -> Verdict {
        if !self.target.hit(exchange) {
            return Verdict::Go;
        }
        self.reply.as_ref().map_or(Verdict::Reset, |reply| Verdict::Answer(Box::new(reply.clone())))
    }

    /// The object that asks for it, `NAMESPACE/NAME`.
    pub fn policy(&self) -> &str {
        &self.target.policy
    }

    /// Whether it hits requests like this one.
    pub fn outlook(&self, exchange: &Exchange<'_>) -> Outlook {
        self.target.outlook(exchange)
    }

    /// The answer that it makes; `None`: it cuts.
    pub const fn reply(&self) -> Option<&LocalReply> {
        self.reply.as_ref()
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let what = match &self.reply {
            None => "cuts the exchange".to_owned(),
            Some(LocalReply { status, grpc_status: Some(code), .. }) => format!("answers {} (gRPC {code})", status.as_u16()),
            Some(LocalReply { status, .. }) => format!("answers {}", status.as_u16()),
        };
        self.target.story(&what)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proto::xds::route::RouteMatch;

    use super::*;
    use crate::filter::tests::exchange;
    use crate::fixture;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn raw(delay: Option<(i64, i64)>, abort: Option<Kind>) -> proto::mesh::Fault {
        proto::mesh::Fault {
            per_million: MILLION,
            delay: delay.map(|(min, max)| proto::mesh::Delay { min: seconds(min), max: seconds(max) }),
            abort: abort.map(|kind| proto::mesh::Abort { kind: Some(kind) }),
            policy: "shop/chaos".into(),
            ..Default::default()
        }
    }

    fn stages(raw: &[proto::mesh::Fault]) -> Vec<Stage> {
        FaultSteps::compile(raw).unwrap().into_stages().collect()
    }

    #[test]
    fn delays_go_before_aborts() {
        // Aim: whatever order the faults stand in, and each says whose it is.
        let all = stages(&[raw(None, Some(Kind::Reset(true))), raw(Some((1, 1)), Some(Kind::HttpStatus(503)))]);
        let told: Vec<String> = all.iter().map(Stage::story).collect();
        let wanted =
            ["waits 1s, by shop/chaos", "cuts the exchange, by shop/chaos", "answers 503 (gRPC 14), by shop/chaos"].map(str::to_owned);
        assert_eq!(told, wanted);
    }

    #[test]
    fn all_conditions_must_hold() {
        // Aim: headers and one path and one method; none means any.
        let narrow = proto::mesh::Fault {
            headers: vec![fixture::header("x-chaos", "on")],
            paths: vec![fixture::prefix("/cart"), fixture::exact("/pay")],
            methods: vec!["GET".into(), "PUT".into()],
            ..raw(Some((2, 2)), None)
        };
        let Some(Stage::Remote(Remote::Delay(delay))) = stages(&[narrow]).pop() else { panic!() };
        for (method, path, chaos, hit) in [
            ("GET", "/cart/1", "on", true),
            ("PUT", "/pay", "on", true),
            ("POST", "/cart", "on", false),
            ("GET", "/cartoon", "on", false),
            ("GET", "/pay", "off", false),
        ] {
            let mut parts = Request::builder().method(method).uri(path).header("x-chaos", chaos).body(()).unwrap().into_parts().0;
            let wait = delay.wait(&exchange(&mut parts));
            assert_eq!(wait, hit.then_some(Duration::from_secs(2)), "{method} {path} {chaos}");
        }
    }

    #[test]
    fn delays_are_uniform_and_chances_shares() {
        // Aim: every length between the two ends, and as many hits as asked for, whatever the length is.
        let fault = proto::mesh::Fault { per_million: 250_000, ..raw(Some((1, 3)), None) };
        let Some(Stage::Remote(Remote::Delay(delay))) = stages(&[fault]).pop() else { panic!() };
        let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
        let wait = |n: u64| {
            let mut exchange = exchange(&mut parts);
            exchange.draw = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            delay.wait(&exchange)
        };
        let waits: Vec<Duration> = (0..40_000).filter_map(wait).collect();
        assert!(waits.len().abs_diff(10_000) < 400, "{}", waits.len());
        let mean = waits.iter().sum::<Duration>() / u32::try_from(waits.len()).unwrap();
        assert!(mean.abs_diff(Duration::from_secs(2)) < Duration::from_millis(30), "{mean:?}");
        assert!(waits.iter().all(|wait| (Duration::from_secs(1)..Duration::from_secs(3)).contains(wait)));
    }

    #[test]
    fn aborts_answer_both_kinds_of_caller() {
        // Aim: HTTP and gRPC codes for each other, reason `fault`, and a cut without any.
        let verdict = |kind| {
            let Some(Stage::Local(filter)) = stages(&[raw(None, Some(kind))]).pop() else { panic!() };
            filter.on_request(&mut exchange(&mut Request::get("/").body(()).unwrap().into_parts().0))
        };
        for (kind, status, grpc) in [
            (Kind::HttpStatus(404), 404, 12),
            (Kind::HttpStatus(500), 500, 2),
            (Kind::GrpcStatus(14), 503, 14),
            (Kind::GrpcStatus(5), 404, 5),
            (Kind::GrpcStatus(8), 429, 8),
        ] {
            let Verdict::Answer(reply) = verdict(kind) else { panic!() };
            assert_eq!((reply.status.as_u16(), reply.grpc_status, reply.reason), (status, Some(grpc), Some(Reason::Fault)));
        }
        assert!(matches!(verdict(Kind::Reset(true)), Verdict::Reset));
    }

    #[test]
    fn faults_that_make_no_sense_are_refused() {
        // Aim: by name of the field, and within bounds.
        let header = proto::xds::route::HeaderMatcher { name: ":method".into(), ..fixture::header("x", "1") };
        let cases = [
            (raw(None, None), "neither"),
            (proto::mesh::Fault { per_million: MILLION + 1, ..raw(Some((1, 1)), None) }, "per_million"),
            (raw(Some((2, 1)), None), "delay.max"),
            (raw(Some((0, 3601)), None), "delay.max"),
            (raw(None, Some(Kind::HttpStatus(199))), "abort.http_status"),
            (raw(None, Some(Kind::GrpcStatus(0))), "abort.grpc_status"),
            (raw(None, Some(Kind::Reset(false))), "abort.reset"),
            (proto::mesh::Fault { methods: vec!["A B".into()], ..raw(Some((1, 1)), None) }, "methods[0]"),
            (proto::mesh::Fault { headers: vec![header], ..raw(Some((1, 1)), None) }, "headers[0]"),
            (proto::mesh::Fault { paths: vec![RouteMatch::default()], ..raw(Some((1, 1)), None) }, "paths[0]"),
        ];
        for (raw, part) in cases {
            let text = FaultSteps::compile(std::slice::from_ref(&raw)).unwrap_err().of("T", "n").to_string();
            assert!(text.contains("faults[0]") && text.contains(part), "{text} should hold {part}");
        }
        assert!(FaultSteps::compile(&vec![raw(Some((1, 1)), None); FAULTS_MAX + 1]).is_err());
    }
}
