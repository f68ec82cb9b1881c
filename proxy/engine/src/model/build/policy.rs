//! Our own policy on Envoy's routes and weighted clusters: `typed_per_filter_config["meshwright.dev/policy"]`. What says the same is
//! compiled once and shared.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::{Message, Name};
use prost_types::Any;
use proto::mesh::{BackendPolicy, CanaryVersion, EdgePolicy, Filters, RoutePolicy};
use proto::names::{BAD_BACKEND, POLICY};
use proto::xds::route::RouteMatch;

use super::authentication::Cells;
use super::interned::Interned;
use super::{duration, guards, unpack};
use crate::authenticate::KeyCell;
use crate::filter::chance::MILLION;
use crate::filter::{Buckets, Cors, FaultSteps, Filter, LIMITS_MAX, RateLimit, Redirect, Rewrite, Stage};
use crate::limit;
use crate::matching::compile;
use crate::model::{CanaryCounts, HashKey, Hedge, Match, Mirror, Policy, Priority, RuleTelemetry, Session, Steps, VersionCounts};
use crate::rejected::{Wrong, refuse};
use crate::retry;

/// Most mirrors of one rule or backend.
const MIRRORS_MAX: usize = 16;
/// Longest name of a canary or of its run.
const NAME_BYTES_MAX: usize = 512;

/// Where a backend leads, while it is staged.
#[derive(Debug)]
pub(super) enum Link {
    /// To the cluster of that name, if there is one.
    Cluster(String),
    /// The convention for a bad backend reference: its share is answered 500.
    BadBackend,
}

impl Link {
    pub(super) fn named(name: &str, field: &str) -> Result<Self, Wrong> {
        match name {
            "" => Err(Wrong::new(field, "is empty")),
            BAD_BACKEND => Ok(Self::BadBackend),
            name => Ok(Self::Cluster(name.to_owned())),
        }
    }
}

/// Policies and matches by content, each once.
#[derive(Debug, Default)]
pub(super) struct Policies {
    matches: Interned<Match>,
    whole: Interned<Policy>,
    steps: Interned<Steps>,
    pub(super) memories: Memories,
}

/// What outlives a policy: the memories of rate limits by name, for as long as a limit holds them, and what guards edges, by content.
#[derive(Debug, Default)]
pub(super) struct Memories {
    buckets: HashMap<String, Weak<Buckets>>,
    guards: Interned<Vec<Stage>>,
    failures: guards::FailureMemories,
    pub(super) services: guards::Services,
    /// Keys of tokens by where they come from; of all who name them.
    cells: Cells,
    /// Of limits at edges.
    pub(super) limits: Arc<limit::LimitMemories>,
    /// Of versions of canaries.
    pub(super) canaries: Arc<CanaryCounts>,
}

impl Memories {
    fn adopt(&mut self, name: &str) -> Arc<Buckets> {
        if let Some(held) = self.buckets.get(name).and_then(Weak::upgrade) {
            return held;
        }
        self.buckets.retain(|_, held| held.strong_count() > 0);
        let fresh = Arc::default();
        self.buckets.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }

    /// What guards an edge's rule: rules that say the same share it.
    fn guards(&mut self, raw: &EdgePolicy) -> Result<Arc<Vec<Stage>>, Wrong> {
        self.cells.retain(|_, cell| cell.strong_count() > 0);
        let (cells, limits, outliving) = (&mut self.cells, &self.limits, (&mut self.failures, &mut self.services));
        self.guards.get(&raw.encode_to_vec(), || guards::guards(raw, (cells, limits), outliving))
    }
}

/// Envoy's own timeouts of a route; see [`Policy`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timeouts {
    pub(super) request: Option<Duration>,
    pub(super) idle: Option<Duration>,
    pub(super) stream: Option<Duration>,
}

impl Policies {
    /// Where keys of tokens come from.
    pub(super) fn key_cells(&mut self) -> &mut Cells {
        &mut self.memories.cells
    }

    /// The same, those that somebody names.
    pub(super) fn cells_in_use(&self) -> Vec<Arc<KeyCell>> {
        self.memories.cells.values().filter_map(Weak::upgrade).collect()
    }

    /// When a rule applies.
    pub(super) fn matches(&mut self, raw: &RouteMatch) -> Result<Arc<Match>, Wrong> {
        self.matches.get(&raw.encode_to_vec(), || compile::all(raw))
    }

