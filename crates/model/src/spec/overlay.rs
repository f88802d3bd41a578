//! A raw part of a pod template, put over what the platform makes of a component on Kubernetes.
//!
//! Kept as it was written. Only its outline is checked here; what of it may be set is the Kubernetes driver's to say.

use crate::error::Problem;
use serde_json::Value;

/// Most bytes of an overlay, as JSON.
const BYTES_MAX: usize = 65_536;

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
}
