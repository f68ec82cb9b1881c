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
