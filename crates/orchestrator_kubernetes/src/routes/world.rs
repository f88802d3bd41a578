//! What of the cluster is known, by kind and name. Objects come in as documents and are cut down here.

use super::ServedCertificate;
use super::kind::Kind;
use super::object::{ClassSpec, GatewaySpec, GrantSpec, IngressSpec, RouteSpec, ServiceSpec, SliceBody, Words};
use crate::seen::convert::stamp;
use arco_model::time::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Prefix of the annotations that are read.
pub(super) const ANNOTATIONS: &str = "nginx.ingress.kubernetes.io/";
/// The class of an Ingress before there was a field for it.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";
/// Which service an EndpointSlice is of.
const SLICE_OF: &str = "kubernetes.io/service-name";

/// An object's name; objects of the whole cluster have no namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Name {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `NAMESPACE/NAME`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Self::new(namespace, name))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            out.write_str(&self.name)
        } else {
            write!(out, "{}/{}", self.namespace, self.name)
        }
    }
}

/// An object that gets a status, or is told apart by its age.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known<T> {
    pub(super) created: Timestamp,
    pub(super) version: String,
    pub(super) generation: i64,
    /// Those of [`ANNOTATIONS`], without the prefix.
    pub(super) annotations: Words,
    pub(super) spec: T,
    /// As it is in the cluster.
    pub(super) status: Value,
    /// What of the status we wrote last, as the cluster has it down (`managedFields`). Of Ingresses and Gateways alone.
    pub(super) said: Value,
}

/// A service: its ports, and where it is reached from outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Service {
    pub(super) spec: ServiceSpec,
    /// `status.loadBalancer.ingress`.
    pub(super) outside: Vec<Outside>,
}

/// An address, or a name.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize)]
#[serde(default)]
pub(super) struct Outside {
    pub(super) ip: String,
    pub(super) hostname: String,
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// Name under which we write.
    pub(super) manager: String,
    /// Kinds that could not be listed yet: nothing is known about them.
    pub(super) withheld: BTreeSet<Kind>,
    /// Labels of namespaces.
    pub(super) namespaces: BTreeMap<String, Words>,
    pub(super) services: BTreeMap<Name, Service>,
    pub(super) slices: BTreeMap<Name, SliceBody>,
    /// Slices of a service.
    pub(super) slices_of: BTreeMap<Name, BTreeSet<Name>>,
    /// Versions of the secrets with certificates.
    pub(super) secrets: BTreeMap<Name, String>,
    /// Those of them that are used, as far as they were fetched, with the version.
    /// Those that cannot be served have the reason.
    pub(super) certificates: BTreeMap<Name, (String, Result<ServedCertificate, String>)>,
    pub(super) ingresses: BTreeMap<Name, Known<IngressSpec>>,
    pub(super) classes: BTreeMap<String, Known<ClassSpec>>,
    pub(super) gateways: BTreeMap<Name, Known<GatewaySpec>>,
    pub(super) routes: BTreeMap<(Kind, Name), Known<RouteSpec>>,
    pub(super) grants: BTreeMap<Name, GrantSpec>,
}

