//! The probes of an application. A kubelet has no identity of the mesh, so each probe over the network is led to the sidecar's health port
//! (contract, section 4), and the sidecar is told what it was, to ask it itself. Commands are the container's own and stay.

use proto::ports;
use serde_json::{Map, Value, json};

/// The three probes of a container.
const PROBES: [&str; 3] = ["startupProbe", "readinessProbe", "livenessProbe"];
/// What a sidecar waits for the application at most; a kubelet may be told to wait longer.
const WAIT_SECS_MAX: u64 = 25;
/// What the paths begin with that the sidecar answers by asking the application.
const PREFIX: &str = "/app-health/";

/// What became of the probes of a pod.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// What the sidecar is told: probes in the kubelet's shape, ports as numbers.
    pub(crate) declared: Vec<Value>,
    /// What the owner of the pod should know.
    pub(crate) warnings: Vec<String>,
}

impl Probes {
    /// Leads a container's probes to the sidecar. Those for ports in `untouched` stay: they arrive without it. So do those that are led
    /// there already, that name another host, or that cannot be understood.
    pub(crate) fn lead(&mut self, container: &mut Map<String, Value>, untouched: &[u16]) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let named_ports = container.get("ports").cloned().unwrap_or_default();
        for kind in PROBES {
            let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut) else { continue };
            match read(probe, &named_ports) {
                Ok(Some(question)) if untouched.contains(&question.port) || ports::PAGES.contains(&question.port) => {}
                Ok(Some(question)) => {
                    if probe.get("timeoutSeconds").and_then(Value::as_u64).is_some_and(|secs| secs > WAIT_SECS_MAX) {
                        self.warnings.push(format!("container {name}: {kind}: the sidecar waits {WAIT_SECS_MAX} s at most for an answer"));
                    }
                    self.declare(question.declared);
                    for other in ["tcpSocket", "grpc"] {
                        probe.remove(other);
                    }
                    probe.insert("httpGet".to_owned(), question.led);
                }
                Ok(None) => {}
                Err(why) => self.warnings.push(format!("container {name}: {kind} stays as it is: {why}")),
            }
        }
        for (hook, what) in [("postStart", "starts"), ("preStop", "ends")] {
            if container.get("lifecycle").is_some_and(|lifecycle| lifecycle[hook]["httpGet"].is_object()) {
                self.warnings.push(format!(
                    "container {name}: lifecycle.{hook}.httpGet is asked by the kubelet when it {what}, which a Strict port refuses: use exec"
                ));
            }
        }
    }

    /// Adds what a sidecar is to ask, once.
    pub(crate) fn declare(&mut self, probe: Value) {
        if !self.declared.contains(&probe) {
            self.declared.push(probe);
        }
    }
}

/// A probe over the network, in two forms.
struct Question {
    port: u16,
    /// For the sidecar.
    declared: Value,
    /// For the kubelet: `httpGet`.
    led: Value,
}

