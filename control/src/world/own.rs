//! Our own mesh-wide kinds: Mesh and PeerAuthentication. Every field is honoured or refused (`kinds.md`).

use std::collections::BTreeMap;
use std::time::Duration;

use proto::defaults;
use proto::words::MtlsMode;

use super::content::ContentRef;
use super::door::{Cursor, Fields};

/// The mesh's switches; the defaults are those of a mesh without a Mesh object.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Life of a leaf certificate.
    pub leaf_life: Duration,
    /// When to renew it, per cent of its life.
    pub rotate_at_percent: u32,
    /// Life of an issuing certificate.
    pub intermediate_life: Duration,
    /// Life of a root.
    pub root_life: Duration,
    /// Whether traffic to addresses the mesh does not know is refused.
    pub outside_denied: bool,
    /// Other trust domains that are believed; each once, our own never.
    pub federation: Vec<Federated>,
    /// Whether every AuthorizationPolicy only logs and counts.
    pub authorization_dry_run: bool,
}

/// Another trust domain, believed for identities of its own only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federated {
    /// Its name.
    pub trust_domain: String,
    /// Where its roots stand, PEM.
    pub bundle: ContentRef,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: proto::identity::DEFAULT_TRUST_DOMAIN.to_owned(),
            leaf_life: defaults::LEAF_LIFE,
            rotate_at_percent: defaults::ROTATE_AT_PERCENT,
            intermediate_life: defaults::INTERMEDIATE_LIFE,
            root_life: defaults::ROOT_LIFE,
            outside_denied: false,
            federation: Vec::new(),
            authorization_dry_run: false,
        }
    }
}

/// Other trust domains at most: each of them costs every proxy its roots.
const FEDERATED_MAX: usize = 32;
/// Shortest leaf: renewals need some time.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(30);

impl Mesh {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut mesh = Self::default();
        if let Some(at) = fields.get("trustDomain") {
            mesh.trust_domain = trust_domain(&at)?;
        }
        if let Some(at) = fields.get("certificates") {
            mesh.read_certificates(at.fields());
        }
        if let Some(at) = fields.get("outsideMesh") {
            mesh.outside_denied = at.word(&[("Allow", false), ("Deny", true)])?;
        }
        if let Some(at) = fields.get("authorization") {
            let mut authorization = at.fields();
            mesh.authorization_dry_run = authorization.get("dryRun").is_some_and(|at| at.flag() == Some(true));
            authorization.done();
        }
        if let Some(at) = fields.get("configCache") {
            let mut cache = at.fields();
            if let Some(enabled) = cache.get("enabled")
                && enabled.flag() == Some(true)
            {
                enabled.error("the configuration cache is not supported by this version", "remove it, or say `false`");
            }
            cache.done();
        }
        if let Some(at) = fields.get("federation") {
            mesh.read_federation(&at);
        }
        fields.done();
        Some(mesh)
    }

    fn read_federation(&mut self, at: &Cursor<'_>) {
        for item in at.list(FEDERATED_MAX) {
            let mut fields = item.fields();
            let named = fields.need("trustDomain");
            let domain = named.as_ref().and_then(trust_domain);
            let bundle = fields.need("bundle").and_then(|at| ContentRef::read(&at));
            fields.done();
            let (Some(named), Some(trust_domain), Some(bundle)) = (named, domain, bundle) else { continue };
            if trust_domain == self.trust_domain {
                named.error("it is the mesh's own trust domain", "nobody else is ever believed for it; name the other mesh's");
            } else if self.federation.iter().any(|other| other.trust_domain == trust_domain) {
                named.error(format!("`{trust_domain}` stands twice"), "put all roots of a trust domain into one bundle");
            } else {
                self.federation.push(Federated { trust_domain, bundle });
            }
        }
    }

    fn read_certificates(&mut self, mut fields: Fields<'_>) {
        let mut life = |name, into: &mut Duration| {
            let Some(at) = fields.get(name) else { return };
            let Some(life) = at.duration() else { return };
            if life < LEAF_LIFE_MIN {
                at.error("too short", "use at least 30s");
            }
            *into = life;
        };
        life("leafLife", &mut self.leaf_life);
        life("intermediateLife", &mut self.intermediate_life);
        life("rootLife", &mut self.root_life);
        if let Some(percent) = fields.get("rotateAtPercent").and_then(|at| at.int(1..=95)) {
            self.rotate_at_percent = u32::try_from(percent).unwrap_or(66);
        }
        if self.leaf_life > self.intermediate_life || self.intermediate_life > self.root_life {
            fields.at().error("a certificate would outlive its issuer", "leafLife ≤ intermediateLife ≤ rootLife");
        }
        fields.done();
    }
}

fn trust_domain(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if proto::identity::Identity::new(&text, "a", "a").is_err() {
        at.error(format!("`{text}` is no trust domain"), "use lower-case letters, digits, `.`, `-` and `_`");
    }
    Some(text)
}

/// Which workloads an object of ours is about: those with all these labels; `None`: its whole namespace.
pub type Selector = Option<BTreeMap<String, String>>;

pub(in crate::world) fn read_selector(fields: &mut Fields<'_>) -> Selector {
    let mut selector = fields.get("selector")?.fields();
    let labels = selector.get("matchLabels").map(|labels| labels.text_map()).unwrap_or_default();
    selector.done();
    Some(labels).filter(|labels| !labels.is_empty())
}

fn read_mode(at: &Cursor<'_>) -> Option<MtlsMode> {
    let mut fields = at.fields();
    let words = MtlsMode::ALL.map(|mode| (mode.text(), mode));
    let mode = fields.need("mode").and_then(|mode| mode.word(&words));
    fields.done();
    mode
}

/// Demands on the inbound side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerAuthentication {
    /// For whom.
    pub selector: Selector,
    /// The mode of every port.
    pub mode: Option<MtlsMode>,
    /// Exceptions, by workload port.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl PeerAuthentication {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { selector: read_selector(&mut fields), ..Self::default() };
        let (general, ports) = (fields.get("mtls"), fields.get("portLevelMtls"));
        if general.is_none() && ports.is_none() {
            fields.at().error("it sets no mode", "add mtls.mode or portLevelMtls");
        }
        read.mode = general.and_then(|at| read_mode(&at));
        for (port, at) in ports.map(|ports| ports.entries()).unwrap_or_default() {
            match (port.parse().ok().filter(|port: &u16| *port > 0), read_mode(&at)) {
                (Some(port), Some(mode)) => {
                    read.ports.insert(port, mode);
                }
                (None, _) => at.error(format!("`{port}` is no port"), "use the workload's port number, in quotes"),
                (Some(_), None) => {}
            }
        }
        fields.done();
        Some(read)
    }
}
