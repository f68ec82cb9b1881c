//! What a stream should have: the translator's view, vetted by the proxy's own engine, with whom to believe beside it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::model::build::Parts;
use parking_lot::Mutex;
use proto::xds::core::{DataSource, data_source::Specifier};
use proto::xds::tls::{CertificateValidationContext, Secret, secret};
use proto::{names, xds};

use super::edition::Edition;
use super::memo::Memo;
use super::session::{Content, Patch, Withheld, leads_to, type_urls};
use super::trust;
use crate::translate::{
    AUTHENTICATION, AUTHORIZATION, Affected, Audience, EGRESS, Encoded, PartKey, Subject, TRUST, Usable, ViewPart, compose,
};
use crate::world::traffic::Caller;

/// What closes something. A proxy that never had a good version, and hears nothing of it, would stay open; it refuses a bad one by name, and
/// closes itself.
const CLOSING: [&str; 4] = [AUTHORIZATION, AUTHENTICATION, EGRESS, TRUST];

/// Type and name, and why.
type Refusals = BTreeMap<(&'static str, String), String>;

/// What a content was put together from.
#[derive(Debug)]
pub struct Composition {
    serial: u64,
    audience: Audience,
    caller: Caller,
    usable: Option<Arc<Usable>>,
    /// Whom the mesh believes in it; it is of no part.
    trust: Arc<Encoded>,
    parts: Vec<(PartKey, Arc<ViewPart>)>,
    /// What it depends on, in order, each once.
    pub subjects: Vec<Subject>,
}

/// Whom the mesh believes, as all streams have it: for our proxies and for others.
#[derive(Clone)]
struct Believed {
    trust: Arc<Encoded>,
    root_ca: Arc<Encoded>,
}

/// The parts of views, and what the engine refuses of the newest edition.
#[derive(Default)]
pub struct Cache {
    /// Shared by streams and editions.
    pub memo: Memo,
    /// One for all proxies: whoever federates and revokes much makes it large.
    believed: Mutex<Option<(u64, Believed)>>,
    refused: Mutex<(u64, Refusals)>,
}

impl Cache {
    /// A new edition, before any stream sees it. Returns what is touched for streams: all, where it is believed otherwise who is whom.
    pub fn turn(&self, edition: &Edition, touched: Affected) -> Affected {
        self.memo.turn(edition.serial, &touched);
        let now = Believed::of(edition);
        let mut believed = self.believed.lock();
        let same = believed.as_ref().is_some_and(|(_, known)| known.versions() == now.versions());
        // What is the same stays the same resource.
        let kept = believed.take().filter(|_| same).map_or(now, |(_, known)| known);
        *believed = Some((edition.serial, kept));
        if same { touched } else { Affected::All }
    }

    /// The content for an audience that wants these names, as the translator has it, and what it was put together from.
    pub fn content(&self, edition: &Edition, audience: &Audience, wants: &BTreeSet<String>) -> (Content, Composition) {
        let (mut content, parts) = (Content::new(), RefCell::new(Vec::new()));
        let part = |key: PartKey| {
            let part = self.memo.part(edition.serial, &edition.world, key.clone());
            parts.borrow_mut().push((key, Arc::clone(&part)));
            part
        };
        let composed = compose(&edition.world, audience, wants, part, |part| {
            for (url, name, item) in &part.resources {
                content.entry(url).or_default().insert(name.clone(), Arc::clone(item));
            }
        });
        content.retain(|url, _| type_urls().contains(url));
        let known = self.believed.lock().as_ref().filter(|(serial, _)| *serial == edition.serial).map(|(_, known)| known.clone());
        let Believed { trust, root_ca } = known.unwrap_or_else(|| Believed::of(edition));
        content.entry(xds::SECRET).or_default().insert(names::ROOT_CA.to_owned(), root_ca);
        content.entry(TRUST).or_default().insert(names::TRUST.to_owned(), Arc::clone(&trust));
        let (caller, usable) = (audience.caller(edition.world.index()), audience.usable(edition.world.index()));
        let audience = audience.clone();
        let (serial, parts, subjects) = (edition.serial, parts.into_inner(), composed.subjects);
        (content, Composition { serial, audience, caller, usable, trust, parts, subjects })
    }

    /// What of `content`, which was all good and put together as `shown` says, this edition has otherwise. `None`: there is more to it than
    /// other versions of the same resources, or one that the engine refuses.
    pub fn patch(&self, edition: &Edition, audience: &Audience, shown: &mut Composition, content: &Content) -> Option<Patch> {
        let index = edition.world.index();
        let apart = shown.audience != *audience || shown.caller != audience.caller(index) || shown.usable != audience.usable(index);
        if apart || !self.believes(edition, &shown.trust) {
            return None;
        }
        let changed = self.memo.since(shown.serial, (edition.serial, &edition.world), &shown.parts)?;
        let mut patch = Patch::new();
        for (place, part) in &changed {
            let before = &shown.parts[*place].1;
            if !part.is_shaped_as(before) {
                return None;
            }
            let pairs = before.resources.iter().zip(&part.resources).filter(|((.., was), (.., is))| !Arc::ptr_eq(was, is));
            for ((url, name, was), (.., is)) in pairs.filter(|((url, ..), _)| type_urls().contains(url)) {
                // Another part may have had the last word on it.
                let held = content.get(url).and_then(|items| items.get(name))?;
                if !Arc::ptr_eq(held, was) || refusal(url, name, is).is_some() {
                    return None;
                }
                patch.push((*url, name.clone(), Arc::clone(is)));
            }
        }
        self.note(edition.serial, Refusals::new());
        shown.serial = edition.serial;
        changed.into_iter().for_each(|(place, part)| shown.parts[place].1 = part);
        Some(patch)
    }

    /// Whether that edition believes whom `trust` names: [`Self::turn`] keeps what is the same.
    fn believes(&self, edition: &Edition, trust: &Arc<Encoded>) -> bool {
        let believed = self.believed.lock();
        believed.as_ref().is_some_and(|(serial, known)| *serial == edition.serial && Arc::ptr_eq(&known.trust, trust))
    }

    /// Replaces what the proxy's engine would refuse by what the stream had before, or leaves it out and names it: what a proxy has of it
    /// from an earlier stream it keeps. What an earlier version leads to stays beside it. So status says what proxies accept, and a fault
    /// of ours reaches them only where silence would open something. `serial`: of the content's edition.
    pub fn vetted(&self, serial: u64, mut content: Content, before: &Content) -> Vetted {
        let mut withheld = Withheld::new();
        let mut refused = Refusals::new();
        for (url, items) in &mut content {
            items.retain(|name, item| {
                let Some(reason) = refusal(url, name, item) else { return true };
                refused.insert((*url, name.clone()), reason.to_owned());
                let before = before.get(url).and_then(|items| items.get(name));
                match before.filter(|before| refusal(url, name, before).is_none()) {
                    Some(good) => item.clone_from(good),
                    None if CLOSING.contains(url) => {}
                    None => {
                        withheld.insert((*url, name.clone()));
                        return false;
                    }
                }
                true
            });
        }
        let led_to: BTreeSet<&'static str> = refused.keys().flat_map(|(url, _)| leads_to(url)).copied().collect();
        for (url, items) in before.iter().filter(|(url, _)| led_to.contains(*url)) {
            let kept = content.entry(url).or_default();
            for (name, item) in items {
                kept.entry(name.clone()).or_insert_with(|| item.clone());
            }
        }
        let whole = refused.is_empty();
        self.note(serial, refused);
        Vetted { content, withheld, whole }
    }

    /// Streams see one name differently, so nothing that one of them may have takes back what another may not: the next edition does.
    fn note(&self, serial: u64, refused: Refusals) {
        let mut known = self.refused.lock();
        if known.0 < serial {
            *known = (serial, Refusals::new());
        }
        if known.0 == serial {
            known.1.extend(refused);
        }
    }

    /// What the engine refuses at present: (`TYPE NAME`, reason).
    pub fn refused(&self) -> Vec<(String, String)> {
        let short = |url: &str| url.rsplit('.').next().unwrap_or_default().to_owned();
        self.refused.lock().1.iter().map(|((url, name), reason)| (format!("{} {name}", short(url)), reason.clone())).collect()
    }
}

/// What a stream is to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Vetted {
    /// What it should have.
    pub content: Content,
    /// What there is beside it and cannot be sent.
    pub withheld: Withheld,
    /// Nothing is refused: not even something for which an older version stands.
    pub whole: bool,
}

