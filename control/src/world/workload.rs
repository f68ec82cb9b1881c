//! Workload: a process outside Kubernetes.

use std::net::IpAddr;

use proto::annotations::ROOT_NAMESPACE;
use proto::identity::CONTROL_ACCOUNT;

use super::core::PortRef;
use super::door::{Cursor, Fields, is_subdomain};

/// Most instances of one workload.
const REPLICAS_MAX: i64 = 1_000;
/// Most items of one of its lists.
const ITEMS_MAX: usize = 1_000;

/// A process that is (or is to be) part of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The account of its identity.
    pub service_account: String,
    /// How many instances `up` starts.
    pub replicas: u32,
    /// What `up` starts; empty: it runs elsewhere, at `addresses`.
    pub command: Vec<String>,
    /// Where it runs, if not under `up`.
    pub addresses: Vec<IpAddr>,
    /// Working directory, as written.
    pub working_dir: Option<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Declared ports for TCP.
    pub ports: Vec<WorkloadPort>,
    /// Declared ports for UDP, which passes outside the mesh's TLS.
    pub udp_ports: Vec<WorkloadPort>,
    /// When it is ready; `None`: the default of `kinds.md`.
    pub readiness: Option<Probe>,
    /// Where it is: region and zone.
    pub locality: (String, String),
    /// Weight of each of its endpoints.
    pub weight: u32,
}

/// One port of a [`Workload`].
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadPort {
    /// Its name; empty: none.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// The kubelet's probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Between two probes.
    pub period_secs: u32,
    /// For one probe.
    pub timeout_secs: u32,
    /// Failures until it counts as not ready.
    pub failure_threshold: u32,
    /// Before the first.
    pub initial_delay_secs: u32,
}

/// See [`Probe::kind`].
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeKind {
    /// The default of `kinds.md` (TCP connect to the first port), with times of one's own.
    Default,
    /// GET, any answer below 400.
    Http {
        /// Path and query.
        path: String,
        /// Port.
        port: u16,
    },
    /// TCP connect.
    Tcp(u16),
    /// A command that exits with 0.
    Exec(Vec<String>),
}

