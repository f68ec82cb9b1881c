//! Which Secrets and ConfigMaps an object refers to: nothing else of them is asked for.

use std::collections::BTreeSet;

use super::Spec;
use super::acme::ordered;
use super::key::{Kind, ObjectKey};
use super::listener::{Listener, ObjectRef};
use super::object::Object;
use super::security::authorization::lists;

/// Every Secret and ConfigMap that an object names, there or not.
pub fn references(object: &Object) -> Vec<ObjectKey> {
    match &object.spec {
        Spec::Mesh(mesh) => mesh.federation.iter().map(|federated| federated.bundle.object.clone()).collect(),
        Spec::EgressPolicy(policy) => {
            let originate = policy.allow.iter().filter_map(|rule| rule.originate.as_ref());
            originate.flat_map(|originate| originate.roots.iter().cloned()).collect()
        }
        Spec::Gateway(gateway) => {
            let cas = gateway.clients.all().flat_map(|(_, demand)| &demand.cas);
            let mut all = named(object, certificates(&gateway.listeners).chain(cas).chain(&gateway.client_certificate));
            all.extend(orders(object, &gateway.listeners));
            all
        }
        Spec::ListenerSet(set) => {
            let mut all = named(object, certificates(&set.listeners));
            all.extend(orders(object, &set.listeners));
            all
        }
        Spec::ClientPolicy(spec) => spec.acme.iter().filter_map(|acme| acme.account.as_ref()).map(|at| at.object.clone()).collect(),
        Spec::BackendTlsPolicy(policy) => named(object, policy.cas.iter()),
        Spec::ExternalBackend(spec) => named(object, spec.tls.iter().flat_map(|tls| &tls.cas).chain(&spec.certificate)),
        Spec::Consumer(consumer) => consumer.refers().map(|at| at.object.clone()).collect(),
        Spec::RequestAuthentication(spec) => spec.introspection.iter().flat_map(|said| &said.secret).map(|at| at.object.clone()).collect(),
        Spec::OidcLogin(spec) => spec.secrets().map(|at| at.object.clone()).collect(),
        Spec::BasicAuth(spec) => spec.users.iter().map(|at| at.object.clone()).collect(),
        Spec::RateLimit(spec) => spec.store.password().iter().map(|at| at.object.clone()).collect(),
        Spec::AuthorizationPolicy(policy) => {
            let named = lists(policy).filter_map(|path| path.split_once('/'));
            let keys: BTreeSet<ObjectKey> = named.map(|(namespace, name)| ObjectKey::new(Kind::ConfigMap, namespace, name)).collect();
            keys.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn certificates(listeners: &[Listener]) -> impl Iterator<Item = &ObjectRef> {
    listeners.iter().filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| &tls.certificates)
}

/// Where certificates that are ordered will be.
fn orders(object: &Object, listeners: &[Listener]) -> BTreeSet<ObjectKey> {
    listeners.iter().filter_map(|listener| ordered(&object.key, listener)).map(|(secret, _)| secret).collect()
}

/// Each once.
fn named<'a>(object: &Object, refs: impl Iterator<Item = &'a ObjectRef>) -> Vec<ObjectKey> {
    let mut named: Vec<ObjectKey> = refs.filter_map(|to| to.object(&object.key.namespace)).collect();
    named.sort();
    named.dedup();
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;

    #[test]
    fn what_is_named_is_found() {
        // Aim: every field that names a Secret or ConfigMap is known here, so that a cluster is asked for it.
        for (text, wanted) in [
            (
                "kind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\nspec: {federation: [{trustDomain: b.example, bundle: {configMapRef: {name: roots, key: ca.pem}}}]}",
                "ConfigMap meshwright-system/roots",
            ),
            (
                "kind: EgressPolicy\nmetadata: {name: e, namespace: shop}\nspec: {allow: [{hosts: [a.example], ports: [80], tls: {originate: {sni: a.example, caCertificateRefs: [{kind: ConfigMap, group: '', name: one}, {kind: Secret, group: '', name: two}]}}}]}",
                "ConfigMap shop/one, Secret shop/two",
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {gatewayClassName: meshwright, tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: cas}]}}, perPort: [{port: 8443, tls: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: more, namespace: other}]}}}]}, backend: {clientCertificateRef: {name: me}}}, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: one}, {kind: Service, name: none}]}}, {name: b, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: one}]}}]}",
                "Secret shop/me, Secret shop/one, ConfigMap other/more, ConfigMap shop/cas",
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: l, namespace: team}\nspec: {parentRef: {name: g, namespace: shop}, listeners: [{name: a, port: 443, protocol: TLS, tls: {certificateRefs: [{name: one, namespace: certs}]}}]}",
                "Secret certs/one",
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: team}\nspec: {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}",
                "ConfigMap team/roots",
            ),
            (
                "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackend\nmetadata: {name: b, namespace: shop}\nspec: {type: ExternalHostname, port: {port: 443}, externalHostname: {hostname: a.example}, tls: {mode: ClientAndServer, clientCertificateRef: {name: me, namespace: certs}}}",
                "Secret certs/me",
            ),
            (
                "kind: OidcLogin\nmetadata: {name: l, namespace: shop}\nspec: {clientSecretRef: {name: oidc, key: secret}, session: {keySecretRef: {name: keys, key: k}}}",
                "Secret shop/oidc, Secret shop/keys",
            ),
            (
                "kind: RateLimit\nmetadata: {name: l, namespace: shop}\nspec: {store: {redis: {addresses: ['redis:6379'], authRef: {name: redis, key: password}}}, limits: [{name: a, requests: 1, per: 1s}]}",
                "Secret shop/redis",
            ),
            (
                "kind: RequestAuthentication\nmetadata: {name: t, namespace: shop}\nspec: {targetRefs: [{kind: Gateway, name: g}], introspection: [{url: 'https://id.example/i', clientId: gw, clientSecretRef: {name: gw, key: s}}]}",
                "Secret shop/gw",
            ),
            (
                "kind: ClientPolicy\nmetadata: {name: c, namespace: shop}\nspec: {targetRefs: [{kind: Gateway, name: g}], acme: {directory: 'https://ca.example/d', accountSecretRef: {name: account}}}",
                "Secret shop/account",
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {gatewayClassName: meshwright, listeners: [{name: a, port: 443, protocol: HTTPS, hostname: a.example, tls: {options: {meshwright.dev/acme: 'on'}}}]}",
                "Secret shop/acme-a.example",
            ),
            ("kind: Workload\nmetadata: {name: w, namespace: shop}\nspec: {command: [x]}", ""),
        ] {
            let own = if text.starts_with("apiVersion") { "" } else { "apiVersion: meshwright.dev/v1alpha1\n" };
            let candidate = parse("f", &format!("{own}{text}\n")).candidates.remove(0);
            let object = candidate.object.unwrap_or_else(|| panic!("{:?}", candidate.problems));
            let found: Vec<_> = references(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found.join(", "), wanted);
        }
    }
}