/// Why the proxy's engine would refuse a resource.
fn refusal<'a>(url: &'static str, name: &str, item: &'a Encoded) -> Option<&'a str> {
    item.refused(|| {
        let reason = Parts::default().put(url, name, &item.version, &item.any).err()?.to_string();
        tracing::error!(
            resource = name,
            reason,
            "the proxy's engine refuses what we translated; a last good version stays, policies without one let nobody in"
        );
        Some(reason)
    })
}

impl Believed {
    fn of(edition: &Edition) -> Self {
        Self { trust: trust::resource(&edition.roots, &edition.world), root_ca: root_ca(&edition.roots.pem) }
    }

    fn versions(&self) -> [&str; 2] {
        [&self.trust.version, &self.root_ca.version]
    }
}

fn root_ca(bundle: &str) -> Arc<Encoded> {
    let trusted_ca = Some(DataSource { specifier: Some(Specifier::InlineBytes(bundle.as_bytes().to_vec().into())) });
    let context = CertificateValidationContext { trusted_ca, ..CertificateValidationContext::default() };
    let secret = Secret { name: names::ROOT_CA.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) };
    Arc::new(Encoded::new(xds::pack(&secret)))
}

#[cfg(test)]
mod tests {
    use proto::xds::cluster::Cluster;
    use proto::xds::route::RouteConfiguration;

