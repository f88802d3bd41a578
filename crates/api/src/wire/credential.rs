//! Credentials for private Git repositories, and contexts of people. Values go in and never come back.

use super::SecretText;
use arco_model::credential::CredentialKind;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Keep a credential for the repositories of a scope. One that is there already is replaced.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialRequest {
    /// Beginning of the repositories' URLs: `https://git.example.com/team`, `git@git.example.com:team`.
    pub url: String,
    /// The only application that may use it; absent: each of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// User name; `git` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password or access token, for https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretText>,
    /// Private key without a passphrase, for ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_key: Option<SecretText>,
    /// Lines of `known_hosts` that the ssh host must match; absent: the first key that it shows is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_keys: Option<String>,
}

/// Which credential.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CredentialQuery {
    /// Its scope, or any URL that means it.
    pub url: String,
    /// Its application, when it belongs to one.
    pub application: Option<String>,
}

/// A credential without its value.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CredentialDocument {
    /// Where it holds.
    pub scope: String,
    /// The only application that may use it.
    pub application: Option<String>,
    /// `token` or `ssh_key`.
    #[schema(value_type = String)]
    pub kind: CredentialKind,
    /// User name.
    pub user: String,
    /// Keys that the ssh host may show; empty until it was first reached.
    pub host_keys: Vec<String>,
    /// When it was set.
    pub created_at: String,
}

/// A context that was made for a person.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ContextDocument {
    /// Name of the person.
    pub name: String,
    /// What the person may do.
    pub role: String,
    /// Tenants that the person may see.
    pub tenants: Vec<String>,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// When it was made.
    pub created_at: String,
    /// When it ends by itself.
    pub expires_at: String,
    /// When it was revoked.
    pub revoked_at: Option<String>,
}
