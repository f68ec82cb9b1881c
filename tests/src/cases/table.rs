//! The table as it is written. Nothing in a file is ignored: an unknown field is an error.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

/// One file: one mesh, and what is asked of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The file's topic.
    pub name: String,
    /// Features of the standard that it needs, by their published names.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Services without anything behind them, in `shop`: something for routes to be attached to.
    #[serde(default)]
    pub fronts: Vec<String>,
    /// Services with pods behind them.
    #[serde(default)]
    pub backends: BTreeMap<String, Backend>,
    /// Secrets in `shop` with a certificate of these names, made when the table runs.
    #[serde(default)]
    pub certificates: BTreeMap<String, Vec<String>>,
    /// Labels of namespaces, by name.
    #[serde(default)]
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Workloads that call, by name: their namespaces.
    #[serde(default)]
    pub clients: BTreeMap<String, String>,
    /// Manifests; `apiVersion` may be left out, the namespace is `shop` unless one is named.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Creation times by `kind/namespace/name` (lower case kind): seconds of 2026.
    #[serde(default)]
    pub created: BTreeMap<String, u32>,
    /// What status must say.
    #[serde(default)]
    pub status: Vec<StatusCase>,
    /// What requests must come to.
    #[serde(default)]
    pub cases: Vec<Case>,
    /// Changes, each with what holds then.
    #[serde(default)]
    pub steps: Vec<Change>,
    /// Also run by processes in network namespaces.
    #[serde(default)]
    pub netns: bool,
}

/// A Service and what is behind it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backend {
    /// Its namespace.
    pub namespace: String,
    /// How many pods; each is named like the Service, with a number where there are several.
    pub pods: u8,
    /// Its ports; `80` to `8080` where none are given.
    pub ports: Vec<Port>,
    /// Whether pods have sidecars.
    pub meshed: bool,
    /// Whether anybody listens in its pods.
    pub listens: bool,
    /// Bytes instead of HTTP.
    pub bytes: bool,
}

impl Default for Backend {
    fn default() -> Self {
        Self { namespace: "shop".into(), pods: 1, ports: Vec::new(), meshed: true, listens: true, bytes: false }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The Service's.
    pub port: u16,
    /// The pods'.
    #[serde(default = "usual_target")]
    pub target: u16,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// What it says that it speaks.
    #[serde(default, rename = "appProtocol")]
    pub app_protocol: String,
    /// `UDP`, or TCP where it says nothing.
    #[serde(default)]
    pub protocol: String,
}

const fn usual_target() -> u16 {
    8080
}

/// What the status of one object must say.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusCase {
    /// What it shows.
    pub name: String,
    /// Where it is written that it must be so.
    pub refs: Vec<String>,
    /// `kind/name` or `kind/namespace/name`.
    pub object: String,
    /// Conditions with the parent or ancestor of this name; without, the object's own or the only parent's.
    #[serde(default)]
    pub parent: String,
    /// `True/Reason`, `False` or `absent`, by type.
    pub conditions: BTreeMap<String, String>,
}

/// One request, or many alike, and what they must come to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Where it is written that it must be so: sections of `gateway-api.md`, or `traffic-policy`.
    pub refs: Vec<String>,
    /// The request.
    pub get: Ask,
    /// What it must come to.
    pub want: Want,
    /// The only consumer that can tell.
    #[serde(default)]
    pub only: Option<Only>,
}

/// See [`Case::only`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    /// Translator and engine.
    Unit,
    /// A whole mesh.
    Process,
}

/// A request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Who asks: a workload of `clients`.
    #[serde(default = "usual_client")]
    pub from: String,
    /// `SERVICE`, `SERVICE:PORT`, `SERVICE.NAMESPACE:PORT`, `pod/NAME:PORT`, or from outside `gateway/NAME:PORT`.
    pub to: String,
    /// The name that it asks for by TLS, which a Gateway ends; empty: it asks for none. Without: plaintext.
    #[serde(default)]
    pub sni: Option<String>,
    /// The address that a balancer in front says it comes from, by the PROXY protocol.
    #[serde(default)]
    pub proxied: Option<IpAddr>,
    /// Method.
    #[serde(default = "usual_method")]
    pub method: String,
    /// Path and query.
    #[serde(default = "root")]
    pub path: String,
    /// The Host it names; the Service's name where none is given.
    #[serde(default)]
    pub host: Option<String>,
    /// Its headers; a list is a header that is repeated.
    #[serde(default)]
    pub headers: BTreeMap<String, Values>,
    /// What it speaks.
    #[serde(default)]
    pub proto: Proto,
    /// Its body.
    #[serde(default)]
    pub body: String,
    /// How often it is asked.
    #[serde(default = "once")]
    pub repeat: u32,
    /// What the backend answers.
    #[serde(default)]
    pub answer: Option<Wish>,
    /// The header of the first answer that goes along with every further request; `set-cookie` goes along as `cookie`.
    #[serde(default)]
    pub keep: Option<String>,
}

