use std::borrow::Cow;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::{Judge, LOG_FILTER_BYTES_MAX, LogExchange, LogFilter, read};
use crate::authorize;
use crate::model::LogField;

struct Ended;

impl LogExchange for Ended {
    fn text(&self, field: LogField) -> Cow<'_, str> {
        match field {
            LogField::Method => "GET".into(),
            LogField::Path => "/v1/items?token=x".into(),
            LogField::Host => "store.shop".into(),
            LogField::Direction => "inbound".into(),
            LogField::Route => "shop/catalog".into(),
            LogField::SourceWorkload => "frontend".into(),
            _ => "".into(),
        }
    }

    fn number(&self, field: LogField) -> f64 {
        match field {
            LogField::Status => 503.0,
            LogField::DurationMs => 12.5,
            LogField::Attempts => 2.0,
            LogField::RequestBytes => 10.0,
            _ => 0.0,
        }
    }

    fn address(&self, field: LogField) -> SocketAddr {
        if field == LogField::SourceAddress { "[::ffff:10.1.2.3]:4567".parse().unwrap() } else { "10.77.0.3:8080".parse().unwrap() }
    }

    fn is_mtls(&self) -> bool {
        true
    }

    fn is_sampled(&self) -> bool {
        false
    }
}

/// Whether the library alone would say the same.
fn by_library(text: &str) -> Option<bool> {
    authorize::parsed(text, LOG_FILTER_BYTES_MAX, |mut parsed| {
        let places = read::places(&mut parsed)?;
        Ok(authorize::truth(&parsed, &super::Known { places: &places, exchange: &Ended }))
    })
    .unwrap()
}

/// Aim: every kind of comparison says what it says, without the library where it can be, and then as the library would.
#[test]
fn filters_say_what_they_say() {
    for (text, simple, wanted) in [
        ("response.code >= 400", true, true),
        ("400 > response.code", true, false),
        ("response.code == 503 && request.method == 'GET'", true, true),
        ("response.code in [200, 204] || reason != ''", true, false),
        ("!(direction in ['outbound']) && mtls", true, true),
        ("request.path == '/v1/items'", true, true),
        ("request.path.startsWith('/v1/') && request.host.endsWith('.shop') && request.host.contains('re.s')", true, true),
        ("request.path.matches('^/v[0-9]+/items$')", true, true),
        ("duration_ms > 12", true, true),
        ("duration_ms > 12.5", true, false),
        ("source.address == '10.1.2.3' && source.port == 4567 && destination.port < 9000", true, true),
        ("source.workload == 'frontend' && route == 'shop/catalog'", true, true),
        ("reason == '' && response.grpc_code == 0 && consumer == ''", true, true),
        ("sampled || attempts > 1", true, true),
        ("true", true, true),
        ("'a' < request.method", true, false),
        // By the library.
        ("mtls == true", false, true),
        ("duration_ms * 2.0 == 25.0", false, true),
        ("size(request.path) == 9", false, true),
        ("response.code / 100 == 5", false, true),
        ("mtls ? attempts == 2 : false", false, true),
        ("request.method + request.path == 'GET/v1/items'", false, true),
        ("string(response.code).startsWith('5')", false, true),
        ("request.method in [direction, 'GET']", false, true),
        ("double(attempts) * 1.5 == 3.0", false, true),
    ] {
        let filter = LogFilter::compile(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(matches!(filter.judge, Judge::Test(_)), simple, "{text}");
        assert_eq!((filter.holds(&Ended), by_library(text)), (Some(wanted), Some(wanted)), "{text}");
    }
    // What comes to nothing is no answer.
    assert_eq!(LogFilter::compile("int(request.method) > 0").unwrap().holds(&Ended), None);
    assert_eq!(LogFilter::compile("attempts / (attempts - 2) == 1").unwrap().holds(&Ended), None);
}

/// Aim: unknown names, types that do not fit, and whatever nothing would bound are refused in words that help.
#[test]
fn what_cannot_be_evaluated_is_refused() {
    let long = format!("reason == '{}'", "a".repeat(LOG_FILTER_BYTES_MAX));
    for (text, wanted) in [
        ("", "is not CEL"),
        ("response.code >=", "is not CEL"),
        ("response.status >= 400", "`response.status` is not known of an exchange that has ended; there are request.method,"),
        ("request.headers['x'] == 'a'", "`request.headers` is not known"),
        ("status == 200", "response.code"),
        ("response.code", "comes to a whole number"),
        ("'a'", "comes to a text"),
        ("request.method == 5", "gives `==` a text and a whole number"),
        ("response.code > 'a'", "gives `>` a whole number and a text"),
        ("mtls > sampled", "gives `>` true or false and true or false"),
        ("duration_ms * 2 > 1.0", "gives `*` a number with a fraction and a whole number"),
        ("response.code && mtls", "gives `&&` a whole number"),
        ("reason in [1, 2]", "gives `in` a text and a list"),
        ("reason in ['a', 2]", "a list of texts and numbers"),
        ("response.code.contains('5')", "gives `contains`"),
        ("request.path.matches(request.method)", "`matches` takes a name and one regular expression"),
        ("request.path.matches('(')", "is not a regular expression"),
        ("request.path.replace('a', 'b') == ''", "`replace` is no function here"),
        ("[1, 2].exists(x, x == response.code)", "holds a loop"),
        ("{'a': 1} == {'a': 1}", "a map or a message"),
        ("response.code == 200u", "a number with `u`"),
        ("has(request.path)", "asked of what has no members"),
        (&long, "longer than 1024 bytes"),
        (&format!("{}true{}", "(".repeat(200), ")".repeat(200)), "opens more than 64 brackets"),
    ] {
        let why = LogFilter::compile(text).expect_err(text);
        assert!(why.contains(wanted), "{text}: {why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Aim: no text ends the program, and what is a filter says the same with the library and without.
    #[test]
    fn any_text_is_survived(text in prop_oneof![
        "\\PC{0,60}",
        "!?(request\\.(path|method)|response\\.code|duration_ms|reason|mtls|source\\.port|x)( (==|<|>=|in|!=) ('GET'|'/v1/items'|503|12\\.5|\\[503, 1\\]|\\['GET'\\]|true))?(( && | \\|\\| )(attempts > 1|mtls|reason == 'a'|response\\.code < 500)){0,3}",
    ]) {
        if let Ok(filter) = LogFilter::compile(&text) {
            prop_assert_eq!(filter.holds(&Ended), by_library(&text), "{}", text);
        }
    }
}
