//! The shop of the meshes in memory and in simulation: a frontend, and a catalog of two versions.

/// Its manifests, without a route. Frontend, catalog-v1 and catalog-v2 have the addresses .2, .3 and .4 of `network` (`10.9.0`).
pub fn shop(network: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: Strict}}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: frontend, namespace: shop, labels: {{app: frontend}}}}
spec: {{serviceAccount: web, addresses: [{network}.2], ports: [{{name: http, port: 8080}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: catalog-v1, namespace: shop, labels: {{app: catalog, version: v1}}}}
spec: {{serviceAccount: catalog, addresses: [{network}.3], ports: [{{name: http, port: 8080}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: catalog-v2, namespace: shop, labels: {{app: catalog, version: v2}}}}
spec: {{serviceAccount: catalog, addresses: [{network}.4], ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec: {{selector: {{app: catalog}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog-v1, namespace: shop}}
spec: {{selector: {{app: catalog, version: v1}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog-v2, namespace: shop}}
spec: {{selector: {{app: catalog, version: v2}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
"#
    )
}

/// The catalog's route, with the weights of its versions.
pub fn route(v1: u32, v2: u32) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: catalog, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: catalog}}]
  rules:
    - backendRefs: [{{name: catalog-v1, port: 80, weight: {v1}}}, {{name: catalog-v2, port: 80, weight: {v2}}}]
"#
    )
}

/// A namespace of that name, within the mesh.
pub fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{meshwright.dev/inject: enabled}}}}\n---\n")
}

/// A workload with the label `app`, at that address.
pub fn workload(namespace: &str, name: &str, app: &str, address: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
         spec: {{serviceAccount: {app}, addresses: [{address}], ports: [{{name: http, port: 8080}}]}}\n---\n"
    )
}

/// A Service of the workloads with the label `app`.
pub fn service(namespace: &str, name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n---\n"
    )
}

/// A TrafficPolicy for a Service, of the same name; `spec` in flow style, without braces.
pub fn policy(namespace: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{{group: \"\", kind: Service, name: {service}}}], {spec}}}\n---\n"
    )
}
