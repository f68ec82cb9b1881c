//! What protects a pooled connection.

use std::sync::Arc;

use engine::model::Named;

use super::To;

/// How connections to an address are made. Those made differently are never taken for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protection {
    /// As they are.
    Plain,
    /// Mesh TLS: the peer proves an identity.
    Mesh,
    /// TLS to a server that proves a name. The number is that of its [`Named`], which lives as long as the slot.
    Tls(usize),
    /// The same, inside mesh TLS: the application proves a name, and its proxy an identity.
    Both(usize),
}

impl Protection {
    pub(super) fn of(to: &To) -> Self {
        match (&to.endpoint.identity, &to.named) {
            (Some(_), None) => Self::Mesh,
            (Some(_), Some(named)) => Self::Both(Arc::<Named>::as_ptr(named).addr()),
            (None, Some(named)) => Self::Tls(Arc::<Named>::as_ptr(named).addr()),
            (None, None) => Self::Plain,
        }
    }

    pub(super) const fn is_named(self) -> bool {
        matches!(self, Self::Tls(_) | Self::Both(_))
    }

    /// Whether the peer proves an identity of the mesh.
    pub(super) const fn is_proved(self) -> bool {
        matches!(self, Self::Mesh | Self::Both(_))
    }
}

#[cfg(test)]
mod tests {
    use engine::model::{Endpoint, EndpointLive, Health, Locality, Roots};

    use super::*;

    fn to(identity: Option<&str>, named: Option<&Arc<Named>>) -> To {
        let endpoint = Endpoint {
            address: ([192, 0, 2, 1], 443).into(),
            weight: 1,
            health: Health::Healthy,
            identity: identity.map(|identity| Arc::new(identity.parse().unwrap())),
            namespace: "".into(),
            workload: "".into(),
            instance: "".into(),
            workload_id: 0,
            locality: Locality::default(),
            live: Arc::new(EndpointLive::default()),
        };
        To { endpoint: Arc::new(endpoint), named: named.cloned(), local: None, timeout: std::time::Duration::from_secs(1), bounded: None }
    }

    /// Aim: one address met in plaintext, by mesh TLS, under two names and under one inside mesh TLS has five kinds of connections.
    #[test]
    fn connections_made_differently_are_kept_apart() {
        let named = |name| Named::new(name, Roots::System).map(Arc::new).unwrap();
        let (one, other) = (named("a.example"), named("b.example"));
        let identity = Some("spiffe://cluster.local/ns/shop/sa/store");
        let kinds = [to(None, None), to(identity, None), to(None, Some(&one)), to(None, Some(&other)), to(identity, Some(&one))]
            .map(|to| Protection::of(&to));
        for (place, kind) in kinds.iter().enumerate() {
            assert_eq!(kinds.iter().position(|other| other == kind), Some(place));
        }
        assert_eq!(Protection::of(&to(None, Some(&one))), kinds[2]);
        assert_eq!(kinds.map(Protection::is_proved), [false, true, false, false, true]);
    }
}
