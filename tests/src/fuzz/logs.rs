//! What people say of the access log: filters, templates, fields and paths.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr};

use engine::model::{LogExchange, LogField, LogFields, LogFile, LogFilter, LogTemplate};

/// An exchange of which something is known of each kind.
struct Ended;

impl LogExchange for Ended {
    fn text(&self, field: LogField) -> Cow<'_, str> {
        match field {
            LogField::Path => "/a?b=c".into(),
            LogField::Reason => "".into(),
            _ => "GET".into(),
        }
    }

    fn number(&self, _: LogField) -> f64 {
        503.0
    }

    fn address(&self, _: LogField) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 80))
    }

    fn is_mtls(&self) -> bool {
        true
    }

    fn is_sampled(&self) -> bool {
        false
    }
}

/// Seeds.
pub(super) fn said() -> Vec<Vec<u8>> {
    let texts = [
        "response.code >= 400 || duration_ms > 1000.5",
        "request.method in ['GET', 'PUT'] && !(request.path.matches('^/a') || reason == '') ? mtls : sampled",
        "size(request.host) + attempts * 2 < 7 && string(response.code).startsWith('5')",
        "{client_address} \"{method} {path}\" {status} {{{duration_ms}}}",
        "time,source.workload,destination,mtls,retries",
        "/var/log/{namespace}/{workload}-{instance}.log",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Each is read or refused in words; a filter that was read says the same twice, fields that were read make JSON.
pub(super) fn access_log(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match LogFilter::compile(&text) {
        Ok(filter) => assert_eq!(filter.holds(&Ended), filter.holds(&Ended)),
        Err(why) => assert!(!why.is_empty()),
    }
    let _ = LogTemplate::parse(&text);
    if let Ok(fields) = LogFields::parse(text.split(',')) {
        let piece = |piece: &engine::model::LogPiece| match piece {
            engine::model::LogPiece::Literal(literal) => literal.to_string(),
            engine::model::LogPiece::Field(_) => "null".to_owned(),
        };
        let line: String = fields.pieces().iter().map(piece).collect();
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
    }
    if LogFile::judge_path(&text).is_ok() {
        let path = LogFile { path: text.into_owned(), bytes_max: 1, keep: 1 }.path_of("n", "w", "i");
        assert!(path.starts_with('/') && !path.contains("/../"));
    }
}
