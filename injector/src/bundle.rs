//! Whom others believe at their first contact: API servers the webhook (`caBundle` of its webhook configurations), pods the control plane
//! (a ConfigMap in every namespace). Both hold all roots that may be met, so that during a rotation nobody is turned away. Pure decisions;
//! [`crate::keep`] carries them out.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use proto::annotations;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Label of what the mesh has written and may write again.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "meshwright");

/// A webhook configuration of either kind, seen alike.
pub trait Hooks {
    /// Each webhook's name and whom it asks.
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Hooks for MutatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (hook.name.as_str(), &hook.client_config)).collect()
    }
}

impl Hooks for ValidatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (hook.name.as_str(), &hook.client_config)).collect()
    }
}

/// The Service through which API servers reach the webhook. What asks another one is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What to change so that API servers believe just the certificates of `roots` (PEM); `None`: nothing. Each change says whose it is, so that
/// it fails where somebody has moved the entries meanwhile. Without a root that can be read nothing is changed: a webhook that is believed
/// too widely works, one that nobody believes does not.
pub fn rebundle(configuration: &impl Hooks, service: &HookService, roots: &str) -> Option<Patch> {
    let wanted = certificates(roots.as_bytes());
    if wanted.is_empty() {
        return None;
    }
    let ours = |config: &WebhookClientConfig| {
        config.service.as_ref().is_some_and(|asked| asked.name == service.name && asked.namespace == service.namespace)
    };
    let believes = |config: &WebhookClientConfig| config.ca_bundle.as_ref().map(|bundle| certificates(&bundle.0)).unwrap_or_default();
    let stale = configuration.hooks().into_iter().enumerate().filter(|(_, (_, config))| ours(config) && believes(config) != wanted);
    let changes: Vec<Value> = stale
        .flat_map(|(index, (name, _))| {
            let bundle = STANDARD.encode(roots);
            [
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": name}),
                json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}),
            ]
        })
        .collect();
    // A list of operations is a patch.
    if changes.is_empty() { None } else { serde_json::from_value(changes.into()).ok() }
}

/// The same configuration, with these roots for webhooks of `service`.
pub fn believing<K: Hooks + Clone + Serialize + DeserializeOwned>(configuration: K, service: &HookService, roots: &str) -> K {
    let Some(patch) = rebundle(&configuration, service, roots) else { return configuration };
    let changed = serde_json::to_value(&configuration).ok().and_then(|mut value| {
        json_patch::patch(&mut value, &patch).ok()?;
        serde_json::from_value(value).ok()
    });
    changed.unwrap_or(configuration)
}

/// Whether one of its webhooks is asked at that Service.
pub fn asks(configuration: &impl Hooks, service: &HookService) -> bool {
    let at = |config: &WebhookClientConfig| config.service.as_ref().map(|asked| (asked.namespace.clone(), asked.name.clone()));
    configuration.hooks().into_iter().any(|(_, config)| at(config) == Some((service.namespace.clone(), service.name.clone())))
}

/// The same configuration for an API server that has it no more: what its author said, with the owner by whose end it goes.
pub fn again<K: Resource>(mut configuration: K, owner: Option<OwnerReference>) -> K {
    let meta = configuration.meta_mut();
    let (name, labels, annotations) = (meta.name.take(), meta.labels.take(), meta.annotations.take());
    *meta = ObjectMeta { name, labels, annotations, owner_references: owner.map(|owner| vec![owner]), ..ObjectMeta::default() };
    configuration
}

/// The certificates of a PEM text; none where one of them cannot be read.
fn certificates(pem: &[u8]) -> BTreeSet<Vec<u8>> {
    let read: Result<_, _> = CertificateDer::pem_slice_iter(pem).map(|one| one.map(|der| der.to_vec())).collect();
    read.unwrap_or_default()
}

