//! What becomes of a call to an address that the mesh does not know. Where an EgressPolicy speaks of names, what the application says first
//! is waited for, and each HTTP request is judged for itself.

use std::net::SocketAddr;
use std::sync::Arc;

use super::request::TurnedAway;
use crate::failure::Reason;
use crate::model::{Ahead, Barred, Egress, EgressMode, Going, RouteTable, Settings, Snapshot, Spoken};

/// Why a call past the mesh is cut, or under Audit would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// By the mesh's own switch.
    Mesh,
    /// By EgressPolicies.
    Policy(Barred),
}

impl Forbidden {
    /// A sentence for people, to go on after the destination.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Mesh => "the mesh forbids calls to addresses it does not know (Mesh spec.outsideMesh: Deny)",
            Self::Policy(barred) => barred.why(),
        }
    }
}

/// What a call past the mesh meets.
#[derive(Clone, Copy, Debug)]
pub struct Departure<'s> {
    /// Where its requests go.
    pub table: &'s Arc<RouteTable>,
    /// Nothing allows it, but it is not cut: that is only told.
    pub told: Option<Barred>,
}

/// Whose word holds for a destination; `None`: the mesh's own switch.
fn judge<'s>(snapshot: &'s Snapshot, settings: &Settings, to: SocketAddr) -> Option<&'s Arc<Egress>> {
    // The instance's own addresses are its inbound side.
    let own = settings.own_addresses.contains(&to.ip());
    let said = match snapshot.egress.mode {
        EgressMode::Unsaid => false,
        EgressMode::Audit => !settings.outside_mesh_denied,
        EgressMode::Enforce => true,
    };
    (said && !own).then_some(&snapshot.egress)
}

/// What is done next about a connection past the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its first words are found out.
    Words,
    /// Its requests are judged one by one.
    Requests,
    /// It is carried as it is.
    Carry,
    /// It is refused, whatever it says.
    Refuse,
    /// It is cut for what it said.
    Cut,
}

/// What somebody said first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said<'c> {
    /// A request.
    Http,
    /// This; `None`: nobody is there.
    Other(Option<Spoken<'c>>),
}

/// What becomes of a connection; `said` is what came first, where that is known by now.
pub(super) fn fate(snapshot: &Snapshot, settings: &Settings, (to, names): (SocketAddr, &[Arc<str>]), said: Option<Said<'_>>) -> Fate {
    let Some(egress) = judge(snapshot, settings, to) else {
        return if settings.outside_mesh_denied { Fate::Refuse } else { Fate::Carry };
    };
    let enforced = egress.mode == EgressMode::Enforce;
    match (egress.ahead(Going { to, names }), said) {
        (Ahead::Barred, _) if enforced => Fate::Refuse,
        (Ahead::Free | Ahead::Barred, _) => Fate::Carry,
        (Ahead::Words, None) => Fate::Words,
        (Ahead::Words, Some(Said::Http)) => Fate::Requests,
        (Ahead::Words, Some(Said::Other(spoken))) => match departure(snapshot, to, names, spoken) {
            Err(_) => Fate::Cut,
            Ok(_) => Fate::Carry,
        },
    }
}