/// `None`: nothing that concerns the network, or that is another host's.
fn read(probe: &Map<String, Value>, named_ports: &Value) -> Result<Option<Question>, String> {
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).filter(|secs| *secs > 1);
    let timed = |mut declared: Value| {
        if let Some(secs) = timeout {
            declared["timeoutSeconds"] = secs.min(u16::MAX.into()).into();
        }
        declared
    };
    let elsewhere = |action: &Value| action["host"].as_str().is_some_and(|host| !host.is_empty());
    if let Some(get) = probe.get("httpGet").filter(|get| get.is_object()) {
        if elsewhere(get) {
            return Ok(None);
        }
        let port = port(&get["port"], named_ports)?;
        let path = asked_path(get["path"].as_str().unwrap_or_default())?;
        let mut declared = json!({"port": port, "path": path});
        if let Some(scheme) = get["scheme"].as_str().filter(|scheme| *scheme != "HTTP") {
            declared["scheme"] = scheme.into();
        }
        let mut led = json!({"path": format!("{PREFIX}{port}{path}"), "port": ports::HEALTH});
        // Both say them: the application is sent them, and the kubelet says by them which probe it means.
        if let Some(headers) = get["httpHeaders"].as_array().filter(|headers| !headers.is_empty()) {
            let control = |header: &&Value| header["value"].as_str().is_none_or(|value| value.contains(char::is_control));
            if let Some(header) = headers.iter().find(control) {
                return Err(format!("its header {} cannot be sent", header["name"]));
            }
            declared["httpHeaders"] = headers.clone().into();
            led["httpHeaders"] = headers.clone().into();
        }
        return Ok(Some(Question { port, declared: timed(json!({"httpGet": declared})), led }));
    }
    if let Some(tcp) = probe.get("tcpSocket").filter(|tcp| tcp.is_object()) {
        if elsewhere(tcp) {
            return Ok(None);
        }
        let port = port(&tcp["port"], named_ports)?;
        let led = json!({"path": format!("{PREFIX}tcp/{port}"), "port": ports::HEALTH});
        return Ok(Some(Question { port, declared: timed(json!({"tcpSocket": {"port": port}})), led }));
    }
    if let Some(grpc) = probe.get("grpc").filter(|grpc| grpc.is_object()) {
        let port = port(&grpc["port"], named_ports)?;
        let service = grpc["service"].as_str().unwrap_or_default();
        if !service.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte)) {
            return Err(format!("its service `{service}` cannot be part of a path"));
        }
        let (mut declared, mut path) = (json!({"port": port}), format!("{PREFIX}grpc/{port}"));
        if !service.is_empty() {
            declared["service"] = service.into();
            path = format!("{path}/{service}");
        }
        let led = json!({"path": path, "port": ports::HEALTH});
        return Ok(Some(Question { port, declared: timed(json!({"grpc": declared})), led }));
    }
    Ok(None)
}

/// A port by number, or by the name that the container's own ports have.
fn port(value: &Value, named_ports: &Value) -> Result<u16, String> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    if let Some(port) = number(value) {
        return Ok(port);
    }
    let Some(name) = value.as_str() else { return Err(format!("its port {value} is none")) };
    let named = named_ports.as_array().into_iter().flatten().find(|port| port["name"] == name);
    let found = named.and_then(|port| number(&port["containerPort"])).or_else(|| name.parse().ok().filter(|port| *port > 0));
    found.ok_or_else(|| format!("the container has no port of the name `{name}`"))
}

