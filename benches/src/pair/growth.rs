//! Manifests that make a mesh bigger: routes of the service in use, or services that nobody uses. Pure.

use std::fmt::Write;

use crate::pair::spec::Parent;

/// Rules of one HTTPRoute: Gateway API's limit.
const RULES_MAX: u32 = 16;

/// `count` routes of the service `bench/web`, each a path prefix of its own, and one for everything else, as HTTPRoutes of `parent`.
pub(super) fn routes(count: u32, parent: Parent) -> String {
    let mut out = String::new();
    let rule =
        |path: &str| format!("  - {{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], backendRefs: [{{name: web, port: 80}}]}}\n");
    for first in (0..count).step_by(RULES_MAX as usize) {
        head(&mut out, &format!("many-{first}"), parent);
        (first..count.min(first + RULES_MAX)).for_each(|n| out.push_str(&rule(&format!("/catalogue/section-{n}/items"))));
    }
    head(&mut out, "rest", parent);
    out.push_str(&rule("/"));
    out
}

fn head(out: &mut String, name: &str, parent: Parent) {
    let parent = match parent {
        Parent::Service => "{group: \"\", kind: Service, name: web, port: 80}",
        Parent::Gateway => "{name: edge}",
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec:\n  parentRefs: [{parent}]\n  rules:\n"
    );
}

/// `count` services in the namespace `bench`, each with a workload of its own, none of which is ever called.
pub(super) fn services(count: u32) -> String {
    let mut out = String::new();
    for n in 0..count {
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: unused-{n}, namespace: bench}}\n\
             spec: {{selector: {{app: unused-{n}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n\
             ---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: unused-{n}, namespace: bench, labels: {{app: unused-{n}}}}}\n\
             spec: {{addresses: [\"10.77.{}.{}\"], ports: [{{name: http, port: 8080}}]}}\n",
            100 + n / 250,
            1 + n % 250
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: as many routes as asked for plus the catch-all, no HTTPRoute with more than sixteen rules.
    #[test]
    fn routes_are_as_many_as_asked_for() {
        for (count, objects) in [(1, 2), (16, 2), (17, 3), (1000, 64)] {
            for (parent, named) in [(Parent::Service, "name: web, port: 80}]\n  rules"), (Parent::Gateway, "name: edge}]\n  rules")] {
                let text = routes(count, parent);
                assert_eq!(text.matches("matches:").count() as u32, count + 1);
                assert_eq!((text.matches("kind: HTTPRoute").count(), text.matches(named).count()), (objects, objects));
                assert!(text.split("kind: HTTPRoute").all(|one| one.matches("matches:").count() <= 16));
            }
        }
    }

    /// Aim: services have addresses of their own.
    #[test]
    fn services_do_not_share_addresses() {
        let text = services(1000);
        let addresses: std::collections::BTreeSet<_> = text.lines().filter(|line| line.contains("addresses")).collect();
        assert_eq!((addresses.len(), text.matches("kind: Service\n").count()), (1000, 1000));
    }
}
