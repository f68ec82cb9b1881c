//! What holds for clients of an edge's port, from a listener filter of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use proto::mesh;

use super::duration;
use crate::client::{Admission, AdmissionBounds, ClientAddress, ForwardedHeader, HOPS_MAX};
use crate::consumers::AddressList;
use crate::model::{
    AltSvc, CLIENT_FIELDS_MAX, CLIENT_HEAD_BYTES_MAX, ClientLimits, ClientLives, ClientPolicy, ClientRules, ClientTimeouts, EarlyHeaders,
    Ending, EscapedSlashes, Http1Rules, Http2Rules, PathRules, ProxyRule, Underscores,
};
use crate::rejected::Wrong;

/// Most ranges of trusted proxies in one place.
const RANGES_MAX: usize = 256;
/// Most chains of which something is said: as many as a listener has.
const CHAINS_MAX: usize = super::chains::SERVER_NAMES_MAX;
/// Most headers that are set, or taken off, before anything is asked.
const EARLY_MAX: usize = 16;
/// How long the PROXY protocol's header may take where nothing is said.
const PROXY_WAIT: Duration = Duration::from_secs(3);
/// Longest part of a proxy's end.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Shortest time between two questions whether a client lives.
const PING_EVERY_MIN: Duration = Duration::from_secs(1);
/// How long clients may remember HTTP/3 where nothing is said.
const ALT_SVC_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Windows of HTTP/2 (RFC 9113, section 6.9.1).
const WINDOW_BYTES_MAX: u32 = i32::MAX as u32;
/// A connection's window begins as large as this, and cannot be made smaller.
const WINDOW_BYTES_MIN: u32 = 65_535;

/// `names` are those of the chains of the listener at `port`; `before` held for the clients of the same port.
pub(super) fn compile(
    raw: &mesh::ClientPolicy,
    (port, names): (u16, &HashSet<&str>),
    before: Option<&ClientPolicy>,
) -> Result<ClientPolicy, Wrong> {
    let mesh::ClientPolicy { proxy_protocol, connections, chains, http3 } = raw;
    let door = || before.and_then(|before| before.http3.clone()).unwrap_or_default();
    let alternative = |raw| alternative(port, raw).map(|value| AltSvc { value, door: door() });
    let alt_svc = http3.as_ref().map(alternative).transpose().map_err(|wrong| wrong.within("http3"))?;
    let proxy = proxy_protocol.as_ref().map(proxy).transpose().map_err(|wrong| wrong.within("proxy_protocol"))?;
    if alt_svc.is_some() && proxy.as_ref().is_some_and(|proxy| proxy.required) {
        return Err(Wrong::new("http3", "stands beside a required proxy_protocol, which UDP does not carry"));
    }
    let connections = connections.unwrap_or_default();
    let mesh::ClientConnections { max, per_address, new_per_second, readiness_grace, go_away_grace } = connections;
    let at = |wrong: Wrong| wrong.within("connections");
    let ending = Ending {
        readiness_grace: grace(readiness_grace.as_ref(), "readiness_grace").map_err(at)?.unwrap_or_default(),
        go_away_grace: grace(go_away_grace.as_ref(), "go_away_grace").map_err(at)?,
    };
    let admission = ((max, per_address, new_per_second) != (0, 0, 0)).then(|| {
        let bounds = AdmissionBounds { max, per_address, new_per_second };
        let before = before.and_then(|before| before.admission.as_ref());
        Arc::new(before.map_or_else(|| Admission::new(bounds), |before| before.rebound(bounds)))
    });
    if chains.len() > CHAINS_MAX {
        return Err(Wrong::new("chains", format!("are more than {CHAINS_MAX}")));
    }
    let (mut known, mut compiled) = (HashSet::new(), Vec::with_capacity(chains.len()));
    for (index, raw) in chains.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("chains[{index}]"));
        if !names.contains(raw.chain.as_str()) || !known.insert(raw.chain.as_str()) {
            return Err(at(Wrong::new(
                "chain",
                format!("`{}` is no filter chain, or one that was named before", raw.chain.escape_debug()),
            )));
        }
        let rules = ClientRules { alt_svc: alt_svc.clone(), ..rules(raw).map_err(at)? };
        compiled.push((raw.chain.as_str().into(), Arc::new(rules)));
    }
    let http3 = alt_svc.as_ref().map(|alternative| Arc::clone(&alternative.door));
    let usual = Arc::new(ClientRules { alt_svc, ..ClientRules::default() });
    Ok(ClientPolicy { proxy, admission, ending, http3, chains: compiled, usual })
}

