//! From staged parts to a snapshot: names become `Arc`s. What links to nothing that changed stays the very same `Arc`, so that a
//! swap costs pointer comparisons and open connections keep what they hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::chains::TableSource;
use super::edge::EdgeDraft;
use super::listener::{Listener, Road};
use super::policy::Link;
use super::{Parts, inbound, route};
use crate::failure::{LocalReply, Reason};
use crate::model::{
    Action, Chain, Chains, Datagrams, Edge, Forward, Inbound, InboundPort, Outbound, Port, RouteTable, Rule, Serves, Snapshot, Target,
    VirtualHost,
};

impl Parts {
    /// Links everything staged into a snapshot, reusing what `previous` holds where neither it nor anything it links to changed.
    /// The result is the same, ids and identity of `Arc`s aside, as from a `previous` that is empty.
    ///
    /// A listener whose route table is not there is left out (its destination stays "not yet known"); a backend whose cluster is
    /// not there answers 503 `no_endpoints` for its share.
    pub fn assemble(&self, epoch: u64, previous: &Snapshot) -> Snapshot {
        self.feed_cells();
        let routes = self.tables.iter().map(|(name, staged)| {
            let table = self.link_table(&staged.content, previous.routes.get(name));
            (name.clone(), table)
        });
        let mut snapshot = Snapshot {
            epoch,
            settings: self.settings.as_ref().map(|staged| staged.content.clone()),
            routes: routes.collect(),
            clusters: self.clusters.iter().map(|(name, staged)| (name.clone(), staged.content.0.clone())).collect(),
            trust: self.trust(),
            trust_bundle: self.trust_bundle(),
            egress: self.egress.content.clone(),
            authorization: self.authorization.as_ref().map(|staged| staged.content.clone()),
            key_cells: self.policies.cells_in_use(),
            providers: self.policies.memories.services.providers(),
            doors: self.doors.iter().map(|(port, staged)| (*port, staged.content.clone())).collect(),
            consumers: Arc::clone(&self.consumers.cell),
            challenges: Arc::clone(&self.secrets.challenges),
            limits: Arc::clone(&self.policies.memories.limits),
            canaries: Arc::clone(&self.policies.memories.canaries),
            callouts: Arc::clone(&self.policies.memories.services.callouts),
            authentication: self.authentication.as_ref().map(|staged| staged.content.clone()),
            ..Snapshot::default()
        };
        for (name, staged) in &self.names {
            let host = proto::names::dns_host(name).unwrap_or_default().to_ascii_lowercase();
            snapshot.names.insert(host, staged.content.clone());
        }
        for (name, staged) in &self.listeners {
            match &staged.content {
                Listener::Inbound(parts) => snapshot.inbound = Some(self.link_inbound(parts, previous.inbound.as_ref())),
                Listener::Out(address, road) => {
                    let linked = self.link_road(name, road, &snapshot, previous.outbound.get(address));
                    snapshot.outbound.extend(linked.map(|linked| (*address, linked)));
                }
                Listener::Edge(port, draft) => {
                    let linked = self.link_edge(name, draft, &snapshot, previous.edges.get(port));
                    snapshot.edges.extend(linked.map(|linked| (*port, linked)));
                }
                Listener::Datagrams(port, staged) => {
                    let linked = self.link_datagrams(staged, previous.datagrams.get(port));
                    snapshot.datagrams.insert(*port, linked);
                }
            }
        }
        snapshot
    }

    fn link_road(&self, name: &str, road: &Road, now: &Snapshot, previous: Option<&Arc<Outbound>>) -> Option<Arc<Outbound>> {
        let previous = previous.filter(|previous| previous.content == road.content);
        let http = match &road.http {
            None => None,
            Some(TableSource::Named(table)) => Some(now.routes.get(table)?.clone()),
            Some(TableSource::Inline(table)) => Some(self.link_table(table, previous.and_then(|previous| previous.http.as_ref()))),
        };
        let kept = previous.and_then(|previous| previous.tcp.as_ref());
        let tcp = road.tcp.as_ref().map(|staged| match kept {
            Some(kept) if self.same_links(staged, kept) => kept.clone(),
            _ => Arc::new(staged.linked(|link| self.target(link))),
        });
        let kept = previous.and_then(|previous| previous.tls.as_ref());
        let tls = road.tls.as_ref().map(|staged| match kept {
            Some(kept) if self.same_targets(staged.targets(), kept.targets()) => kept.clone(),
            _ => Arc::new(staged.linked(|link| self.target(link))),
        });
        if let Some(previous) = previous
            && same(previous.http.as_ref(), http.as_ref())
            && same(previous.tcp.as_ref(), tcp.as_ref())
            && same(previous.tls.as_ref(), tls.as_ref())
        {
            return Some(previous.clone());
        }
        Some(Arc::new(Outbound { name: name.into(), protocol: road.protocol, http, tcp, tls, content: road.content }))
    }

