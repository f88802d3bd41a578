//! What a tenant has in the cluster: a namespace with limits, closed to others, and the credential for our registry.

use super::{Kind, Object, network};
use crate::manifest::NODE_CREDENTIALS;
use crate::names;
use arco_config::KubernetesConfig;
use arco_model::name::TenantName;
use arco_model::time::Timestamp;
use base64::Engine as _;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Namespace, quota and policies, in the order of sending. `allowed`: private networks that builds may reach.
pub(crate) fn tenant(tenant: &TenantName, config: &KubernetesConfig, allowed: &[Ipv4Net]) -> Vec<Object> {
    let name = names::namespace(&config.namespace_prefix, tenant);
    let mut labels = names::platform_labels(&config.namespace_prefix);
    labels.insert(names::TENANT.to_owned(), tenant.as_str().into());
    let mut guarded = labels.clone();
    for mode in ["enforce", "audit", "warn"] {
        guarded.insert(format!("pod-security.kubernetes.io/{mode}"), "baseline".into());
    }
    let mut objects = vec![Object::new(Kind::Namespace, "", &name, guarded, json!({})).sealed()];
    if !config.tenant_quota.is_empty() {
        let rest = json!({ "spec": { "hard": config.tenant_quota } });
        objects.push(Object::new(Kind::Quota, &name, names::QUOTA, labels.clone(), rest).sealed());
    }
    objects.extend(network::tenant_policies(config, allowed, &name, &labels));
    objects
}

/// The credential by which nodes pull a tenant's images.
pub(crate) fn pull_secret(
    tenant: &TenantName,
    config: &KubernetesConfig,
    credential: &str,
    renew_at: Timestamp,
) -> Object {
    let namespace = names::namespace(&config.namespace_prefix, tenant);
    let mut labels = names::platform_labels(&config.namespace_prefix);
    labels.insert(names::TENANT.to_owned(), tenant.as_str().into());
    let engine = base64::engine::general_purpose::STANDARD;
    let login = json!({ "username": names::OURS, "password": credential, "auth": engine.encode(format!("{}:{credential}", names::OURS)) });
    let docker = json!({ "auths": { (config.registry.as_str()): login } });
    let data = super::encoded(&[(".dockerconfigjson".to_owned(), docker.to_string())].into());
    let rest = json!({ "type": "kubernetes.io/dockerconfigjson", "data": data });
    let mut object = Object::new(Kind::Secret, &namespace, names::PULL_SECRET, labels, rest);
    object.annotate(names::RENEW_AT, renew_at.0.to_string());
    object
}

/// The secret with the certificate of nodes.
pub(crate) fn node_credentials(config: &KubernetesConfig, files: &BTreeMap<String, String>) -> Object {
    let labels = names::platform_labels(&config.namespace_prefix);
    let rest = json!({ "type": "Opaque", "data": super::encoded(files) });
    Object::new(Kind::Secret, &config.node_namespace, NODE_CREDENTIALS, labels, rest)
}

/// The credential for a registry that such a secret holds.
pub(crate) fn held_credential(secret: &Value, registry: &str) -> Option<String> {
    let engine = base64::engine::general_purpose::STANDARD;
    let docker = engine.decode(secret["data"][".dockerconfigjson"].as_str()?).ok()?;
    let docker: Value = serde_json::from_slice(&docker).ok()?;
    docker["auths"][registry]["password"].as_str().map(str::to_owned)
}
