//! An object of the cluster without `metadata.managedFields`: who set which of its fields, which nobody reads here.
//!
//! It is as large as all the rest, and in Rust a tree of small maps: in a list of hundreds of objects it would take more than
//! everything that is kept of them.

use kube::Resource;
use kube::core::ObjectMeta;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The field that is left out, of `metadata`.
const MANAGED_FIELDS: &str = "managedFields";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Trimmed<K>(pub(crate) K);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Trimmed<K> {
    /// By way of the texts of its fields: from JSON alone.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut fields = BTreeMap::<String, Box<RawValue>>::deserialize(from)?;
        if let Some(metadata) = fields.get_mut("metadata") {
            trim(metadata).map_err(D::Error::custom)?;
        }
        let fields = fields.iter().map(|(name, text)| (name.as_str(), &**text));
        K::deserialize(MapDeserializer::new(fields)).map(Self).map_err(D::Error::custom)
    }
}

fn trim(metadata: &mut Box<RawValue>) -> Result<(), serde_json::Error> {
    let mut fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(metadata.get())?;
    if fields.remove(MANAGED_FIELDS).is_some() {
        *metadata = to_raw_value(&fields)?;
    }
    Ok(())
}

impl<K: Resource> Resource for Trimmed<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::{ObjectList, PartialObjectMeta, WatchEvent};
    use serde_json::{Value, json};

    fn pod(managers: &Value) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a\"b", "labels": { "x": "1" }, "managedFields": managers },
            "spec": { "containers": [{ "name": "main", "image": "one" }] }, "status": { "phase": "Running" } })
    }

    #[test]
    fn an_object_is_the_same_but_for_its_managers() {
        let managers =
            json!([{ "manager": "m", "operation": "Apply", "fieldsV1": { "f:metadata": { "f:labels": {} } } }]);
        let whole = pod(&managers);
        let Trimmed(found) = serde_json::from_str::<Trimmed<Pod>>(&whole.to_string()).unwrap();
        let mut expected: Pod = serde_json::from_value(whole.clone()).unwrap();
        assert!(expected.metadata.managed_fields.take().is_some());
        assert_eq!(found, expected);
        // As they come: in a list, and from a watch.
        let list =
            json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [whole.clone(), pod(&json!([]))] });
        let list: ObjectList<Trimmed<Pod>> = serde_json::from_str(&list.to_string()).unwrap();
        assert_eq!(list.items.iter().map(|it| it.meta().managed_fields.is_some()).collect::<Vec<_>>(), [false, false]);
        let event = format!(r#"{{"type":"ADDED","object":{whole}}}"#);
        let event: WatchEvent<Trimmed<Pod>> = serde_json::from_str(&event).unwrap();
        let WatchEvent::Added(Trimmed(found)) = event else { panic!("not added") };
        assert_eq!(found, expected);
        let partial: Trimmed<PartialObjectMeta<Pod>> = serde_json::from_str(&whole.to_string()).unwrap();
        assert_eq!(partial.0.metadata, expected.metadata);
        assert!(Trimmed::<PartialObjectMeta<Pod>>::metadata_api() && !Trimmed::<Pod>::metadata_api());
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["[]", r#"{"metadata":1}"#, r#"{"metadata":{"name":2}}"#, r#"{"metadata":{},"spec":"x"}"#] {
            assert!(serde_json::from_str::<Trimmed<Pod>>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Trimmed<Pod>>(r#"{"metadata":{}}"#).is_ok());
    }
}
