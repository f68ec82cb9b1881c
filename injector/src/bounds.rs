//! What a pod may have at most: whoever asks for a sidecar proves nothing, and what an answer costs must not grow faster than the question.

use serde_json::{Map, Value};

use crate::sidecar::{INTERCEPT_CONTAINER, PROXY_CONTAINER};

/// Containers of a pod, those that run first included.
const CONTAINERS_MAX: usize = 256;
/// Items of a list of one of our own containers, which are laid over ours by name.
const ITEMS_MAX: usize = 512;
/// Probes that a sidecar takes (`proxy::shell::probes`).
const PROBES_MAX: usize = 256;

/// What a pod has too much of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// Containers.
    #[error("{found} containers are more than {CONTAINERS_MAX}")]
    Containers {
        /// How many there are.
        found: usize,
    },
    /// Items that override our own.
    #[error("container {container}: {found} items of {field} are more than {ITEMS_MAX}")]
    Items {
        /// Its name.
        container: &'static str,
        /// The list.
        field: String,
        /// How many there are.
        found: usize,
    },
    /// Different probes over the network.
    #[error("it has more than {PROBES_MAX} different probes, which is what a sidecar asks; let some of them be commands (exec)")]
    Probes,
}

/// Looks at the spec of a pod before any work is done for it.
pub(crate) fn check(spec: &Value) -> Result<(), TooMuch> {
    let list = |name: &str| spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let (init, containers) = (list("initContainers"), list("containers"));
    let found = init.len() + containers.len();
    if found > CONTAINERS_MAX {
        return Err(TooMuch::Containers { found });
    }
    for container in init.iter().chain(containers) {
        let own = [PROXY_CONTAINER, INTERCEPT_CONTAINER].into_iter().find(|own| container["name"] == *own);
        own.map_or(Ok(()), |own| items(own, container.as_object()))?;
    }
    Ok(())
}

fn items(container: &'static str, fields: Option<&Map<String, Value>>) -> Result<(), TooMuch> {
    let lists = fields.into_iter().flatten().filter_map(|(field, value)| Some((field, value.as_array()?.len())));
    match lists.into_iter().find(|(_, found)| *found > ITEMS_MAX) {
        Some((field, found)) => Err(TooMuch::Items { container, field: field.clone(), found }),
        None => Ok(()),
    }
}

/// Looks at what a sidecar is to be told of probes: with more it would not start.
pub(crate) fn probes(declared: &[Value]) -> Result<(), TooMuch> {
    if declared.len() > PROBES_MAX { Err(TooMuch::Probes) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test measures real time")]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use crate::pod::{Refused, add};
    use crate::settings::SidecarSettings;

    /// Aim: what is beyond a bound is refused by name, what is within it is not, and neither takes long, however it is made up.
    #[test]
    fn work_does_not_grow_faster_than_pods() {
        let env = |count: usize| (0..count).map(|n| json!({"name": n.to_string()})).collect::<Vec<_>>();
        let probed = |from: usize| {
            let get = |n: usize| json!({"httpGet": {"port": 80, "path": format!("/{n}")}});
            json!({"name": format!("c{from}"), "startupProbe": get(3 * from), "readinessProbe": get(3 * from + 1), "livenessProbe": get(3 * from + 2)})
        };
        let containers = |count: usize| (0..count).map(probed).collect::<Vec<_>>();
        let told = |count: usize| {
            let probes: Vec<_> = (0..count).map(|n| json!({"tcpSocket": {"port": n}})).collect();
            json!([{"name": "meshwright-proxy", "env": [{"name": "MESHWRIGHT_APP_PROBES", "value": json!(probes).to_string()}]}])
        };
        for (spec, wanted) in [
            (json!({"containers": [{"name": "meshwright-proxy", "env": env(200_000)}]}), Some("200000 items of env are more than 512")),
            (json!({"initContainers": [{"name": "meshwright-intercept", "ports": env(513)}]}), Some("513 items of ports")),
            (json!({"containers": [{"name": "meshwright-proxy", "env": env(512)}]}), None),
            (json!({"containers": containers(10_000)}), Some("10000 containers are more than 256")),
            (json!({"containers": containers(256)}), Some("more than 256 different probes")),
            (json!({"containers": containers(86)}), Some("more than 256 different probes")),
            (json!({"containers": containers(85)}), None),
            (json!({"containers": told(257)}), Some("more than 256 different probes")),
            (json!({"containers": told(10_000)}), Some("more than 256 different probes")),
            (json!({"containers": told(256)}), None),
        ] {
            let (pod, settings) = (json!({"spec": spec}), SidecarSettings::default());
            let began = Instant::now();
            let added = add(&pod, "w", &settings);
            let took = began.elapsed();
            match (added, wanted) {
                (Ok(_), None) => {}
                (Err(Refused::TooMuch(why)), Some(words)) => assert!(why.to_string().contains(words), "{why}"),
                (other, wanted) => panic!("{wanted:?}: {other:?}"),
            }
            assert!(took < Duration::from_millis(500), "{wanted:?}: {took:?}");
        }
    }
}
