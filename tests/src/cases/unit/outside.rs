//! Requests from outside at a Gateway's proxy.

use std::time::Duration;

use anyhow::ensure;
use engine::Moment;
use engine::decide::{self, Decision, EdgeDoor, Facts, First, RequestHead, Terms};
use engine::model::{Forward, Serves, Snapshot};
use engine::sniff::{ClientHello, Sniffed};
use http::request;

use super::super::judge::Outcome;
use super::super::objects::backend_of;
use super::super::table::{Ask, Proto};
use super::{endpoint, forwarded, local, named, opaque, place_of};

/// One request; also whom it was meant for, as the oracle says it.
pub(super) fn walked(
    snapshot: &Snapshot,
    port: u16,
    ask: &Ask,
    (head, draw): (request::Parts, u64),
) -> anyhow::Result<(Outcome, Option<String>)> {
    let closed = || (Outcome::default(), Some("closed".to_owned()));
    let sni = |name: &str| Some(name.to_lowercase()).filter(|name| !name.is_empty());
    let forward = match ask.proto {
        Proto::Udp => snapshot.datagrams.get(&port).map(|datagrams| &datagrams.forward),
        Proto::Tls => {
            let hello = ClientHello { sni: ask.host.as_deref().and_then(sni), ..ClientHello::default() };
            decide::carried_at_edge(snapshot, port, Some(First::Client(&Sniffed::Tls(hello))))
        }
        Proto::Tcp => decide::carried_at_edge(snapshot, port, Some(First::Client(&Sniffed::Opaque))),
        Proto::Http1 | Proto::Http2 | Proto::Grpc => return requested(snapshot, port, ask, (head, draw)),
    };
    Ok(forward.and_then(|forward| bytes(forward, draw)).unwrap_or_else(closed))
}

fn bytes(forward: &Forward, draw: u64) -> Option<(Outcome, Option<String>)> {
    let cluster = opaque(forward, draw)?;
    let pod = endpoint(cluster, draw)?;
    let place = place_of(cluster);
    place.starts_with(backend_of(&pod)).then(|| (Outcome { status: 200, pod, ..Outcome::default() }, Some(place)))
}

fn requested(snapshot: &Snapshot, port: u16, ask: &Ask, (head, draw): (request::Parts, u64)) -> anyhow::Result<(Outcome, Option<String>)> {
    let name = ask.sni.as_deref().map(str::to_lowercase);
    let named_by = name.as_deref().filter(|name| !name.is_empty());
    let chain = decide::chain(snapshot, port, named_by);
    let door = match (&name, chain) {
        (None, _) => EdgeDoor::Plaintext,
        (Some(_), Some(chain)) if matches!(chain.serves, Serves::Http(_)) => {
            EdgeDoor::Tls { name: named_by, clients: chain.terms.as_ref().and_then(|terms| terms.clients.as_ref()) }
        }
        (Some(_), _) => return Ok((Outcome::default(), Some("closed".to_owned()))),
    };
    let told = RequestHead::new(&head.method, &head.uri, &head.headers);
    let facts = Facts { proved: false, fault: None };
    match decide::request(Terms::of_edge(snapshot, port, &door), facts, &told, draw) {
        Err(away) => Ok((local(&away.reply()), Some(away.status.as_u16().to_string()))),
        Ok(Decision::Reply { reply, rule }) => {
            let outcome = Outcome { rule: rule.and_then(named), ..local(reply) };
            let place = Some(outcome.status.to_string());
            Ok((outcome, place))
        }
        Ok(Decision::Forward(plan)) => {
            let rule = named(plan.rule);
            ensure!(rule.is_some(), "a rule that is of no route");
            let now = Moment::after_start(Duration::from_secs(1000));
            let (outcome, place) = forwarded(&plan, ask, (head.clone(), draw), (port, now, name.is_some()))?;
            Ok((Outcome { rule, ..outcome }, place))
        }
    }
}
