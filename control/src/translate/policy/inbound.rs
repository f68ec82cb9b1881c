//! What a policy makes of a server's inbound side: rate limits, and how long an opaque connection may be silent.
//!
//! Nobody knows by which Service a request came in. So a port that several lead to has the limits of all of them, and the longest of
//! their idle timeouts.

use std::time::Duration;

use proto::mesh::{RateLimit, RoutePolicy};

use super::{content, defaults, of_service, settings, wide};
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
    let mut all: Vec<TrafficSettings> = fronts
        .map(|(view, port)| {
            let service = (view.name().0.to_owned(), view.name().1.to_owned());
            of_service(index, &Backend { service, port: port.port })
        })
        .collect();
    if all.is_empty() {
        all.push(settings(index, &wide(&instance.namespace), false));
    }
    let selected = index
        .traffic_selectors
        .iter()
        .filter(|object| content(object).is_some_and(|policy| applies(object, &policy.selector, &instance.namespace, instance.labels())));
    let own = selected.filter_map(|object| content(object)?.settings.rate_limits.as_ref()).next();
    let limits: Vec<&RateLimit> = match own {
        Some(own) => own.iter().collect(),
        None => all.iter().filter_map(|said| said.rate_limits.as_ref()).flatten().collect(),
    };
    let at = port.map_or_else(|| "*".to_owned(), |port| port.to_string());
    let mut policy = RoutePolicy::default();
    for limit in limits {
        let named = RateLimit { name: format!("{}:{at}", limit.name), ..limit.clone() };
        if policy.rate_limits.iter().all(|known| known.name != named.name) {
            policy.rate_limits.push(named);
        }
    }
    InboundTraits { policy, idle: longest(&all) }
}

fn longest(all: &[TrafficSettings]) -> Option<Duration> {
    if all.iter().all(|said| said.idle.is_none()) {
        return None;
    }
    let each = all.iter().map(|said| said.idle.or(defaults().idle).unwrap_or_default());
    each.max_by_key(|idle| if idle.is_zero() { Duration::MAX } else { *idle })
}
