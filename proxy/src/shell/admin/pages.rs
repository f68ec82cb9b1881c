//! What each page says: plain functions of the proxy's state.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, VARY};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use proto::mesh::{ExplainCommand, Header};
use serde_json::{Value, json};

use super::{Admin, Pages, local, probe};
use crate::observe::Exposition;
use crate::reports::rfc3339;
use crate::shell::probes::Probe;
use crate::status::inspect::{self, Time};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type AdminPage = Response<Full<Bytes>>;

impl Admin {
    pub(super) async fn page(&self, pages: Pages, head: &Parts) -> AdminPage {
        let (method, uri) = (&head.method, &head.uri);
        let reading = matches!(*method, Method::GET | Method::HEAD);
        let query = Query::of(uri);
        if pages == Pages::Admin
            && let Err(why) = local::judge(head)
        {
            return page(StatusCode::FORBIDDEN, TEXT, format!("{why}\n"));
        }
        match (pages, uri.path()) {
            (Pages::Metrics, "/metrics") | (Pages::Admin, "/stats" | "/metrics") if reading => {
                let exposition = Exposition::accepted(&head.headers);
                let mut page = page(StatusCode::OK, exposition.content_type(), self.telemetry.render_as(exposition));
                page.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
                page
            }
            (Pages::Health, "/healthz/ready") if reading => health(self.lifecycle.ready()),
            (Pages::Health, "/healthz/startup") if reading => health(self.lifecycle.started()),
            (Pages::Health, "/healthz/live") if reading => health(Ok(())),
            (Pages::Health, path) if reading && path.starts_with(probe::PREFIX) => self.app_health(head).await,
            (Pages::Admin, "/config_dump") if reading => self.config_dump(),
            (Pages::Admin, "/explain") if reading => self.explain(&query).await,
            (Pages::Admin, "/logging") => match query.first("level") {
                None if reading => page(StatusCode::OK, TEXT, self.logs.current() + "\n"),
                Some(filter) if *method == Method::POST => match self.logs.set(filter) {
                    Ok(()) => page(StatusCode::OK, TEXT, self.logs.current() + "\n"),
                    Err(error) => page(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
                },
                _ => only("POST", "/logging?level=FILTER sets the filter"),
            },
            (Pages::Admin, "/parting") if *method == Method::POST => {
                self.lifecycle.parting.cancel();
                page(StatusCode::OK, TEXT, "callers are told\n")
            }
            (Pages::Admin, "/drain") if *method == Method::POST => {
                self.lifecycle.draining.cancel();
                page(StatusCode::OK, TEXT, "draining\n")
            }
            (Pages::Admin, "/quitquitquit") if *method == Method::POST => {
                self.lifecycle.draining.cancel();
                self.lifecycle.quit.cancel();
                page(StatusCode::OK, TEXT, "leaving\n")
            }
            (Pages::Admin, "/parting" | "/drain" | "/quitquitquit") => only("POST", "this page changes the proxy"),
            (Pages::Admin, "/") if reading => page(StatusCode::OK, TEXT, INDEX),
            _ => page(StatusCode::NOT_FOUND, TEXT, "no such page\n"),
        }
    }

    /// Asks the application what a kubelet wants to know. Its status is passed on, its words are not.
    async fn app_health(&self, head: &Parts) -> AdminPage {
        let settings = self.snapshots.load().settings.clone();
        let Some(settings) = settings else {
            return page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "there is no configuration yet\n");
        };
        let declared = self.probes.iter().cloned().chain(settings.probes.iter().map(Probe::from));
        let Some(declared) = probe::find(declared, head) else {
            return page(StatusCode::NOT_FOUND, TEXT, "no such probe: only what the workload declares is asked\n");
        };
        match probe::ask(&self.network, &settings.own_addresses, &declared, head).await {
            Ok(status) => page(status, TEXT, ""),
            Err(why) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        }
    }