/// What is said of a call past the mesh. `spoken` is what was said there; `None`: nothing was asked yet, or nobody answers.
///
/// # Errors
/// It is cut.
pub fn departure<'s>(
    snapshot: &'s Snapshot,
    to: SocketAddr,
    names: &[Arc<str>],
    spoken: Option<Spoken<'_>>,
) -> Result<Departure<'s>, Forbidden> {
    let plain = Departure { table: &snapshot.egress.plain, told: None };
    let Some(settings) = &snapshot.settings else { return Ok(plain) };
    let Some(egress) = judge(snapshot, settings, to) else {
        return if settings.outside_mesh_denied { Err(Forbidden::Mesh) } else { Ok(plain) };
    };
    let going = Going { to, names };
    let judged = match spoken {
        // Asked for each request: what the address alone comes to is in the rules' own answers.
        Some(http @ Spoken::Http(_)) => egress.judge(going, http),
        _ => match (egress.ahead(going), spoken) {
            (Ahead::Barred, _) => Err(Barred::Address),
            (Ahead::Free, spoken) => egress.judge(going, spoken.unwrap_or(Spoken::Bytes)),
            (Ahead::Words, Some(spoken)) => egress.judge(going, spoken),
            // Nobody is there, so there is nothing to judge.
            (Ahead::Words, None) => return Ok(plain),
        },
    };
    match (judged, egress.mode) {
        (Ok(rule), EgressMode::Enforce) => Ok(Departure { table: &rule.table, told: None }),
        // An audit changes nothing, so it makes no TLS either.
        (Ok(_), _) => Ok(plain),
        (Err(barred), EgressMode::Enforce) => Err(Forbidden::Policy(barred)),
        (Err(barred), _) => Ok(Departure { told: Some(barred), ..plain }),
    }
}

/// The answer to one request past the mesh.
///
/// # Errors
/// It is turned away: 403.
pub fn request<'s>(snapshot: &'s Snapshot, to: SocketAddr, names: &[Arc<str>], host: &str) -> Result<Departure<'s>, TurnedAway> {
    departure(snapshot, to, names, Some(Spoken::Http(host))).map_err(|forbidden| TurnedAway::because(Reason::Denied, forbidden.why()))
}

#[cfg(test)]
mod tests {
    use proto::mesh::{Egress as RawEgress, EgressPolicy, EgressRule, ProxyConfig};

    use super::*;
    use crate::decide::{Door, First, Known, Step, connection};
    use crate::fixture;
    use crate::model::build::Parts;
    use crate::sniff::{ClientHello, Sniffed};

    fn world(audit: Option<bool>, outside_mesh_denied: bool) -> Snapshot {
        let mut parts = Parts::default();
        let settings = ProxyConfig { outside_mesh_denied, own_addresses: vec!["10.77.0.1".into()], ..ProxyConfig::default() };
        fixture::put(&mut parts, "proxy", &settings).unwrap();
        if let Some(audit) = audit {
            let allow = vec![
                EgressRule { hosts: vec!["a.example".into()], ports: vec![443, 80, 25], ..EgressRule::default() },
                EgressRule { cidrs: vec!["198.51.100.0/24".into()], ..EgressRule::default() },
            ];
            let policies = vec![EgressPolicy { name: "shop/out".into(), audit, allow }];
            fixture::put(&mut parts, "egress", &RawEgress { policies }).unwrap();
        }
        parts.assemble(1, &Snapshot::default())
    }

    #[test]
    fn a_connection_past_the_mesh_is_judged_as_early_as_it_can_be() {
        // Aim: by address at once, by name when something was said; HTTP is served, so that each request is judged; an audit cuts nothing
        // and the mesh's own switch holds where no policy enforces.
        let names: Vec<Arc<str>> = vec!["a.example".into(), "b.example".into()];
        let hello = |name: &str| Sniffed::Tls(ClientHello { sni: Some(name.into()), ..ClientHello::default() });
        let (good, bad) = (hello("a.example"), hello("b.example"));
        let said = |sniffed| Some(First::Client(sniffed));
        let at = |snapshot: &Snapshot, to: &str, names: &[Arc<str>], first| {
            let known = Known { asked: true, first, names, ..Known::default() };
            match connection(snapshot, Door::Outbound(to.parse().unwrap()), &known) {
                Step::Learn(learn) => format!("{learn:?}"),
                Step::Take(course) => format!("{course:?}"),
            }
        };
        let (enforced, audited) = (world(Some(false), false), world(Some(true), false));
        for (to, names, first, wanted, audit) in [
            ("203.0.113.1:443", &names[..0], None, "Refuse(Denied)", "Outside"),
            ("203.0.113.1:8443", &names[..], None, "Refuse(Denied)", "Outside"),
            ("198.51.100.1:9", &names[..0], None, "Outside", "Outside"),
            ("203.0.113.1:443", &names[..], None, "EitherSide", "EitherSide"),
            ("203.0.113.1:443", &names[..], said(&good), "Outside", "Outside"),
            ("203.0.113.1:443", &names[..], said(&bad), "Close(Denied)", "Outside"),
            ("203.0.113.1:443", &names[..], said(&Sniffed::Opaque), "Close(Denied)", "Outside"),
            ("203.0.113.1:443", &names[..], Some(First::Nobody), "Outside", "Outside"),
            ("203.0.113.1:25", &names[..], Some(First::Server), "Outside", "Outside"),
            ("203.0.113.1:25", &names[..], said(&Sniffed::NeedMore), "Close(Denied)", "Outside"),
            ("203.0.113.1:80", &names[..], said(&Sniffed::Http1), "Serve(Http1)", "Serve(Http1)"),
            ("10.77.0.1:80", &names[..0], None, "Outside", "Outside"),
        ] {
            assert_eq!(at(&enforced, to, names, first), wanted, "{to} {first:?}");
            assert_eq!(at(&audited, to, names, first), audit, "{to} {first:?}");
        }
        assert_eq!(at(&world(None, false), "203.0.113.1:443", &[], None), "Outside");
        for closed in [world(None, true), world(Some(true), true)] {
            assert_eq!(at(&closed, "198.51.100.1:9", &names, None), "Refuse(Denied)");
        }
        assert_eq!(at(&world(Some(false), true), "198.51.100.1:9", &[], None), "Outside", "a policy replaces the switch");
    }

