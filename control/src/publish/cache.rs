//! What a stream should have: the translator's view, vetted by the proxy's own engine, with the trust bundle beside it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine::model::build::Parts;
use parking_lot::Mutex;
use proto::xds::core::{DataSource, data_source::Specifier};
use proto::xds::tls::{CertificateValidationContext, Secret, secret};
use proto::{epoch, names, xds};

use super::edition::Edition;
use super::session::{Content, Withheld, type_urls};
use crate::translate::{Audience, Encoded, view};

/// Verdicts kept; beyond it all are asked for again.
const VERDICTS_MAX: usize = 200_000;
/// Views kept of one edition.
const VIEWS_MAX: usize = 4_096;

/// Type, name and version.
type VersionKey = (&'static str, String, String);
type Views = BTreeMap<(Audience, BTreeSet<String>), Arc<Content>>;

/// Views of the newest edition, and what the engine said of each resource version.
#[derive(Default)]
pub struct Cache {
    views: Mutex<(u64, Views)>,
    verdicts: Mutex<HashMap<VersionKey, Option<String>>>,
    refused: Mutex<BTreeMap<(&'static str, String), String>>,
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
        let content = Arc::new(translate(edition, audience, wants));
        let mut views = self.views.lock();
        if views.0 == edition.serial && views.1.len() < VIEWS_MAX {
            views.1.insert(key, content.clone());
        }
        content
    }

    /// Replaces what the proxy's engine would refuse by what the stream had before, or leaves it out and names it: what a proxy has of it
    /// from an earlier stream it keeps. So status says what proxies accept, and a fault of ours never reaches them.
    pub fn vetted(&self, content: &Content, before: &Content) -> (Content, Withheld) {
        let mut vetted = content.clone();
        let mut withheld = Withheld::new();
        for (url, items) in &mut vetted {
            items.retain(|name, item| match self.refusal(url, name, item) {
                None => true,
                Some(_) => match before.get(url).and_then(|items| items.get(name)) {
                    Some(good) => {
                        *item = good.clone();
                        true
                    }
                    None => {
                        withheld.insert((*url, name.clone()));
                        false
                    }
                },
            });
        }
        (vetted, withheld)
    }

    fn refusal(&self, url: &'static str, name: &str, item: &Encoded) -> Option<String> {
        let version = (url, name.to_owned(), item.version.clone());
        if let Some(verdict) = self.verdicts.lock().get(&version) {
            return verdict.clone();
        }
        let verdict = Parts::default().put(url, name, &item.version, &item.any).err().map(|rejected| rejected.to_string());
        let key = (url, name.to_owned());
        match &verdict {
            Some(reason) => {
                tracing::error!(resource = name, reason, "the proxy's engine refuses what we translated; its last good version stays");
                self.refused.lock().insert(key, reason.clone());
            }
            None => {
                self.refused.lock().remove(&key);
            }
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
        self.refused.lock().iter().map(|((url, name), reason)| (format!("{} {name}", short(url)), reason.clone())).collect()
    }
}

fn translate(edition: &Edition, audience: &Audience, wants: &BTreeSet<String>) -> Content {
    let mut content = Content::new();
    for ((url, name), item) in view(&edition.world, audience, wants).resources {
        if let Some(url) = type_urls().iter().find(|known| **known == url) {
            content.entry(url).or_default().insert(name, item);
        }
    }
    content.entry(xds::SECRET).or_default().insert(names::ROOT_CA.to_owned(), root_ca(&edition.bundle));
    content
}

fn root_ca(bundle: &str) -> Arc<Encoded> {
    let trusted_ca = Some(DataSource { specifier: Some(Specifier::InlineBytes(bundle.as_bytes().to_vec().into())) });
    let context = CertificateValidationContext { trusted_ca, ..CertificateValidationContext::default() };
    let any = xds::pack(&Secret { name: names::ROOT_CA.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) });
    Arc::new(Encoded { version: epoch::version(&any.value), any })
}
