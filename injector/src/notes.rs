//! The annotations of a pod that concern its sidecar (contract, section 2), read once: what is kept here cannot be wrong later.

use std::net::IpAddr;

use proto::annotations;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

/// Longest log filter that a proxy takes.
const FILTER_BYTES_MAX: usize = 1024;
/// Suffixes of Kubernetes' quantities.
const SUFFIXES: [&str; 16] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// What a pod's annotations ask of its sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Ports that leave untouched.
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports that arrive untouched.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destinations that leave untouched, as they were written.
    pub exclude_outbound_cidrs: Vec<String>,
    /// CPU request.
    pub cpu: Option<String>,
    /// Memory request.
    pub memory: Option<String>,
    /// Log filter.
    pub log_level: Option<String>,
    /// Seconds from the pod's deletion to the application's SIGTERM.
    pub drain_delay: Option<u64>,
}

/// An annotation of ours with an impossible value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: `{value}` is not {expected}")]
pub struct BadAnnotation {
    /// The annotation.
    pub name: &'static str,
    /// The part that is wrong.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl Notes {
    /// Reads the `annotations` of a pod. `opaque-ports` is the control plane's to carry out, and checked here, too.
    ///
    /// # Errors
    /// An annotation of ours has an impossible value.
    pub fn read(annotations: &Value) -> Result<Self, BadAnnotation> {
        let read = Reader(annotations);
        read.list(annotations::OPAQUE_PORTS, port, PORT)?;
        Ok(Self {
            exclude_outbound_ports: read.list(annotations::EXCLUDE_OUTBOUND_PORTS, port, PORT)?,
            exclude_inbound_ports: read.list(annotations::EXCLUDE_INBOUND_PORTS, port, PORT)?,
            exclude_outbound_cidrs: read.list(annotations::EXCLUDE_OUTBOUND_CIDRS, cidr, "an address range such as 192.0.2.0/24")?,
            cpu: read.one(annotations::PROXY_CPU, quantity, "a quantity of CPU such as 100m or 0.5")?,
            memory: read.one(annotations::PROXY_MEMORY, quantity, "a quantity of memory such as 64Mi")?,
            log_level: read.one(annotations::LOG_LEVEL, filter, "a log filter such as `info` or `warn,proxy::xds=debug`")?,
            drain_delay: read.one(annotations::DRAIN_DELAY, seconds, "a number of seconds such as 5, or 0 for none")?,
        })
    }
}

const PORT: &str = "a port from 1 to 65535";

struct Reader<'a>(&'a Value);

impl Reader<'_> {
    fn one<T>(&self, name: &'static str, read: fn(&str) -> Option<T>, expected: &'static str) -> Result<Option<T>, BadAnnotation> {
        let value = match &self.0[name] {
            Value::Null => return Ok(None),
            Value::String(text) => text.trim(),
            // A number without quotes: the API server refuses it, too.
            other => return Err(BadAnnotation { name, value: other.to_string(), expected: "a text; put it in quotes" }),
        };
        read(value).map(Some).ok_or_else(|| BadAnnotation { name, value: value.to_owned(), expected })
    }

    /// Comma-separated; blanks around a part and empty parts do no harm.
    fn list<T>(&self, name: &'static str, read: fn(&str) -> Option<T>, expected: &'static str) -> Result<Vec<T>, BadAnnotation> {
        let text = self.one(name, |text| Some(text.to_owned()), expected)?.unwrap_or_default();
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| read(part).ok_or_else(|| BadAnnotation { name, value: part.to_owned(), expected })).collect()
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse::<u16>().ok().filter(|port| *port > 0)
}

fn cidr(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then(|| text.to_owned())
}

/// Kubernetes' quantity, above zero: digits with an optional fraction, then a suffix or a decimal exponent.
fn quantity(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number = unsigned.len() - unsigned.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.').len();
    let (number, suffix) = unsigned.split_at(number);
    let value: f64 = number.parse().ok()?;
    let exponent = || suffix.strip_prefix(['e', 'E']).is_some_and(|exponent| exponent.parse::<i8>().is_ok());
    (value > 0.0 && (SUFFIXES.contains(&suffix) || exponent())).then(|| text.to_owned())
}

