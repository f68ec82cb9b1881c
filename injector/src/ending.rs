//! The end of an application's containers. Callers learn a moment later than its kubelet that a pod is deleted, so an application that ends at its
//! SIGTERM at once fails the calls that come meanwhile. Its containers are given that moment: `preStop.sleep`, which the kubelet does itself.

use proto::annotations;
use serde_json::{Map, Value, json};

use crate::notes::{BadAnnotation, Notes};
use crate::settings::SidecarSettings;

/// Usual time from a pod's deletion to its application's SIGTERM: endpoints are withdrawn within one second or two, wherever that is watched.
const DELAY_SECS_DEFAULT: u64 = 5;
/// How long Kubernetes gives a pod to end, where it does not say.
pub(crate) const GRACE_SECS_DEFAULT: u64 = 30;

/// Seconds that a pod's containers sleep before they are told to end, and what its owner should know; `None`: none. Where nobody says, half of
/// the pod's time to end at most. A pod that ends by itself (`restartPolicy`) serves nobody.
///
/// # Errors
/// The annotation leaves the pod no time to end.
pub(crate) fn delay_secs(
    notes: &Notes,
    spec: &Map<String, Value>,
    settings: &SidecarSettings,
) -> Result<(Option<u64>, Option<String>), BadAnnotation> {
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE_SECS_DEFAULT);
    if let Some(asked) = notes.drain_delay.filter(|asked| *asked > 0) {
        if asked >= grace {
            let expected = "less than the pod's terminationGracePeriodSeconds (30 where it does not say)";
            return Err(BadAnnotation { name: annotations::DRAIN_DELAY, value: asked.to_string(), expected });
        }
        if !settings.kubernetes.has_sleep_hooks() {
            let version = settings.kubernetes;
            return Ok((None, Some(format!("on Kubernetes {version} no hook sleeps: {} does nothing", annotations::DRAIN_DELAY))));
        }
    }
    let serves = spec.get("restartPolicy").and_then(Value::as_str).is_none_or(|policy| policy == "Always");
    let delay = notes.drain_delay.unwrap_or(DELAY_SECS_DEFAULT.min(grace / 2));
    Ok((Some(delay).filter(|delay| *delay > 0 && serves && settings.kubernetes.has_sleep_hooks()), None))
}

/// Makes a container sleep before it is told to end, unless it has something else to do then.
pub(crate) fn sleep(container: &mut Map<String, Value>, secs: u64) {
    let lifecycle = container.entry("lifecycle").or_insert(Value::Null);
    if lifecycle.is_null() {
        *lifecycle = json!({});
    }
    let Some(hooks) = lifecycle.as_object_mut() else { return };
    let hook = hooks.entry("preStop").or_insert(Value::Null);
    if hook.is_null() {
        *hook = json!({"sleep": {"seconds": secs}});
    }
}
