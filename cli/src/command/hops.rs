//! `meshwright explain ID`: what became of one request, hop by hop.

use proto::mesh::FindRequest;
use serde_json::Value;

use crate::client::{self, WhichMesh};
use crate::output::terminal::harmless;
use crate::output::{self, TextOrJson};

/// Asks for the request and prints it. False: no proxy keeps it.
///
/// # Errors
/// The mesh does not answer, or the id is none.
pub(super) async fn run(place: &WhichMesh, id: &str, format: TextOrJson) -> anyhow::Result<bool> {
    let mut control = place.connect().await?;
    let answer = control.find(FindRequest { id: id.to_owned() }).await.map_err(|status| client::refused(&status))?.into_inner();
    let hops = output::parse(&answer.json)?;
    let hops = hops.as_array().map(Vec::as_slice).unwrap_or_default();
    output::note(&answer.note);
    match format {
        TextOrJson::Json => output::print(&answer.json)?,
        TextOrJson::Text if hops.is_empty() => eprintln!("{}", unknown(id)),
        TextOrJson::Text => output::print(&text(id, hops))?,
    }
    Ok(!hops.is_empty())
}

fn unknown(id: &str) -> String {
    format!(
        "no proxy keeps a request {id}. Each keeps its last ones that failed or took a second or more, of those that are logged or traced: look for others with `meshwright tap` or in the access log, and see docs/tap.md"
    )
}

/// Hops in their order, each with what decided it.
fn text(id: &str, hops: &[Value]) -> String {
    let mut text = format!("request {id}\n");
    for hop in hops {
        text += &one(hop);
    }
    text
}

fn one(hop: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => harmless(text),
        Value::Null => String::new(),
        other => harmless(&other.to_string()),
    };
    let field = |name: &str| plain(&hop[name]);
    let side = if hop["direction"] == "inbound" { "server side" } else { "client side" };
    let mut text = format!("\n{} {side} at {}, epoch {}\n", field("time"), field("proxy"), field("epoch"));
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text += &format!("  {name:<10} {value}\n");
        }
    };
    let words = |parts: &[String]| parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ");
    line("request", words(&[field("method"), format!("{}{}", field("host"), field("path")), field("protocol")]));
    line("from", party(&hop["source"], &plain));
    line("to", party(&hop["destination"], &plain));
    let rule = Some(field("rule")).filter(|rule| !rule.is_empty()).map(|rule| format!("rule {rule}")).unwrap_or_default();
    line("route", words(&[field("route"), rule]));
    line("policy", field("policy"));
    line("limit", field("limit"));
    line("fault", field("fault"));
    for retry in hop["retries"].as_array().into_iter().flatten() {
        line("attempt", format!("{} failed: {}", plain(&retry["address"]), plain(&retry["reason"])));
    }
    let grpc = hop["grpc_status"].as_u64().map(|code| format!("gRPC {code}")).unwrap_or_default();
    let blame = Some(field("blame")).filter(|blame| !blame.is_empty()).map(|blame| format!("(blame: {blame})")).unwrap_or_default();
    let status = Some(field("status")).filter(|status| !status.is_empty()).unwrap_or_else(|| "no answer".to_owned());
    line("result", words(&[status, grpc, field("reason"), blame]));
    let upstream = Some(field("upstream_ms")).filter(|ms| !ms.is_empty()).map(|ms| format!(", upstream {ms} ms")).unwrap_or_default();
    let attempts = hop["attempts"].as_u64().unwrap_or_default();
    line("took", format!("{} ms{upstream}, {attempts} attempt{}", field("duration_ms"), if attempts == 1 { "" } else { "s" }));
    line("trace", field("trace_id"));
    text
}

fn party(party: &Value, plain: &impl Fn(&Value) -> String) -> String {
    let text = |field: &str| Some(plain(&party[field])).filter(|text| !text.is_empty());
    let name = text("workload").or_else(|| text("service"));
    let name = name.map(|name| text("namespace").map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}")));
    let parts = [name, text("address"), text("identity").map(|identity| format!("as {identity}"))];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: each hop says route, rule, endpoint, every attempt and its end, and nothing that is not there.
    #[test]
    fn hops_are_told() {
        let hop = json!({
            "proxy": "shop/frontend", "time": "2026-12-01T10:00:00.000000Z", "direction": "outbound", "epoch": 4, "trace_id": "4bf9", "method": "GET",
            "host": "catalog", "path": "/items", "protocol": "HTTP/1.1", "status": 503, "grpc_status": null, "reason": "connect_failed",
            "blame": "server", "route": "shop/catalog", "rule": "0", "source": {"namespace": "shop", "workload": "frontend"},
            "destination": {"namespace": "shop", "service": "catalog", "workload": "catalog-v1", "address": "10.77.0.3:8080", "identity": null},
            "duration_ms": 12.5, "upstream_ms": null, "attempts": 2, "retries": [{"address": "10.77.0.4:8080", "reason": "connect_failed"}], "fault": null,
        });
        let server =
            json!({"proxy": "shop/catalog-v1", "direction": "inbound", "epoch": 4, "status": null, "reason": "client_gone", "attempts": 1});
        insta::assert_snapshot!("hops", text("r1", &[hop, server]));
    }

    proptest::proptest! {
        /// Aim: no answer of another shape makes it panic.
        #[test]
        fn any_answer_is_survived(word in "\\PC{0,20}", number in proptest::prelude::any::<i64>()) {
            for hop in [json!(word), json!(number), json!({"retries": [word, number], "source": number, "attempts": word})] {
                one(&hop);
            }
        }
    }
}
