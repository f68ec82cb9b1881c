//! `meshwright explain`.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use proto::mesh::{ExplainRequest, Header};
use serde_json::Value;

use super::{hops, token};
use crate::client::{self, WhichMesh};
use crate::output::{self, Columns, TextOrJson, usage};

/// Arguments of `meshwright explain`.
#[derive(Debug, Args)]
#[command(
    override_usage = "meshwright explain --from NS/WORKLOAD [OPTIONS] METHOD URL\n       meshwright explain [OPTIONS] ID",
    after_help = "Examples:\n  meshwright explain --from shop/frontend -H x-beta:1 GET http://catalog/items\n  meshwright explain 5f0c954e-2b7d-4c1e-9a39-0a7b8e2f6d11\n    What became of the request with this x-request-id (or trace id), if it failed or was slow of late."
)]
pub(crate) struct ExplainArgs {
    /// The workload (or instance) that would send the request
    #[arg(long, value_name = "NS/WORKLOAD", value_parser = token::workload)]
    from: Option<String>,
    /// A request header; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// At a Gateway: as if this consumer called, whatever the request shows
    #[arg(long, value_name = "NS/NAME", value_parser = token::workload)]
    consumer: Option<String>,
    /// At a Gateway: the client's address
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// A token that the request shows as Authorization: Bearer
    #[arg(long, value_name = "JWT", value_parser = bearer)]
    bearer: Option<String>,
    /// The request's method; or alone the x-request-id or trace id of one that was made
    #[arg(value_name = "METHOD|ID")]
    method: String,
    /// The request's URL, with the host as the workload would write it
    #[arg(value_parser = url)]
    url: Option<String>,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

fn header(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{text}` is not of the form NAME:VALUE, for example x-beta:1");
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let name = http::HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
    let value = http::HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
    Ok((name.as_str().to_owned(), value.to_str().map_err(|_| wrong())?.to_owned()))
}

fn bearer(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !text.is_empty() && text.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err("this is no token (RFC 6750); write what stands behind `Bearer `".to_owned())
    }
}

fn method(text: &str) -> Result<String, String> {
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) if !text.contains("://") => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a method; write METHOD URL, for example GET http://catalog/items")),
    }
}

fn url(text: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("`{text}` {why}; write for example http://catalog/items"));
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_none() => wrong("names no host"),
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https" | "grpc" | "tcp")) => Ok(text.to_owned()),
        Ok(_) => wrong("has no scheme of http, https, grpc or tcp"),
        Err(_) => wrong("is not a URL"),
    }
}

pub(crate) fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let Some(url) = args.url.clone() else { return of_one(&args) };
    let Some(from) = args.from.clone() else {
        return Err(usage("say with --from NS/WORKLOAD who would send it".to_owned()));
    };
    let method = method(&args.method).map_err(usage)?;
    output::block_on(async {
        let mut control = args.place.connect().await?;
        let heading = format!("a request from {from} would send {method} {url}");
        let bearer = args.bearer.map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
        let headers = args.headers.into_iter().chain(bearer).map(|(name, value)| Header { name, value }).collect();
        let request = ExplainRequest {
            from,
            method,
            url,
            headers,
            consumer: args.consumer.unwrap_or_default(),
            address: args.address.map(|address| address.to_string()).unwrap_or_default(),
        };
        let json = control.explain(request).await.map_err(|status| client::refused(&status))?.into_inner().json;
        match args.output {
            TextOrJson::Json => output::print(&json)?,
            TextOrJson::Text => output::print(&format!("{heading}\n{}", side(&output::parse(&json)?, "client")))?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A request that was made, by its id.
fn of_one(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let of_a_plan =
        args.from.is_some() || !args.headers.is_empty() || args.consumer.is_some() || args.address.is_some() || args.bearer.is_some();
    if of_a_plan {
        return Err(usage(format!(
            "`{}` is no METHOD URL; write for example GET http://catalog/items, or an id and nothing else",
            args.method
        )));
    }
    let known = output::block_on(hops::run(&args.place, &args.method, args.output))?;
    Ok(if known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One side's verdict, then the server's beneath it.
fn side(answer: &Value, whose: &str) -> String {
    let mut text = format!("\n{whose} side, epoch {}\n", answer["epoch"]);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("  {name:<10} {value}\n");
        }
    };
    let field = |value: &Value, name: &str| value[name].as_str().map(str::to_owned).unwrap_or_default();
    line("listener", &field(answer, "listener"));
    let route = &answer["route"];
    if route.is_object() {
        let object = format!("{} {}/{} ", field(route, "kind"), field(route, "namespace"), field(route, "name"));
        // The inbound side's own rule belongs to no object.
        let object = if field(route, "kind").is_empty() { String::new() } else { object };
        line("route", &format!("{object}rule {}", plain(&route["rule"])));
        line("because", &field(route, "why"));
    }
    for stage in answer["stages"].as_array().into_iter().flatten() {
        line("stage", &format!("{}: {}, {}", field(stage, "name"), field(stage, "verdict"), field(stage, "why")));
    }
    for policy in answer["policies"].as_array().into_iter().flatten() {
        let name =
            format!("{} {}/{} rule {}", field(policy, "kind"), field(policy, "namespace"), field(policy, "name"), plain(&policy["rule"]));
        line("policy", &format!("{name}: {}", field(policy, "verdict")));
    }
    line("decision", &field(answer, "decision"));
    if answer["reply"].is_object() {
        line("reply", &replied(&answer["reply"]));
    }
    line("cluster", &field(answer, "cluster"));
    let mut endpoints = Columns::new(&[
        ("ENDPOINT", "address"),
        ("WORKLOAD", "workload"),
        ("WEIGHT", "weight"),
        ("HEALTH", "health"),
        ("IN FLIGHT", "in_flight"),
        ("CHANCE", "chance"),
    ]);
    for endpoint in answer["endpoints"].as_array().into_iter().flatten() {
        endpoints.row(endpoint);
    }
    text += &endpoints.render("").lines().map(|line| format!("  {line}\n")).collect::<String>();
    if answer["server"].is_object() {
        text += &side(&answer["server"], "server");
    }
    text
}

/// A status, or that there is none to see.
fn replied(reply: &Value) -> String {
    let reason = plain(&reply["reason"]);
    match plain(&reply["status"]).as_str() {
        "0" => format!("none, the connection is closed ({reason})"),
        status => format!("{status} {reason}"),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: a connection that is closed is told as that, and not as a status that there is not.
    #[test]
    fn a_close_is_no_status() {
        let closed = json!({"epoch": 4, "listener": "edge/443", "decision": "Reply", "reply": {"status": 0, "reason": "no_route"}});
        let text = side(&closed, "client");
        assert!(text.contains("none, the connection is closed (no_route)"), "{text}");
        assert_eq!(replied(&json!({"status": 403, "reason": "denied"})), "403 denied");
    }

    /// Aim: both sides of the road are told, with route, reason and endpoints.
    #[test]
    fn both_sides_are_told() {
        let answer = json!({"epoch": 4, "listener": "out/10.96.0.1:80", "decision": "Forward", "cluster": "shop/catalog:80", "reply": null,
            "route": {"kind": "HTTPRoute", "namespace": "shop", "name": "catalog", "rule": 0, "why": "path / matches"},
            "stages": [], "policies": [], "endpoints": [{"address": "10.77.0.2:8080", "workload": "shop/catalog-v1", "chance": 0.9}],
            "server": {"epoch": 4, "decision": "Reply", "reply": {"status": 403, "reason": "denied"}}});
        let text = side(&answer, "client");
        for part in
            ["client side, epoch 4", "HTTPRoute shop/catalog rule 0", "path / matches", "10.77.0.2:8080", "server side", "403 denied"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    /// Aim: what is no header, method or URL is a usage error with an example.
    #[test]
    fn arguments_are_checked() {
        assert_eq!(header("x-beta: 1"), Ok(("x-beta".to_owned(), "1".to_owned())));
        assert!(header("nonsense").is_err() && header("a b:c").is_err());
        assert!(bearer("ey.a-b_c.d=").is_ok() && bearer("a b").is_err() && bearer("").is_err());
        assert!(method("http://x").is_err() && method("GET").is_ok());
        assert!(url("/items").unwrap_err().contains("names no host"));
        assert!(url("ftp://x/").is_err() && url("http://catalog/items").is_ok());
    }

    proptest::proptest! {
        /// Aim: no argument and no answer of another shape makes it panic.
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}|[a-z]{0,5}://[a-z0-9.:\\[\\]]{0,20}/?", number in proptest::prelude::any::<i64>()) {
            let _ = (header(&text), method(&text), url(&text), token::workload(&text));
            for answer in [json!(text), json!(number), json!({"epoch": text, "route": {"kind": number}, "endpoints": [text, number, {}], "server": {"stages": text}})] {
                side(&answer, "client");
            }
        }
    }
}
