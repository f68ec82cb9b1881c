//! Where a workload may call outside the mesh: what all that selects it allows together.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{Cluster, Domains, Named, RouteTable};
use crate::matching::without_port;
use crate::sniff::ClientHello;

/// Ports at which an address often serves the names of many, so that bytes that name nobody might reach any of them.
const SHARED_PORTS: [u16; 4] = [80, 443, 8080, 8443];
/// Where TLS of our own is met, whichever port was called in plaintext.
pub const ORIGINATE_PORT: u16 = 443;
/// Longest host name (RFC 1035); a longer one is nobody's.
const HOST_BYTES_MAX: usize = 255;

/// What the policies of one workload say together.
#[derive(Debug)]
pub struct Egress {
    /// What comes of it.
    pub mode: EgressMode,
    /// `NAMESPACE/NAME` of the policies that count.
    pub policies: Vec<Arc<str>>,
    /// Those that leave by TLS of our own come first.
    pub(crate) rules: Vec<EgressRule>,
    /// Where requests go that no rule is asked about, or whose verdict is only told.
    pub plain: Arc<RouteTable>,
}

/// What comes of a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EgressMode {
    /// No policy selects the workload: the mesh's own switch holds.
    #[default]
    Unsaid,
    /// Nothing is cut; what would be is told.
    Audit,
    /// What no rule allows is cut.
    Enforce,
}

/// One thing that is allowed. Of every list that is there one item must hold.
#[derive(Debug)]
pub struct EgressRule {
    /// `NAMESPACE/NAME` of its policy.
    pub policy: Arc<str>,
    pub(crate) hosts: Option<Domains>,
    pub(crate) cidrs: Vec<IpNet>,
    pub(crate) ports: Vec<u16>,
    /// Whom its requests meet by TLS of our own; they are for this rule only as HTTP in plaintext.
    pub(crate) originate: Option<Arc<Named>>,
    /// Where they go: the original destination, of which TLS is met at [`ORIGINATE_PORT`].
    pub(crate) cluster: Arc<Cluster>,
    /// Where its requests go.
    pub table: Arc<RouteTable>,
}

/// Where something goes, and the names whose DNS answers gave that address.
#[derive(Clone, Copy, Debug)]
pub struct Going<'n> {
    /// The original destination.
    pub to: SocketAddr,
    /// Lower case, without trailing dot.
    pub names: &'n [Arc<str>],
}

/// What an application says of where it goes.
#[derive(Clone, Copy, Debug)]
pub enum Spoken<'c> {
    /// A TLS ClientHello.
    Tls(&'c ClientHello),
    /// A request for this host, as it is written there.
    Http(&'c str),
    /// Something else, or its server spoke first.
    Bytes,
    /// Something that may still become TLS or HTTP.
    Undecided,
    /// Nobody has listened: it was carried when nothing was asked of its words.
    Unheard,
}

/// What an address alone comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// It is allowed, whatever is said there.
    Free,
    /// It depends on what is said there.
    Words,
    /// It is not allowed, whatever is said there.
    Barred,
}

/// Why nothing allows it; of several rules the one that came nearest says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Barred {
    /// No rule is for that address and port, and none names a host whose DNS answer gave that address.
    Address,
    /// The rule's requests leave by TLS: it is for HTTP in plaintext.
    OnlyHttp,
    /// Neither HTTP nor TLS.
    Bytes,
    /// Its first words did not come.
    Undecided,
    /// Its first words came when nobody listened.
    Unheard,
    /// TLS that asks for no name.
    Nameless,
    /// TLS whose name is encrypted.
    Hidden,
    /// No rule is for the name that it asks for.
    Name,
    /// No DNS answer gave that address for the name that it asks for.
    Unanswered,
}

impl Barred {
    /// A sentence for people, to go on after the destination.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Address => {
                "no EgressPolicy allows this address and port, and no DNS answer to this workload gave the address for a name that one allows"
            }
            Self::OnlyHttp => "the EgressPolicy's rule for it makes TLS of its own (tls.originate): only HTTP in plaintext is taken there",
            Self::Bytes => {
                "it is neither HTTP nor TLS, so no name can be seen: allow it by `cidrs`, or by name and port elsewhere than on the web's ports"
            }
            Self::Undecided => "its first words did not come in time, so no name can be seen",
            Self::Unheard => "it was open before a rule by name was about it, so what it asked for is not known: it has to be opened anew",
            Self::Nameless => "it is TLS that asks for no name (SNI): allow the address by `cidrs`",
            Self::Hidden => "it is TLS whose real name is encrypted (ECH), or may be: allow the address by `cidrs`, or turn ECH off",
            Self::Name => "no EgressPolicy allows the name that it asks for at this address and port",
            Self::Unanswered => "no DNS answer to this workload gave this address for the name that it asks for",
        }
    }
}

