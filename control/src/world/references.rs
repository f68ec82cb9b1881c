//! Which Secrets and ConfigMaps an object refers to: nothing else of them is asked for.

use std::collections::BTreeSet;

use super::Spec;
use super::key::{Kind, ObjectKey};
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
        Spec::Consumer(consumer) => consumer.refers().map(|at| at.object.clone()).collect(),
        Spec::BasicAuth(spec) => spec.users.iter().map(|at| at.object.clone()).collect(),
        Spec::AuthorizationPolicy(policy) => {
            let named = lists(policy).filter_map(|path| path.split_once('/'));
            let keys: BTreeSet<ObjectKey> = named.map(|(namespace, name)| ObjectKey::new(Kind::ConfigMap, namespace, name)).collect();
            keys.into_iter().collect()
        }
        _ => Vec::new(),
    }
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
            ("kind: Workload\nmetadata: {name: w, namespace: shop}\nspec: {command: [x]}", ""),
        ] {
            let candidate = parse("f", &format!("apiVersion: meshwright.dev/v1alpha1\n{text}\n")).candidates.remove(0);
            let object = candidate.object.unwrap_or_else(|| panic!("{:?}", candidate.problems));
            let found: Vec<_> = references(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found.join(", "), wanted);
        }
    }
}