fn grace(raw: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>, Wrong> {
    let told = duration(raw, field)?;
    match told.is_some_and(|told| told > GRACE_MAX) {
        true => Err(Wrong::new(field, format!("is longer than {}s", GRACE_MAX.as_secs()))),
        false => Ok(told),
    }
}

/// What other versions say of HTTP/3 (RFC 7838, section 3).
fn alternative(port: u16, raw: &mesh::ClientHttp3) -> Result<HeaderValue, Wrong> {
    let mesh::ClientHttp3 { alt_svc_max_age } = raw;
    let age = duration(alt_svc_max_age.as_ref(), "alt_svc_max_age")?.unwrap_or(ALT_SVC_MAX_AGE);
    if age.subsec_nanos() > 0 {
        return Err(Wrong::new("alt_svc_max_age", "is no whole number of seconds"));
    }
    let text = format!("h3=\":{port}\"; ma={}", age.as_secs());
    HeaderValue::try_from(text).map_err(|error| Wrong::new("alt_svc_max_age", error.to_string()))
}

fn proxy(raw: &mesh::ProxyProtocol) -> Result<ProxyRule, Wrong> {
    let mesh::ProxyProtocol { required, trusted_cidrs, timeout } = raw;
    let trusted = (!trusted_cidrs.is_empty()).then(|| ranges(trusted_cidrs)).transpose()?;
    if trusted.is_none() && !required {
        return Err(Wrong::new("trusted_cidrs", "are missing: anybody could choose the address that they come from"));
    }
    let timeout = duration(timeout.as_ref(), "timeout")?.unwrap_or(PROXY_WAIT);
    Ok(ProxyRule { required: *required, trusted, timeout })
}

fn ranges(raw: &[String]) -> Result<AddressList, Wrong> {
    if raw.len() > RANGES_MAX {
        return Err(Wrong::new("trusted_cidrs", format!("are more than {RANGES_MAX}")));
    }
    for (index, range) in raw.iter().enumerate() {
        // A list's text has more to say than a range: comments, and nothing at all.
        if !range.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'/')) || range.is_empty() {
            return Err(Wrong::new(format!("trusted_cidrs[{index}]"), format!("`{}` is no range of addresses", range.escape_debug())));
        }
    }
    AddressList::read(&raw.join("\n")).map_err(|why| Wrong::new("trusted_cidrs", why))
}

fn rules(raw: &mesh::ClientChain) -> Result<ClientRules, Wrong> {
    let mesh::ClientChain {
        chain: _,
        policy,
        address: from,
        timeouts: times,
        limits: bounds,
        lives: kept,
        http1: one,
        http2: two,
        paths,
        headers,
        tls,
    } = raw;
    Ok(ClientRules {
        policy: policy.as_str().into(),
        address: from.as_ref().map(address).transpose().map_err(|wrong| wrong.within("address"))?.unwrap_or_default(),
        timeouts: times.as_ref().map(timeouts).transpose().map_err(|wrong| wrong.within("timeouts"))?.unwrap_or_default(),
        limits: bounds.as_ref().map(limits).transpose().map_err(|wrong| wrong.within("limits"))?.unwrap_or_default(),
        lives: kept.as_ref().map(lives).transpose().map_err(|wrong| wrong.within("lives"))?.unwrap_or_default(),
        http1: one.as_ref().map(http1).unwrap_or_default(),
        http2: two.as_ref().map(http2).transpose().map_err(|wrong| wrong.within("http2"))?.unwrap_or_default(),
        paths: paths.as_ref().map(path_rules).transpose().map_err(|wrong| wrong.within("paths"))?.unwrap_or_default(),
        headers: headers.as_ref().map(early).transpose().map_err(|wrong| wrong.within("headers"))?.unwrap_or_default(),
        plain_master_secret: tls.as_ref().is_some_and(|mesh::ClientTls { plain_master_secret }| *plain_master_secret),
        alt_svc: None,
    })
}