impl Egress {
    /// Whom requests to one of its clusters meet by TLS of our own.
    pub fn originated(&self, cluster: &Cluster) -> Option<&Arc<Named>> {
        // Those that do come first, and are few.
        let originating = self.rules.iter().map_while(|rule| Some((rule, rule.originate.as_ref()?)));
        originating.into_iter().find(|(rule, _)| std::ptr::eq(&raw const *rule.cluster, cluster)).map(|(_, named)| named)
    }

    /// What an address comes to before anything is said there.
    pub fn ahead(&self, going: Going<'_>) -> Ahead {
        let (mut free, mut words, mut originates) = (false, false, false);
        for rule in self.rules.iter().filter(|rule| rule.reaches(going.to)) {
            match &rule.hosts {
                None => free = true,
                Some(hosts) if going.names.iter().any(|name| hosts.named(name).is_some()) => {
                    words = true;
                    originates |= rule.originate.is_some();
                }
                Some(_) => {}
            }
        }
        match (free, words) {
            (true, _) if !originates => Ahead::Free,
            (_, true) => Ahead::Words,
            (true, false) => Ahead::Free,
            (false, false) => Ahead::Barred,
        }
    }

    /// The rule that allows it.
    ///
    /// # Errors
    /// None does.
    pub fn judge(&self, going: Going<'_>, spoken: Spoken<'_>) -> Result<&EgressRule, Barred> {
        let (mut barred, mut free) = (Barred::Address, None);
        let mut lower = SmallVec::new();
        let spoken = match spoken {
            Spoken::Http(host) => Spoken::Http(plain(host, &mut lower)),
            other => other,
        };
        let named = match spoken {
            Spoken::Http(host) => Some(host),
            Spoken::Tls(hello) => hello.sni.as_deref(),
            Spoken::Bytes | Spoken::Undecided | Spoken::Unheard => None,
        };
        // Once, however many rules there are.
        let answered = named.is_some_and(|name| going.names.iter().any(|known| **known == *name));
        for rule in self.rules.iter().filter(|rule| rule.reaches(going.to)) {
            let Some(hosts) = &rule.hosts else {
                free = free.or(Some(rule));
                continue;
            };
            match rule.names(hosts, going, (spoken, answered)) {
                Ok(()) => return Ok(rule),
                Err(why) => barred = barred.max(why),
            }
        }
        free.ok_or(barred)
    }
}

impl EgressRule {
    /// Whether it is for that address and port, as far as its lists say.
    fn reaches(&self, to: SocketAddr) -> bool {
        let address = to.ip().to_canonical();
        (self.ports.is_empty() || self.ports.contains(&to.port()))
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|range| range.contains(&address)))
    }

    /// Whether what is said there names one of its hosts, and DNS gave the address for just that name (`answered`).
    fn names(&self, hosts: &Domains, going: Going<'_>, (spoken, answered): (Spoken<'_>, bool)) -> Result<(), Barred> {
        let name = match spoken {
            Spoken::Http(host) => host,
            _ if self.originate.is_some() => return Err(Barred::OnlyHttp),
            Spoken::Tls(hello) if hello.encrypted => return Err(Barred::Hidden),
            Spoken::Tls(hello) => hello.sni.as_deref().ok_or(Barred::Nameless)?,
            Spoken::Undecided => return Err(Barred::Undecided),
            Spoken::Unheard => return Err(Barred::Unheard),
            Spoken::Bytes if self.ports.is_empty() || SHARED_PORTS.contains(&going.to.port()) => return Err(Barred::Bytes),
            Spoken::Bytes => {
                let answered = going.names.iter().any(|name| hosts.named(name).is_some());
                return if answered { Ok(()) } else { Err(Barred::Address) };
            }
        };
        match hosts.named(name) {
            None => Err(Barred::Name),
            Some(_) if answered => Ok(()),
            Some(_) => Err(Barred::Unanswered),
        }
    }
}

