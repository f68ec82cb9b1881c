//! A Gateway with TLS whose proxies are replaced, and whose every certificate is, under load.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tests::kube::Cluster;

use crate::holder::asked;
use crate::shop;

/// An authority of the callers', and what signs a certificate of it for the Gateway: `cert.sh N` makes the Nth and applies it.
const CERTIFICATES: &str = r#"set -e
cat > cert.sh <<'END'
set -e
openssl ecparam -name prime256v1 -genkey -noout -out gateway.key
openssl req -new -key gateway.key -subj "/CN=shop.example" -out gateway.csr
printf 'subjectAltName=DNS:shop.example\n' > gateway.ext
openssl x509 -req -in gateway.csr -CA callers-ca.pem -CAkey callers-ca.key -set_serial $1 -days 30 -extfile gateway.ext -out gateway.pem
kubectl -n shop create secret tls gateway --cert=gateway.pem --key=gateway.key --dry-run=client -o yaml | kubectl apply --server-side --force-conflicts -f -
END
openssl ecparam -name prime256v1 -genkey -noout -out callers-ca.key
openssl req -x509 -new -key callers-ca.key -out callers-ca.pem -subj "/CN=Callers believe it" -days 30 -addext keyUsage=critical,keyCertSign
bash cert.sh 1001
kubectl -n outside create configmap callers-ca --from-file=ca.pem=callers-ca.pem"#;

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: https, port: 443, protocol: HTTPS, hostname: shop.example, tls: {certificateRefs: [{name: gateway}]}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: public, namespace: shop}
spec:
  parentRefs: [{name: public}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"#;

/// A thousand requests a second in an open loop, from two processes of ten callers: eight keep their connection, two open one for each call. A kept
/// connection that ended before a byte of an answer is no fault: every client asks again then (RFC 9110, section 9.2.2). Each line says how many
/// calls there were, what failed, how late the latest call of the last half second began, and the serials of certificates met.
const CALLS: &str = r#"
import http.client, json, os, socket, ssl, threading, time
EACH = 50
context = ssl.create_default_context(cafile="/ca/ca.pem")
class Link(http.client.HTTPSConnection):
    def connect(self):
        self.sock = context.wrap_socket(socket.create_connection(("public.shop", 443), 10), server_hostname="shop.example")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with lock: said["serials"][self.sock.getpeercert()["serialNumber"]] = True
os.fork()
said, lock = {"pid": os.getpid(), "calls": 0, "faults": [], "late": 0.0, "serials": {}}, threading.Lock()
def call(keeps):
    link, due = Link("shop.example", timeout=10), time.monotonic()
    while True:
        due += 1 / EACH
        now = time.monotonic()
        if due > now: time.sleep(due - now)
        elif now - due > 5: due = now
        for attempt in range(2):
            kept, fault = link.sock is not None, None
            try:
                link.request("GET", "/")
                answer = link.getresponse()
                answer.read()
                if answer.status != 200: fault = f"{answer.status} {answer.getheader('x-meshwright-reason')}"
                break
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                link.close()
                if not kept or attempt: fault = repr(error); break
            except Exception as error:
                link.close()
                fault = repr(error)
                break
        if not keeps: link.close()
        with lock:
            said["calls"] += 1
            said["late"] = max(said["late"], time.monotonic() - due)
            if fault and len(said["faults"]) < 20: said["faults"].append([round(time.time(), 2), fault])
for keeps in [True] * 8 + [False] * 2: threading.Thread(target=call, args=[keeps], daemon=True).start()
while True:
    time.sleep(0.5)
    with lock:
        print(json.dumps(said), flush=True)
        said["late"] = 0.0
"#;

fn caller() -> String {
    let mounts = json!([{"name": "ca", "mountPath": "/ca"}]);
    let container = json!({"name": "calls", "image": "python", "args": [CALLS], "volumeMounts": mounts});
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": [{"name": "ca", "configMap": {"name": "callers-ca"}}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "calls", "namespace": "outside"}, "spec": spec}).to_string()
}

/// What both processes said last.
fn said(cluster: &Cluster) -> anyhow::Result<[Value; 2]> {
    let said = cluster.run("kubectl -n outside logs calls -c calls --tail=12")?;
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last = lines.last().context("nothing is said yet")?;
    let other = lines.iter().rev().find(|line| line["pid"] != last["pid"]).context("one of them says nothing")?;
    Ok([last.clone(), other.clone()])
}

fn calls(cluster: &Cluster) -> anyhow::Result<u64> {
    said(cluster)?.iter().map(|one| one["calls"].as_u64().context("no count")).sum()
}

/// Calls have gone on for two seconds after `what`, and since the beginning none has failed.
fn unharmed(cluster: &Cluster, what: &str) -> anyhow::Result<()> {
    let before = calls(cluster)?;
    cluster.until("calls after that", |cluster| {
        let now = calls(cluster)?;
        ensure!(now > before + 2000, "{now} calls, {before} before");
        Ok(())
    })?;
    for one in said(cluster)? {
        ensure!(one["faults"] == json!([]), "after {what}: {one}");
    }
    eprintln!("{} calls, none failed, after {what}", calls(cluster)?);
    Ok(())
}

/// Waits until new connections meet the certificate of that serial.
fn met(cluster: &Cluster, serial: u32) -> anyhow::Result<()> {
    let serial = format!("{serial:04X}");
    cluster.until("the new certificate", |cluster| {
        for one in said(cluster)? {
            ensure!(one["serials"].get(&serial).is_some(), "{serial} is not among {one}");
        }
        Ok(())
    })
}

/// Aim: a Gateway's two proxies behind one address are replaced one after the other, twice; its certificate, the mesh's root and by that every
/// certificate of the mesh are replaced; a thousand callers a second over TLS, on kept connections and on new ones, see no failure.
#[test]
#[ignore = "full: an installation, two rollouts and the replacement of a root"]
fn a_gateway_is_replaced_under_load() {
    Cluster::with(|cluster| {
        shop::meshed(cluster)?;
        cluster.run(CERTIFICATES)?;
        cluster.apply(GATEWAY)?;
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/edge.yaml"))?;
        let manifest =
            manifest.replace("\n  replicas: 1\n", "\n  replicas: 2\n").replace("{name: http, port: 80}", "{name: https, port: 443}");
        ensure!(manifest.contains("replicas: 2") && manifest.contains("port: 443"), "the manifest is another one");
        fs::write(cluster.folder().join("work/edge.yaml"), manifest)?;
        cluster.run("kubectl -n shop apply --server-side -f edge.yaml")?;
        cluster.run("kubectl -n shop rollout status deployment public --timeout=90s")?;
        cluster.run("kubectl -n shop wait --for=condition=Programmed gateway/public --timeout=60s")?;
        cluster.apply(&caller())?;
        cluster.run("kubectl -n outside wait --for=condition=Ready pod/calls --timeout=60s")?;
        cluster.until("the first calls", |cluster| calls(cluster).map(drop))?;
        unharmed(cluster, "the first calls")?;
        for turn in ["the first rollout", "the second rollout"] {
            cluster.run("kubectl -n shop rollout restart deployment public")?;
            cluster.run("kubectl -n shop rollout status deployment public --timeout=120s")?;
            cluster.until("the former pods' end", |cluster| {
                let list = cluster.get("pods -n shop -l gateway.networking.k8s.io/gateway-name=public")?;
                let pods = list["items"].as_array().map_or(0, Vec::len);
                ensure!(pods == 2, "{pods} pods");
                Ok(())
            })?;
            unharmed(cluster, turn)?;
        }
        for serial in [1002, 1003] {
            cluster.run(&format!("bash cert.sh {serial}"))?;
            met(cluster, serial)?;
        }
        unharmed(cluster, "two new certificates of the Gateway")?;
        let rotated = asked(cluster, "ca rotate-root")?;
        ensure!(rotated["rotated"] == true, "{rotated}");
        unharmed(cluster, "a new root of the mesh")
    });
}
