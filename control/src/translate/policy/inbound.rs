//! What a policy makes of a server's inbound side: rate limits, and how long an opaque connection may be silent.
//!
//! Nobody knows by which Service a request came in. So a port that several lead to has the limits of all of them, and the longest of
//! their idle timeouts.

use std::time::Duration;

use engine::filter::LIMITS_MAX;
use proto::mesh::{RateLimit, RoutePolicy};

use super::{content, longest, of_service, settings, wide};
use crate::translate::attach::Backend;
use crate::translate::mtls::applies;
use crate::world::core::ServicePort;
use crate::world::traffic::TrafficSettings;
use crate::world::{Index, Instance, ServiceView};

/// Everything that policies say of one inbound port.
#[derive(Debug, Default)]
pub(in crate::translate) struct InboundTraits {
    /// For its HTTP requests.
    pub policy: RoutePolicy,
    /// For its opaque connections, where it is not the default; zero: none.
    pub idle: Option<Duration>,
}

/// The traits of one port of an instance (`None`: of every port that nobody declares), with the Service ports in front of it.
pub(in crate::translate) fn of_inbound<'a>(
    index: &'a Index,
    instance: &Instance,
    port: Option<u16>,
    fronts: impl Iterator<Item = (&'a ServiceView, &'a ServicePort)>,
) -> InboundTraits {
    if index.traffic.is_empty() && index.traffic_selectors.is_empty() {
        return InboundTraits::default();
    }
    let all = around(index, instance, fronts);
    let at = port.map_or_else(|| "*".to_owned(), |port| port.to_string());
    let named = |limit: &RateLimit| RateLimit { name: format!("{}:{at}", limit.name), ..limit.clone() };
    // Beyond what a proxy takes, the last Services' go uncounted: else all of the port's rules would be refused.
    let rate_limits = limits(index, instance, &all).into_iter().take(LIMITS_MAX).map(named).collect();
    InboundTraits { policy: RoutePolicy { rate_limits, ..RoutePolicy::default() }, idle: longest(all.iter().map(|said| said.idle)) }
}

/// The rate limits of a policy, `NAMESPACE/NAME`, that a port of an instance does not keep because it has too many.
pub(in crate::translate) fn uncounted<'a>(
    index: &'a Index,
    instance: &Instance,
    fronts: impl Iterator<Item = (&'a ServiceView, &'a ServicePort)>,
    policy: &str,
) -> usize {
    let all = around(index, instance, fronts);
    limits(index, instance, &all).iter().skip(LIMITS_MAX).filter(|limit| limit.policy == policy).count()
}

/// What holds for each Service port in front, else for the namespace.
fn around<'a>(
    index: &'a Index,
    instance: &Instance,
    fronts: impl Iterator<Item = (&'a ServiceView, &'a ServicePort)>,
) -> Vec<TrafficSettings> {
    let mut all: Vec<TrafficSettings> = fronts
        .map(|(view, port)| {
            let service = (view.name().0.to_owned(), view.name().1.to_owned());
            of_service(index, &Backend { service, port: port.port })
        })
        .collect();
    if all.is_empty() {
        all.push(settings(index, &wide(&instance.namespace), false));
    }
    all
}

/// Every limit once, in the order of Services; a selector's replace theirs.
fn limits<'a>(index: &'a Index, instance: &Instance, all: &'a [TrafficSettings]) -> Vec<&'a RateLimit> {
    let selected = index
        .traffic_selectors
        .iter()
        .filter(|object| content(object).is_some_and(|policy| applies(object, &policy.selector, &instance.namespace, instance.labels())));
    let own = selected.filter_map(|object| content(object)?.settings.rate_limits.as_ref()).next();
    let mut limits: Vec<&RateLimit> = Vec::new();
    let listed = match own {
        Some(own) => vec![own],
        None => all.iter().filter_map(|said| said.rate_limits.as_ref()).collect(),
    };
    for limit in listed.into_iter().flatten() {
        if limits.iter().all(|known| known.name != limit.name) {
            limits.push(limit);
        }
    }
    limits
}
