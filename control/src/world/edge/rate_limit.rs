//! RateLimit: how much may come at an edge.

use engine::filter::guard::{CONCURRENCY_MAX, KEY_PARTS_MAX, QUEUE_MAX};
use engine::limit::{AMOUNT_MAX, OBJECT_LIMITS_MAX, PERIOD_MAX, check_zone};
use proto::mesh::edge_key::Kind as Part;
use proto::mesh::edge_limit::Numbers;
use proto::mesh::{
    BandwidthLimit, CalendarPeriod, ClientAddressKey, ConcurrencyLimit, EdgeKey, EdgeLimit, KeyMissing, LimitQuota, LimitRate, WithoutStore,
};

use super::counted_at::CountedAt;
use super::value::{cel_value, name};
use super::{Cursor, EdgeAttachment};
use crate::world::door::{Fields, is_label};
use crate::world::traffic::header;

/// Bytes of a header's name in a key.
const HEADER_BYTES_MAX: usize = 2048;
/// What a request that comes over IPv6 is counted by, where nothing is said: a household, or a machine with many addresses.
const IPV6_PREFIX: u32 = 64;
/// Parts of a key that need to know who calls.
const BY_IDENTITY: [&str; 3] = ["auth.", "consumer.", "token."];

/// How much may come. Objects of all places apply together, so nothing here is said by another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeRateLimit {
    /// Where it holds.
    pub attachment: EdgeAttachment,
    /// Before it is known who calls.
    pub before_auth: bool,
    /// In their order.
    pub limits: Vec<EdgeLimit>,
    /// Each route counts for itself.
    pub per_target: bool,
    /// Requests under way.
    pub concurrency: Vec<ConcurrencyLimit>,
    /// Bytes of answers.
    pub bandwidth: Vec<BandwidthLimit>,
    /// Who counts.
    pub store: CountedAt,
    /// What holds while nobody counts for all.
    pub without_store: WithoutStore,
    /// The draft's headers.
    pub draft: bool,
    /// The older ones.
    pub legacy: bool,
}

impl EdgeRateLimit {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let attachment = EdgeAttachment::read(&mut fields);
        let before_auth = fields.get("stage").and_then(|at| at.word(&[("AfterAuth", false), ("BeforeAuth", true)])).unwrap_or_default();
        let listed = fields.get("limits").map(|at| at.list(OBJECT_LIMITS_MAX)).unwrap_or_default();
        let mut limits: Vec<EdgeLimit> = Vec::with_capacity(listed.len());
        for at in &listed {
            let Some(limit) = limit(at, before_auth) else { continue };
            if limits.iter().any(|other| other.name == limit.name) {
                at.error(
                    format!("there is a limit `{}` already", limit.name),
                    "give each a name of its own: what it has counted is kept by it",
                );
            }
            limits.push(limit);
        }
        let per_target = fields.get("perTarget").and_then(|at| at.flag()).unwrap_or_default();
        let busy = fields.get("concurrency").map(|at| at.list(CONCURRENCY_MAX)).unwrap_or_default();
        let concurrency: Vec<ConcurrencyLimit> = busy.iter().filter_map(|at| concurrency(at, before_auth)).collect();
        let wide = fields.get("bandwidth").map(|at| at.list(CONCURRENCY_MAX)).unwrap_or_default();
        let bandwidth: Vec<BandwidthLimit> = wide.iter().filter_map(|at| bandwidth(at, before_auth)).collect();
        let asked = fields.get("store").filter(|at| at.has("rls")).is_some();
        if limits.is_empty() && !asked && [&listed, &busy, &wide].into_iter().all(Vec::is_empty) {
            fields.at().error("it limits nothing", "write `limits`, `concurrency` or `bandwidth`");
        }
        let store = fields.get("store").map(|at| CountedAt::read(&at, &|at| part(at, before_auth))).unwrap_or_default();
        if let Some(number) = limits.iter().position(|limit| limit.shared).filter(|_| asked) {
            let at = fields.at().below(&format!("limits[{number}]"));
            at.error("a rate-limit service has the numbers of what proxies share", "write replicas: PerProxy, or a descriptor instead");
        }
        let on_error = [("Local", WithoutStore::Share), ("Allow", WithoutStore::Allow), ("Deny", WithoutStore::Deny)];
        let without_store = fields.get("onError").and_then(|at| at.word(&on_error)).unwrap_or(WithoutStore::Share);
        if asked && without_store == WithoutStore::Share {
            fields.at().error("Local is a share of numbers, which a rate-limit service has", "write onError: Deny, or Allow");
        }
        let told = [("Draft", (true, false)), ("Legacy", (false, true)), ("Both", (true, true)), ("None", (false, false))];
        let (draft, legacy) = fields.get("headers").and_then(|at| at.word(&told)).unwrap_or((true, false));
        fields.done();
        Some(Self { attachment, before_auth, limits, per_target, concurrency, bandwidth, store, without_store, draft, legacy })
    }
}