impl World {
    /// Takes an object over; false when nothing that is read has changed. What cannot be read is the reason.
    pub(super) fn put(&mut self, kind: Kind, object: DynamicObject) -> Result<bool, String> {
        let DynamicObject { metadata: meta, data, .. } = object;
        let name =
            Name { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() };
        fn read<T: DeserializeOwned + Default>(value: Option<&Value>) -> Result<T, String> {
            value.map_or_else(|| Ok(T::default()), |it| T::deserialize(without_nulls(it)).map_err(|it| it.to_string()))
        }
        fn known<T: DeserializeOwned + Default>(meta: &ObjectMeta, data: &Value) -> Result<Known<T>, String> {
            let annotations = meta.annotations.iter().flatten();
            Ok(Known {
                created: meta.creation_timestamp.as_ref().map(stamp).unwrap_or_default(),
                version: meta.resource_version.clone().unwrap_or_default(),
                generation: meta.generation.unwrap_or_default(),
                annotations: annotations
                    .filter_map(|(name, text)| Some((name.strip_prefix(ANNOTATIONS)?.to_owned(), text.clone())))
                    .collect(),
                spec: read(data.get("spec"))?,
                status: data.get("status").cloned().unwrap_or_default(),
                said: Value::Null,
            })
        }
        fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
            if map.get(&key) == Some(&value) {
                return false;
            }
            map.insert(key, value);
            true
        }
        Ok(match kind {
            Kind::Namespace => replace(&mut self.namespaces, name.name, meta.labels.unwrap_or_default()),
            Kind::Service => {
                let outside = read(data.pointer("/status/loadBalancer/ingress"))?;
                replace(&mut self.services, name, Service { spec: read(data.get("spec"))?, outside })
            }
            Kind::EndpointSlice => {
                let service = meta.labels.iter().flatten().find(|it| it.0 == SLICE_OF).map(|it| it.1.clone());
                let Some(service) = service else { return Ok(self.gone(kind, &name)) };
                let service = Name::new(&name.namespace, &service);
                let slice = read(Some(&data))?;
                if !self.slices_of.get(&service).is_some_and(|it| it.contains(&name)) {
                    // It may have been another service's before.
                    self.gone(kind, &name);
                    self.slices_of.entry(service).or_default().insert(name.clone());
                }
                replace(&mut self.slices, name, slice)
            }
            Kind::Secret => replace(&mut self.secrets, name, meta.resource_version.unwrap_or_default()),
            Kind::Ingress => {
                let said = said(&meta, &self.manager);
                let mut known = Known { said, ..known::<IngressSpec>(&meta, &data)? };
                if known.spec.ingress_class_name.is_none() {
                    known.spec.ingress_class_name = meta.annotations.and_then(|mut it| it.remove(OLD_CLASS));
                }
                replace(&mut self.ingresses, name, known)
            }
            Kind::GatewayClass => replace(&mut self.classes, name.name, known(&meta, &data)?),
            Kind::Gateway => {
                let said = said(&meta, &self.manager);
                replace(&mut self.gateways, name, Known { said, ..known(&meta, &data)? })
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                replace(&mut self.routes, (kind, name), known(&meta, &data)?)
            }
            Kind::ReferenceGrant => replace(&mut self.grants, name, read(data.get("spec"))?),
        })
    }

    /// Forgets an object; false when it was not known.
    pub(super) fn gone(&mut self, kind: Kind, name: &Name) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.remove(&name.name).is_some(),
            Kind::Service => self.services.remove(name).is_some(),
            Kind::EndpointSlice => {
                self.slices_of.retain(|_, slices| {
                    slices.remove(name);
                    !slices.is_empty()
                });
                self.slices.remove(name).is_some()
            }
            Kind::Secret => self.secrets.remove(name).is_some(),
            Kind::Ingress => self.ingresses.remove(name).is_some(),
            Kind::GatewayClass => self.classes.remove(&name.name).is_some(),
            Kind::Gateway => self.gateways.remove(name).is_some(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.routes.remove(&(kind, name.clone())).is_some()
            }
            Kind::ReferenceGrant => self.grants.remove(name).is_some(),
        }
    }

    /// The version of an object that gets a status, as it is known.
    pub(super) fn version(&self, kind: Kind, name: &Name) -> Option<&str> {
        match kind {
            Kind::Ingress => self.ingresses.get(name).map(|it| it.version.as_str()),
            Kind::GatewayClass => self.classes.get(&name.name).map(|it| it.version.as_str()),
            Kind::Gateway => self.gateways.get(name).map(|it| it.version.as_str()),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.routes.get(&(kind, name.clone())).map(|it| it.version.as_str())
            }
            Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Secret | Kind::ReferenceGrant => None,
        }
    }

    /// Names of everything of a kind.
    pub(super) fn names(&self, kind: Kind) -> Vec<Name> {
        let whole = |it: &String| Name::new("", it);
        match kind {
            Kind::Namespace => self.namespaces.keys().map(whole).collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Secret => self.secrets.keys().cloned().collect(),
            Kind::Ingress => self.ingresses.keys().cloned().collect(),
            Kind::GatewayClass => self.classes.keys().map(whole).collect(),
            Kind::Gateway => self.gateways.keys().cloned().collect(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.routes.keys().filter(|it| it.0 == kind).map(|it| it.1.clone()).collect()
            }
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
        }
    }

    /// Whether an object of `from` (group, kind, namespace) may name `to` (group, kind, name).
    pub(super) fn may_name(&self, from: (&str, &str, &str), to: (&str, &str, &Name)) -> bool {
        let (group, kind, namespace) = from;
        let (to_group, to_kind, name) = to;
        namespace == name.namespace
            || self.grants.iter().filter(|it| it.0.namespace == name.namespace).any(|(_, grant)| {
                grant.from.iter().any(|it| it.group == group && it.kind == kind && it.namespace == namespace)
                    && grant.to.iter().any(|it| {
                        it.group == to_group
                            && it.kind == to_kind
                            && it.name.as_ref().is_none_or(|it| it.is_empty() || *it == name.name)
                    })
            })
    }
}

/// Which fields of the status `manager` wrote last.
fn said(meta: &ObjectMeta, manager: &str) -> Value {
    let ours = meta.managed_fields.iter().flatten().filter(|it| it.manager.as_deref() == Some(manager));
    let mut fields = ours.filter_map(|it| it.fields_v1.as_ref()?.0.get("f:status"));
    fields.next().cloned().unwrap_or_default()
}

/// Some lists of the API are `null` when they are empty.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.iter().filter(|it| !it.1.is_null());
            Value::Object(there.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slice_is_of_the_service_that_it_names_now() {
        let mut world = World::default();
        let mut put = |service: Value| {
            let labels = if service.is_null() { json!({}) } else { json!({ (SLICE_OF): service }) };
            let it =
                json!({ "metadata": { "name": "s", "namespace": "shop", "labels": labels }, "addressType": "IPv4" });
            let changed = world.put(Kind::EndpointSlice, serde_json::from_value(it).unwrap()).unwrap();
            let of: Vec<String> = world.slices_of.keys().map(|it| it.name.clone()).collect();
            (changed, of, world.slices.len())
        };
        assert_eq!(put(json!("a")), (true, vec!["a".to_owned()], 1));
        assert_eq!(put(json!("a")), (false, vec!["a".to_owned()], 1));
        assert_eq!(put(json!("b")), (true, vec!["b".to_owned()], 1));
        assert_eq!(put(Value::Null), (true, Vec::new(), 0));
    }
}