fn address(raw: &mesh::ClientAddress) -> Result<ClientAddress, Wrong> {
    use mesh::client_address::Header;
    let mesh::ClientAddress { trusted_hops, trusted_cidrs, header } = raw;
    let header = match Header::try_from(*header) {
        Ok(Header::XForwardedFor) => ForwardedHeader::XForwardedFor,
        Ok(Header::Forwarded) => ForwardedHeader::Forwarded,
        Err(_) => return Err(Wrong::new("header", format!("unknown value {header}"))),
    };
    let hops = usize::try_from(*trusted_hops).unwrap_or(usize::MAX);
    if hops > HOPS_MAX {
        return Err(Wrong::new("trusted_hops", format!("are more than {HOPS_MAX}")));
    }
    match (hops, trusted_cidrs.is_empty()) {
        (0, false) => Ok(ClientAddress::of_ranges(ranges(trusted_cidrs)?, header)),
        (_, true) => Ok(ClientAddress::of_hops(hops, header)),
        (_, false) => Err(Wrong::new("trusted_cidrs", "stand beside trusted_hops: one of them says who is believed")),
    }
}

fn timeouts(raw: &mesh::ClientTimeouts) -> Result<ClientTimeouts, Wrong> {
    let mesh::ClientTimeouts { tls_handshake, request_headers, body_idle, write_stall, min_bytes_per_second } = raw;
    let usual = ClientTimeouts::default();
    let some = |raw: &Option<prost_types::Duration>, field: &str, usual: Duration| {
        let told = duration(raw.as_ref(), field)?.unwrap_or(usual);
        if told.is_zero() { Err(Wrong::new(field, "is no time at all")) } else { Ok(told) }
    };
    Ok(ClientTimeouts {
        tls_handshake: some(tls_handshake, "tls_handshake", usual.tls_handshake)?,
        request_headers: some(request_headers, "request_headers", usual.request_headers)?,
        body_idle: duration(body_idle.as_ref(), "body_idle")?.unwrap_or(usual.body_idle),
        write_stall: duration(write_stall.as_ref(), "write_stall")?.unwrap_or(usual.write_stall),
        bytes_per_sec_min: min_bytes_per_second.unwrap_or(usual.bytes_per_sec_min),
    })
}

fn limits(raw: &mesh::ClientLimits) -> Result<ClientLimits, Wrong> {
    let mesh::ClientLimits { header_bytes, headers, uri_bytes } = *raw;
    let usual = ClientLimits::default();
    let within = |told: u32, usual: u32, most: u32, field: &str| match told {
        0 => Ok(usual),
        told if told <= most => Ok(told),
        _ => Err(Wrong::new(field, format!("is more than {most}, which this proxy's peers take"))),
    };
    Ok(ClientLimits {
        header_bytes: within(header_bytes, usual.header_bytes, CLIENT_HEAD_BYTES_MAX, "header_bytes")?,
        headers: within(headers, usual.headers, CLIENT_FIELDS_MAX, "headers")?,
        uri_bytes: within(uri_bytes, usual.uri_bytes, CLIENT_HEAD_BYTES_MAX, "uri_bytes")?,
    })
}

fn lives(raw: &mesh::ClientLives) -> Result<ClientLives, Wrong> {
    let mesh::ClientLives { idle, max_age, max_requests } = raw;
    let idle = duration(idle.as_ref(), "idle")?.unwrap_or(ClientLives::default().idle);
    if idle.is_zero() {
        return Err(Wrong::new("idle", "is no time at all"));
    }
    let max_age = duration(max_age.as_ref(), "max_age")?.filter(|age| !age.is_zero());
    Ok(ClientLives { idle, max_age, max_requests: *max_requests })
}

const fn http1(raw: &mesh::ClientHttp1) -> Http1Rules {
    let mesh::ClientHttp1 { disabled, refuse10, lower_case } = *raw;
    Http1Rules { disabled, refuse_10: refuse10, lower_case }
}

