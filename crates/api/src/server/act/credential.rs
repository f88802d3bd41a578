//! Credentials for private Git repositories: checked, sealed, listed without their values.

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::{CredentialDocument, CredentialQuery, CredentialRequest};
use arco_model::credential::{self, CredentialKind, GitCredential, Scope};
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::{ApplicationName, TenantName};
use arco_store::clock;
use arco_store::images::short_hash;
use arco_store::sql::{Batch, Query, SqlError, Versioned};

/// User name where none is given: servers that take tokens do not look at it.
const USER: &str = "git";

impl Api {
    pub(in super::super) async fn set_credential(
        &self,
        tenant: &TenantName,
        request: CredentialRequest,
    ) -> Result<CredentialDocument, ApiError> {
        let turn = self.changing.lock().await?;
        self.tenant_exists(tenant).await?;
        let (mut row, value) = checked(tenant, request)?;
        let sealed = self.deps.secrets.seal(&row.context(), value.as_bytes())?;
        (row.key_id, row.sealed) = (sealed.key_id, sealed.text);
        let mut batch = Batch::default();
        match self.find_credential(&row).await? {
            Some(found) => {
                row.id = found.value.id.clone();
                batch.update(&Versioned { value: row.clone(), version: found.version })?
            }
            None => batch.insert(&row)?,
        };
        match turn.metadata().commit(batch).await {
            Ok(()) => Ok(document(&row)),
            Err(SqlError::Conflict { .. } | SqlError::Exists { .. }) => {
                let message = format!("the credential for {} was changed by somebody else at the same time", row.scope);
                Err(Problem::new(ErrorKind::Conflict, "changed_meanwhile", message, "set it again").into())
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(in super::super) async fn credentials(&self, tenant: &TenantName) -> Result<Vec<CredentialDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let rows = self.deps.metadata.list::<GitCredential>(&Query::parent(tenant.as_str())).await?.items;
        Ok(rows.iter().map(|it| document(&it.value)).collect())
    }

    pub(in super::super) async fn delete_credential(
        &self,
        tenant: &TenantName,
        query: &CredentialQuery,
    ) -> Result<(), ApiError> {
        let row = blank(tenant, query.application.as_deref(), &Scope::parse(&query.url)?)?;
        let missing = || {
            let message = format!("there is no credential for {}", row.scope);
            Problem::new(ErrorKind::NotFound, "not_found", message, "`arco credential list` shows what there is")
        };
        let found = self.find_credential(&row).await?.ok_or_else(missing)?;
        let mut batch = Batch::default();
        batch.delete(&found);
        Ok(self.deps.metadata.commit(batch).await?)
    }

    async fn find_credential(&self, row: &GitCredential) -> Result<Option<Versioned<GitCredential>>, SqlError> {
        self.deps.metadata.find::<GitCredential>(row.tenant.as_str(), &short_hash(&row.context())).await
    }
}

fn blank(tenant: &TenantName, application: Option<&str>, scope: &Scope) -> Result<GitCredential, Problem> {
    let application = application.map(ApplicationName::new).transpose();
    let application = application.map_err(|it| Problem::invalid("name_invalid", it.to_string(), "check the name"))?;
    Ok(GitCredential {
        id: clock::fresh(),
        tenant: tenant.clone(),
        application,
        scope: scope.to_string(),
        kind: CredentialKind::Token,
        user: USER.to_owned(),
        host_keys: Vec::new(),
        key_id: String::new(),
        sealed: String::new(),
        created_at: clock::now(),
    })
}

/// The row without its value, and the value.
fn checked(tenant: &TenantName, request: CredentialRequest) -> Result<(GitCredential, String), Problem> {
    let CredentialRequest { url, application, user, token, ssh_key, host_keys } = request;
    let scope = Scope::parse(&url)?;
    let mut row = blank(tenant, application.as_deref(), &scope)?;
    let bad = |message: String, advice: &str| Problem::invalid("credential_invalid", message, advice);
    if let Some(user) = user.or_else(|| scope.user.clone()) {
        credential::user_name(&user)?;
        row.user = user;
    }
    let value = match (scope.scheme.as_str(), token, ssh_key) {
        ("https", Some(token), None) => {
            credential::token(&token.0)?;
            token.0
        }
        ("ssh", None, Some(key)) => {
            credential::ssh_key(&key.0)?;
            row.kind = CredentialKind::SshKey;
            row.host_keys = credential::host_keys(&host_keys.unwrap_or_default())?;
            key.0
        }
        ("https", ..) => return Err(bad(format!("{scope} takes a token and nothing else"), "give `--token @FILE`")),
        ("ssh", ..) => return Err(bad(format!("{scope} takes an ssh key and nothing else"), "give `--ssh-key @FILE`")),
        (scheme, ..) => {
            let message = format!("a credential is never sent over {scheme}, where everybody on the way reads it");
            return Err(bad(message, "use the https or ssh URL of the repository"));
        }
    };
    Ok((row, value))
}

fn document(row: &GitCredential) -> CredentialDocument {
    CredentialDocument {
        scope: row.scope.clone(),
        application: row.application.as_ref().map(ToString::to_string),
        kind: row.kind,
        user: row.user.clone(),
        host_keys: row.host_keys.clone(),
        created_at: row.created_at.rfc3339(),
    }
}
