//! What an edge serves at its ports.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::secret::{Made, SecretCell};
use super::{ClientPolicy, Domains, Forward, RouteTable, Target};
use crate::authorize::Authorization;

/// One TCP port of an edge.
#[derive(Debug)]
pub struct Edge {
    /// Resource name.
    pub name: Arc<str>,
    /// What is served there.
    pub port: Port,
    /// What holds for its clients.
    pub clients: Arc<ClientPolicy>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

/// One kind of thing: what a client may say first does not decide between several.
#[derive(Debug)]
pub enum Port<B = Arc<Forward>, C = Arc<Chains>, R = Arc<RouteTable>> {
    /// HTTP in plaintext.
    Http(R),
    /// Bytes.
    Bytes(B),
    /// TLS, by the name that it asks for.
    Tls(C),
}

/// Filter chains for TLS and the names that they are for (RFC 6066, section 3).
#[derive(Debug)]
pub struct Chains<S = Serves> {
    pub(crate) names: Arc<Domains>,
    pub(crate) all: Vec<Arc<Chain<S>>>,
}

/// What TLS of some names meets.
#[derive(Debug)]
pub struct Chain<S = Serves> {
    /// Name of the listener that made it; unique at a port.
    pub name: Arc<str>,
    /// How TLS is ended here; `None`: it passes untouched.
    pub terms: Option<Arc<TlsTerms>>,
    /// What is inside, or what passes.
    pub serves: S,
    /// What a client's certificate proves is told on (`x-forwarded-client-cert`).
    pub tells_client: bool,
    /// Who may come, beside what the port asks of all; of bytes alone.
    pub policies: Option<Arc<Authorization>>,
}

/// See [`Chain::serves`].
#[derive(Debug)]
pub enum Serves<T = Target, R = Option<Arc<RouteTable>>> {
    /// Requests, by this table. `None`: it has not come yet.
    Http(R),
    /// Bytes.
    Bytes(Arc<Forward<T>>),
}

impl<S> Chains<S> {
    /// Each name (`NAME`, `*.SUFFIX` or `*`, lower case) with the chain that it leads to.
    pub fn leading<'n>(to: impl IntoIterator<Item = (&'n str, Arc<Chain<S>>)>) -> Self {
        let (mut names, mut all) = (Domains::default(), Vec::new());
        for (name, chain) in to {
            names.add(name, all.len());
            all.push(chain);
        }
        Self { names: Arc::new(names), all }
    }

    /// The chain for TLS that asks for this name (lower case), or for none: an exact name before a wildcard, the longest wildcard before
    /// others, `*` last, which also is for who names nobody.
    pub fn lookup(&self, name: Option<&str>) -> Option<&Arc<Chain<S>>> {
        let place = name.map_or_else(|| self.names.any(), |name| self.names.named(name));
        self.all.get(place?)
    }

    /// Every chain, each at least once.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Chain<S>>> {
        self.all.iter()
    }

    /// Whether some TLS passes here untouched: then nobody is answered in TLS by a name that no chain has, as if the port were bytes.
    pub fn passes(&self) -> bool {
        self.all.iter().any(|chain| chain.terms.is_none())
    }

    /// Every chain with its names, sorted.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Vec<String>, &Arc<Chain<S>>)> {
        self.names.by_place(self.all.len()).into_iter().zip(&self.all)
    }
}

/// How TLS is ended for clients from outside. Two that say the same are the same.
#[derive(Debug)]
pub struct TlsTerms {
    /// The oldest and the newest version.
    pub versions: (TlsVersion, TlsVersion),
    /// What is agreed to by ALPN, the dearest first; none: it is not answered.
    pub alpn: Vec<ApplicationProtocol>,
    /// What is shown, one of them: in the order of the listener.
    pub certificates: Vec<Arc<SecretCell>>,
    /// Whether clients are asked for a certificate.
    pub clients: Option<ClientCertificates>,
    /// What session tickets are made with; `None`: sessions are not resumed.
    pub tickets: Option<Arc<SecretCell>>,
    /// TLS 1.2 is spoken with clients that lack the extended master secret (RFC 7627), too.
    pub plain_master_secret: bool,
    /// What the shell has made of it.
    pub made: Made,
}

impl TlsTerms {
    /// Changes whenever a secret that it speaks of does.
    pub fn stamp(&self) -> u64 {
        let clients = self.clients.iter().map(|clients| &clients.authorities);
        self.certificates.iter().chain(clients).chain(&self.tickets).map(|cell| cell.stamp()).max().unwrap_or(0)
    }
}

impl PartialEq for TlsTerms {
    fn eq(&self, other: &Self) -> bool {
        let of = |terms: &Self| {
            let shown = (terms.certificates.clone(), terms.clients.clone(), terms.tickets.clone());
            (terms.versions, terms.plain_master_secret, terms.alpn.clone(), shown)
        };
        of(self) == of(other)
    }
}

impl Eq for TlsTerms {}

impl Hash for TlsTerms {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.versions, self.plain_master_secret, &self.alpn, &self.certificates, &self.clients, &self.tickets).hash(state);
    }
}

/// Whose certificates are asked for (GEP-91).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientCertificates {
    /// Who vouches for them.
    pub authorities: Arc<SecretCell>,
    /// Without one there is no connection.
    pub required: bool,
    /// One that nobody vouches for is no hindrance, and nothing of it is believed.
    pub untrusted: bool,
}

/// A version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

impl TlsVersion {
    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
        }
    }
}

/// What comes inside TLS, as ALPN names it (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

impl ApplicationProtocol {
    /// As it is on the wire.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }

    /// The one that is spelled so.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http1, Self::Http2].into_iter().find(|protocol| protocol.text() == text)
    }
}

/// One port of an edge that takes datagrams.
#[derive(Debug)]
pub struct Datagrams<T = Target> {
    /// Resource name.
    pub name: Arc<str>,
    /// Where sessions go. Its policy's idle timeout is that of sessions.
    pub forward: Arc<Forward<T>>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}
