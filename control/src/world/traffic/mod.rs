//! TrafficPolicy: everything about how callers treat a destination (`kinds.md`). Every field is honoured or refused here; what its
//! reader yields cannot be wrong. Each block has a file of its own; [`TrafficSettings`] lists every field with its path.

mod balance;
mod fault;
mod health;
mod limit;
mod retry;
mod settings;
mod show;
mod timing;

pub use balance::{Algorithm, Prefer};
pub(super) use fault::header_matches;
pub use fault::{Caller, Injection};
pub use retry::{Hedging, RetryCause};
pub use settings::{Reach, SettingField, TrafficSettings};
pub use timing::UpstreamProtocol;

use super::door::{Cursor, Fields};
use super::key::{Kind, ObjectKey};
use super::own::{Selector, read_selector};

/// Most targets of a policy (Gateway API's bound for its own policies).
pub(super) const TARGETS_MAX: usize = 16;

/// How callers treat a destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// What it is about, by name.
    pub targets: Vec<PolicyTarget>,
    /// What it is about, by the labels of serving workloads; never together with targets.
    pub selector: Selector,
    /// What it says.
    pub settings: TrafficSettings,
}

/// One reference of `targetRefs`; the object's namespace is the policy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTarget {
    /// Service, HTTPRoute, GRPCRoute or Gateway.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// A Service's port, a route's rule or a Gateway's listener, by name.
    pub section: Option<String>,
    /// Line in the file.
    pub line: u32,
}

/// Where a policy applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A rule of a route, a port of a Service, a listener of a Gateway.
    Section(ObjectKey, String),
    /// A whole route, Service or Gateway.
    Object(ObjectKey),
    /// Every destination of a namespace.
    Namespace(String),
    /// Every destination.
    Mesh,
}

impl Place {
    /// Whether callers alone are meant: it is a route or a Gateway.
    pub fn of_callers(&self) -> bool {
        match self {
            Self::Section(key, _) | Self::Object(key) => key.kind != Kind::Service,
            Self::Namespace(_) | Self::Mesh => false,
        }
    }
}

impl TrafficPolicy {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let targets = fields.get("targetRefs").map(|at| at.list(TARGETS_MAX)).unwrap_or_default();
        let targets: Vec<PolicyTarget> = targets.iter().filter_map(PolicyTarget::read).collect();
        let selector = read_selector(&mut fields);
        let settings = TrafficSettings::read(&mut fields);
        let at = fields.at().clone();
        if selector.is_some() && !targets.is_empty() {
            at.error("it has both targetRefs and a selector", "keep one of them");
        }
        if settings.fields().is_empty() {
            at.warn("it says nothing", "add a block, such as `timeouts`, or remove it");
        }
        let callers = targets.iter().find(|target| target.kind != Kind::Service);
        for field in settings.fields() {
            if selector.is_some() && field.path != "rateLimits" {
                let message = format!("`{}` is about callers, and a selector chooses servers", field.path);
                at.below(field.path).error(message, "name the Service in targetRefs; a selector carries rateLimits only");
            } else if let Some(target) = callers
                && field.reach == Reach::Destination
            {
                let message = format!(
                    "`{}` belongs to a destination, which every rule shares, and not to {} {}",
                    field.path, target.kind, target.name
                );
                at.below(field.path).error(message, "say it of the Service, in a policy of its own");
            }
        }
        fields.done();
        Some(Self { targets, selector, settings })
    }

    /// Where it applies; nowhere by name with a selector.
    pub fn places(&self, key: &ObjectKey) -> Vec<Place> {
        if self.selector.is_some() {
            return Vec::new();
        }
        if !self.targets.is_empty() {
            return self.targets.iter().map(|target| target.place(&key.namespace)).collect();
        }
        let root = key.namespace == proto::annotations::ROOT_NAMESPACE;
        vec![if root { Place::Mesh } else { Place::Namespace(key.namespace.clone()) }]
    }
}