/// A host as names are kept: lower case, without user, port and trailing dot. One that is too long is nobody's.
fn plain<'h>(host: &'h str, lower: &'h mut SmallVec<[u8; HOST_BYTES_MAX]>) -> &'h str {
    // What stands before the last `@` is not sent on.
    let host = without_port(host.rsplit('@').next().unwrap_or(host));
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > HOST_BYTES_MAX {
        return "";
    }
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return host;
    }
    lower.extend(host.bytes().map(|byte| byte.to_ascii_lowercase()));
    std::str::from_utf8(lower).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use proto::mesh::{EgressPolicy, EgressRule as RawRule};

    use super::*;
    use crate::model::build::egress;

    fn rule(hosts: &[&str], cidrs: &[&str], ports: &[u32]) -> RawRule {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        RawRule { hosts: texts(hosts), cidrs: texts(cidrs), ports: ports.to_vec(), originate: None }
    }

    fn compiled(allow: Vec<RawRule>) -> Egress {
        let policies = vec![EgressPolicy { name: "shop/out".into(), audit: false, allow }];
        egress::compile(proto::names::EGRESS, &proto::mesh::Egress { policies }).unwrap()
    }

    fn tls(sni: &str) -> ClientHello {
        ClientHello { sni: Some(sni.to_owned()).filter(|sni| !sni.is_empty()), ..ClientHello::default() }
    }

    #[test]
    fn name_answer_and_words_must_agree() {
        // Aim: by name, the DNS answer and what the connection asks for are both an allowed name, and the same one; everything that hides
        // its name is barred; of two names at one address each is judged for itself.
        let egress = compiled(vec![rule(&["*.example.com", "db.example.net"], &[], &[443, 80, 5432])]);
        let names: Vec<Arc<str>> = ["api.example.com", "evil.example.org", "db.example.net"].map(Arc::from).to_vec();
        let only_evil = &names[1..2];
        let at = |port: u16, names, spoken| egress.judge(Going { to: ([192, 0, 2, 7], port).into(), names }, spoken).map(|_| ());
        let (api, evil, bare, other) = (tls("api.example.com"), tls("evil.example.org"), tls(""), tls("www.example.com"));
        let hidden = ClientHello { encrypted: true, ..api.clone() };
        let (all, none): (&[Arc<str>], &[Arc<str>]) = (&names, &[]);
        for (port, names, spoken, wanted) in [
            (443, all, Spoken::Tls(&api), Ok(())),
            (443, all, Spoken::Tls(&evil), Err(Barred::Name)),
            (443, all, Spoken::Tls(&other), Err(Barred::Unanswered)),
            (443, none, Spoken::Tls(&api), Err(Barred::Unanswered)),
            (443, only_evil, Spoken::Tls(&api), Err(Barred::Unanswered)),
            (443, all, Spoken::Tls(&bare), Err(Barred::Nameless)),
            (443, all, Spoken::Tls(&hidden), Err(Barred::Hidden)),
            (443, all, Spoken::Bytes, Err(Barred::Bytes)),
            (443, all, Spoken::Undecided, Err(Barred::Undecided)),
            (80, all, Spoken::Http("API.Example.com:80"), Ok(())),
            (80, all, Spoken::Http("api.example.com."), Ok(())),
            (80, all, Spoken::Http("evil.example.org"), Err(Barred::Name)),
            (80, all, Spoken::Http("api.example.com:x@evil.example.org"), Err(Barred::Name)),
            (80, all, Spoken::Http("example.com"), Err(Barred::Name)),
            (80, all, Spoken::Http("192.0.2.7"), Err(Barred::Name)),
            (80, all, Spoken::Http(""), Err(Barred::Name)),
            (5432, all, Spoken::Bytes, Ok(())),
            (5432, only_evil, Spoken::Bytes, Err(Barred::Address)),
            (5432, all, Spoken::Undecided, Err(Barred::Undecided)),
            (5432, all, Spoken::Unheard, Err(Barred::Unheard)),
            (8443, all, Spoken::Tls(&api), Err(Barred::Address)),
        ] {
            assert_eq!(at(port, names, spoken), wanted, "{port} {names:?} {spoken:?}");
        }
    }

    #[test]
    fn an_address_may_be_enough() {
        // Aim: by range and port nothing has to be said; with a range and a name both must hold; what an address comes to beforehand is
        // never better than what is judged afterwards.
        let egress =
            compiled(vec![rule(&[], &["192.0.2.0/24", "2001:db8::/32"], &[5432]), rule(&["a.example"], &["198.51.100.0/24"], &[])]);
        let names: Vec<Arc<str>> = vec!["a.example".into()];
        for (to, wanted) in [
            ("192.0.2.9:5432", Ahead::Free),
            ("[::ffff:192.0.2.9]:5432", Ahead::Free),
            ("[2001:db8::1]:5432", Ahead::Free),
            ("192.0.2.9:5433", Ahead::Barred),
            ("192.0.3.9:5432", Ahead::Barred),
            ("198.51.100.1:443", Ahead::Words),
            ("203.0.113.1:443", Ahead::Barred),
        ] {
            let going = Going { to: to.parse().unwrap(), names: &names };
            assert_eq!(egress.ahead(going), wanted, "{to}");
            let hello = tls("a.example");
            assert_eq!(egress.judge(going, Spoken::Tls(&hello)).is_ok(), wanted != Ahead::Barred, "{to}");
        }
    }

    #[test]
    fn nothing_said_is_nothing_allowed() {
        // Aim: a policy that allows nothing bars all, and `*` is any name that DNS answered.
        let going = Going { to: "192.0.2.1:443".parse().unwrap(), names: &["x.example".into()] };
        assert_eq!(compiled(Vec::new()).ahead(going), Ahead::Barred);
        let any = compiled(vec![rule(&["*"], &[], &[])]);
        assert!(any.judge(going, Spoken::Tls(&tls("x.example"))).is_ok());
        assert_eq!(any.judge(going, Spoken::Tls(&tls("y.example"))).map(|_| ()), Err(Barred::Unanswered));
    }
}