/// What to write into a namespace so that its pods find the roots: an apply of our own part, by our field manager. `there` is what the
/// ConfigMap says now; `None`: there is none.
pub fn roots_map(there: Option<&str>, roots: &str) -> Option<Value> {
    if certificates(roots.as_bytes()).is_empty() || there == Some(roots) {
        return None;
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": annotations::CA_CONFIG_MAP, "labels": {MANAGED_BY.0: MANAGED_BY.1}},
        "data": {annotations::CA_KEY: roots},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> String {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn hook(name: &str, service: &str, bundle: Option<&str>) -> Value {
        let config = json!({"service": {"namespace": "meshwright-system", "name": service}, "caBundle": bundle.map(|bundle| STANDARD.encode(bundle))});
        json!({"name": name, "clientConfig": config, "sideEffects": "None", "admissionReviewVersions": ["v1"]})
    }

    fn configuration(hooks: &[Value]) -> Value {
        json!({"metadata": {"name": "meshwright"}, "webhooks": hooks})
    }

    fn changed(configuration: &Value, roots: &str) -> Option<Value> {
        let service = HookService { namespace: "meshwright-system".into(), name: "meshwright-control".into() };
        let mutating: MutatingWebhookConfiguration = serde_json::from_value(configuration.clone()).unwrap();
        let validating: ValidatingWebhookConfiguration = serde_json::from_value(configuration.clone()).unwrap();
        let patch = rebundle(&mutating, &service, roots);
        assert_eq!(patch, rebundle(&validating, &service, roots));
        let mut changed = configuration.clone();
        json_patch::patch(&mut changed, &patch?).unwrap();
        Some(changed)
    }

    /// Aim: just our own entries get the bundle, and only where they believe something else; order and comments of the PEM do not count.
    #[test]
    fn stale_bundles_are_found() {
        let (old, new) = (root("old"), root("new"));
        let both = format!("{old}{new}");
        let fresh = configuration(&[hook("a", "meshwright-control", Some(&both)), hook("b", "other", Some(&old))]);
        assert_eq!(changed(&fresh, &both), None);
        assert_eq!(changed(&fresh, &format!("# first contact\n{new}{old}")), None);
        for there in [None, Some(""), Some("no PEM"), Some(old.as_str())] {
            let stale = configuration(&[hook("b", "other", None), hook("a", "meshwright-control", there)]);
            let wanted = configuration(&[hook("b", "other", None), hook("a", "meshwright-control", Some(&both))]);
            assert_eq!(changed(&stale, &both), Some(wanted), "{there:?}");
        }
        assert_eq!(changed(&configuration(&[]), &both), None);
    }

    /// Aim: through a whole rotation of the root, API servers always believe the certificate that is served.
    #[test]
    fn a_rotation_is_believed_throughout() {
        let (old, new) = (root("old"), root("new"));
        let both = format!("{old}{new}");
        let mut now = configuration(&[hook("a", "meshwright-control", Some(&old))]);
        for (roots, served) in [(&old, &old), (&both, &old), (&both, &new), (&new, &new)] {
            if let Some(next) = changed(&now, roots) {
                now = next;
            }
            let bundle = STANDARD.decode(now["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap()).unwrap();
            assert!(certificates(&bundle).is_superset(&certificates(served.as_bytes())));
        }
        assert_eq!(now, configuration(&[hook("a", "meshwright-control", Some(&new))]));
    }

    /// Aim: roots that cannot be read never replace those that can.
    #[test]
    fn no_roots_change_nothing() {
        let stale = configuration(&[hook("a", "meshwright-control", None)]);
        let broken = root("a").replace("MII", "M!!");
        for roots in ["", "text", &broken] {
            assert_eq!(changed(&stale, roots), None);
            assert_eq!(roots_map(None, roots), None);
        }
    }

    /// Aim: a namespace's ConfigMap is written where it is not there or says something else.
    #[test]
    fn namespaces_get_the_roots() {
        let pem = root("a");
        assert_eq!(roots_map(Some(&pem), &pem), None);
        for there in [None, Some("old")] {
            assert_eq!(roots_map(there, &pem).unwrap()["data"]["ca.pem"], pem);
        }
    }
}