    fn link_edge(&self, name: &str, draft: &EdgeDraft, now: &Snapshot, previous: Option<&Arc<Edge>>) -> Option<Arc<Edge>> {
        let previous = previous.filter(|previous| previous.content == draft.content);
        let before = previous.map(|previous| &previous.port);
        let port = match (&draft.port, before) {
            (Port::Http(source), before) => {
                let before = before.and_then(|before| if let Port::Http(table) = before { Some(table) } else { None });
                Port::Http(self.link_source(source, now, before)?)
            }
            (Port::Bytes(staged), Some(Port::Bytes(kept))) if self.same_links(staged, kept) => Port::Bytes(Arc::clone(kept)),
            (Port::Bytes(staged), _) => Port::Bytes(Arc::new(staged.linked(|link| self.target(link)))),
            (Port::Tls(staged), before) => {
                let before = before.and_then(|before| if let Port::Tls(chains) = before { Some(chains) } else { None });
                Port::Tls(self.link_chains(staged, now, before))
            }
        };
        let same = match (&port, before) {
            (Port::Http(now), Some(Port::Http(before))) => Arc::ptr_eq(now, before),
            (Port::Bytes(now), Some(Port::Bytes(before))) => Arc::ptr_eq(now, before),
            (Port::Tls(now), Some(Port::Tls(before))) => Arc::ptr_eq(now, before),
            _ => false,
        };
        match previous.filter(|_| same) {
            Some(previous) => Some(Arc::clone(previous)),
            None => Some(Arc::new(Edge { name: name.into(), port, clients: Arc::clone(&draft.clients), content: draft.content })),
        }
    }

    /// `None`: there is no table of that name.
    fn link_source(&self, source: &TableSource, now: &Snapshot, previous: Option<&Arc<RouteTable>>) -> Option<Arc<RouteTable>> {
        match source {
            TableSource::Named(table) => now.routes.get(table).cloned(),
            TableSource::Inline(table) => Some(self.link_table(table, previous)),
        }
    }

    /// `previous` is of the same content, so chain stands by chain.
    fn link_chains(&self, staged: &Chains<Serves<Link, TableSource>>, now: &Snapshot, previous: Option<&Arc<Chains>>) -> Arc<Chains> {
        let former = |place: usize| previous.and_then(|previous| previous.all.get(place));
        let all: Vec<_> = staged.all.iter().enumerate().map(|(place, chain)| self.link_chain(chain, now, former(place))).collect();
        match previous {
            Some(previous) if previous.all.iter().zip(&all).all(|(before, now)| Arc::ptr_eq(before, now)) => Arc::clone(previous),
            _ => Arc::new(Chains { names: Arc::clone(&staged.names), all }),
        }
    }

    fn link_chain(&self, staged: &Chain<Serves<Link, TableSource>>, now: &Snapshot, previous: Option<&Arc<Chain>>) -> Arc<Chain> {
        let serves = match (&staged.serves, previous.map(|previous| &previous.serves)) {
            (Serves::Http(source), Some(Serves::Http(before))) => Serves::Http(self.link_source(source, now, before.as_ref())),
            (Serves::Http(source), _) => Serves::Http(self.link_source(source, now, None)),
            (Serves::Bytes(staged), Some(Serves::Bytes(kept))) if self.same_links(staged, kept) => Serves::Bytes(Arc::clone(kept)),
            (Serves::Bytes(staged), _) => Serves::Bytes(Arc::new(staged.linked(|link| self.target(link)))),
        };
        let unchanged = match (&serves, previous.map(|previous| &previous.serves)) {
            (Serves::Http(now), Some(Serves::Http(before))) => same(now.as_ref(), before.as_ref()),
            (Serves::Bytes(now), Some(Serves::Bytes(before))) => Arc::ptr_eq(now, before),
            _ => false,
        };
        match previous.filter(|_| unchanged) {
            Some(previous) => Arc::clone(previous),
            None => {
                let Chain { name, terms, serves: _, tells_client, policies } = staged;
                let (name, terms, policies) = (Arc::clone(name), terms.clone(), policies.clone());
                Arc::new(Chain { name, terms, serves, tells_client: *tells_client, policies })
            }
        }
    }

    fn link_datagrams(&self, staged: &Datagrams<Link>, previous: Option<&Arc<Datagrams>>) -> Arc<Datagrams> {
        let previous =
            previous.filter(|previous| previous.content == staged.content && self.same_links(&staged.forward, &previous.forward));
        let linked = || {
            let forward = Arc::new(staged.forward.linked(|link| self.target(link)));
            Arc::new(Datagrams { name: Arc::clone(&staged.name), forward, content: staged.content })
        };
        previous.cloned().unwrap_or_else(linked)
    }