    /// A rule's. `headers` are Envoy's header operations of all levels, compiled from `content`.
    pub(super) fn of_rule(
        &mut self,
        raw: &RoutePolicy,
        timeouts: Timeouts,
        (headers, content): (&[Filter], &[u8]),
    ) -> Result<Arc<Policy>, Wrong> {
        let mut key = raw.encode_length_delimited_to_vec();
        key.extend(format!("{timeouts:?}").into_bytes());
        key.extend_from_slice(content);
        self.whole.get(&key, || compile(raw, timeouts, headers, &mut self.memories))
    }

    /// Of what is carried as bytes.
    pub(super) fn of_bytes(&mut self, idle: Option<Duration>) -> Arc<Policy> {
        let policy = || Policy { idle_timeout: idle, ..Policy::default() };
        self.whole.get(format!("bytes, {idle:?}").as_bytes(), || Ok(policy())).unwrap_or_else(|_| Arc::new(policy()))
    }

    /// A backend's own.
    pub(super) fn of_backend(&mut self, raw: &BackendPolicy, (headers, content): (&[Filter], &[u8])) -> Result<Arc<Steps>, Wrong> {
        let mut key = raw.encode_length_delimited_to_vec();
        key.extend_from_slice(content);
        self.steps.get(&key, || {
            // Who counts leads somewhere, as mirrors do.
            let BackendPolicy { filters, canary: _ } = raw;
            steps(filters.as_ref(), std::iter::empty(), headers)
        })
    }
}

/// The policy among a route's extensions, if there is one. Other extensions are for filters that we do not have.
pub(super) fn find<M: Message + Name + Default>(extensions: &BTreeMap<String, Any>) -> Result<M, Wrong> {
    let at = |key: &str| format!("typed_per_filter_config[\"{}\"]", key.escape_debug());
    if let Some(other) = extensions.keys().find(|key| *key != POLICY) {
        return Err(Wrong::unsupported(at(other)));
    }
    let Some(any) = extensions.get(POLICY) else { return Ok(M::default()) };
    unpack(any).map_err(|wrong| wrong.within(at(POLICY)))
}

/// Names the extension that a fault is in.
pub(super) fn within(wrong: Wrong) -> Wrong {
    wrong.within(format!("typed_per_filter_config[\"{POLICY}\"]"))
}

fn compile(raw: &RoutePolicy, timeouts: Timeouts, headers: &[Filter], memories: &mut Memories) -> Result<Policy, Wrong> {
    let RoutePolicy { filters, attempt_timeout, retry, hedge, faults, rate_limits, session, priority, hash, edge, telemetry } = raw;
    if rate_limits.len() > LIMITS_MAX {
        return Err(Wrong::new("rate_limits", format!("holds more than {LIMITS_MAX} limits")));
    }
    let guards = edge.as_ref().map(|edge| memories.guards(edge)).transpose().map_err(|wrong| wrong.within("edge"))?;
    let guards = guards.as_deref().map_or(&[][..], Vec::as_slice);
    let limit = |(index, raw): (usize, &proto::mesh::RateLimit)| {
        let limit = RateLimit::compile(raw, memories.adopt(&raw.name)).map_err(|wrong| wrong.within(format!("rate_limits[{index}]")))?;
        Ok(Stage::Local(Filter::RateLimit(limit)))
    };
    let limits = rate_limits.iter().enumerate().map(limit).collect::<Result<Vec<_>, Wrong>>()?;
    let faults = FaultSteps::compile(faults)?.into_stages();
    Ok(Policy {
        steps: steps(filters.as_ref(), guards.iter().cloned().chain(limits).chain(faults), headers)?,
        request_timeout: timeouts.request,
        attempt_timeout: duration(attempt_timeout.as_ref(), "attempt_timeout")?.filter(|timeout| !timeout.is_zero()),
        idle_timeout: timeouts.idle,
        stream_timeout: timeouts.stream,
        retry: retry::Policy::compile(retry.as_ref()).map_err(|wrong| wrong.within("retry"))?,
        hedge: hedge.as_ref().map(Hedge::compile).transpose().map_err(|wrong| wrong.within("hedge"))?,
        session: session.as_ref().map(Session::compile).transpose().map_err(|wrong| wrong.within("session"))?,
        priority: priority.as_ref().map(Priority::compile).transpose().map_err(|wrong| wrong.within("priority"))?,
        body_bytes_max: edge.as_ref().map_or(0, |edge| edge.body_bytes_max),
        hash: HashKey::compile_all(hash)?,
        telemetry: telemetry.as_ref().map(RuleTelemetry::compile).transpose().map_err(|wrong| wrong.within("telemetry"))?,
    })
}

