//! ExternalAuth: a service that says whether a request may go on (Envoy's `ext_authz`, or plain HTTP).

use std::time::Duration;

use engine::filter::guard::{BODY_BYTES_MAX, CALLOUT_TIMEOUT_MAX, CHECK_ENTRIES_MAX, HEADERS_MAX, external_header};
use proto::mesh::EdgeKey;

use super::rate_limit::{condition, key};
use super::{Cursor, EdgeAttachment};
use crate::world::door::Fields;
use crate::world::route::Reference;
use crate::world::traffic::header;

/// Longest that a verdict is remembered.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Longest path before the request's own.
const PATH_BYTES_MAX: usize = 1024;

/// What is asked of whom. Fields that are absent are said by the next wider object, else by the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExternalAuth {
    /// Where it holds.
    pub attachment: EdgeAttachment,
    /// The service.
    pub to: Option<Reference>,
    /// Whether it is asked by plain HTTP; else by gRPC.
    pub http: Option<bool>,
    /// What stands before the request's path there.
    pub path: Option<String>,
    /// Headers that it is shown.
    pub request_headers: Option<Vec<String>>,
    /// Headers of its answer that count.
    pub response_headers: Option<Vec<String>>,
    /// How much of a body it is shown.
    pub body: Option<BodyShown>,
    /// How long it is waited for.
    pub timeout: Option<Duration>,
    /// When it is asked (CEL).
    pub when: Option<String>,
    /// Its word counts for nothing.
    pub dry_run: Option<bool>,
    /// How long its word counts.
    pub cache: Option<VerdictsKept>,
    /// Whether requests go on where it does not answer.
    pub allow_without: Option<bool>,
}

/// How much of a body a service is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyShown {
    /// At most; 0: nothing.
    pub bytes_max: u32,
    /// Of a longer one the beginning will do.
    pub partial: bool,
}

/// How verdicts are remembered; a `ttl` of zero: not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct VerdictsKept {
    /// So long.
    pub ttl: Duration,
    /// By what.
    pub key: Vec<EdgeKey>,
    /// How many.
    pub entries: u32,
}

impl ExternalAuth {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { attachment: EdgeAttachment::read(&mut fields), ..Self::default() };
        read.to = fields.get("backendRef").and_then(|at| {
            let mut reference = at.fields();
            let to = Reference::read(&mut reference);
            reference.done();
            to
        });
        read.http = fields.get("protocol").and_then(|at| at.word(&[("Grpc", false), ("Http", true)]));
        if let Some(at) = fields.get("http") {
            let mut http = at.fields();
            read.path = http.get("path").and_then(|at| path(&at));
            read.request_headers = http.get("allowedRequestHeaders").map(|at| headers(&at, |_| true));
            read.response_headers = http.get("allowedResponseHeaders").map(|at| headers(&at, external_header));
            http.done();
            if read.http == Some(false) {
                at.error("they are for protocol Http, and this is Grpc", "remove them, or write `protocol: Http`");
            }
        }
        read.body = fields.get("forwardBody").and_then(|at| body(&at));
        read.timeout = fields.get("timeout").and_then(|at| timeout(&at));
        read.when = fields.get("when").and_then(|at| condition(&at, false));
        read.dry_run = fields.get("dryRun").and_then(|at| at.flag());
        read.cache = fields.get("cache").and_then(|at| cache(&at));
        read.allow_without = on_error(&mut fields);
        fields.done();
        Some(read)
    }
}

/// Reads `onError`: whether it is Allow.
pub(in crate::world) fn on_error(fields: &mut Fields<'_>) -> Option<bool> {
    fields.get("onError").and_then(|at| at.word(&[("Deny", false), ("Allow", true)]))
}

/// How long a service is waited for.
pub(in crate::world) fn timeout(at: &Cursor<'_>) -> Option<Duration> {
    let timeout = at.duration()?;
    if timeout.is_zero() || timeout > CALLOUT_TIMEOUT_MAX {
        at.error("no such time to wait", format!("use a time above 0s and up to {}s", CALLOUT_TIMEOUT_MAX.as_secs()));
        return None;
    }
    Some(timeout)
}

