//! Values of settings as people read them: what `analyze --show-defaults` prints.

use std::time::Duration;

use proto::mesh::{ActiveCheck, Fault, HashKey, LimitKey, Priority, RateLimit, Session, abort, active_check, hash_key, limit_key};

use super::{Algorithm, Hedging, Injection, Prefer, RetryCause, UpstreamProtocol};

/// One value in words.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

fn joined<T>(items: &[T], one: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "none".to_owned() } else { items.iter().map(one).collect::<Vec<_>>().join(", ") }
}

impl Shown for Duration {
    /// As manifests write it; zero is none.
    fn shown(&self) -> String {
        let (seconds, millis) = (self.as_secs(), self.subsec_millis());
        let terms = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (u64::from(millis), "ms")];
        let text: String = terms.into_iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
        if text.is_empty() { "none".to_owned() } else { text }
    }
}

/// A message's duration; absent is none.
fn time(raw: Option<&prost_types::Duration>) -> String {
    raw.and_then(|raw| Duration::try_from(*raw).ok()).unwrap_or_default().shown()
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for f64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Algorithm {
    fn shown(&self) -> String {
        let word = match self {
            Self::LeastRequest => "LeastRequest",
            Self::PeakEwma => "PeakEwma",
            Self::RoundRobin => "RoundRobin",
            Self::Random => "Random",
            Self::RingHash => "RingHash",
            Self::Maglev => "Maglev",
        };
        word.to_owned()
    }
}

impl Shown for Prefer {
    fn shown(&self) -> String {
        let word = match self {
            Self::None => "None",
            Self::Zone => "Zone",
            Self::Region => "Region",
        };
        word.to_owned()
    }
}

impl Shown for UpstreamProtocol {
    fn shown(&self) -> String {
        let word = Self::WORDS.iter().find(|(_, value)| value == self).map_or("", |(word, _)| *word);
        word.to_owned()
    }
}

impl Shown for Vec<RetryCause> {
    fn shown(&self) -> String {
        joined(self, ToString::to_string)
    }
}

impl Shown for Vec<u32> {
    fn shown(&self) -> String {
        joined(self, ToString::to_string)
    }
}

impl Shown for Vec<HashKey> {
    fn shown(&self) -> String {
        joined(self, |key| match &key.kind {
            Some(hash_key::Kind::Header(name)) => format!("header {name}"),
            Some(hash_key::Kind::Cookie(cookie)) => format!("cookie {}", cookie.name),
            Some(hash_key::Kind::Query(name)) => format!("query {name}"),
            Some(hash_key::Kind::SourceAddress(_)) | None => "source address".to_owned(),
        })
    }
}

impl Shown for Session {
    fn shown(&self) -> String {
        let kind = if self.header { "header" } else { "cookie" };
        let (absolute, idle) = (time(self.absolute_timeout.as_ref()), time(self.idle_timeout.as_ref()));
        format!("{kind} {}, absolute {absolute}, idle {idle}", self.name)
    }
}

impl Shown for Hedging {
    fn shown(&self) -> String {
        format!("at the {}th percentile, at most {} %, {}", self.at_quantile, self.max_percent, self.methods.join(" "))
    }
}

impl Shown for ActiveCheck {
    fn shown(&self) -> String {
        let what = match &self.kind {
            Some(active_check::Kind::Http(http)) => format!("http {}", http.path),
            Some(active_check::Kind::Grpc(grpc)) => format!("grpc {}", grpc.service),
            Some(active_check::Kind::Tcp(_)) | None => "tcp".to_owned(),
        };
        let (interval, timeout) = (time(self.interval.as_ref()), time(self.timeout.as_ref()));
        format!(
            "{} every {interval}, timeout {timeout}, healthy after {}, unhealthy after {}",
            what.trim_end(),
            self.healthy_after,
            self.unhealthy_after
        )
    }
}

impl Shown for Vec<Injection> {
    fn shown(&self) -> String {
        joined(self, |injection| {
            let Fault { per_million, delay, abort, policy, .. } = &injection.fault;
            let delay = delay.as_ref().map(|delay| format!("delay {} to {}", time(delay.min.as_ref()), time(delay.max.as_ref())));
            let abort = abort.as_ref().map(|abort| match &abort.kind {
                Some(abort::Kind::HttpStatus(status)) => format!("abort {status}"),
                Some(abort::Kind::GrpcStatus(status)) => format!("abort grpc {status}"),
                Some(abort::Kind::Reset(_)) | None => "reset".to_owned(),
            });
            let what: Vec<String> = delay.into_iter().chain(abort).collect();
            format!("{} for {} % ({policy})", what.join(" and "), f64::from(*per_million) / 10_000.0)
        })
    }
}

impl Shown for Vec<RateLimit> {
    fn shown(&self) -> String {
        let part = |key: &LimitKey| match &key.kind {
            Some(limit_key::Kind::Header(name)) => format!("header {name}"),
            Some(limit_key::Kind::SourceIdentity(_)) | None => "source identity".to_owned(),
        };
        joined(self, |limit| {
            let by = if limit.key.is_empty() { String::new() } else { format!(" by {}", joined(&limit.key, part)) };
            format!("{} per {} and {} at once{by}", limit.requests, time(limit.per.as_ref()), limit.burst)
        })
    }
}

impl Shown for Priority {
    fn shown(&self) -> String {
        let default = usize::try_from(self.default_class).ok().and_then(|rank| self.classes.get(rank)).map_or("", String::as_str);
        format!("header {}, {}, default {default}", self.header, self.classes.join(" > "))
    }
}
