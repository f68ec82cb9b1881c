//! Limits that a rate-limit service decides (`envoy.service.ratelimit.v3`), which has the numbers: what it is asked of a request, and what
//! becomes of the request then.

use std::sync::Arc;

use proto::mesh::{self, descriptor_entry};

use super::key::{Part, Seen};
use super::rated::{Descriptor, RateAsk, ServiceAsk};
use super::{Count, LimitGuard, ObjectLimits, WithoutStore, retry_after};
use crate::Moment;
use crate::failure::{LocalReply, Reason};
use crate::filter::HeaderOp;
use crate::filter::guard::{Passed, Question};
use crate::limit::{KeyStanding, LimitCounts, LimitVerdict};
use crate::rejected::Wrong;

/// Most descriptors of one object.
pub const DESCRIPTORS_MAX: usize = 8;
/// Most entries of one.
pub const DESCRIPTOR_ENTRIES_MAX: usize = 8;
/// Longest name of an entry, and longest text of one, in bytes; of a longer value the beginning counts: who writes more is not asked about less.
pub const DESCRIPTOR_BYTES_MAX: usize = 2_048;

/// What a service is asked about the requests of one object.
#[derive(Debug)]
pub struct ServiceLimits {
    /// Whose limits they are.
    pub domain: Box<str>,
    /// Place of the service among those that the rule's policies ask.
    pub place: usize,
    descriptors: Vec<Vec<Entry>>,
    /// `NAMESPACE/NAME/rls`.
    path: Arc<str>,
    counts: Arc<LimitCounts>,
}

#[derive(Debug)]
struct Entry {
    key: Box<str>,
    value: Told,
}

#[derive(Debug)]
enum Told {
    Literal(Box<str>),
    Part(Part),
}

/// What one object's service was asked about a request.
#[derive(Debug)]
pub(super) struct Served {
    path: Arc<str>,
    ask: ServiceAsk,
    applied: bool,
}

impl ServiceLimits {
    pub(super) fn compile(raw: &mesh::RateLimitService, (path, place): (Arc<str>, usize), counts: Arc<LimitCounts>) -> Result<Self, Wrong> {
        let mesh::RateLimitService { address: _, cluster: _, domain, descriptors, timeout: _ } = raw;
        if domain.is_empty() || domain.len() > DESCRIPTOR_BYTES_MAX {
            return Err(Wrong::new("domain", format!("has {} bytes, not 1 to {DESCRIPTOR_BYTES_MAX}", domain.len())));
        }
        if descriptors.is_empty() || descriptors.len() > DESCRIPTORS_MAX {
            return Err(Wrong::new("descriptors", format!("holds {}, not 1 to {DESCRIPTORS_MAX}", descriptors.len())));
        }
        let all = descriptors.iter().enumerate();
        let descriptors = all.map(|(index, raw)| descriptor(raw).map_err(|wrong| wrong.within(format!("descriptors[{index}]"))));
        Ok(Self { domain: domain.as_str().into(), place, descriptors: descriptors.collect::<Result<_, _>>()?, path, counts })
    }

    /// What is asked of a request: descriptors that lack a part are left out.
    fn of(&self, seen: &Seen<'_, '_>) -> Arc<[Descriptor]> {
        let value = |entry: &Entry| match &entry.value {
            Told::Literal(text) => Some(text.to_string()),
            Told::Part(part) => seen.text(part),
        };
        let entry = |entry: &Entry| Some((entry.key.clone(), beginning(value(entry)?)));
        self.descriptors.iter().filter_map(|entries| entries.iter().map(entry).collect()).collect()
    }

    /// In words.
    pub(super) fn story(&self) -> String {
        let names = |entries: &Vec<Entry>| entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>().join(" and ");
        let all: Vec<String> = self.descriptors.iter().map(names).collect();
        format!("asks the rate-limit service of domain {} about {}", self.domain, all.join(", "))
    }

    pub(super) const fn path(&self) -> &Arc<str> {
        &self.path
    }
}

/// As much of it as is told.
fn beginning(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(DESCRIPTOR_BYTES_MAX));
    text
}

