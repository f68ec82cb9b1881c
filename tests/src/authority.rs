//! A certificate authority that speaks ACME (RFC 8555) as far as its clients see it, without TLS, at loopback; and DNS with the webhook that writes
//! it. Signatures of requests are not checked and proofs hardly: Pebble does that, in the full run. This one is quick, and misbehaves when it is
//! told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::CertificateSigningRequestDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UdpSocket};

/// Longest message of DNS here.
const DNS_BYTES_MAX: usize = 512;

type Answer = Response<Full<Bytes>>;

/// TXT records by name, lower case, with the last dot.
pub type Zone = Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>;

/// How names are proved to it.
#[derive(Clone)]
pub enum Asks {
    /// It knows them already.
    Nothing,
    /// By one TXT record that is there when it looks.
    Record(Zone),
}

/// What it says at a path that begins so, in place of what it should.
#[derive(Clone, Debug)]
pub struct Odd {
    /// The path, or how it begins.
    pub path: &'static str,
    /// The status.
    pub status: StatusCode,
    /// `retry-after`, where it has one.
    pub again: Option<&'static str>,
    /// The body.
    pub body: String,
}

/// What it has been asked for.
#[derive(Default)]
struct Ledger {
    calls: Vec<String>,
    hosts: Vec<String>,
    /// By number: the proof is given, and the certificate.
    orders: Vec<(bool, Option<String>)>,
    odd: Option<Odd>,
}

/// See the module. Ends with its runtime.
#[derive(Clone)]
pub struct AcmeServer {
    address: SocketAddr,
    asks: Asks,
    ledger: Arc<Mutex<Ledger>>,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl AcmeServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(asks: Asks) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?);
        let server = Self { address: listener.local_addr()?, asks, ledger: Arc::default(), issuer };
        let serving = server.clone();
        serve(listener, move |head, body| serving.answer(&head, &body));
        Ok(server)
    }

    /// Its directory.
    pub fn directory(&self) -> String {
        self.url("/dir")
    }

    /// Hosts of which certificates have been ordered, in order.
    pub fn ordered(&self) -> Vec<String> {
        self.ledger.lock().hosts.clone()
    }

    /// How often a path that begins so was asked for.
    pub fn calls(&self, path: &str) -> usize {
        self.ledger.lock().calls.iter().filter(|call| call.starts_with(path)).count()
    }

    /// It misbehaves so from now on; `None`: not any more.
    pub fn misbehave(&self, odd: Option<Odd>) {
        self.ledger.lock().odd = odd;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answer(&self, head: &http::request::Parts, body: &[u8]) -> Answer {
        let path = head.uri.path().to_owned();
        let mut ledger = self.ledger.lock();
        ledger.calls.push(path.clone());
        if let Some(odd) = ledger.odd.clone().filter(|odd| path.starts_with(odd.path)) {
            let mut answer = said(odd.status, &Value::Null);
            *answer.body_mut() = Full::new(odd.body.into());
            if let Some(again) = odd.again {
                answer.headers_mut().insert("retry-after", http::HeaderValue::from_static(again));
            }
            return answer;
        }
        let (kind, number) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let number: usize = number.parse().unwrap_or_default();
        let answered = match (kind, head.method == Method::POST) {
            ("dir", _) => Ok(said(StatusCode::OK, &self.named())),
            ("nonce", _) => Ok(said(StatusCode::OK, &Value::Null)),
            ("ari", _) => Ok(said(StatusCode::NOT_FOUND, &json!({"type": "urn:ietf:params:acme:error:malformed", "detail": "unknown"}))),
            ("account", true) => {
                let mut answer = said(StatusCode::CREATED, &json!({"status": "valid"}));
                self.at(&mut answer, "/account/1");
                Ok(answer)
            }
            (_, true) => self.step(&mut ledger, (kind, number), body),
            _ => Err(anyhow::anyhow!("there is nothing at {path}")),
        };
        answered.unwrap_or_else(|error| {
            let problem = json!({"type": "urn:ietf:params:acme:error:malformed", "detail": format!("{error:#}")});
            said(StatusCode::BAD_REQUEST, &problem)
        })
    }

    fn named(&self) -> Value {
        json!({
            "newNonce": self.url("/nonce"), "newAccount": self.url("/account"), "newOrder": self.url("/order"),
            "renewalInfo": self.url("/ari"), "meta": {},
        })
    }

    /// One step of an order.
    fn step(&self, ledger: &mut Ledger, (kind, number): (&str, usize), body: &[u8]) -> anyhow::Result<Answer> {
        if kind == "order" && number == 0 {
            let said = payload(body)?;
            let host = said["identifiers"][0]["value"].as_str().context("an order without a name")?;
            ledger.hosts.push(host.to_owned());
            ledger.orders.push((matches!(self.asks, Asks::Nothing), None));
            let number = ledger.orders.len();
            let mut answer = self.order(ledger, number, StatusCode::CREATED)?;
            self.at(&mut answer, &format!("/order/{number}"));
            return Ok(answer);
        }
        let host = ledger.hosts.get(number.wrapping_sub(1)).context("no such order")?.clone();
        let order = &mut ledger.orders[number - 1];
        match kind {
            "order" => self.order(ledger, number, StatusCode::OK),
            "authz" => {
                let wildcard = host.starts_with("*.");
                let challenge = json!({"type": "dns-01", "url": self.url(&format!("/challenge/{number}")), "status": "pending", "token": format!("token-{number}")});
                let status = if order.0 { "valid" } else { "pending" };
                let identifier = json!({"type": "dns", "value": host.trim_start_matches("*.")});
                Ok(said(
                    StatusCode::OK,
                    &json!({"status": status, "identifier": identifier, "wildcard": wildcard, "challenges": [challenge]}),
                ))
            }
            "challenge" => {
                let name = format!("_acme-challenge.{}.", host.trim_start_matches("*."));
                let there = match &self.asks {
                    Asks::Nothing => true,
                    Asks::Record(zone) => zone.lock().get(&name).is_some_and(|values| values.len() == 1),
                };
                anyhow::ensure!(there, "there is no record {name}");
                order.0 = true;
                let challenge = json!({"type": "dns-01", "url": self.url(&format!("/challenge/{number}")), "status": "valid", "token": format!("token-{number}")});
                Ok(said(StatusCode::OK, &challenge))
            }
            "finalize" => {
                let csr = payload(body)?["csr"].as_str().map(|csr| URL_SAFE_NO_PAD.decode(csr)).context("no request")??;
                let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
                order.1 = Some(request.signed_by(&self.issuer)?.pem() + &self.issuer.pem());
                self.order(ledger, number, StatusCode::OK)
            }
            "cert" => {
                let chain = order.1.clone().context("there is none yet")?;
                let mut answer = said(StatusCode::OK, &Value::Null);
                *answer.body_mut() = Full::new(chain.into());
                Ok(answer)
            }
            other => anyhow::bail!("there is no {other}"),
        }
    }

    fn order(&self, ledger: &Ledger, number: usize, status: StatusCode) -> anyhow::Result<Answer> {
        let (proved, chain) = ledger.orders.get(number - 1).context("no such order")?;
        let word = match (proved, chain) {
            (_, Some(_)) => "valid",
            (true, None) => "ready",
            (false, None) => "pending",
        };
        let mut order = json!({
            "status": word, "identifiers": [{"type": "dns", "value": ledger.hosts[number - 1]}],
            "authorizations": [self.url(&format!("/authz/{number}"))], "finalize": self.url(&format!("/finalize/{number}")),
        });
        if chain.is_some() {
            order["certificate"] = self.url(&format!("/cert/{number}")).into();
        }
        Ok(said(status, &order))
    }

    fn at(&self, answer: &mut Answer, path: &str) {
        if let Ok(url) = self.url(path).parse() {
            answer.headers_mut().insert("location", url);
        }
    }
}

