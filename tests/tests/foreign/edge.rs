//! An edge for foreign clients: certificates, a Gateway that shows them, and the test service behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::mesh::{said, text};

/// The name of the certificate with a key of an elliptic curve.
pub(crate) const NAME: &str = "a.example";
/// The name of the one with an RSA key.
pub(crate) const RSA_NAME: &str = "r.example";

/// An authority of the public, made by openssl; its certificates are files of a folder.
pub(crate) struct Authority(TempDir);

impl Authority {
    pub(crate) fn new() -> Self {
        let own = Self(tempfile::tempdir().unwrap());
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        own.openssl(&[&["req", "-x509", "-days", "30", "-subj", "/CN=public", "-keyout", "ca.key", "-out", "ca.crt"][..], &curve].concat());
        own
    }

    /// A certificate of these names, as openssl writes them: `DNS:a.example`. Files `FILE.crt` and `FILE.key`.
    pub(crate) fn issue(&self, file: &str, names: &str, rsa: bool) {
        let (key, request, certificate, extensions) =
            (format!("{file}.key"), format!("{file}.csr"), format!("{file}.crt"), format!("{file}.ext"));
        fs::write(self.file(&extensions), format!("subjectAltName={names}\n")).unwrap();
        let kind: &[&str] = if rsa { &["-newkey", "rsa:2048"] } else { &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"] };
        let subject = format!("/CN={file}");
        self.openssl(&[&["req", "-new", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request][..], kind].concat());
        let by = ["x509", "-req", "-days", "20", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(&[&by[..], &["-in", &request, "-extfile", &extensions, "-out", &certificate]].concat());
    }

    /// Runs openssl in the folder; it must succeed.
    pub(crate) fn openssl(&self, arguments: &[&str]) -> Output {
        let output = Command::new("openssl").args(arguments).current_dir(self.0.path()).output().expect("openssl is there");
        assert!(output.status.success(), "openssl {arguments:?}: {}", said(&output));
        output
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text, for a command line.
    pub(crate) fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A Secret of a certificate that was issued, in the namespace `shop`; `more` are further entries of `data`, base64.
    pub(crate) fn secret(&self, file: &str, more: &str) -> String {
        let (certificate, key) = (self.indented(&format!("{file}.crt")), self.indented(&format!("{file}.key")));
        format!(
            "
---
apiVersion: v1
kind: Secret
metadata: {{name: {file}, namespace: shop}}
type: kubernetes.io/tls
{more}
stringData:
  tls.crt: |
{certificate}
  tls.key: |
{key}
"
        )
    }

    /// A PEM file as a block of YAML.
    pub(crate) fn indented(&self, file: &str) -> String {
        fs::read_to_string(self.file(file)).unwrap().lines().map(|line| format!("    {line}\n")).collect()
    }
}

/// The namespace, and a Service with one workload outside the mesh that runs a command; commands are JSON lists.
pub(crate) fn shop(backends: &[(&str, &str, u16)]) -> String {
    let one = |(name, command, port): &(&str, &str, u16)| {
        format!(
            "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: {port}, appProtocol: http}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec:
  command: {command}
  ports: [{{name: http, port: {port}, appProtocol: http}}]
"
        )
    };
    let all: String = backends.iter().map(one).collect();
    format!("\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n{all}")
}

/// A Gateway with these listeners, each a line of YAML's short form; `more` are further lines of its `spec`.
pub(crate) fn gateway(name: &str, listeners: &[String], more: &str) -> String {
    let listeners = listeners.join(", ");
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: shop}}
spec:
  gatewayClassName: meshwright
  listeners: [{listeners}]
{more}
"
    )
}

/// A listener of plaintext.
pub(crate) fn http(name: &str, port: u16) -> String {
    format!("{{name: {name}, port: {port}, protocol: HTTP}}")
}

/// A listener of HTTPS with a certificate; for a host alone, where one is given.
pub(crate) fn https(name: &str, port: u16, host: &str, certificate: &str) -> String {
    let host = if host.is_empty() { String::new() } else { format!("hostname: {host}, ") };
    format!("{{name: {name}, port: {port}, protocol: HTTPS, {host}tls: {{certificateRefs: [{{name: {certificate}}}]}}}}")
}

/// A route from Gateways to a backend's port 80; `matches` in YAML's short form, or nothing.
pub(crate) fn route(name: &str, gateways: &[&str], matches: &str, backend: &str) -> String {
    let parents: Vec<String> = gateways.iter().map(|gateway| format!("{{name: {gateway}}}")).collect();
    let (parents, matches) = (parents.join(", "), if matches.is_empty() { String::new() } else { format!("matches: {matches}, ") });
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{parents}]
  rules: [{{{matches}backendRefs: [{{name: {backend}, port: 80}}]}}]
"
    )
}

/// Runs a program; what it says of errors, and then what it says.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    text(&output.stderr) + &text(&output.stdout)
}
