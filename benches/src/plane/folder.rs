//! The manifests: Services with endpoints of their own, and a workload for each proxy.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tempfile::TempDir;

use super::Change;
use super::stream::Proxy;

/// Namespaces that Services and workloads are spread over.
pub(super) const NAMESPACES: u32 = 10;
/// Endpoints of a Service.
const ENDPOINTS: u32 = 2;
/// Services of a file; no file may have more than 4 MiB.
const SERVICES_OF_FILE: u32 = 1000;
/// The port of each Service.
const PORT: u16 = 80;

/// A folder of manifests, gone when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    services: u32,
}

impl Folder {
    /// Writes all of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(services: u32, streams: u32) -> anyhow::Result<Self> {
        let this = Self { folder: tempfile::tempdir()?, services };
        let mut text = String::new();
        for number in 0..NAMESPACES {
            writeln!(
                text,
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{number}, labels: {{meshwright.dev/inject: enabled}}}}\n---"
            )?;
        }
        fs::write(this.path().join("namespaces.yaml"), &text)?;
        text.clear();
        for number in 0..services {
            let namespace = number % NAMESPACES;
            let ip = service_ip(number);
            writeln!(
                text,
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: n{namespace}}}\n\
                 spec: {{clusterIP: {ip}, ports: [{{name: http, port: {PORT}, appProtocol: http}}]}}\n---"
            )?;
            if number > 0 {
                slice(&mut text, number, 0)?;
            }
            if (number + 1) % SERVICES_OF_FILE == 0 || number + 1 == services {
                fs::write(this.path().join(format!("services-{number}.yaml")), &text)?;
                text.clear();
            }
        }
        for number in 0..streams {
            let namespace = number % NAMESPACES;
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 10)) + number);
            writeln!(
                text,
                "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: n{namespace}, labels: {{app: w{number}}}}}\n\
                 spec: {{addresses: [{ip}]}}\n---"
            )?;
        }
        fs::write(this.path().join("workloads.yaml"), &text)?;
        this.change(Change::One, u32::MAX)?;
        this.change(Change::Endpoint, u32::MAX)?;
        Ok(this)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the change with that number; each number is another content.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn change(&self, change: Change, number: u32) -> anyhow::Result<()> {
        let mut text = String::new();
        let name = match change {
            Change::One => {
                write!(
                    text,
                    "apiVersion: meshwright.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: one, namespace: n0}}\n\
                     spec: {{selector: {{matchLabels: {{app: w0}}}}, action: Deny, rules: [{{to: [{{paths: [{{type: Exact, value: /p{number}}}]}}]}}]}}\n"
                )?;
                "one.yaml"
            }
            Change::Endpoint => {
                slice(&mut text, 0, number % 100 + 1)?;
                "endpoint.yaml"
            }
        };
        // By a rename, as editors do it: never half a file.
        let fresh = self.path().join(format!(".{name}"));
        fs::write(&fresh, text)?;
        fs::rename(fresh, self.path().join(name))?;
        Ok(())
    }

    /// The proxy of a workload, which calls that many Services: everybody's, and others spread evenly.
    pub(super) fn proxy(&self, stream: u32, count: u32) -> Proxy {
        let others = self.services - 1;
        let other = |at: u32| if others == 0 { 0 } else { 1 + (stream * (count - 1) + at) % others };
        let numbers = std::iter::once(0).chain((0..count - 1).map(other));
        let wants = numbers.map(|number| SocketAddr::new(service_ip(number).into(), PORT)).collect();
        let (namespace, instance) = (format!("n{}", stream % NAMESPACES), format!("w{stream}"));
        Proxy { number: stream as usize, namespace, workload: instance.clone(), instance, wants }
    }
}

fn service_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number)
}

/// The endpoints of a Service; `edition` moves one of them.
fn slice(text: &mut String, service: u32, edition: u32) -> anyhow::Result<()> {
    let namespace = service % NAMESPACES;
    writeln!(
        text,
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{service}, namespace: n{namespace}, labels: {{kubernetes.io/service-name: s{service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:"
    )?;
    for endpoint in 0..ENDPOINTS {
        let moved = if endpoint == 0 { edition } else { 0 };
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 20, 0, 0)) + service * 128 + endpoint * 120 + moved);
        writeln!(text, "- {{addresses: [{ip}], conditions: {{ready: true}}}}")?;
    }
    writeln!(text, "---")?;
    Ok(())
}