/// The order of everything that may stand on the way is said here and nowhere else. `between` are an edge's guards (in the order of
/// `build::edge`), rate limits and faults.
fn steps(filters: Option<&Filters>, between: impl Iterator<Item = Stage>, headers: &[Filter]) -> Result<Steps, Wrong> {
    let none = Filters::default();
    // Mirrors lead somewhere: they are no part of what is shared.
    let Filters { cors, redirect, rewrite, mirrors: _ } = filters.unwrap_or(&none);
    let cors = cors.as_ref().map(Cors::compile).transpose().map_err(|wrong| wrong.within("filters.cors"))?;
    let redirect = redirect.as_ref().map(Redirect::compile).transpose().map_err(|wrong| wrong.within("filters.redirect"))?;
    let rewrite = rewrite.as_ref().map(Rewrite::compile).transpose().map_err(|wrong| wrong.within("filters.rewrite"))?;
    refuse(redirect.is_some() && rewrite.is_some(), "filters.rewrite beside a redirect")?;
    let local = |filter| Stage::Local(filter);
    let first = cors.map(Filter::Cors).map(local);
    let last = redirect.map(Filter::Redirect).map(local);
    Ok(Steps {
        gates: first.into_iter().chain(between).chain(last).collect(),
        changes: rewrite.map(Filter::Rewrite).into_iter().chain(headers.iter().cloned()).collect(),
    })
}

/// Who counts the requests of a version of a canary, if it is one.
pub(super) fn counts(raw: Option<&CanaryVersion>, canaries: &CanaryCounts) -> Result<Option<Arc<VersionCounts>>, Wrong> {
    let Some(raw) = raw else { return Ok(None) };
    let CanaryVersion { canary, run, candidate: _ } = raw;
    for (field, text) in [("canary", canary), ("run", run)] {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(Wrong::new(field, format!("must have 1 to {NAME_BYTES_MAX} bytes")));
        }
    }
    Ok(Some(canaries.adopt(raw)))
}

/// Who gets copies.
pub(super) fn mirrors(filters: Option<&Filters>, canaries: &CanaryCounts) -> Result<Vec<Mirror<Link>>, Wrong> {
    let raw = filters.map_or(&[][..], |filters| &filters.mirrors);
    if raw.len() > MIRRORS_MAX {
        return Err(Wrong::new("filters.mirrors", format!("holds more than {MIRRORS_MAX} mirrors")));
    }
    let one = |(index, raw): (usize, &proto::mesh::Mirror)| {
        let at = |wrong: Wrong| wrong.within(format!("filters.mirrors[{index}]"));
        let proto::mesh::Mirror { cluster, per_million, canary } = raw;
        if *per_million > MILLION {
            return Err(at(Wrong::new("per_million", format!("{per_million} is more than {MILLION}"))));
        }
        let counts = counts(canary.as_ref(), canaries).map_err(|wrong| at(wrong.within("canary")))?;
        Ok(Mirror { target: Link::named(cluster, "cluster").map_err(at)?, per_million: *per_million, counts })
    };
    raw.iter().enumerate().map(one).collect()
}

/// Where the services of a rule's policies are, in the order in which they are asked.
pub(super) fn asked(raw: Option<&EdgePolicy>) -> Result<Vec<Link>, Wrong> {
    // What is refused as a whole asks nobody.
    let Some(raw) = raw.filter(|raw| raw.unavailable.is_empty()) else { return Ok(Vec::new()) };
    let external = raw
        .external
        .iter()
        .enumerate()
        .map(|(place, raw)| Link::named(&raw.cluster, "cluster").map_err(|wrong| wrong.within(format!("edge.external[{place}]"))));
    let limits = guards::services(&raw.limits).map(|(place, raw)| {
        Link::named(&raw.cluster, "cluster").map_err(|wrong| wrong.within(format!("edge.limits[{place}].store.service")))
    });
    external.chain(limits).collect()
}
