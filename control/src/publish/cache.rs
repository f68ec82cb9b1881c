//! What a stream should have: the translator's view, vetted by the proxy's own engine, with whom to believe beside it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine::model::build::Parts;
use parking_lot::Mutex;
use proto::xds::core::{DataSource, data_source::Specifier};
use proto::xds::tls::{CertificateValidationContext, Secret, secret};
use proto::{epoch, names, xds};

use super::edition::Edition;
use super::session::{Content, Withheld, leads_to, type_urls};
use super::trust;
use crate::translate::{AUTHENTICATION, AUTHORIZATION, Audience, EGRESS, Encoded, TRUST, view};

/// Verdicts kept; beyond it all are asked for again.
const VERDICTS_MAX: usize = 200_000;
/// Views kept of one edition.
const VIEWS_MAX: usize = 4_096;

/// What closes something. A proxy that never had a good version, and hears nothing of it, would stay open; it refuses a bad one by name, and
/// closes itself.
const CLOSING: [&str; 4] = [AUTHORIZATION, AUTHENTICATION, EGRESS, TRUST];

/// Type, name and version.
type VersionKey = (&'static str, String, String);
type Views = BTreeMap<(Audience, BTreeSet<String>), Arc<Content>>;
/// Type and name, and why.
type Refusals = BTreeMap<(&'static str, String), String>;

/// Views of the newest edition, what the engine said of each resource version, and what it refuses of the newest edition.
#[derive(Default)]
pub struct Cache {
    views: Mutex<(u64, Views)>,
    /// One for all proxies: whoever federates and revokes much makes it large.
    trust: Mutex<(u64, Option<Arc<Encoded>>)>,
    verdicts: Mutex<HashMap<VersionKey, Option<String>>>,
    refused: Mutex<(u64, Refusals)>,
}

impl Cache {
    /// The content for an audience that wants these names, as the translator has it.
    pub fn content(&self, edition: &Edition, audience: &Audience, wants: &BTreeSet<String>) -> Arc<Content> {
        let key = (audience.clone(), wants.clone());
        {
            let mut views = self.views.lock();
            if views.0 < edition.serial {
                *views = (edition.serial, Views::new());
            }
            if let Some(content) = views.1.get(&key).filter(|_| views.0 == edition.serial) {
                return content.clone();
            }
        }
        // Translated outside the lock: streams do so side by side.
        let content = Arc::new(translate(edition, self.trust(edition), audience, wants));
        let mut views = self.views.lock();
        if views.0 == edition.serial && views.1.len() < VIEWS_MAX {
            views.1.insert(key, content.clone());
        }
        content
    }

    fn trust(&self, edition: &Edition) -> Arc<Encoded> {
        let mut kept = self.trust.lock();
        match &kept.1 {
            Some(trust) if kept.0 == edition.serial => trust.clone(),
            _ => {
                let trust = trust::resource(&edition.roots, &edition.world);
                *kept = (edition.serial, Some(trust.clone()));
                trust
            }
        }
    }

    /// Replaces what the proxy's engine would refuse by what the stream had before, or leaves it out and names it: what a proxy has of it
    /// from an earlier stream it keeps. What an earlier version leads to stays beside it. So status says what proxies accept, and a fault
    /// of ours reaches them only where silence would open something. `serial`: of the content's edition.
    pub fn vetted(&self, serial: u64, content: &Content, before: &Content) -> (Content, Withheld) {
        let mut vetted = content.clone();
        let mut withheld = Withheld::new();
        let mut refused = Refusals::new();
        for (url, items) in &mut vetted {
            items.retain(|name, item| {
                let Some(reason) = self.refusal(url, name, item) else { return true };
                refused.insert((*url, name.clone()), reason);
                let before = before.get(url).and_then(|items| items.get(name));
                match before.filter(|before| self.refusal(url, name, before).is_none()) {
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
            let kept = vetted.entry(url).or_default();
            for (name, item) in items {
                kept.entry(name.clone()).or_insert_with(|| item.clone());
            }
        }
        self.note(serial, refused);
        (vetted, withheld)
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

    fn refusal(&self, url: &'static str, name: &str, item: &Encoded) -> Option<String> {
        let version = (url, name.to_owned(), item.version.clone());
        if let Some(verdict) = self.verdicts.lock().get(&version) {
            return verdict.clone();
        }
        let verdict = Parts::default().put(url, name, &item.version, &item.any).err().map(|rejected| rejected.to_string());
        if let Some(reason) = &verdict {
            tracing::error!(
                resource = name,
                reason,
                "the proxy's engine refuses what we translated; a last good version stays, policies without one let nobody in"
            );
        }
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() >= VERDICTS_MAX {
            verdicts.clear();
        }
        verdicts.insert(version, verdict.clone());
        verdict
    }

    /// What the engine refuses at present: (`TYPE NAME`, reason).
    pub fn refused(&self) -> Vec<(String, String)> {
        let short = |url: &str| url.rsplit('.').next().unwrap_or_default().to_owned();
        self.refused.lock().1.iter().map(|((url, name), reason)| (format!("{} {name}", short(url)), reason.clone())).collect()
    }
}

fn translate(edition: &Edition, trust: Arc<Encoded>, audience: &Audience, wants: &BTreeSet<String>) -> Content {
    let mut content = Content::new();
    for ((url, name), item) in view(&edition.world, audience, wants).resources {
        if let Some(url) = type_urls().iter().find(|known| **known == url) {
            content.entry(url).or_default().insert(name, item);
        }
    }
    content.entry(xds::SECRET).or_default().insert(names::ROOT_CA.to_owned(), root_ca(&edition.roots.pem));
    content.entry(TRUST).or_default().insert(names::TRUST.to_owned(), trust);
    content
}

fn root_ca(bundle: &str) -> Arc<Encoded> {
    let trusted_ca = Some(DataSource { specifier: Some(Specifier::InlineBytes(bundle.as_bytes().to_vec().into())) });
    let context = CertificateValidationContext { trusted_ca, ..CertificateValidationContext::default() };
    let any = xds::pack(&Secret { name: names::ROOT_CA.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) });
    Arc::new(Encoded { version: epoch::version(&any.value), any })
}

#[cfg(test)]
mod tests {
    use proto::xds::cluster::Cluster;
    use proto::xds::route::RouteConfiguration;

    use super::*;

    fn item<M: prost::Message + prost::Name>(message: &M) -> Arc<Encoded> {
        let any = xds::pack(message);
        Arc::new(Encoded { version: epoch::version(&any.value), any })
    }

    /// The table `t`, good or of another name, which the engine refuses, and what it leads to.
    fn content(good: bool, clusters: &[&str]) -> Content {
        let table = RouteConfiguration { name: if good { "t" } else { "other" }.to_owned(), ..RouteConfiguration::default() };
        let cluster = |name: &&str| ((*name).to_owned(), item(&Cluster { name: (*name).to_owned(), ..Cluster::default() }));
        Content::from([
            (xds::ROUTE, BTreeMap::from([("t".to_owned(), item(&table))])),
            (xds::CLUSTER, clusters.iter().map(cluster).collect()),
        ])
    }

    /// A cache that takes any of these clusters: how one looks in full is not the matter here.
    fn cache(clusters: &[&str]) -> Cache {
        let cache = Cache::default();
        for (name, item) in &content(true, clusters)[xds::CLUSTER] {
            cache.verdicts.lock().insert((xds::CLUSTER, name.clone(), item.version.clone()), None);
        }
        cache
    }

    #[test]
    fn what_the_last_good_table_leads_to_stays_with_it() {
        // Aim: while a table is refused its last good version has its clusters, beside those of the new one; with a good one they go.
        let cache = cache(&["old", "new"]);
        let names = |content: &Content| content[xds::CLUSTER].keys().cloned().collect::<Vec<_>>();
        let (before, _) = cache.vetted(1, &content(true, &["old"]), &Content::new());
        let (during, withheld) = cache.vetted(2, &content(false, &["new"]), &before);
        assert_eq!(
            (&during[xds::ROUTE], names(&during), withheld),
            (&before[xds::ROUTE], vec!["new".to_owned(), "old".to_owned()], Withheld::new())
        );
        let (after, _) = cache.vetted(3, &content(true, &["new"]), &during);
        assert_eq!(names(&after), ["new"]);
    }

    #[test]
    fn what_closes_is_never_left_out() {
        // Aim: a proxy that has no good version of a policy is sent the bad one, which it refuses by name and by which it closes itself; one
        // that has a good one keeps it, and a bad one that was sent before is none.
        let cache = Cache::default();
        let content = |urls: &[&'static str], bad: &str| -> Content {
            // A field that no version has: not even a message.
            let item = |url: &str| {
                Arc::new(Encoded { version: bad.to_owned(), any: prost_types::Any { type_url: url.to_owned(), value: vec![255] } })
            };
            urls.iter().map(|url| (*url, BTreeMap::from([("x".to_owned(), item(url))]))).collect()
        };
        let first = content(&CLOSING, "1");
        let (sent, withheld) = cache.vetted(1, &first, &Content::new());
        assert_eq!((&sent, withheld), (&first, Withheld::new()));
        assert_eq!(cache.refused().len(), CLOSING.len());
        let second = content(&CLOSING, "2");
        assert_eq!(cache.vetted(2, &second, &sent).0, second);
        let good = content(&CLOSING, "good");
        for url in CLOSING {
            cache.verdicts.lock().insert((url, "x".to_owned(), "good".to_owned()), None);
        }
        assert_eq!(cache.vetted(3, &second, &good).0, good);
        let (other, withheld) = cache.vetted(4, &content(&[xds::CLUSTER], "1"), &Content::new());
        assert_eq!((other[xds::CLUSTER].len(), withheld.len()), (0, 1));
    }

    #[test]
    fn a_refusal_is_told_as_long_as_it_lasts() {
        // Aim: it is gone once the older version is back, which is judged already, and not because another stream sees the name otherwise.
        let cache = cache(&[]);
        let (good, bad) = (content(true, &[]), content(false, &[]));
        for (serial, content, told) in
            [(1, &good, 0), (2, &bad, 1), (2, &good, 1), (1, &good, 1), (3, &bad, 1), (4, &good, 0), (3, &bad, 0)]
        {
            cache.vetted(serial, content, &good);
            assert_eq!(cache.refused().len(), told, "{serial}");
        }
    }
}