fn descriptor(mesh::LimitDescriptor { entries }: &mesh::LimitDescriptor) -> Result<Vec<Entry>, Wrong> {
    if entries.is_empty() || entries.len() > DESCRIPTOR_ENTRIES_MAX {
        return Err(Wrong::new("entries", format!("holds {}, not 1 to {DESCRIPTOR_ENTRIES_MAX}", entries.len())));
    }
    let one = |(index, raw): (usize, &mesh::DescriptorEntry)| entry(raw).map_err(|wrong| wrong.within(format!("entries[{index}]")));
    entries.iter().enumerate().map(one).collect()
}

fn entry(mesh::DescriptorEntry { key, value }: &mesh::DescriptorEntry) -> Result<Entry, Wrong> {
    if key.is_empty() || key.len() > DESCRIPTOR_BYTES_MAX {
        return Err(Wrong::new("key", format!("has {} bytes, not 1 to {DESCRIPTOR_BYTES_MAX}", key.len())));
    }
    let value = match value {
        None => return Err(Wrong::new("value", "is missing: literal or part")),
        Some(descriptor_entry::Value::Literal(text)) if text.is_empty() || text.len() > DESCRIPTOR_BYTES_MAX => {
            return Err(Wrong::new("literal", format!("has {} bytes, not 1 to {DESCRIPTOR_BYTES_MAX}", text.len())));
        }
        Some(descriptor_entry::Value::Literal(text)) => Told::Literal(text.as_str().into()),
        Some(descriptor_entry::Value::Part(raw)) => Told::Part(Part::compile(raw).map_err(|wrong| wrong.within("part"))?),
    };
    Ok(Entry { key: key.as_str().into(), value })
}

impl LimitGuard {
    /// What the services of its objects say of a request. `Err`: it goes no further, or one has to be asked first.
    pub(super) fn served(&self, seen: &Seen<'_, '_>, count: &mut Count, now: Moment) -> Result<(), Passed> {
        for object in &self.objects {
            let (Some(service), Some(remote)) = (&object.service, &object.remote) else { continue };
            let Some(place) = count.served.iter().position(|served| Arc::ptr_eq(&served.path, &service.path)) else {
                let descriptors = service.of(seen);
                if descriptors.is_empty() {
                    continue;
                }
                if !remote.rests.may_ask(now, remote.place.timeout()) {
                    object.unserved(service, count)?;
                    continue;
                }
                let ask = ServiceAsk::new(descriptors);
                count.served.push(Served { path: Arc::clone(&service.path), ask: ask.clone(), applied: false });
                return Err(Passed::Asks(Box::new(Question::Rate(RateAsk { object: Arc::clone(object), ask }))));
            };
            let Some(served) = count.served.get_mut(place).filter(|served| !served.applied) else { continue };
            served.applied = true;
            let Some(answer) = served.ask.answer() else {
                object.unserved(service, count)?;
                continue;
            };
            if answer.over {
                service.counts.add(LimitVerdict::Refused);
                count.refused = Some(Arc::clone(&service.path));
                let mut reply = LocalReply::of(Reason::RateLimited);
                reply.headers.push(retry_after(&KeyStanding { retry: answer.retry, ..KeyStanding::default() }));
                reply.headers.extend(answer.response);
                return Err(Passed::Answered(Box::new(reply)));
            }
            service.counts.add(LimitVerdict::Allowed);
            count.said.extend(answer.response.into_iter().map(|(name, value)| HeaderOp::Add(name, value)));
            count.for_backend.extend(answer.request);
        }
        Ok(())
    }
}

impl ObjectLimits {
    /// Its service does not answer.
    fn unserved(&self, service: &ServiceLimits, count: &mut Count) -> Result<(), Passed> {
        if self.without_store == WithoutStore::Allow {
            service.counts.add(LimitVerdict::StoreAwayAllowed);
            return Ok(());
        }
        service.counts.add(LimitVerdict::StoreAwayRefused);
        count.refused = Some(Arc::clone(&service.path));
        Err(Passed::Answered(Box::new(LocalReply::of(Reason::PolicyUnavailable))))
    }
}