fn usual_client() -> String {
    "client".into()
}

fn usual_method() -> String {
    "GET".into()
}

fn root() -> String {
    "/".into()
}

const fn once() -> u32 {
    1
}

/// What a request speaks.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A gRPC call: HTTP/2, POST.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS, which asks for the host's name; nobody reads more of it.
    Tls,
    /// A datagram.
    Udp,
}

impl Proto {
    /// Whether proxies carry it as bytes.
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls | Self::Udp)
    }
}

/// One value or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(String),
    /// Several fields of the same name.
    Many(Vec<String>),
}

impl Values {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// What a backend is told to answer.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wish {
    /// Status.
    pub status: u16,
    /// It thinks for so long.
    pub delay_ms: u64,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Only to so many of the first requests; later ones are answered 200 at once. 0: to all.
    pub first: u32,
    /// It hangs up instead.
    pub reset: bool,
    /// The code of a gRPC answer.
    pub grpc: u8,
}

impl Default for Wish {
    fn default() -> Self {
        Self { status: 200, delay_ms: 0, headers: BTreeMap::new(), first: 0, reset: false, grpc: 0 }
    }
}

/// What a request must come to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Want {
    /// The status of its answer; 200 where a backend is named.
    pub status: Option<u16>,
    /// The reason that the mesh gives.
    pub reason: Option<String>,
    /// Who answers it.
    pub backend: Option<String>,
    /// What the backend saw.
    pub seen: WantSeen,
    /// Headers of the answer.
    pub headers: BTreeMap<String, String>,
    /// Headers that the answer has not.
    pub absent: Vec<String>,
    /// Where it is sent.
    pub redirect: Option<String>,
    /// Shares by backend, or by status where none answered.
    pub share: BTreeMap<String, f64>,
    /// How many went where, exactly; named as shares are.
    pub count: BTreeMap<String, u32>,
    /// Copies by backend, of all requests.
    pub mirrored: BTreeMap<String, f64>,
    /// It takes so long, and at most 200 ms more.
    pub took_ms: Option<u64>,
    /// How many requests backends saw, mirrors aside.
    pub attempts: Option<u32>,
    /// The code of a gRPC answer.
    pub grpc: Option<u8>,
    /// The connection is closed without an answer.
    pub closed: bool,
    /// All requests go to one pod.
    pub sticky: bool,
    /// The rule that decides, as `NAMESPACE/NAME/RULE`.
    pub rule: Option<String>,
}

/// See [`Want::seen`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WantSeen {
    /// Path and query.
    pub path: Option<String>,
    /// Host.
    pub host: Option<String>,
    /// Method.
    pub method: Option<String>,
    /// Headers; repeated ones are joined by a comma.
    pub headers: BTreeMap<String, String>,
    /// Headers it did not see.
    pub absent: Vec<String>,
    /// Body.
    pub body: Option<String>,
}

/// A change of what is live.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Objects that come, or take the place of those before.
    #[serde(default)]
    pub apply: Vec<Value>,
    /// Objects that go, `kind/name` or `kind/namespace/name`: such that came by a step.
    #[serde(default)]
    pub delete: Vec<String>,
    /// What status says then.
    #[serde(default)]
    pub status: Vec<StatusCase>,
    /// What requests come to then.
    #[serde(default)]
    pub cases: Vec<Case>,
}

impl Table {
    /// A table from its text.
    ///
    /// # Errors
    /// It is not what a table looks like.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut table: Self = serde_saphyr::from_str(text)?;
        if table.clients.is_empty() {
            table.clients.insert(usual_client(), "shop".into());
        }
        Ok(table)
    }

    /// Every case of requests, those of steps too.
    pub fn all_cases(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().chain(self.steps.iter().flat_map(|step| &step.cases))
    }

    /// Every case of status, those of steps too.
    pub fn all_statuses(&self) -> impl Iterator<Item = &StatusCase> {
        self.status.iter().chain(self.steps.iter().flat_map(|step| &step.status))
    }
}

/// The folder of tables.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// Every table, by name of file.
///
/// # Errors
/// One cannot be read; says which.
pub fn tables() -> anyhow::Result<Vec<Table>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let read = |file: &PathBuf| -> anyhow::Result<Table> {
        let text = std::fs::read_to_string(file)?;
        Table::parse(&text).with_context(|| format!("{} is no table of cases", file.display()))
    };
    files.iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")).map(read).collect()
}