    fn config_dump(&self) -> AdminPage {
        let snapshot = self.snapshots.load();
        let mut dump = json!({
            "node": self.node.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "epoch": snapshot.epoch,
            "wanted": self.snapshots.wanted().len(),
            "trust_bundle": self.trust.fingerprints(),
            "certificate": self.credentials.current().map(|leaf| json!({
                "identity": leaf.identity.to_string(),
                "workload": &*leaf.workload,
                "serial": leaf.serial,
                "not_before": rfc3339(leaf.not_before),
                "not_after": rfc3339(leaf.not_after),
                "issuer": leaf.issuer,
            })),
        });
        for kind in inspect::DUMP_KINDS {
            dump[kind] = inspect::dump(&snapshot, kind, Time::of(&self.telemetry)).unwrap_or(Value::Null);
        }
        page(StatusCode::OK, JSON, format!("{dump:#}\n"))
    }

    async fn explain(&self, query: &Query) -> AdminPage {
        let header = |text: &str| {
            let (name, value) = text.split_once(':')?;
            Some(Header { name: name.trim().to_owned(), value: value.trim().to_owned() })
        };
        let Some(url) = query.first("url") else {
            let usage = "give ?url=http://HOST/PATH, and &method=…, &header=NAME:VALUE…, or &inbound=true&port=…&peer=SPIFFE-ID&workload=NAME&source=IP, or at a Gateway &consumer=NS/NAME&source=IP\n";
            return page(StatusCode::BAD_REQUEST, TEXT, usage);
        };
        let ask = ExplainCommand {
            method: query.first("method").unwrap_or("GET").to_owned(),
            url: url.to_owned(),
            headers: query.all("header").filter_map(header).collect(),
            inbound: query.first("inbound") == Some("true"),
            port: query.first("port").and_then(|port| port.parse().ok()).unwrap_or(0),
            peer_identity: query.first("peer").unwrap_or_default().to_owned(),
            source_address: query.first("source").unwrap_or_default().to_owned(),
            peer_workload: query.first("workload").unwrap_or_default().to_owned(),
            consumer: query.first("consumer").unwrap_or_default().to_owned(),
        };
        match inspect::explain(&self.snapshots, self.node.mode, &ask, Time::of(&self.telemetry)).await {
            Ok(answer) => page(StatusCode::OK, JSON, format!("{answer:#}\n")),
            Err(error) => page(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
        }
    }
}

const INDEX: &str = "GET /config_dump  what this proxy runs\nGET /stats  metrics\nGET /explain?url=…  what a request would meet\n\
                     GET /logging, POST /logging?level=FILTER  the log's filter\nPOST /parting  the instance ends soon: tell callers, and serve them\nPOST /drain  begin to drain\nPOST /quitquitquit  end now\n";

fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> AdminPage {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

fn only(method: &'static str, why: &str) -> AdminPage {
    let mut page = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("{why}: use {method}\n"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    page
}

fn health(state: Result<(), &'static str>) -> AdminPage {
    match state {
        Ok(()) => page(StatusCode::OK, TEXT, "ok\n"),
        Err(missing) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{missing}\n")),
    }
}

/// A query string, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Self {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        };
        Self(uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(pair).collect())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == key).map(|(_, value)| value.as_str())
    }

    fn first<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }
}

/// Percent-decoding, `+` as space; broken sequences stay as they are.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: queries are decoded as forms are, and broken ones do no harm.
    #[test]
    fn queries_are_decoded() {
        let uri: Uri =
            "/explain?url=http%3A%2F%2Fcatalog%2Fitems%3Fa%3D1&header=x-beta:1&header=a:b&bad=%zz%4&empty&a+b=c".parse().unwrap();
        let query = Query::of(&uri);
        assert_eq!(query.first("url"), Some("http://catalog/items?a=1"));
        assert_eq!(query.all("header").count(), 2);
        assert_eq!((query.first("bad"), query.first("empty"), query.first("a b")), (Some("%zz%4"), Some(""), Some("c")));
    }
}