fn limit(at: &Cursor<'_>, before_auth: bool) -> Option<EdgeLimit> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| {
        let text = at.text()?;
        if !is_label(&text) {
            at.error(format!("`{text}` is no name of a limit"), "use up to 63 lower-case letters, digits and `-`");
            return None;
        }
        Some(text)
    });
    let numbers = numbers(&mut fields, at);
    let key = key(&mut fields, before_auth);
    let words = [("Shared", KeyMissing::Together), ("Skip", KeyMissing::Skipped), ("Deny", KeyMissing::Refused)];
    let missing = fields.get("missing").and_then(|at| at.word(&words)).unwrap_or_default();
    let when = fields.get("when").and_then(|at| condition(&at, before_auth));
    let (cost, cost_cel) = fields.get("cost").map_or(Some((1, String::new())), |at| cost(&at, before_auth))?;
    let cost_header = fields.get("costFromResponse").and_then(|at| {
        let mut from = at.fields();
        let name = from.need("header").and_then(|at| header(&at));
        from.done();
        name
    });
    let shared = fields.get("replicas").and_then(|at| at.word(&[("Shared", true), ("PerProxy", false)])).unwrap_or(true);
    if let Some(at) = fields.get("count")
        && at.word(&[("All", false), ("Misses", true)]) == Some(true)
    {
        at.error("answers out of a cache are not served by this version", "count All, which is the same without a cache");
    }
    let dry_run = fields.get("dryRun").and_then(|at| at.flag()).unwrap_or_default();
    fields.done();
    Some(EdgeLimit {
        name: name?,
        numbers: Some(numbers?),
        key: key?,
        missing: missing.into(),
        when: when.unwrap_or_default(),
        cost,
        cost_cel,
        shared,
        dry_run,
        cost_header: cost_header.unwrap_or_default(),
    })
}

/// `requests`, `per` and `burst`, or `quota`.
fn numbers(fields: &mut Fields<'_>, at: &Cursor<'_>) -> Option<Numbers> {
    if let Some(quota) = fields.get("quota") {
        for field in ["requests", "per", "burst"] {
            if fields.has(field) {
                at.below(field).error("a quota has numbers of its own", "write either `quota`, or `requests` and `per`");
            }
        }
        fields.ignore(&["requests", "per", "burst"]);
        return calendar(&quota).map(Numbers::Quota);
    }
    let requests = fields.need("requests").and_then(|at| amount(&at));
    let per = fields.need("per").and_then(|at| {
        let read = at.duration()?;
        if read.is_zero() || read > PERIOD_MAX {
            at.error("no such period", "use a time above zero and up to a year, such as 1m; for calendar months write `quota`");
            return None;
        }
        Some(read)
    });
    let burst = fields.get("burst").map(|at| amount(&at));
    let (requests, per) = (requests?, per?);
    let burst = burst.unwrap_or(Some(requests))?;
    Some(Numbers::Rate(LimitRate { requests, per: prost_types::Duration::try_from(per).ok(), burst }))
}

fn calendar(at: &Cursor<'_>) -> Option<LimitQuota> {
    let mut fields = at.fields();
    let requests = fields.need("requests").and_then(|at| amount(&at));
    let periods = [
        ("Hour", CalendarPeriod::Hour),
        ("Day", CalendarPeriod::Day),
        ("Week", CalendarPeriod::Week),
        ("Month", CalendarPeriod::Month),
        ("Year", CalendarPeriod::Year),
    ];
    let per = fields.need("per").and_then(|at| at.word(&periods));
    let time_zone = fields.get("timeZone").map_or(Some("UTC".to_owned()), |at| {
        let zone = at.text()?;
        if !check_zone(&zone) {
            at.error(format!("`{}` is no time zone", zone.escape_debug()), "use a name of the IANA database, such as Europe/Berlin");
            return None;
        }
        Some(zone)
    });
    let days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let days: Vec<(&str, u32)> = days.into_iter().zip(1..).collect();
    let week_start = fields.get("weekStart").and_then(|at| at.word(&days)).unwrap_or(1);
    fields.done();
    Some(LimitQuota { requests: requests?, per: per?.into(), time_zone: time_zone?, week_start })
}