    use super::*;

    fn item<M: prost::Message + prost::Name>(message: &M) -> Arc<Encoded> {
        Arc::new(Encoded::new(xds::pack(message)))
    }

    /// The table `t`, good or of another name, which the engine refuses, and what it leads to.
    fn content(good: bool, clusters: &[&str]) -> Content {
        let table = RouteConfiguration { name: if good { "t" } else { "other" }.to_owned(), ..RouteConfiguration::default() };
        let cluster = |name: &&str| {
            let item = item(&Cluster { name: (*name).to_owned(), ..Cluster::default() });
            // Any will do: how one looks in full is not the matter here.
            item.refused(|| None);
            ((*name).to_owned(), item)
        };
        Content::from([
            (xds::ROUTE, BTreeMap::from([("t".to_owned(), item(&table))])),
            (xds::CLUSTER, clusters.iter().map(cluster).collect()),
        ])
    }

    #[test]
    fn what_the_last_good_table_leads_to_stays_with_it() {
        // Aim: while a table is refused its last good version has its clusters, beside those of the new one; with a good one they go.
        let cache = Cache::default();
        let names = |content: &Content| content[xds::CLUSTER].keys().cloned().collect::<Vec<_>>();
        let before = cache.vetted(1, content(true, &["old"]), &Content::new());
        let Vetted { content: during, withheld, whole } = cache.vetted(2, content(false, &["new"]), &before.content);
        assert_eq!(
            (&during[xds::ROUTE], names(&during), withheld, before.whole, whole),
            (&before.content[xds::ROUTE], vec!["new".to_owned(), "old".to_owned()], Withheld::new(), true, false)
        );
        let after = cache.vetted(3, content(true, &["new"]), &during);
        assert_eq!(names(&after.content), ["new"]);
    }

    #[test]
    fn what_closes_is_never_left_out() {
        // Aim: a proxy that has no good version of a policy is sent the bad one, which it refuses by name and by which it closes itself; one
        // that has a good one keeps it, and a bad one that was sent before is none.
        let cache = Cache::default();
        let content = |urls: &[&'static str], bad: &str| -> Content {
            // A field that no version has: not even a message.
            let item = |url: &str| {
                let item = Encoded::of_version(bad.to_owned(), prost_types::Any { type_url: url.to_owned(), value: vec![255] });
                if bad == "good" {
                    item.refused(|| None);
                }
                Arc::new(item)
            };
            urls.iter().map(|url| (*url, BTreeMap::from([("x".to_owned(), item(url))]))).collect()
        };
        let first = content(&CLOSING, "1");
        let Vetted { content: sent, withheld, .. } = cache.vetted(1, first.clone(), &Content::new());
        assert_eq!((&sent, withheld), (&first, Withheld::new()));
        assert_eq!(cache.refused().len(), CLOSING.len());
        let second = content(&CLOSING, "2");
        assert_eq!(cache.vetted(2, second.clone(), &sent).content, second);
        let good = content(&CLOSING, "good");
        assert_eq!(cache.vetted(3, second, &good).content, good);
        let other = cache.vetted(4, content(&[xds::CLUSTER], "1"), &Content::new());
        assert_eq!((other.content[xds::CLUSTER].len(), other.withheld.len()), (0, 1));
    }

    #[test]
    fn a_refusal_is_told_as_long_as_it_lasts() {
        // Aim: it is gone once the older version is back, which is judged already, and not because another stream sees the name otherwise.
        let cache = Cache::default();
        let (good, bad) = (content(true, &[]), content(false, &[]));
        for (serial, content, told) in
            [(1, &good, 0), (2, &bad, 1), (2, &good, 1), (1, &good, 1), (3, &bad, 1), (4, &good, 0), (3, &bad, 0)]
        {
            cache.vetted(serial, content.clone(), &good);
            assert_eq!(cache.refused().len(), told, "{serial}");
        }
    }
}