impl PolicyTarget {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        const KINDS: [(&str, Kind); 4] =
            [("Service", Kind::Service), ("HTTPRoute", Kind::HTTPRoute), ("GRPCRoute", Kind::GRPCRoute), ("Gateway", Kind::Gateway)];
        Self::read_of(at, &KINDS)
    }

    /// The same, of these kinds.
    pub(super) fn read_of(at: &Cursor<'_>, kinds: &[(&str, Kind)]) -> Option<Self> {
        let mut fields = at.fields();
        let group = fields.get("group");
        let kind = fields.need("kind").and_then(|at| at.word(kinds));
        let name = fields.need("name").and_then(|at| at.text());
        let section = fields.get("sectionName").and_then(|at| at.text()).filter(|name| !name.is_empty());
        if let Some(namespace) = fields.get("namespace") {
            namespace.error("a policy is about objects of its own namespace", "remove it, or put the policy into that namespace");
        }
        fields.done();
        let kind = kind?;
        if let Some(at) = group
            && let Some(text) = at.text()
            && text != kind.group()
        {
            at.error(format!("`{text}` has no kind {kind}"), format!("write `{}`", kind.group()));
        }
        Some(Self { kind, name: name?, section, line: at.line() })
    }

    /// The object it names, seen from the policy's namespace.
    pub fn key(&self, namespace: &str) -> ObjectKey {
        ObjectKey::new(self.kind, namespace, &self.name)
    }

    /// Where it applies, seen from the policy's namespace.
    pub fn place(&self, namespace: &str) -> Place {
        let key = self.key(namespace);
        match &self.section {
            Some(section) => Place::Section(key, section.clone()),
            None => Place::Object(key),
        }
    }
}

/// A whole number within a range.
fn whole(at: &Cursor<'_>, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    at.int(i64::from(*range.start())..=i64::from(*range.end())).and_then(|number| u32::try_from(number).ok())
}

/// A duration that is some time.
fn positive(at: &Cursor<'_>) -> Option<std::time::Duration> {
    let read = at.duration()?;
    if read.is_zero() {
        at.error("it is no time at all", "write for example 1s or 150ms");
        return None;
    }
    Some(read)
}

/// A message's duration; what the grammar can write fits.
fn wire(duration: std::time::Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// A header's name, in lower case.
pub(super) fn header(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?.to_lowercase();
    if http::HeaderName::try_from(text.as_str()).is_err() {
        at.error(format!("`{text}` is no header name"), "use letters, digits and `-`");
        return None;
    }
    Some(text)
}

/// A method of those that Gateway API knows.
fn method(at: &Cursor<'_>) -> Option<String> {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    at.word(&METHODS.map(|method| (method, method))).map(str::to_owned)
}

/// The number of a gRPC code by its name.
fn grpc_code(at: &Cursor<'_>) -> Option<u32> {
    const CODES: [(&str, u32); 16] = [
        ("CANCELLED", 1),
        ("UNKNOWN", 2),
        ("INVALID_ARGUMENT", 3),
        ("DEADLINE_EXCEEDED", 4),
        ("NOT_FOUND", 5),
        ("ALREADY_EXISTS", 6),
        ("PERMISSION_DENIED", 7),
        ("RESOURCE_EXHAUSTED", 8),
        ("FAILED_PRECONDITION", 9),
        ("ABORTED", 10),
        ("OUT_OF_RANGE", 11),
        ("UNIMPLEMENTED", 12),
        ("INTERNAL", 13),
        ("UNAVAILABLE", 14),
        ("DATA_LOSS", 15),
        ("UNAUTHENTICATED", 16),
    ];
    at.word(&CODES)
}

/// Each item once; the second is an error at its place.
fn each_once<T: PartialEq + std::fmt::Display>(items: Vec<(Cursor<'_>, T)>) -> Vec<T> {
    let mut once: Vec<T> = Vec::new();
    for (at, item) in items {
        if once.contains(&item) {
            at.error(format!("{item} stands twice"), "remove one of them");
        } else {
            once.push(item);
        }
    }
    once
}

#[cfg(test)]
mod tests;