/// A path as a kubelet sends it: it begins with `/`, has no fragment, and what may not stand in a URL is percent-encoded.
fn asked_path(path: &str) -> Result<String, String> {
    let path = path.split('#').next().unwrap_or_default();
    let encoded = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if path.split('%').skip(1).any(|rest| !encoded(rest)) {
        return Err(format!("its path `{path}` has a percent sign that begins no percent-encoding"));
    }
    let mut asked = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte) {
            asked.push(char::from(byte));
        } else {
            asked.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(container: &Value) -> (Value, Probes) {
        let mut probes = Probes::default();
        let mut container = container.clone();
        probes.lead(container.as_object_mut().unwrap(), &[9999]);
        (container, probes)
    }

    /// Aim: every probe over the network goes to the sidecar, which is told just what it was; patience and thresholds stay the kubelet's.
    #[test]
    fn probes_are_led_to_the_sidecar() {
        for (probe, wanted, declared) in [
            (
                json!({"httpGet": {"port": 8080, "path": "/healthz?full=1"}, "periodSeconds": 3, "timeoutSeconds": 2}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/8080/healthz?full=1"}, "periodSeconds": 3, "timeoutSeconds": 2}),
                json!({"httpGet": {"port": 8080, "path": "/healthz?full=1"}, "timeoutSeconds": 2}),
            ),
            (
                json!({"httpGet": {"port": "web", "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "a"}]}}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/8443/", "httpHeaders": [{"name": "Host", "value": "a"}]}}),
                json!({"httpGet": {"port": 8443, "path": "/", "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "a"}]}}),
            ),
            (
                json!({"httpGet": {"port": 80, "path": "a b/é#top", "scheme": "HTTP", "host": ""}}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/80/a%20b/%C3%A9"}}),
                json!({"httpGet": {"port": 80, "path": "/a%20b/%C3%A9"}}),
            ),
            (
                json!({"tcpSocket": {"port": "web"}, "failureThreshold": 1}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/tcp/8443"}, "failureThreshold": 1}),
                json!({"tcpSocket": {"port": 8443}}),
            ),
            (
                json!({"grpc": {"port": 9000}}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/grpc/9000"}}),
                json!({"grpc": {"port": 9000}}),
            ),
            (
                json!({"grpc": {"port": 9000, "service": "shop.Catalog"}}),
                json!({"httpGet": {"port": 15021, "path": "/app-health/grpc/9000/shop.Catalog"}}),
                json!({"grpc": {"port": 9000, "service": "shop.Catalog"}}),
            ),
        ] {
            for kind in PROBES {
                let container = json!({"name": "app", "ports": [{"name": "web", "containerPort": 8443}], kind: probe});
                let (after, probes) = led(&container);
                assert_eq!(after[kind], wanted);
                assert_eq!(probes.declared, std::slice::from_ref(&declared));
                assert_eq!(probes.warnings, [""; 0]);
                // What is led there already stays there.
                assert_eq!(led(&after).0, after);
            }
        }
    }

    /// Aim: what the sidecar cannot ask better stays as it is, and where that matters the owner is told.
    #[test]
    fn other_probes_stay() {
        for (probe, warning) in [
            (json!({"exec": {"command": ["true"]}}), None),
            (json!({"httpGet": {"port": 80, "host": "other.example"}}), None),
            (json!({"tcpSocket": {"port": 80, "host": "192.0.2.1"}}), None),
            (json!({"httpGet": {"port": 9999}}), None),
            (json!({"httpGet": {"port": 15020, "path": "/metrics"}}), None),
            (json!({"httpGet": {"port": "nowhere"}}), Some("no port of the name `nowhere`")),
            (json!({"tcpSocket": {"port": 0}}), Some("its port 0 is none")),
            (json!({"grpc": {"port": 80, "service": "a b"}}), Some("cannot be part of a path")),
            (json!({"httpGet": {"port": 80, "path": "/100%"}}), Some("begins no percent-encoding")),
            (json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "\n"}]}}), Some("header \"a\" cannot be sent")),
            (json!({}), None),
            (json!("text"), None),
        ] {
            let container = json!({"name": "app", "readinessProbe": probe});
            let (after, probes) = led(&container);
            assert_eq!((&after, probes.declared.len()), (&container, 0));
            assert_eq!(probes.warnings.len(), usize::from(warning.is_some()), "{probe}");
            assert!(probes.warnings.iter().zip(warning).all(|(found, wanted)| found.contains(wanted)), "{:?}", probes.warnings);
        }
        let hooked = json!({"name": "app", "lifecycle": {"preStop": {"httpGet": {"port": 80}}}});
        assert!(led(&hooked).1.warnings[0].contains("lifecycle.preStop.httpGet"));
        let slow = json!({"name": "app", "livenessProbe": {"tcpSocket": {"port": 80}, "timeoutSeconds": 60}});
        assert!(led(&slow).1.warnings[0].contains("25 s"));
    }

    /// Aim: the same question by two probes is declared once.
    #[test]
    fn equal_probes_are_declared_once() {
        let probe = json!({"httpGet": {"port": 80, "path": "/"}});
        assert_eq!(led(&json!({"readinessProbe": probe, "livenessProbe": probe})).1.declared.len(), 1);
    }
}
