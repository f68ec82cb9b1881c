//! Services that say whether a request may go on, as proxies are told: an ExternalAuth object's, then the rule's own filter's. Both must allow.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::mesh::external_auth::Protocol;
use proto::mesh::{self, CheckCache, ExternalGrpc, ExternalHttp};
use proto::names::BAD_BACKEND;

use super::ladder::{Climb, Held, Rung};
use crate::translate::attach::{self, Backend, WhyNot};
use crate::translate::backend_tls;
use crate::world::edge::{BodyShown, ExternalAuth, VerdictsKept};
use crate::world::problem::Severity;
use crate::world::route::{Reference, RouteExternal};
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Object, ObjectKey, Spec};

/// How long a service is waited for where nothing else is said.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);

/// A rule's own filter.
#[derive(Clone, Copy)]
pub(in crate::translate) struct OwnCheck<'a> {
    /// The route.
    pub route: &'a Object,
    /// What proxies know its rule by.
    pub name: &'a str,
    /// What it says.
    pub says: &'a RouteExternal,
}

impl Rung for ExternalAuth {
    const KIND: Kind = Kind::ExternalAuth;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::ExternalAuth(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let Self { attachment: _, to, http, path, request_headers, response_headers, body, timeout, when, dry_run, cache, allow_without } =
            self;
        let set = [
            ("backendRef", to.is_some()),
            ("protocol", http.is_some()),
            ("http.path", path.is_some()),
            ("http.allowedRequestHeaders", request_headers.is_some()),
            ("http.allowedResponseHeaders", response_headers.is_some()),
            ("forwardBody", body.is_some()),
            ("timeout", timeout.is_some()),
            ("when", when.is_some()),
            ("dryRun", dry_run.is_some()),
            ("cache", cache.is_some()),
            ("onError", allow_without.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "backendRef" => self.to.clone_from(&other.to),
            "protocol" => self.http = other.http,
            "http.path" => self.path.clone_from(&other.path),
            "http.allowedRequestHeaders" => self.request_headers.clone_from(&other.request_headers),
            "http.allowedResponseHeaders" => self.response_headers.clone_from(&other.response_headers),
            "forwardBody" => self.body = other.body,
            "timeout" => self.timeout = other.timeout,
            "when" => self.when.clone_from(&other.when),
            "dryRun" => self.dry_run = other.dry_run,
            "cache" => self.cache.clone_from(&other.cache),
            _ => self.allow_without = other.allow_without,
        }
    }
}

/// Who is asked about the requests of one rule; adds where they are.
///
/// # Errors
/// An object holds there, and nobody says who is to be asked.
pub(super) fn sent<'a>(
    index: &'a Index,
    places: &[Place],
    own: Option<OwnCheck<'_>>,
    backends: &mut BTreeSet<Backend>,
) -> Result<Vec<mesh::ExternalAuth>, &'a ObjectKey> {
    let mut told = Vec::new();
    if let Some(held) = Climb::<ExternalAuth>::of(index, places).held()
        && let Some(narrowest) = held.by.first()
    {
        told.push(of_object(index, (narrowest, &held), backends).ok_or(&narrowest.key)?);
    }
    told.extend(own.map(|own| of_rule(index, own, backends)));
    Ok(told)
}