impl Workload {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut workload = Self {
            service_account: "default".to_owned(),
            replicas: fields.get("replicas").and_then(|at| at.int(0..=REPLICAS_MAX)).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            command: fields.get("command").map(|at| at.texts(ITEMS_MAX)).unwrap_or_default(),
            addresses: Vec::new(),
            working_dir: fields.get("workingDir").and_then(|at| at.text()),
            env: Vec::new(),
            ports: Vec::new(),
            udp_ports: Vec::new(),
            readiness: None,
            locality: (String::new(), String::new()),
            weight: fields.get("weight").and_then(|at| at.int(1..=1_000)).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
        };
        if let Some(at) = fields.get("serviceAccount") {
            workload.service_account = at.text()?;
            if !is_subdomain(&workload.service_account) {
                at.error("no valid name of a service account", "use lower-case letters, digits and `-`");
            }
            if (at.key().namespace.as_str(), workload.service_account.as_str()) == (ROOT_NAMESPACE, CONTROL_ACCOUNT) {
                at.error("this is the control plane's own account, which no workload gets a certificate of", "use another one");
            }
        }
        for at in fields.get("addresses").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            match at.text().and_then(|text| text.parse().ok()) {
                Some(address) => workload.addresses.push(address),
                None => at.error("no IP address", "write it as 10.1.2.3 or \"2001:db8::3\""),
            }
        }
        for at in fields.get("env").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            workload.env.extend(variable(&at));
        }
        for at in fields.get("ports").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            workload.read_port(&at);
        }
        if let Some(at) = fields.get("locality") {
            let mut locality = at.fields();
            let mut part = |name| locality.get(name).and_then(|at| at.text()).unwrap_or_default();
            workload.locality = (part("region"), part("zone"));
            locality.done();
        }
        workload.readiness = fields.get("readinessProbe").and_then(|at| workload.read_probe(&at));
        workload.check(&mut fields);
        fields.done();
        Some(workload)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        if self.command.is_empty() == self.addresses.is_empty() {
            let remedy = "give it a `command` (under `up`) or `addresses` (where it runs elsewhere)";
            let both = !self.command.is_empty();
            fields.at().error(if both { "it has a command and addresses" } else { "it has neither a command nor addresses" }, remedy);
        }
        if !self.addresses.is_empty() {
            for name in ["replicas", "workingDir", "env", "readinessProbe"] {
                if let Some(at) = fields.get(name) {
                    at.error("means nothing without a `command`", "remove it");
                }
            }
        }
    }

    fn read_port(&mut self, at: &Cursor<'_>) {
        let mut fields = at.fields();
        let name = fields.get("name").and_then(|at| at.text()).unwrap_or_default();
        let port = fields.need("port").and_then(|at| at.port());
        let app_protocol = fields.get("appProtocol").and_then(|at| at.text());
        let words = [("TCP", Some(false)), ("UDP", Some(true)), ("SCTP", None)];
        let udp = fields.get("protocol").and_then(|at| at.word(&words)).unwrap_or(Some(false));
        fields.done();
        let Some(port) = port else { return };
        let mut known = self.ports.iter().chain(&self.udp_ports);
        if known.any(|known| known.port == port || (!name.is_empty() && known.name == name)) {
            at.error("a port with that number or name stands twice", "give each port its own number and name");
            return;
        }
        match udp {
            Some(false) => self.ports.push(WorkloadPort { name, port, app_protocol }),
            Some(true) => self.udp_ports.push(WorkloadPort { name, port, app_protocol }),
            None => at.error("only ports for TCP and UDP can be declared", "remove the port"),
        }
    }

    fn read_probe(&self, at: &Cursor<'_>) -> Option<Probe> {
        let mut fields = at.fields();
        let mut secs = |name, least, default| {
            let number = fields.get(name).and_then(|at| at.int(least..=86_400));
            number.and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
        };
        let mut probe = Probe {
            kind: ProbeKind::Default,
            period_secs: secs("periodSeconds", 1, 10),
            timeout_secs: secs("timeoutSeconds", 1, 1),
            failure_threshold: secs("failureThreshold", 1, 3),
            initial_delay_secs: secs("initialDelaySeconds", 0, 0),
        };
        let mut kinds = Vec::new();
        if let Some(at) = fields.get("httpGet") {
            let mut get = at.fields();
            let path = get.get("path").and_then(|at| probe_path(&at)).unwrap_or_else(|| "/".to_owned());
            let port = get.need("port").and_then(|at| self.port(&at));
            if let Some(at) = get.get("scheme") {
                at.word(&[("HTTP", ())]);
            }
            get.unsupported(&["host", "httpHeaders"]);
            get.done();
            kinds.push(ProbeKind::Http { path, port: port? });
        }
        if let Some(at) = fields.get("tcpSocket") {
            let mut tcp = at.fields();
            let port = tcp.need("port").and_then(|at| self.port(&at));
            tcp.unsupported(&["host"]);
            tcp.done();
            kinds.push(ProbeKind::Tcp(port?));
        }
        if let Some(at) = fields.get("exec") {
            let mut exec = at.fields();
            let command = exec.need("command").map(|at| at.texts(ITEMS_MAX)).unwrap_or_default();
            exec.done();
            kinds.push(ProbeKind::Exec(command));
        }
        if let Some(at) = fields.get("successThreshold") {
            // The kubelet's default; a higher one is not counted here.
            at.int(1..=1);
        }
        fields.unsupported(&["grpc", "terminationGracePeriodSeconds"]);
        fields.done();
        if kinds.len() > 1 {
            at.error("more than one kind of probe", "use one of httpGet, tcpSocket, exec");
        }
        probe.kind = kinds.pop().unwrap_or(ProbeKind::Default);
        Some(probe)
    }

    fn port(&self, at: &Cursor<'_>) -> Option<u16> {
        match PortRef::read(at)? {
            PortRef::Number(port) => Some(port),
            PortRef::Name(name) => {
                let found = self.ports.iter().find(|port| port.name == name).map(|port| port.port);
                if found.is_none() {
                    at.error(format!("no port is named `{name}`"), "name one of `ports`, or use its number");
                }
                found
            }
        }
    }
}

/// A path with its query, as a kubelet asks for it: with a slash in front, written or not.
fn probe_path(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let path = if text.starts_with('/') { text } else { format!("/{text}") };
    if path.parse::<http::uri::PathAndQuery>().is_err() {
        at.error(format!("`{path}` is no path"), "write what no URL may hold as %XX");
        return None;
    }
    Some(path)
}

fn variable(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| at.text());
    let value = fields.get("value").map_or(Some(String::new()), |at| at.text());
    fields.unsupported(&["valueFrom"]);
    fields.done();
    let name = name?;
    if name.is_empty() || name.contains(['=', '\0']) {
        at.error("no valid name of a variable", "use letters, digits and `_`");
        return None;
    }
    Some((name, value?))
}