/// A path that stands before another.
pub(in crate::world) fn path(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains(['?', '#', '%']);
    if !plain || !text.starts_with('/') || text.len() > PATH_BYTES_MAX {
        at.error(
            format!("`{}` is no path", text.escape_debug()),
            format!("start with `/` and use up to {PATH_BYTES_MAX} letters of a path, without `?`, `#` and `%`"),
        );
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

/// Names of headers, each once.
pub(in crate::world) fn headers(at: &Cursor<'_>, may: fn(&str) -> bool) -> Vec<String> {
    let mut named: Vec<String> = Vec::new();
    for at in at.list(HEADERS_MAX) {
        let Some(name) = header(&at) else { continue };
        if !may(&name) {
            at.error(format!("`{name}` is not a service's to say"), "it belongs to the connection, or to the mesh; remove it");
        } else if !named.contains(&name) {
            named.push(name);
        }
    }
    named
}

fn body(at: &Cursor<'_>) -> Option<BodyShown> {
    let mut fields = at.fields();
    let most = i64::from(BODY_BYTES_MAX);
    let bytes_max = fields.get("maxBytes").map_or(Some(0), |at| at.int(0..=most).and_then(|bytes| u32::try_from(bytes).ok()));
    let partial = fields.get("partial").and_then(|at| at.flag()).unwrap_or_default();
    fields.done();
    Some(BodyShown { bytes_max: bytes_max?, partial })
}

fn cache(at: &Cursor<'_>) -> Option<VerdictsKept> {
    let mut fields = at.fields();
    let ttl = fields.get("ttl").map_or(Some(Duration::ZERO), |at| {
        let ttl = at.duration()?;
        if ttl > TTL_MAX {
            at.error("it is longer than an hour", "use at most 1h: what the service has changed since is believed so long");
            return None;
        }
        Some(ttl)
    });
    let parts = match fields.get("key") {
        None => Some(None),
        Some(at) => {
            if at.is_list() && at.list(usize::MAX).is_empty() {
                at.error(
                    "an empty key: one verdict would be everybody's",
                    "name what tells callers apart, such as `{header: authorization}`",
                );
            }
            key(&mut fields, false).map(Some)
        }
    };
    let most = i64::from(CHECK_ENTRIES_MAX);
    let entries = fields.get("entries").map_or(Some(10_000), |at| at.int(2..=most).and_then(|count| u32::try_from(count).ok()));
    fields.done();
    let usual = || vec![EdgeKey { kind: Some(proto::mesh::edge_key::Kind::Header("authorization".to_owned())) }];
    Some(VerdictsKept { ttl: ttl?, key: parts?.unwrap_or_else(usual), entries: entries? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::{Candidate, Spec};

    fn candidate(spec: &str) -> Candidate {
        let text =
            format!("apiVersion: meshwright.dev/v1alpha1\nkind: ExternalAuth\nmetadata: {{name: e, namespace: shop}}\nspec: {{{spec}}}\n");
        parse("f.yaml", &text).candidates.remove(0)
    }

    #[test]
    fn every_field_is_read() {
        // Aim: each word keeps its value, and what is not said stays open for wider objects.
        let good = |spec: &str| {
            let candidate = candidate(spec);
            assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
            let Some(Spec::ExternalAuth(read)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
            *read
        };
        let read = good(
            "backendRef: {name: authz, port: 9000}, protocol: Http, http: {path: /auth/, allowedRequestHeaders: [Cookie], \
             allowedResponseHeaders: [X-User, x-user]}, forwardBody: {maxBytes: 10, partial: true}, timeout: 1s, \
             when: 'request.method == \"POST\"', dryRun: true, cache: {ttl: 5s, key: [{path: {}}], entries: 10}, onError: Allow",
        );
        assert_eq!((read.to.unwrap().port, read.http, read.path.as_deref()), (Some(9000), Some(true), Some("/auth")));
        assert_eq!((read.request_headers.unwrap(), read.response_headers.unwrap()), (vec!["cookie".to_owned()], vec!["x-user".to_owned()]));
        assert_eq!(read.body, Some(BodyShown { bytes_max: 10, partial: true }));
        assert_eq!((read.timeout, read.dry_run, read.allow_without), (Some(Duration::from_secs(1)), Some(true), Some(true)));
        assert_eq!(read.cache.map(|cache| (cache.ttl.as_secs(), cache.key.len(), cache.entries)), Some((5, 1, 10)));
        let open = ExternalAuth { attachment: EdgeAttachment::default(), ..ExternalAuth::default() };
        assert_eq!(good("locked: false"), open);
        assert_eq!(good("cache: {ttl: 1s}").cache.map(|cache| (cache.key.len(), cache.entries)), Some((1, 10_000)));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        // Aim: every bound and every mistake is told by name.
        for (spec, told) in [
            ("backendRef: {name: a}", "needs a port"),
            ("protocol: Udp", "unknown value `Udp`"),
            ("protocol: Grpc, http: {path: /a}", "this is Grpc"),
            ("http: {path: auth}", "is no path"),
            ("http: {path: '/a?b'}", "is no path"),
            ("http: {allowedResponseHeaders: [x-meshwright-consumer]}", "is not a service's to say"),
            ("http: {allowedResponseHeaders: [host]}", "is not a service's to say"),
            ("forwardBody: {maxBytes: 1048577}", "out of range"),
            ("timeout: 0s", "no such time"),
            ("timeout: 61s", "no such time"),
            ("when: request.path", "the condition"),
            ("cache: {ttl: 2h}", "longer than an hour"),
            ("cache: {key: []}", "empty key"),
            ("cache: {entries: 1}", "out of range"),
            ("onError: Pass", "unknown value `Pass`"),
            ("locked: true, targetRefs: [{kind: HTTPRoute, name: r}]", "can be locked"),
            ("chain: []", "unknown field"),
        ] {
            let candidate = candidate(spec);
            assert!(candidate.object.is_none(), "{spec} is taken");
            let found: String = candidate.problems.iter().map(|problem| format!("{}: {}; ", problem.field, problem.message)).collect();
            assert!(found.contains(told), "{spec}: {found}");
        }
    }
}
