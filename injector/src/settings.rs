//! What every sidecar of a mesh has in common.

use std::fmt;
use std::str::FromStr;

use proto::annotations;

/// The first version whose init containers may stay (KEP 753 is on by default).
const NATIVE_SINCE: KubernetesVersion = KubernetesVersion { major: 1, minor: 29 };
/// The first version with hooks that sleep (KEP 3960 is on by default). An API server of the version before takes such a hook and leaves it out.
const SLEEP_SINCE: KubernetesVersion = KubernetesVersion { major: 1, minor: 30 };

/// What every sidecar of a mesh has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarSettings {
    /// The image that holds `meshwright`.
    pub image: String,
    /// When it is fetched; `None`: as Kubernetes does by itself.
    pub pull_policy: Option<PullPolicy>,
    /// `HOST:PORT` of the control plane.
    pub control: String,
    /// ConfigMap, in each namespace, whose key `ca.pem` holds the mesh's roots.
    pub ca_config_map: String,
    /// Audience of the service account token with which the sidecar joins.
    pub token_audience: String,
    /// Version written into the pod's annotation.
    pub version: String,
    /// The cluster's version.
    pub kubernetes: KubernetesVersion,
}

impl Default for SidecarSettings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            image: format!("meshwright:{version}"),
            pull_policy: None,
            control: format!("meshwright-control.{}.svc:15012", annotations::ROOT_NAMESPACE),
            ca_config_map: annotations::CA_CONFIG_MAP.to_owned(),
            token_audience: annotations::TOKEN_AUDIENCE.to_owned(),
            version: version.to_owned(),
            kubernetes: KubernetesVersion::default(),
        }
    }
}

/// When a container's image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Kubernetes' own words")]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// Kubernetes' word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Always, Self::IfNotPresent, Self::Never].into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| "give Always, IfNotPresent or Never".to_owned())
    }
}

/// A version of Kubernetes. The default is one with native sidecars and hooks that sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubernetesVersion {
    /// 1.
    pub major: u16,
    /// Counts up three times a year.
    pub minor: u16,
}

impl KubernetesVersion {
    /// Whether an init container with `restartPolicy: Always` stays: it starts before the application and ends after it.
    pub fn has_native_sidecars(self) -> bool {
        self >= NATIVE_SINCE
    }

    /// Whether a lifecycle hook may be `sleep`: it needs no program in the container's image.
    pub fn has_sleep_hooks(self) -> bool {
        self >= SLEEP_SINCE
    }
}

impl Default for KubernetesVersion {
    fn default() -> Self {
        SLEEP_SINCE
    }
}

impl FromStr for KubernetesVersion {
    type Err = String;

    /// `1.28`, `v1.28.3`, `1.28+`, `v1.28.3-eks-1`: what `kubectl version` and `/version` say.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: Option<&str>| {
            let part = part?;
            part[..part.len() - part.trim_start_matches(|letter: char| letter.is_ascii_digit()).len()].parse().ok()
        };
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        match (number(parts.next()), number(parts.next())) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err("give Kubernetes' version as in 1.28".to_owned()),
        }
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: versions as clusters say them, and which of them have native sidecars and hooks that sleep.
    #[test]
    fn versions_are_read() {
        for (text, wanted) in [
            ("1.28", Some((1, 28, false, false))),
            ("v1.28.15", Some((1, 28, false, false))),
            ("1.28+", Some((1, 28, false, false))),
            ("1.29", Some((1, 29, true, false))),
            ("1.30", Some((1, 30, true, true))),
            ("v1.36.6-eks-1", Some((1, 36, true, true))),
            ("2.0", Some((2, 0, true, true))),
            ("1", None),
            ("latest", None),
            ("", None),
            ("1.x", None),
        ] {
            let found = text.parse::<KubernetesVersion>().ok();
            let found = found.map(|version| (version.major, version.minor, version.has_native_sidecars(), version.has_sleep_hooks()));
            assert_eq!(found, wanted, "{text}");
        }
    }
}