/// Whole seconds, without a unit, as Kubernetes' own fields of that kind.
fn seconds(text: &str) -> Option<u64> {
    text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())).map(u64::from)
}

/// What the proxy takes: it reads its filter with the same library.
fn filter(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= FILTER_BYTES_MAX && EnvFilter::try_new(text).is_ok()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: what people write is understood.
    #[test]
    fn values_are_read() {
        let notes = Notes::read(&json!({
            "meshwright.dev/exclude-outbound-ports": "5432, 6379,", "meshwright.dev/exclude-inbound-ports": "", "other/x": 3,
            "meshwright.dev/exclude-outbound-cidrs": "fd00::/8,192.0.2.0/24", "meshwright.dev/proxy-cpu": "0.5",
            "meshwright.dev/proxy-memory": "64Mi", "meshwright.dev/log-level": "warn,proxy::xds=debug", "meshwright.dev/opaque-ports": "3306",
            "meshwright.dev/drain-delay": " 7",
        }));
        let wanted = Notes {
            exclude_outbound_ports: vec![5432, 6379],
            exclude_inbound_ports: vec![],
            exclude_outbound_cidrs: vec!["fd00::/8".to_owned(), "192.0.2.0/24".to_owned()],
            cpu: Some("0.5".to_owned()),
            memory: Some("64Mi".to_owned()),
            log_level: Some("warn,proxy::xds=debug".to_owned()),
            drain_delay: Some(7),
        };
        assert_eq!(notes, Ok(wanted));
        assert_eq!(Notes::read(&Value::Null), Ok(Notes::default()));
    }

    /// Aim: an impossible value is refused by its name, with the part that is wrong and what would be right.
    #[test]
    fn impossible_values_are_refused_by_name() {
        for (name, value, wrong, word) in [
            ("exclude-inbound-ports", json!("0"), "0", "65535"),
            ("exclude-outbound-ports", json!("80,http"), "http", "65535"),
            ("exclude-outbound-ports", json!(80), "80", "quotes"),
            ("opaque-ports", json!("65536"), "65536", "65535"),
            ("exclude-outbound-cidrs", json!("10.0.0.0/33"), "10.0.0.0/33", "192.0.2.0/24"),
            ("exclude-outbound-cidrs", json!("10.0.0.1"), "10.0.0.1", "192.0.2.0/24"),
            ("proxy-cpu", json!("0"), "0", "100m"),
            ("proxy-cpu", json!("-1"), "-1", "100m"),
            ("proxy-cpu", json!("lots"), "lots", "100m"),
            ("proxy-memory", json!("64mb"), "64mb", "64Mi"),
            ("proxy-memory", json!(""), "", "64Mi"),
            ("proxy-memory", json!("1.2.3"), "1.2.3", "64Mi"),
            ("log-level", json!("proxy=loudly"), "proxy=loudly", "info"),
            ("log-level", json!(""), "", "info"),
            ("drain-delay", json!("5s"), "5s", "a number of seconds such as 5"),
            ("drain-delay", json!("-1"), "-1", "seconds"),
            ("drain-delay", json!("+1"), "+1", "seconds"),
            ("drain-delay", json!("1.5"), "1.5", "seconds"),
            ("drain-delay", json!(""), "", "seconds"),
            ("drain-delay", json!(5), "5", "quotes"),
        ] {
            let error = Notes::read(&json!({format!("meshwright.dev/{name}"): value})).unwrap_err();
            assert_eq!((error.name.trim_start_matches("meshwright.dev/"), error.value.as_str()), (name, wrong));
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    /// Aim: quantities in all of Kubernetes' forms.
    #[test]
    fn quantities_have_many_forms() {
        for good in ["1", "0.1", ".5", "100m", "1e3", "12E-1", "1Ei", "1E", "+2", "1500k"] {
            assert_eq!(quantity(good).as_deref(), Some(good));
        }
        for bad in ["", "m", "1 Mi", "1e", "0x10", "1ki", "1KB", "inf", "1m5", "0.0"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }
}
