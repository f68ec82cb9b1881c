//! In which words metrics are told: Prometheus' text format, which every scraper reads, or OpenMetrics where it is accepted. Pure.

use std::fmt::Write;

use http::HeaderMap;
use http::header::ACCEPT;

/// Media ranges of one `Accept` that are looked at.
const RANGES_MAX: usize = 32;

/// How `/metrics` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4: no units, no exemplars, no end mark.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// What a scraper's `Accept` asks for (RFC 9110, section 12.5.1). OpenMetrics is for those that name it and do not prefer plain text;
    /// whoever names neither reads text.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (mut open_metrics, mut text) = (0, 0);
        for range in values.flat_map(|value| value.split(',')).take(RANGES_MAX) {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let parameters = || parts.clone().filter_map(|part| part.split_once('='));
            let of = |wanted: &str| parameters().find(|(key, _)| key.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim());
            let weight = weight(of("q"));
            let version = of("version").map(|version| version.trim_matches('"'));
            if name.eq_ignore_ascii_case("application/openmetrics-text") && matches!(version, None | Some("1.0.0" | "0.0.1")) {
                open_metrics = open_metrics.max(weight);
            } else if name.eq_ignore_ascii_case("text/plain") && matches!(version, None | Some("0.0.4")) {
                text = text.max(weight);
            }
        }
        if open_metrics > 0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The answer's `content-type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Thousandths; what is no weight counts as the lowest one there is.
fn weight(text: Option<&str>) -> u32 {
    let Some(text) = text else { return 1000 };
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let thousandths = format!("{rest:0<3}");
    match (whole, thousandths.parse::<u32>()) {
        ("1", _) => 1000,
        ("0", Ok(thousandths)) if rest.len() <= 3 => thousandths,
        _ => 1,
    }
}

/// OpenMetrics without exemplars as Prometheus' text format: a counter's metadata names what its samples are named, units and the end
/// mark go.
pub(super) fn plain(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            // Writing into a string does not fail.
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                                text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                                text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    /// Aim: text is the default, OpenMetrics is for those that ask for it, by the weights they give.
    #[test]
    fn scrapers_get_what_they_accept() {
        use Exposition::{OpenMetrics, Text};
        for (accept, wanted) in [
            (None, Text),
            (Some("*/*"), Text),
            (Some("text/html, */*;q=0.8"), Text),
            (Some("text/plain;version=0.0.4"), Text),
            (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), Text),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8"), OpenMetrics),
            (Some("application/openmetrics-text;version=0.0.1"), OpenMetrics),
            (Some("application/openmetrics-text;version=2.0.0,text/plain"), Text),
            (Some("application/openmetrics-text;q=0"), Text),
            (Some("application/openmetrics-text;q=0.3,text/plain;q=0.5"), Text),
            (Some("application/openmetrics-text;q=0.51,text/plain;q=0.5"), OpenMetrics),
            (Some("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"), Text),
            (Some(";;;q=,,="), Text),
            (Some(PROMETHEUS_2), OpenMetrics),
            (Some(PROMETHEUS_3), OpenMetrics),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(Exposition::accepted(&headers), wanted, "{accept:?}");
        }
    }

    /// Aim: several lines of Accept are one list.
    #[test]
    fn accept_may_have_several_lines() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, "text/plain;q=0.5".parse().unwrap());
        headers.append(ACCEPT, "application/openmetrics-text".parse().unwrap());
        assert_eq!(Exposition::accepted(&headers), Exposition::OpenMetrics);
    }
}