    #[test]
    fn requests_are_judged_one_by_one() {
        // Aim: the host counts, each time; a request that is turned away says why, and an audit says what it would have been.
        let to: SocketAddr = "203.0.113.1:80".parse().unwrap();
        let names: Vec<Arc<str>> = vec!["a.example".into(), "b.example".into()];
        let (enforced, audited) = (world(Some(false), false), world(Some(true), false));
        let passed = request(&enforced, to, &names, "a.example").unwrap();
        assert!(passed.told.is_none() && !Arc::ptr_eq(passed.table, &enforced.egress.plain));
        let refused = request(&enforced, to, &names, "b.example").unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.why), (403, Some(Barred::Name.why())));
        assert_eq!(request(&audited, to, &names, "b.example").unwrap().told, Some(Barred::Name));
        assert_eq!(request(&audited, to, &[], "a.example").unwrap().told, Some(Barred::Unanswered));
        assert_eq!(
            request(&enforced, "203.0.113.1:81".parse().unwrap(), &names, "a.example").unwrap_err().why,
            Some(Barred::Address.why())
        );
        assert_eq!(departure(&enforced, to, &[], None).unwrap_err(), Forbidden::Policy(Barred::Address));
        assert_eq!(request(&world(None, true), to, &names, "a.example").unwrap_err().why, Some(Forbidden::Mesh.why()));
    }

    #[test]
    fn what_cannot_be_understood_allows_nothing() {
        // Aim: without a last good word a refused one is closed, with one it stays; taking it away leaves the mesh's switch.
        let mut parts = Parts::default();
        fixture::put(&mut parts, "proxy", &ProxyConfig::default()).unwrap();
        let bad = RawEgress { policies: vec![EgressPolicy { allow: vec![EgressRule::default()], ..EgressPolicy::default() }] };
        assert!(fixture::put(&mut parts, "egress", &bad).is_err());
        assert_eq!(parts.assemble(1, &Snapshot::default()).egress.mode, EgressMode::Enforce);
        let audit = RawEgress { policies: vec![EgressPolicy { audit: true, ..EgressPolicy::default() }] };
        fixture::put(&mut parts, "egress", &audit).unwrap();
        assert!(fixture::put(&mut parts, "egress", &bad).is_err());
        assert_eq!(parts.assemble(2, &Snapshot::default()).egress.mode, EgressMode::Audit);
        parts.remove(&<RawEgress as prost::Name>::type_url(), "egress");
        assert_eq!(parts.assemble(3, &Snapshot::default()).egress.mode, EgressMode::Unsaid);
    }
}