/// What was signed (RFC 7515, flattened).
fn payload(body: &[u8]) -> anyhow::Result<Value> {
    let signed: Value = serde_json::from_slice(body)?;
    let payload = URL_SAFE_NO_PAD.decode(signed["payload"].as_str().context("no payload")?)?;
    Ok(serde_json::from_slice(&payload)?)
}

fn said(status: StatusCode, body: &Value) -> Answer {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert("replay-nonce", http::HeaderValue::from_static("nonce"));
    answer
}

/// Answers every request, one after the other on a connection, until its runtime ends.
fn serve(listener: TcpListener, answer: impl Fn(http::request::Parts, Bytes) -> Answer + Clone + Send + Sync + 'static) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(answer(head, body))
                }
            });
            tokio::spawn(async move {
                // Whoever hangs up has had enough.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// A webhook that writes TXT records, and the DNS that has them.
pub struct WrittenDns {
    /// Where the webhook is.
    pub webhook: SocketAddr,
    /// Where DNS is.
    pub resolver: SocketAddr,
    /// The records.
    pub zone: Zone,
    /// What the webhook was asked for: its path, and what it was shown as `authorization`.
    pub asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl WrittenDns {
    /// Begins to serve; what is written is seen after so long.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(delay: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (webhook, resolver) = (listener.local_addr()?, socket.local_addr()?);
        let (zone, asked) = (Zone::default(), Arc::<Mutex<Vec<(String, String)>>>::default());
        let (written, noted) = (Arc::clone(&zone), Arc::clone(&asked));
        serve(listener, move |head, body| {
            noted.lock().push((head.uri.path().to_owned(), shown(&head.headers)));
            let Ok(record) = serde_json::from_slice::<Value>(&body) else { return said(StatusCode::BAD_REQUEST, &Value::Null) };
            let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
            let (fqdn, value, zone, present) = (text("fqdn"), text("value"), Arc::clone(&written), head.uri.path() == "/present");
            tokio::spawn(async move {
                if present {
                    tokio::time::sleep(delay).await;
                    zone.lock().entry(fqdn).or_default().insert(value);
                } else if let Some(values) = zone.lock().get_mut(&fqdn) {
                    values.remove(&value);
                }
            });
            said(StatusCode::OK, &Value::Null)
        });
        let known = Arc::clone(&zone);
        tokio::spawn(async move {
            let mut question = [0; DNS_BYTES_MAX];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                if let Some(answer) = resolved(&question[..length], &known) {
                    // Who asks asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Ok(Self { webhook, resolver, zone, asked })
    }

    /// How many values there are.
    pub fn values(&self) -> usize {
        self.zone.lock().values().map(BTreeSet::len).sum()
    }
}

fn shown(headers: &HeaderMap) -> String {
    headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// An answer (RFC 1035, section 4.1) to a question for TXT.
fn resolved(question: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*question.get(at)?);
        if length == 0 {
            break;
        }
        name.push_str(&String::from_utf8_lossy(question.get(at + 1..at + 1 + length)?).to_ascii_lowercase());
        name.push('.');
        at += length + 1;
    }
    let end = at + 5;
    let values: Vec<String> = zone.lock().get(&name).into_iter().flatten().cloned().collect();
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::try_from(values.len()).ok()?, 0, 0, 0, 0]);
    answer.extend(question.get(12..end)?);
    for value in values {
        let length = u8::try_from(value.len()).ok()?;
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 1, 0, length + 1, length]);
        answer.extend(value.as_bytes());
    }
    Some(answer)
}