fn amount(at: &Cursor<'_>) -> Option<u32> {
    at.int(1..=i64::try_from(AMOUNT_MAX).unwrap_or(i64::MAX)).and_then(|number| u32::try_from(number).ok())
}

/// A part that does not read never makes one of many.
pub(super) fn key(fields: &mut Fields<'_>, before_auth: bool) -> Option<Vec<EdgeKey>> {
    let parts = fields.get("key").map(|at| at.list(KEY_PARTS_MAX)).unwrap_or_default();
    parts.iter().map(|at| part(at, before_auth)).collect::<Vec<_>>().into_iter().collect()
}

fn part(at: &Cursor<'_>, before_auth: bool) -> Option<EdgeKey> {
    let mut fields = at.fields();
    let mut kinds: Vec<Option<Part>> = Vec::new();
    let unknown_yet = |at: &Cursor<'_>| {
        if before_auth {
            at.error("before authentication nobody knows who calls", "use stage AfterAuth, or a key such as clientAddress");
        }
    };
    let mut plain = |fields: &mut Fields<'_>, name: &'static str, part: Part| {
        if let Some(at) = fields.get(name) {
            at.fields().done();
            kinds.push(Some(part));
        }
    };
    plain(&mut fields, "path", Part::Path(true));
    plain(&mut fields, "method", Part::Method(true));
    if let Some(at) = fields.get("consumer") {
        unknown_yet(&at);
        at.fields().done();
        kinds.push(Some(Part::Consumer(true)));
    }
    if let Some(at) = fields.get("claim") {
        unknown_yet(&at);
        kinds.push(name(&at).map(Part::Claim));
    }
    if let Some(at) = fields.get("clientAddress") {
        let mut address = at.fields();
        let bits = address.get("ipv6Prefix").map_or(Some(IPV6_PREFIX), |at| at.int(1..=128).and_then(|bits| u32::try_from(bits).ok()));
        address.done();
        kinds.push(bits.map(|ipv6_prefix| Part::ClientAddress(ClientAddressKey { ipv6_prefix })));
    }
    if let Some(at) = fields.get("header") {
        let fits = |name: &String| {
            if name.len() > HEADER_BYTES_MAX {
                at.error(format!("{} bytes", name.len()), format!("use at most {HEADER_BYTES_MAX}"));
            }
            name.len() <= HEADER_BYTES_MAX
        };
        kinds.push(header(&at).filter(fits).map(Part::Header));
    }
    if let Some(at) = fields.get("cel") {
        kinds.push(cel_value(&at).filter(|text| early(&at, text, before_auth)).map(Part::Cel));
    }
    fields.done();
    if kinds.len() != 1 {
        at.error(
            "a part of a key is exactly one of consumer, clientAddress, header, claim, path, method and cel",
            "write for example `consumer: {}`",
        );
        return None;
    }
    Some(EdgeKey { kind: Some(kinds.pop()??) })
}

/// A condition in CEL, as the proxy's own engine takes it.
pub(super) fn condition(at: &Cursor<'_>, before_auth: bool) -> Option<String> {
    let text = at.text()?;
    if let Err(wrong) = engine::authorize::check(&text) {
        at.error(format!("the condition {wrong}"), "see docs/edge-limits.md for what it may say");
        return None;
    }
    early(at, &text, before_auth).then_some(text)
}

/// A number, or CEL that comes to one.
fn cost(at: &Cursor<'_>, before_auth: bool) -> Option<(u32, String)> {
    if at.is_mapping() {
        at.error("a cost is a number, or an expression as text", "write it as `cost: 3` or `cost: 'size(request.path)'`");
        return None;
    }
    if !at.is_text() {
        return amount(at).map(|cost| (cost, String::new()));
    }
    cel_value(at).filter(|text| early(at, text, before_auth)).map(|text| (0, text))
}

