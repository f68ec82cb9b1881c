//! What a pod says of itself that both who injects it and who serves it must read alike.

/// Name of the sidecar's container.
pub const PROXY_CONTAINER: &str = "meshwright-proxy";
/// The sidecar's variable that says which workload it is an instance of, as `NAMESPACE/NAME`.
pub const WORKLOAD_VARIABLE: &str = "MESHWRIGHT_WORKLOAD";
/// Label of a Deployment's ReplicaSets and their pods.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
/// Digits at the end of the name of a CronJob's Job: the minute it was due, since 1970.
const MINUTE_DIGITS: usize = 8;

/// The object that owns a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// The workload that a pod belongs to, by its controlling owner and its [`TEMPLATE_HASH`] label: the Deployment of a ReplicaSet, the
/// CronJob of a Job, else the owner; of a pod that nobody owns it is the pod's own name.
pub fn workload<'a>(pod: &'a str, owner: Option<Owner<'a>>, template_hash: Option<&str>) -> &'a str {
    let Some(Owner { kind, name }) = owner else { return pod };
    let without = |end: &str| name.strip_suffix(end).and_then(|name| name.strip_suffix('-')).filter(|name| !name.is_empty());
    match (kind, template_hash) {
        ("ReplicaSet", Some(hash)) if !hash.is_empty() => without(hash).unwrap_or(name),
        ("Job", _) => {
            let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
            if digits == MINUTE_DIGITS { without(&name[name.len() - digits..]).unwrap_or(name) } else { name }
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the name that people gave is found below those that controllers made of it.
    #[test]
    fn names_that_controllers_make_are_undone() {
        let owner = |kind, name| Some(Owner { kind, name });
        for (owner, hash, wanted) in [
            (None, None, "pod-x"),
            (None, Some("7d9f"), "pod-x"),
            (owner("ReplicaSet", "catalog-7d9f"), Some("7d9f"), "catalog"),
            (owner("ReplicaSet", "catalog-7d9f"), Some("other"), "catalog-7d9f"),
            (owner("ReplicaSet", "catalog-7d9f"), None, "catalog-7d9f"),
            (owner("ReplicaSet", "-7d9f"), Some("7d9f"), "-7d9f"),
            (owner("ReplicaSet", "catalog"), Some(""), "catalog"),
            (owner("StatefulSet", "store"), Some("7d9f"), "store"),
            (owner("Job", "report-29384756"), None, "report"),
            (owner("Job", "report-2938475"), None, "report-2938475"),
            (owner("Job", "29384756"), None, "29384756"),
            (owner("Job", "import"), None, "import"),
        ] {
            assert_eq!(workload("pod-x", owner, hash), wanted, "{owner:?}");
        }
    }
}
