//! A raw part of a pod template, put over what the platform makes of a component on Kubernetes.
//!
//! Kept as it was written. Only its outline is checked here, and what its containers ask for is counted; what of it may be
//! set is the Kubernetes driver's to say.

use crate::error::Problem;
use serde_json::Value;

/// Most bytes of an overlay, as JSON.
const BYTES_MAX: usize = 65_536;

/// The component's own container; every other one of an overlay stands beside it.
pub const APP_CONTAINER: &str = "app";

/// Memory that a container may use (`resources.limits.memory`), in MiB; `None` without a limit, or one that is not a whole
/// number of bytes or of a unit.
pub fn container_memory_mb(container: &Value) -> Option<u64> {
    let amount = match &container["resources"]["limits"]["memory"] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (number, unit) = amount.split_at(amount.find(|it: char| !it.is_ascii_digit()).unwrap_or(amount.len()));
    let unit: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes > 0).then(|| bytes.div_ceil(1 << 20))
}

/// Memory in MiB that an instance may use with the containers of its overlay, when its own container may use `app_mb`:
/// what runs beside it, and what runs before it when that is more. A container without a limit counts nothing.
pub(super) fn memory_mb(overlay: &Value, app_mb: u64) -> u64 {
    let of = |list: &str| overlay["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
    let size = |it: &Value| container_memory_mb(it).unwrap_or(0);
    let stays = |it: &&Value| it["restartPolicy"] == "Always";
    let beside =
        of("containers").iter().filter(|it| it["name"] != APP_CONTAINER).map(size).fold(0, u64::saturating_add);
    let stay = of("initContainers").iter().filter(stays).map(size).fold(0, u64::saturating_add);
    let before = of("initContainers").iter().filter(|it| !stays(it)).map(size).max().unwrap_or(0);
    stay.saturating_add(app_mb.saturating_add(beside).max(before))
}

/// Checks the outline: `metadata` and `spec`, both objects.
pub(super) fn validate(overlay: &Value) -> Result<(), Problem> {
    let bad = |message: String| {
        let advice = "write a part of a pod template: `overlay: {metadata: {…}, spec: {…}}`";
        Err(Problem::invalid("overlay_invalid", message, advice))
    };
    let Value::Object(fields) = overlay else { return bad("`overlay` is not an object".to_owned()) };
    for (name, value) in fields {
        if !matches!(name.as_str(), "metadata" | "spec") {
            return bad(format!("`overlay.{name}` is not a part of a pod template"));
        }
        if !value.is_object() {
            return bad(format!("`overlay.{name}` is not an object"));
        }
    }
    let bytes = overlay.to_string().len();
    if bytes > BYTES_MAX {
        return bad(format!("`overlay` has {bytes} bytes; 65536 are the most"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_outline_of_a_pod_template_passes() {
        assert!(validate(&json!({"spec": {"hostname": "a"}, "metadata": {}})).is_ok());
        for (value, wanted) in [
            (json!([]), "`overlay` is not an object"),
            (json!({"containers": []}), "`overlay.containers`"),
            (json!({"spec": []}), "`overlay.spec` is not an object"),
            (json!({"spec": {"hostname": "a".repeat(BYTES_MAX)}}), "bytes"),
        ] {
            assert!(validate(&value).unwrap_err().message.contains(wanted), "{wanted}");
        }
    }

    #[test]
    fn what_a_container_may_use_is_read_as_kubernetes_does() {
        for (memory, mb) in [
            (json!("512Mi"), Some(512)),
            (json!("2Gi"), Some(2048)),
            (json!("1G"), Some(954)),
            (json!(134_217_728), Some(128)),
            (json!("1"), Some(1)),
            (json!("1.5Gi"), None),
            (json!("1e9"), None),
            (json!("0"), None),
            (json!("99999999999Gi"), None),
            (json!("-1Gi"), None),
            (json!(""), None),
            (json!(null), None),
        ] {
            let container = json!({"resources": {"limits": {"memory": memory}}});
            assert_eq!(container_memory_mb(&container), mb, "{memory}");
        }
        assert_eq!(container_memory_mb(&json!({"name": "x"})), None);
    }

    #[test]
    fn an_instance_uses_what_stands_beside_it_and_not_less_than_what_comes_before() {
        let of = |name: &str, memory: &str| json!({"name": name, "resources": {"limits": {"memory": memory}}});
        let mut sidecar = of("mesh", "64Mi");
        sidecar["restartPolicy"] = json!("Always");
        for (overlay, mb) in [
            (json!({}), 512),
            (json!({"spec": {"containers": [{"name": "app"}]}}), 512),
            (json!({"spec": {"containers": [of("proxy", "128Mi"), of("app", "9Gi")]}}), 640),
            (json!({"spec": {"containers": [{"name": "free"}]}}), 512),
            (json!({"spec": {"initContainers": [of("small", "100Mi"), of("big", "500Mi")]}}), 512),
            (json!({"spec": {"initContainers": [of("big", "2Gi")]}}), 2048),
            (json!({"spec": {"initContainers": [sidecar.clone(), of("big", "2Gi")]}}), 2112),
            (json!({"spec": {"containers": [of("proxy", "128Mi")], "initContainers": [sidecar]}}), 704),
        ] {
            assert_eq!(memory_mb(&overlay, 512), mb, "{overlay}");
        }
    }
}