/// What holds, defaults filled in; `None`: nobody says who is asked.
fn of_object(
    index: &Index,
    (narrowest, held): (&Object, &Held<'_, ExternalAuth>),
    backends: &mut BTreeSet<Backend>,
) -> Option<mesh::ExternalAuth> {
    let ExternalAuth {
        attachment: _,
        to,
        http,
        path,
        request_headers,
        response_headers,
        body,
        timeout,
        when,
        dry_run,
        cache,
        allow_without,
    } = &held.says;
    let (_, owner) = held.fields.iter().find(|(field, _)| *field == "backendRef")?;
    let (cluster, authority) = service(index, owner, to.as_ref()?, backends);
    let protocol = if http.unwrap_or_default() {
        Protocol::Http(ExternalHttp {
            path: path.clone().unwrap_or_default(),
            request_headers: request_headers.clone().unwrap_or_default(),
            response_headers: response_headers.clone().unwrap_or_default(),
            all_response_headers: false,
        })
    } else {
        Protocol::Grpc(ExternalGrpc { authority, request_headers: Vec::new() })
    };
    let BodyShown { bytes_max, partial } = body.unwrap_or_default();
    Some(mesh::ExternalAuth {
        policy: narrowest.key.path(),
        cluster,
        protocol: Some(protocol),
        body_bytes_max: bytes_max,
        body_partial: partial,
        timeout: duration(timeout.unwrap_or(TIMEOUT)),
        when: when.clone().unwrap_or_default(),
        dry_run: dry_run.unwrap_or_default(),
        cache: cache.as_ref().and_then(kept),
        allow_without: allow_without.unwrap_or_default(),
    })
}

/// Always closed where its service does not answer.
fn of_rule(index: &Index, OwnCheck { route, name, says }: OwnCheck<'_>, backends: &mut BTreeSet<Backend>) -> mesh::ExternalAuth {
    let RouteExternal { to, http, path, request_headers, response_headers, body_bytes_max } = says;
    let (cluster, authority) = service(index, route, to, backends);
    let protocol = if *http {
        Protocol::Http(ExternalHttp {
            path: path.clone(),
            request_headers: request_headers.clone(),
            response_headers: response_headers.clone(),
            all_response_headers: response_headers.is_empty(),
        })
    } else {
        Protocol::Grpc(ExternalGrpc { authority, request_headers: request_headers.clone() })
    };
    mesh::ExternalAuth {
        policy: name.to_owned(),
        cluster,
        protocol: Some(protocol),
        body_bytes_max: *body_bytes_max,
        body_partial: true,
        timeout: duration(TIMEOUT),
        ..mesh::ExternalAuth::default()
    }
}

/// The cluster of a service, and what it is called by.
fn service(index: &Index, owner: &Object, to: &Reference, backends: &mut BTreeSet<Backend>) -> (String, String) {
    match resolve(index, owner, to) {
        Ok(backend) => {
            let told = (backend.cluster(), format!("{}.{}:{}", backend.service.1, backend.service.0, backend.port));
            backends.insert(backend);
            told
        }
        Err(_) => (BAD_BACKEND.to_owned(), "unknown".to_owned()),
    }
}

/// Where a service is.
///
/// # Errors
/// What it refers to is not there, or cannot be used.
pub(super) fn resolve(index: &Index, owner: &Object, to: &Reference) -> Result<Backend, WhyNot> {
    let backend = attach::backend(index, owner, to, false)?;
    if backend.outside(index).is_some() {
        return Err(WhyNot::new("InvalidKind", "a service that is asked is a Service, not an XBackend".to_owned()));
    }
    if backend_tls::broken(index, &backend) {
        let (namespace, name) = &backend.service;
        return Err(WhyNot::new("InvalidRef", format!("the BackendTLSPolicy of Service {namespace}/{name} cannot be carried out")));
    }
    Ok(backend)
}

/// Services that an object's own word leads to, whether or not they are there.
pub(in crate::translate) fn service_of(object: &Object) -> Option<(String, String)> {
    let to = ExternalAuth::of(object)?.to.as_ref()?;
    Some((to.namespace.clone().unwrap_or_else(|| object.key.namespace.clone()), to.name.clone()))
}

fn kept(VerdictsKept { ttl, key, entries }: &VerdictsKept) -> Option<CheckCache> {
    (!ttl.is_zero()).then(|| CheckCache { ttl: duration(*ttl), key: key.clone(), entries: *entries })
}

fn duration(told: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(told).ok()
}

/// What is worth to be told about one: severity, field, message, remedy.
pub(in crate::translate) fn findings(spec: &ExternalAuth) -> Vec<(Severity, String, String, String)> {
    let mut found = Vec::new();
    let mut say = |severity, field: &str, message: &str, remedy: &str| {
        found.push((severity, field.to_owned(), message.to_owned(), remedy.to_owned()));
    };
    if spec.allow_without == Some(true) {
        let message = "where the service is away, requests go on unchecked";
        say(Severity::Warning, "spec.onError", message, "write Deny, unless the backend itself heeds x-meshwright-unchecked");
    }
    let remembers = spec.cache.as_ref().is_some_and(|cache| !cache.ttl.is_zero());
    if remembers && spec.body.is_some_and(|body| body.bytes_max > 0) {
        let message = "what the service says of one body is remembered for others: no key holds the body";
        say(Severity::Warning, "spec.cache", message, "remove forwardBody, or the cache");
    }
    if spec.dry_run == Some(true) {
        say(
            Severity::Info,
            "spec.dryRun",
            "the service is asked and waited for, and what it says is only counted",
            "write false once it is right",
        );
    }
    found
}