    fn link_inbound(&self, staged: &inbound::Inbound, previous: Option<&Arc<Inbound>>) -> Arc<Inbound> {
        let previous = previous.filter(|previous| previous.content == staged.content);
        let ports: HashMap<u16, Arc<InboundPort>> = staged
            .ports
            .iter()
            .map(|(port, staged)| (*port, self.link_port(staged, previous.and_then(|previous| previous.ports.get(port)))))
            .collect();
        let other = self.link_port(&staged.other, previous.map(|previous| &previous.other));
        if let Some(previous) = previous
            && Arc::ptr_eq(&previous.other, &other)
            && ports.iter().all(|(port, now)| same(previous.ports.get(port), Some(now)))
        {
            return previous.clone();
        }
        Arc::new(Inbound { ports, other, content: staged.content })
    }

    /// `previous` is of the same content.
    fn link_port(&self, staged: &inbound::InboundPort, previous: Option<&Arc<InboundPort>>) -> Arc<InboundPort> {
        let http = self.link_table(&staged.table, previous.map(|previous| &previous.http));
        if let Some(previous) = previous
            && Arc::ptr_eq(&previous.http, &http)
        {
            return previous.clone();
        }
        Arc::new(InboundPort {
            mode: staged.mode,
            protocol: staged.protocol,
            http,
            service_namespace: staged.service_namespace.as_str().into(),
            service: staged.service.as_str().into(),
            idle_timeout: staged.idle_timeout,
        })
    }

    fn link_table(&self, staged: &route::RouteTable, previous: Option<&Arc<RouteTable>>) -> Arc<RouteTable> {
        if let Some(previous) = previous
            && previous.content == staged.content
            && self.same_rules(staged, previous)
        {
            return previous.clone();
        }
        let former: HashMap<u32, &Arc<Rule>> =
            previous.into_iter().flat_map(|table| table.hosts.iter().flat_map(|host| &host.rules)).map(|rule| (rule.id, rule)).collect();
        // An id belongs to one content, so a former rule with it can differ in its links only.
        let link = |staged: &Arc<route::StagedRule>| match former.get(&staged.rule.id) {
            Some(kept) if self.same_action(&staged.rule.action, &kept.action) => Arc::clone(kept),
            _ => Arc::new(self.link_rule(&staged.rule)),
        };
        let host = |staged: &route::StagedHost| VirtualHost::indexed(staged.rules.iter().map(link).collect(), Arc::clone(&staged.index));
        Arc::new(RouteTable {
            name: staged.name.clone(),
            domains: Arc::clone(&staged.domains),
            hosts: staged.hosts.iter().map(host).collect(),
            content: staged.content,
        })
    }

    /// `linked` is of the same content, so rule stands by rule.
    fn same_rules(&self, staged: &route::RouteTable, linked: &RouteTable) -> bool {
        let mut pairs = staged.hosts.iter().flat_map(|host| &host.rules).zip(linked.hosts.iter().flat_map(|host| &host.rules));
        pairs.all(|(staged, linked)| self.same_action(&staged.rule.action, &linked.action))
    }

    fn link_rule(&self, staged: &Rule<Link>) -> Rule {
        let action = match &staged.action {
            Action::Reply(reply) => Action::Reply(reply.clone()),
            Action::Forward(forward) => Action::Forward(Arc::new(forward.linked(|link| self.target(link)))),
        };
        Rule { id: staged.id, source: staged.source.clone(), matches: Arc::clone(&staged.matches), action }
    }

    fn target(&self, link: &Link) -> Target {
        match link {
            Link::BadBackend => Target::Reply(LocalReply::of(Reason::BadBackend)),
            Link::Cluster(name) => match self.cluster(name) {
                Some(cluster) => Target::Cluster(cluster.clone()),
                None => Target::Reply(LocalReply::of(Reason::NoEndpoints)),
            },
        }
    }

    /// Whether a linked action, of the same content, still leads where it would lead now.
    fn same_action(&self, staged: &Action<Link>, linked: &Action) -> bool {
        match (staged, linked) {
            (Action::Forward(staged), Action::Forward(linked)) => self.same_links(staged, linked),
            (Action::Reply(_), Action::Reply(_)) => true,
            _ => false,
        }
    }

    fn same_links(&self, staged: &Forward<Link>, linked: &Forward) -> bool {
        self.same_targets(staged.targets(), linked.targets())
    }

    /// They are of the same content, so target stands by target.
    fn same_targets<'a>(&self, staged: impl Iterator<Item = &'a Link>, linked: impl Iterator<Item = &'a Target>) -> bool {
        let same = |(staged, linked): (&Link, &Target)| match (staged, linked) {
            (Link::BadBackend, Target::Reply(_)) => true,
            (Link::Cluster(name), Target::Reply(_)) => self.cluster(name).is_none(),
            (Link::Cluster(name), Target::Cluster(linked)) => same(self.cluster(name), Some(linked)),
            (Link::BadBackend, Target::Cluster(_)) => false,
        };
        staged.zip(linked).all(same)
    }
}

/// Both absent, or the very same.
fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}
