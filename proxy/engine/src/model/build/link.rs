//! From staged parts to a snapshot: names become `Arc`s. What links to nothing that changed stays the very same `Arc`, so that a
//! swap costs pointer comparisons and open connections keep what they hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::forward::Target as StagedTarget;
use super::listener::{Listener, Road, TableSource};
use super::{Parts, forward, inbound, route};
use crate::failure::{LocalReply, Reason};
use crate::model::{Action, Backend, Forward, Inbound, InboundPort, Outbound, RouteTable, Rule, Snapshot, Target};

impl Parts {
    /// Links everything staged into a snapshot, reusing what `previous` holds where neither it nor anything it links to changed.
    /// The result is the same, ids and identity of `Arc`s aside, as from a `previous` that is empty.
    ///
    /// A listener whose route table is not there is left out (its destination stays "not yet known"); a backend whose cluster is
    /// not there answers 503 `no_endpoints` for its share.
    pub fn assemble(&self, epoch: u64, previous: &Snapshot) -> Snapshot {
        self.empty_abandoned_cells();
        let routes = self.tables.iter().map(|(name, staged)| {
            let table = self.link_table(&staged.content, previous.routes.get(name));
            (name.clone(), table)
        });
        let mut snapshot = Snapshot {
            epoch,
            settings: self.settings.as_ref().map(|staged| staged.content.clone()),
            routes: routes.collect(),
            clusters: self.clusters.iter().map(|(name, staged)| (name.clone(), staged.content.0.clone())).collect(),
            trust_bundle: self.trust_bundle(),
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
                Listener::Edge(port, road) => {
                    let linked = self.link_road(name, road, &snapshot, previous.edges.get(port));
                    snapshot.edges.extend(linked.map(|linked| (*port, linked)));
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
            _ => Arc::new(self.link_forward(staged)),
        });
        if let Some(previous) = previous
            && same(previous.http.as_ref(), http.as_ref())
            && same(previous.tcp.as_ref(), tcp.as_ref())
        {
            return Some(previous.clone());
        }
        Some(Arc::new(Outbound { name: name.into(), protocol: road.protocol, http, tcp, content: road.content }))
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
            previous.into_iter().flat_map(|table| table.hosts.iter().flatten()).map(|rule| (rule.id, rule)).collect();
        // An id belongs to one content, so a former rule with it can differ in its links only.
        let link = |rule: &route::Rule| match former.get(&rule.id) {
            Some(kept) if self.same_action(&rule.action, &kept.action) => Arc::clone(kept),
            _ => Arc::new(self.link_rule(rule)),
        };
        Arc::new(RouteTable {
            name: staged.name.clone(),
            exact: staged.exact.clone(),
            suffix: staged.suffix.clone(),
            any: staged.any,
            hosts: staged.hosts.iter().map(|rules| rules.iter().map(link).collect()).collect(),
            content: staged.content,
        })
    }

    /// `linked` is of the same content, so rule stands by rule.
    fn same_rules(&self, staged: &route::RouteTable, linked: &RouteTable) -> bool {
        let mut pairs = staged.hosts.iter().flatten().zip(linked.hosts.iter().flatten());
        pairs.all(|(staged, linked)| self.same_action(&staged.action, &linked.action))
    }

    fn link_rule(&self, staged: &route::Rule) -> Rule {
        let action = match &staged.action {
            route::Action::Reply(reply) => Action::Reply(reply.clone()),
            route::Action::Forward(forward) => Action::Forward(Arc::new(self.link_forward(forward))),
        };
        Rule { id: staged.id, source: staged.source.clone(), matches: staged.matches.clone(), action }
    }

    fn link_forward(&self, staged: &forward::Forward) -> Forward {
        let backend = |staged: &forward::Backend| Backend {
            weight: u64::from(staged.weight),
            target: self.link_target(&staged.target),
            stages: staged.stages.clone(),
        };
        Forward {
            backends: staged.backends.iter().map(backend).collect(),
            weight_total: staged.backends.iter().map(|backend| u64::from(backend.weight)).sum(),
            stages: staged.stages.clone(),
            request_timeout: staged.request_timeout,
            idle_timeout: staged.idle_timeout,
        }
    }

    fn link_target(&self, staged: &StagedTarget) -> Target {
        match staged {
            StagedTarget::BadBackend => Target::Reply(LocalReply::of(Reason::BadBackend)),
            StagedTarget::Cluster(name) => match self.cluster(name) {
                Some(cluster) => Target::Cluster(cluster.clone()),
                None => Target::Reply(LocalReply::of(Reason::NoEndpoints)),
            },
        }
    }

    /// Whether a linked action, of the same content, still leads where it would lead now.
    fn same_action(&self, staged: &route::Action, linked: &Action) -> bool {
        match (staged, linked) {
            (route::Action::Forward(staged), Action::Forward(linked)) => self.same_links(staged, linked),
            (route::Action::Reply(_), Action::Reply(_)) => true,
            _ => false,
        }
    }

    fn same_links(&self, staged: &forward::Forward, linked: &Forward) -> bool {
        let same = |(staged, linked): (&forward::Backend, &Backend)| match (&staged.target, &linked.target) {
            (StagedTarget::BadBackend, Target::Reply(_)) => true,
            (StagedTarget::Cluster(name), Target::Reply(_)) => self.cluster(name).is_none(),
            (StagedTarget::Cluster(name), Target::Cluster(linked)) => same(self.cluster(name), Some(linked)),
            (StagedTarget::BadBackend, Target::Cluster(_)) => false,
        };
        staged.backends.len() == linked.backends.len() && staged.backends.iter().zip(&linked.backends).all(same)
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