/// Whether an expression may be asked at that stage.
fn early(at: &Cursor<'_>, text: &str, before_auth: bool) -> bool {
    let named = BY_IDENTITY.iter().find(|root| text.contains(**root));
    match named.filter(|_| before_auth) {
        Some(root) => {
            at.error(format!("before authentication nobody knows `{root}…`"), "use stage AfterAuth, or what the request says by itself");
            false
        }
        None => true,
    }
}

fn concurrency(at: &Cursor<'_>, before_auth: bool) -> Option<ConcurrencyLimit> {
    let mut fields = at.fields();
    let requests = fields.need("requests").and_then(|at| amount(&at));
    let key = key(&mut fields, before_auth);
    let queue = fields.get("queue").and_then(|at| at.int(0..=i64::from(QUEUE_MAX))).and_then(|queue| u32::try_from(queue).ok());
    fields.done();
    Some(ConcurrencyLimit { requests: requests?, key: key?, queue: queue.unwrap_or_default() })
}

fn bandwidth(at: &Cursor<'_>, before_auth: bool) -> Option<BandwidthLimit> {
    let mut fields = at.fields();
    let bytes = fields.need("responseBytesPerSecond").and_then(|at| amount(&at));
    let key = key(&mut fields, before_auth);
    fields.done();
    Some(BandwidthLimit { response_bytes_per_second: bytes?, key: key? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::{Candidate, Spec};

    fn candidate(spec: &str) -> Candidate {
        let text =
            format!("apiVersion: meshwright.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: l, namespace: shop}}\nspec: {{{spec}}}\n");
        parse("f.yaml", &text).candidates.remove(0)
    }

    fn good(spec: &str) -> EdgeRateLimit {
        let candidate = candidate(spec);
        assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
        let Some(Spec::RateLimit(read)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
        *read
    }

    /// What is wrong with a spec.
    fn wrong(spec: &str) -> String {
        let candidate = candidate(spec);
        assert!(candidate.object.is_none(), "{spec} is taken");
        candidate.problems.iter().map(|problem| format!("{}: {}; ", problem.field, problem.message)).collect()
    }

    #[test]
    fn every_field_of_a_limit_is_read() {
        // Aim: each word of the kind keeps its value, and what is not said has its default.
        let read = good(
            "stage: BeforeAuth, perTarget: true, onError: Deny, headers: Both, store: {leases: {aheadPercent: 5}}, \
             limits: [{name: a, requests: 600, per: 1m, burst: 7, key: [{clientAddress: {ipv6Prefix: 56}}, {header: X-Tenant}, {path: {}}, \
             {method: {}}, {cel: request.host}], missing: Skip, when: 'request.method == \"POST\"', cost: 3, replicas: PerProxy, dryRun: true}], \
             concurrency: [{requests: 5, key: [{path: {}}]}]",
        );
        let [limit] = read.limits.as_slice() else { panic!("{read:?}") };
        assert_eq!((read.before_auth, read.per_target, read.draft, read.legacy, read.store.ahead_percent), (true, true, true, true, 5));
        assert_eq!((read.without_store, read.concurrency.len(), limit.key.len()), (WithoutStore::Deny, 1, 5));
        assert_eq!((limit.cost, limit.shared, limit.dry_run, limit.missing), (3, false, true, KeyMissing::Skipped.into()));
        assert!(matches!(limit.numbers, Some(Numbers::Rate(LimitRate { requests: 600, burst: 7, .. }))), "{limit:?}");
        let plain =
            good("limits: [{name: a, requests: 10, per: 1s}, {name: b, quota: {requests: 5, per: Week}, cost: 'size(request.path)'}]");
        let [rate, quota] = plain.limits.as_slice() else { panic!("{plain:?}") };
        assert!(matches!(rate.numbers, Some(Numbers::Rate(LimitRate { burst: 10, .. }))), "the burst is the rate's");
        let Some(Numbers::Quota(numbers)) = &quota.numbers else { panic!("{quota:?}") };
        assert_eq!((numbers.time_zone.as_str(), numbers.week_start, quota.cost_cel.as_str()), ("UTC", 1, "size(request.path)"));
        assert_eq!((plain.store.ahead_percent, plain.draft, plain.legacy, rate.shared, rate.cost), (1, true, false, true, 1));
    }

    #[test]
    fn a_server_that_counts_is_read() {
        // Aim: every word of `store.redis`, and its defaults.
        let limits = "limits: [{name: a, requests: 1, per: 1s}]";
        let plain = good(&format!("store: {{redis: {{addresses: [\"Redis.shop:6379\"]}}}}, {limits}"));
        let server = plain.store.redis.clone().unwrap();
        assert_eq!((plain.store.ahead_percent, server.tls, server.username.as_str(), server.password.is_none()), (1, false, "", true));
        assert_eq!((server.key_prefix.as_str(), server.timeout.as_millis()), ("meshwright:", 50));
        let all = good(&format!(
            "store: {{redis: {{addresses: [\"[2001:db8::1]:6379\"], mode: Single, tls: true, username: edge, authRef: {{name: redis, key: pw}}, \
             keyPrefix: \"edge:\", timeout: 20ms, aheadPercent: 0}}}}, {limits}"
        ));
        let server = all.store.redis.clone().unwrap();
        assert_eq!((all.store.ahead_percent, server.tls, server.username.as_str(), server.key_prefix.as_str()), (0, true, "edge", "edge:"));
        assert_eq!(all.store.password().unwrap().to_string(), "entry `pw` of Secret shop/redis");
        assert_eq!(server.timeout.as_millis(), 20);
    }

    const GOOD_RLS: &str = "backendRef: {name: limits, namespace: data, port: 8081}, domain: edge, \
                            descriptors: [{entries: [{key: plan, value: gold}, {key: user, from: {consumer: {}}}]}]";

    #[test]
    fn a_service_that_decides_is_read() {
        // Aim: every word of `store.rls`; it limits something by itself, beside limits of each proxy's own.
        let read = good(&format!(
            "store: {{rls: {{{GOOD_RLS}}}}}, onError: Allow, limits: [{{name: a, requests: 1, per: 1s, replicas: PerProxy}}]"
        ));
        let service = read.store.rls.clone().unwrap();
        assert_eq!((service.address().as_str(), service.domain.as_str(), service.timeout.as_millis()), ("limits.data:8081", "edge", 50));
        assert_eq!((service.descriptors.len(), service.descriptors[0].entries.len()), (1, 2));
        good(&format!("store: {{rls: {{{GOOD_RLS}, timeout: 1s}}}}, onError: Deny"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        // Aim: each mistake, each field without effect and each early look at who calls is told by name.
        let limit = |rest: &str| format!("limits: [{{name: a, requests: 1, per: 1s, {rest}}}]");
        let rls = |rest: &str| format!("store: {{rls: {{{rest}}}}}, onError: Deny");
        let cases = [
            ("headers: Draft".to_owned(), "it limits nothing"),
            ("limits: [{name: a}]".to_owned(), "requests"),
            ("limits: [{name: A, requests: 1, per: 1s}]".to_owned(), "is no name of a limit"),
            ("limits: [{name: a, requests: 1, per: 1s}, {name: a, requests: 1, per: 1s}]".to_owned(), "already"),
            ("limits: [{name: a, requests: 0, per: 1s}]".to_owned(), "out of range"),
            ("limits: [{name: a, requests: 1, per: 0s}]".to_owned(), "no such period"),
            ("limits: [{name: a, requests: 1, per: 9000h}]".to_owned(), "no such period"),
            ("limits: [{name: a, per: 1s, quota: {requests: 1, per: Day}}]".to_owned(), "a quota has numbers of its own"),
            ("limits: [{name: a, quota: {requests: 1, per: Fortnight}}]".to_owned(), "unknown value `Fortnight`"),
            ("limits: [{name: a, quota: {requests: 1, per: Day, timeZone: Mars/Olympus}}]".to_owned(), "is no time zone"),
            (limit("key: [{}]"), "exactly one"),
            (limit("key: [{path: {}, method: {}}]"), "exactly one"),
            (limit("key: [{clientAddress: {ipv6Prefix: 129}}]"), "out of range"),
            (limit("when: request.path"), "the condition"),
            (limit("cost: 0"), "out of range"),
            (limit("cost: {cel: size(request.path)}"), "a cost is a number, or an expression as text"),
            (limit("count: Misses"), "not served"),
            (limit("costFromResponse: {}"), "header"),
            (format!("stage: BeforeAuth, {}", limit("key: [{consumer: {}}]")), "nobody knows who calls"),
            (format!("stage: BeforeAuth, {}", limit("when: 'consumer.team == \"a\"'")), "nobody knows"),
            (format!("store: {{redis: {{}}}}, {}", limit("burst: 1")), "`addresses` is missing"),
            (rls("backendRef: {name: r, port: 1}, domain: d"), "`descriptors` is missing"),
            (rls("backendRef: {name: r, port: 1}, domain: d, descriptors: []"), "limits nothing"),
            (rls("backendRef: {name: r}, domain: d, descriptors: [{entries: [{key: a, value: b}]}]"), "`port` is missing"),
            (rls("backendRef: {name: r, port: 1, kind: Pod}, domain: d, descriptors: [{entries: [{key: a, value: b}]}]"), "is a Service"),
            (rls("backendRef: {name: r, port: 1}, domain: d, descriptors: [{entries: []}]"), "an entry at least"),
            (rls("backendRef: {name: r, port: 1}, domain: d, descriptors: [{entries: [{key: a}]}]"), "either `value` or `from`"),
            (
                rls("backendRef: {name: r, port: 1}, domain: d, descriptors: [{entries: [{key: a, from: {header: Authorization}}]}]"),
                "credentials",
            ),
            (rls("backendRef: {name: r, port: 1}, domain: d, timeout: 2s, descriptors: [{entries: [{key: a, value: b}]}]"), "no such wait"),
            (format!("{}, onError: Local", rls(GOOD_RLS).replace(", onError: Deny", "")), "Local is a share"),
            (format!("{}, {}", rls(GOOD_RLS), limit("burst: 1")), "has the numbers"),
            (format!("store: {{leases: {{}}, redis: {{addresses: [\"a:1\"]}}}}, {}", limit("burst: 1")), "not two"),
            (format!("store: {{redis: {{addresses: [\"a:1\", \"b:1\"]}}}}, {}", limit("burst: 1")), "one address, not 2"),
            (format!("store: {{redis: {{addresses: [a]}}}}, {}", limit("burst: 1")), "names no port"),
            (format!("store: {{redis: {{addresses: [\"a b:1\"]}}}}, {}", limit("burst: 1")), "names no host"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], mode: Sentinel}}}}, {}", limit("burst: 1")), "Sentinel is not supported"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], mode: Cluster}}}}, {}", limit("burst: 1")), "Cluster is not supported"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], timeout: 2s}}}}, {}", limit("burst: 1")), "up to 1s"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], username: edge}}}}, {}", limit("burst: 1")), "without a password"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], keyPrefix: \"a b\"}}}}, {}", limit("burst: 1")), "visible ASCII"),
            (format!("store: {{redis: {{addresses: [\"a:1\"], aheadPercent: 101}}}}, {}", limit("burst: 1")), "out of range"),
            ("bandwidth: [{responseBytesPerSecond: 0}]".to_owned(), "out of range"),
            (format!("store: {{leases: {{aheadPercent: 101}}}}, {}", limit("burst: 1")), "out of range"),
            ("concurrency: [{requests: 1, queue: 1001}]".to_owned(), "1001 is out of range"),
            (format!("locked: true, targetRefs: [{{kind: HTTPRoute, name: r}}], {}", limit("burst: 1")), "can be locked"),
        ];
        for (spec, told) in cases {
            let found = wrong(&spec);
            assert!(found.contains(told), "{spec}: {found}");
        }
    }

    #[test]
    fn bounds_are_kept_at_the_door() {
        // Aim: one limit, one part of a key and one concurrency limit more than there may be.
        let limits =
            |count: usize| (0..count).map(|number| format!("{{name: l{number}, requests: 1, per: 1s}}")).collect::<Vec<_>>().join(", ");
        let parts = |count: usize| vec!["{path: {}}"; count].join(", ");
        let busy = |count: usize| vec!["{requests: 1}"; count].join(", ");
        assert_eq!(good(&format!("limits: [{}]", limits(32))).limits.len(), 32);
        assert!(wrong(&format!("limits: [{}]", limits(33))).contains("33 items"));
        good(&format!("limits: [{{name: a, requests: 1, per: 1s, key: [{}]}}]", parts(8)));
        assert!(wrong(&format!("limits: [{{name: a, requests: 1, per: 1s, key: [{}]}}]", parts(9))).contains("9 items"));
        assert!(wrong(&format!("concurrency: [{}]", busy(9))).contains("9 items"));
    }
}