fn http2(raw: &mesh::ClientHttp2) -> Result<Http2Rules, Wrong> {
    let mesh::ClientHttp2 { disabled, max_streams, stream_window, connection_window, resets_per_minute, ping_interval } = *raw;
    let usual = Http2Rules::default();
    let or = |told: u32, usual: u32| if told == 0 { usual } else { told };
    let windows = match (stream_window, connection_window) {
        (0, 0) => None,
        (0, _) | (_, 0) => return Err(Wrong::new("stream_window", "and connection_window are said together")),
        (WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX, WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX) => Some((stream_window, connection_window)),
        _ => return Err(Wrong::new("stream_window", format!("and connection_window are {WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX} bytes"))),
    };
    let max_streams = or(max_streams, usual.max_streams);
    if windows.is_some_and(|(stream, connection)| u64::from(connection) < u64::from(stream) * u64::from(max_streams)) {
        return Err(Wrong::new("connection_window", "is less than all streams' together: one that is not read would stop the others"));
    }
    let ping_every = duration(ping_interval.as_ref(), "ping_interval")?.filter(|every| !every.is_zero());
    if ping_every.is_some_and(|every| every < PING_EVERY_MIN) {
        return Err(Wrong::new("ping_interval", "is shorter than a second"));
    }
    let resets_per_minute = or(resets_per_minute, usual.resets_per_minute);
    Ok(Http2Rules { disabled, max_streams, windows, resets_per_minute, ping_every })
}

fn path_rules(raw: &mesh::ClientPaths) -> Result<PathRules, Wrong> {
    use mesh::client_paths::{EscapedSlashes as Slashes, UnderscoreHeaders};
    let mesh::ClientPaths { escaped_slashes, underscore_headers } = *raw;
    let slashes = match Slashes::try_from(escaped_slashes) {
        Ok(Slashes::KeepSlashes) => EscapedSlashes::Keep,
        Ok(Slashes::RejectSlashes) => EscapedSlashes::Reject,
        Ok(Slashes::DecodeSlashes) => EscapedSlashes::Decode,
        Err(_) => return Err(Wrong::new("escaped_slashes", format!("unknown value {escaped_slashes}"))),
    };
    let underscores = match UnderscoreHeaders::try_from(underscore_headers) {
        Ok(UnderscoreHeaders::DropUnderscores) => Underscores::Drop,
        Ok(UnderscoreHeaders::KeepUnderscores) => Underscores::Keep,
        Ok(UnderscoreHeaders::RejectUnderscores) => Underscores::Reject,
        Err(_) => return Err(Wrong::new("underscore_headers", format!("unknown value {underscore_headers}"))),
    };
    Ok(PathRules { slashes, underscores })
}

fn early(raw: &mesh::ClientHeaders) -> Result<EarlyHeaders, Wrong> {
    let mesh::ClientHeaders { set, remove, keep_trusted_id, hsts } = raw;
    if set.len() > EARLY_MAX || remove.len() > EARLY_MAX {
        return Err(Wrong::new("set", format!("or remove holds more than {EARLY_MAX}")));
    }
    let name = |text: &str, at: String| {
        let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| super::claim_header(name.as_str()));
        name.ok_or_else(|| Wrong::new(at, format!("`{}` is no header, or one that is not a policy's to change", text.escape_debug())))
    };
    let one = |(index, header): (usize, &mesh::EarlyHeader)| {
        let value = HeaderValue::from_str(&header.value).map_err(|_| Wrong::new(format!("set[{index}].value"), "is no header's value"))?;
        Ok((name(&header.name, format!("set[{index}].name"))?, value))
    };
    let hsts = duration(hsts.as_ref(), "hsts")?.filter(|age| !age.is_zero());
    if hsts.is_some_and(|age| age.subsec_nanos() > 0) {
        return Err(Wrong::new("hsts", "is no whole number of seconds (RFC 6797, section 6.1.1)"));
    }
    Ok(EarlyHeaders {
        set: set.iter().enumerate().map(one).collect::<Result<_, Wrong>>()?,
        remove: remove.iter().enumerate().map(|(index, text)| name(text, format!("remove[{index}]"))).collect::<Result<_, Wrong>>()?,
        keep_trusted_id: *keep_trusted_id,
        hsts: hsts.and_then(|age| HeaderValue::from_str(&format!("max-age={}", age.as_secs())).ok()),
    })
}
