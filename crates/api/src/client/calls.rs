//! One method per call of the API. `component` parameters are pairs of application and component name.

use super::{CALL_TIMEOUT, Client, ClientError, encode, path};
use crate::wire::{
    ApplicationDocument, Applied, ApplyRequest, ApplyResult, CertificateAnswer, CertificateRequest, ChangeTenant,
    ComponentDocument, ContextDocument, CreateTenant, CredentialDocument, CredentialQuery, CredentialRequest,
    DeployRequest, Explanation, HostCertificateDocument, InstanceUsage, LogAnswer, LogQuery, OperationDocument, Page,
    RegistryToken, RevisionDocument, RollbackRequest, RouteDocument, RouteRequest, ScaleRequest, SecretDocument,
    SetHostCertificate, SpecPatch, StorageDocument, StreamDocument, StreamRequest, TenantDocument, TenantRemoval,
    UploadReceipt, VolumeClassDocument, VolumeDocument, WhoAmI,
};
use arco_model::traffic::RouteQuestion;
use http::Method;
use serde::de::DeserializeOwned;

/// Application and component.
pub type ComponentName<'a> = (&'a str, &'a str);

fn of_tenant(tenant: &str, rest: &[&str]) -> String {
    path(&["v1", "tenants", tenant]) + &path(rest)
}

fn of_component(tenant: &str, (application, component): ComponentName<'_>, rest: &[&str]) -> String {
    of_tenant(tenant, &["applications", application, "components", component]) + &path(rest)
}

impl Client {
    /// Who we are there.
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.get("/v1/whoami").await
    }

    /// A token for pushing to and pulling from one repository, `<tenant>/<application>/<component>`.
    pub async fn registry_token(&self, repository: &str) -> Result<RegistryToken, ClientError> {
        self.get(&format!("/v1/registry/token?repository={}", encode(repository))).await
    }

    /// All pages of a list.
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let place = cursor.as_deref().map(|it| format!("&cursor={}", encode(it))).unwrap_or_default();
            let page: Page<T> = self.get(&format!("{path}{mark}limit=500{place}")).await?;
            items.extend(page.items);
            match page.next {
                // A server that gives the same cursor again would keep us here for ever.
                Some(next) if cursor.as_deref() != Some(&next) => cursor = Some(next),
                _ => return Ok(items),
            }
        }
    }

    /// Tenants that we may see.
    pub async fn tenants(&self) -> Result<Vec<TenantDocument>, ClientError> {
        self.all("/v1/tenants").await
    }

    /// Makes a tenant.
    pub async fn create_tenant(&self, request: &CreateTenant) -> Result<TenantDocument, ClientError> {
        self.call(Method::POST, "/v1/tenants", request).await
    }

    /// Changes a tenant.
    pub async fn change_tenant(&self, tenant: &str, request: &ChangeTenant) -> Result<TenantDocument, ClientError> {
        self.call(Method::PATCH, &of_tenant(tenant, &[]), request).await
    }

    /// Deletes a tenant in which nothing is left.
    pub async fn delete_tenant(&self, tenant: &str) -> Result<TenantRemoval, ClientError> {
        self.json(self.request(Method::DELETE, &of_tenant(tenant, &[]))).await
    }

    /// A client certificate for a person.
    pub async fn create_certificate(&self, request: &CertificateRequest) -> Result<CertificateAnswer, ClientError> {
        self.call(Method::POST, "/v1/certificates", request).await
    }

    /// Certificates that were made for people.
    pub async fn contexts(&self) -> Result<Vec<ContextDocument>, ClientError> {
        self.all("/v1/certificates").await
    }

    /// Revokes every certificate of a person.
    pub async fn revoke_context(&self, name: &str) -> Result<Vec<ContextDocument>, ClientError> {
        let page: Page<ContextDocument> =
            self.json(self.request(Method::DELETE, &path(&["v1", "certificates", name]))).await?;
        Ok(page.items)
    }

    /// Where credentials for Git repositories hold.
    pub async fn credentials(&self, tenant: &str) -> Result<Vec<CredentialDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["credentials"])).await
    }

    /// Keeps a credential.
    pub async fn set_credential(
        &self,
        tenant: &str,
        request: &CredentialRequest,
    ) -> Result<CredentialDocument, ClientError> {
        self.call(Method::PUT, &of_tenant(tenant, &["credentials"]), request).await
    }

    /// Forgets a credential.
    pub async fn delete_credential(&self, tenant: &str, query: &CredentialQuery) -> Result<(), ClientError> {
        let application = query.application.as_deref().map(|it| format!("&application={}", encode(it)));
        let (place, more) = (encode(&query.url), application.unwrap_or_default());
        let path = format!("{}?url={place}{more}", of_tenant(tenant, &["credentials"]));
        self.send(self.request(Method::DELETE, &path).timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// Whether an archive is there already.
    pub async fn has_upload(&self, tenant: &str, digest: &str) -> Result<bool, ClientError> {
        match self.get::<UploadReceipt>(&of_tenant(tenant, &["uploads", digest])).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends an archive (gzip-compressed tar) of `size` bytes.
    pub async fn upload(
        &self,
        tenant: &str,
        size: u64,
        archive: impl tokio::io::AsyncRead + Send + 'static,
    ) -> Result<UploadReceipt, ClientError> {
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(archive, 1 << 16));
        let request = self
            .request(Method::POST, &of_tenant(tenant, &["uploads"]))
            .header(http::header::CONTENT_TYPE, "application/gzip")
            .header(http::header::CONTENT_LENGTH, size)
            .body(body);
        let response = self.send(request).await?;
        let bytes = response.bytes().await.map_err(|it| ClientError::from_http(self.api(), it))?;
        serde_json::from_slice(&bytes).map_err(|it| ClientError::Answer(it.to_string()))
    }

    /// All applications of a tenant.
    pub async fn applications(&self, tenant: &str) -> Result<Vec<ApplicationDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["applications"])).await
    }

    /// One application.
    pub async fn application(&self, tenant: &str, application: &str) -> Result<ApplicationDocument, ClientError> {
        self.get(&of_tenant(tenant, &["applications", application])).await
    }

    /// Deletes an application with all components.
    pub async fn delete_application(
        &self,
        tenant: &str,
        application: &str,
        keep_volumes: bool,
    ) -> Result<Vec<OperationDocument>, ClientError> {
        let path = format!("{}?keep_volumes={keep_volumes}", of_tenant(tenant, &["applications", application]));
        let page: Page<OperationDocument> = self.json(self.request(Method::DELETE, &path)).await?;
        Ok(page.items)
    }

    /// Makes a whole application as asked, or (dry run) only tells the difference.
    pub async fn apply(
        &self,
        tenant: &str,
        application: &str,
        request: &ApplyRequest,
        dry_run: bool,
    ) -> Result<ApplyResult, ClientError> {
        let path = format!("{}?dry_run={dry_run}", of_tenant(tenant, &["applications", application]));
        self.call(Method::PUT, &path, request).await
    }

    /// Status and spec of a component.
    pub async fn component(&self, tenant: &str, name: ComponentName<'_>) -> Result<ComponentDocument, ClientError> {
        self.get(&of_component(tenant, name, &[])).await
    }

    /// Changes what is asked.
    pub async fn patch(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        patch: &SpecPatch,
    ) -> Result<OperationDocument, ClientError> {
        self.call(Method::PATCH, &of_component(tenant, name, &[]), patch).await
    }

    /// Deletes a component.
    pub async fn delete_component(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        keep_volumes: bool,
    ) -> Result<OperationDocument, ClientError> {
        let path = format!("{}?keep_volumes={keep_volumes}", of_component(tenant, name, &[]));
        self.json(self.request(Method::DELETE, &path)).await
    }

    /// Builds a source and rolls it out.
    pub async fn deploy(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        request: &DeployRequest,
    ) -> Result<OperationDocument, ClientError> {
        self.call(Method::POST, &of_component(tenant, name, &["deploy"]), request).await
    }

    /// `start`, `stop` or `restart`.
    pub async fn power(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        verb: &str,
    ) -> Result<OperationDocument, ClientError> {
        self.json(self.request(Method::POST, &of_component(tenant, name, &[verb]))).await
    }

    /// Changes size.
    pub async fn scale(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        request: &ScaleRequest,
    ) -> Result<OperationDocument, ClientError> {
        self.call(Method::POST, &of_component(tenant, name, &["scale"]), request).await
    }

    /// Serves an older revision again.
    pub async fn rollback(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        revision: Option<u64>,
    ) -> Result<OperationDocument, ClientError> {
        self.call(Method::POST, &of_component(tenant, name, &["rollback"]), &RollbackRequest { revision }).await
    }

    /// Revisions, newest first.
    pub async fn revisions(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<RevisionDocument>, ClientError> {
        self.all(&of_component(tenant, name, &["revisions"])).await
    }

    /// Instances with what they use.
    pub async fn instances(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<InstanceUsage>, ClientError> {
        self.all(&of_component(tenant, name, &["instances"])).await
    }

    /// Volumes of a component.
    pub async fn volumes(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<VolumeDocument>, ClientError> {
        self.all(&of_component(tenant, name, &["volumes"])).await
    }

    /// Volumes of a tenant, kept ones included.
    pub async fn tenant_volumes(&self, tenant: &str) -> Result<Vec<VolumeDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["volumes"])).await
    }

    /// What volumes can be made of.
    pub async fn volume_classes(&self) -> Result<Vec<VolumeClassDocument>, ClientError> {
        self.all("/v1/volume-classes").await
    }

    /// How much storage a tenant has.
    pub async fn storage(&self, tenant: &str) -> Result<StorageDocument, ClientError> {
        self.get(&of_tenant(tenant, &["storage"])).await
    }

    /// Deletes a kept volume.
    pub async fn delete_volume(&self, tenant: &str, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &of_tenant(tenant, &["volumes", id]));
        self.send(request.timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// Every route of a tenant, with rates.
    pub async fn tenant_routes(&self, tenant: &str) -> Result<Vec<RouteDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["routes"])).await
    }

    /// Routes of a component, with rates.
    pub async fn routes(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<RouteDocument>, ClientError> {
        self.all(&of_component(tenant, name, &["routes"])).await
    }

    /// Adds a route to each of its hosts.
    pub async fn add_route(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        request: &RouteRequest,
    ) -> Result<Vec<RouteDocument>, ClientError> {
        let page: Page<RouteDocument> =
            self.call(Method::POST, &of_component(tenant, name, &["routes"]), request).await?;
        Ok(page.items)
    }

    /// Makes a route say something else.
    pub async fn set_route(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        id: &str,
        request: &RouteRequest,
    ) -> Result<RouteDocument, ClientError> {
        self.call(Method::PUT, &of_component(tenant, name, &["routes", id]), request).await
    }

    /// Deletes a route.
    pub async fn delete_route(&self, tenant: &str, name: ComponentName<'_>, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &of_component(tenant, name, &["routes", id]));
        self.send(request.timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// Ports of the gateway that lead to components of a tenant.
    pub async fn tenant_streams(&self, tenant: &str) -> Result<Vec<StreamDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["streams"])).await
    }

    /// Ports of the gateway that lead to a component.
    pub async fn streams(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<StreamDocument>, ClientError> {
        self.all(&of_component(tenant, name, &["streams"])).await
    }

    /// Gives a component a port of the gateway.
    pub async fn add_stream(
        &self,
        tenant: &str,
        name: ComponentName<'_>,
        request: &StreamRequest,
    ) -> Result<StreamDocument, ClientError> {
        self.call(Method::POST, &of_component(tenant, name, &["streams"]), request).await
    }

    /// Takes a port of the gateway from a component.
    pub async fn delete_stream(&self, tenant: &str, name: ComponentName<'_>, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &of_component(tenant, name, &["streams", id]));
        self.send(request.timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// Certificates of a tenant's hosts.
    pub async fn certificates(&self, tenant: &str) -> Result<Vec<HostCertificateDocument>, ClientError> {
        self.all(&of_tenant(tenant, &["certificates"])).await
    }

    /// Keeps a certificate under a name.
    pub async fn set_certificate(
        &self,
        tenant: &str,
        name: &str,
        request: &SetHostCertificate,
    ) -> Result<HostCertificateDocument, ClientError> {
        self.call(Method::PUT, &of_tenant(tenant, &["certificates", name]), request).await
    }

    /// Has an automatic certificate issued anew.
    pub async fn renew_certificate(&self, tenant: &str, name: &str) -> Result<HostCertificateDocument, ClientError> {
        self.json(self.request(Method::POST, &of_tenant(tenant, &["certificates", name, "renew"]))).await
    }

    /// Deletes a certificate.
    pub async fn delete_certificate(&self, tenant: &str, name: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &of_tenant(tenant, &["certificates", name]));
        self.send(request.timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// Which route a request would take.
    pub async fn explain(&self, question: &RouteQuestion) -> Result<Explanation, ClientError> {
        self.call(Method::POST, &path(&["v1", "gateway", "explain"]), question).await
    }

    /// Waits until every live gateway routes by what was changed before; whether it came to that in time.
    pub async fn gateways_follow(&self) -> Result<bool, ClientError> {
        let answer: Applied = self.json(self.request(Method::POST, &path(&["v1", "gateway", "follow"]))).await?;
        Ok(answer.applied)
    }

    /// Names and versions of secrets.
    pub async fn secrets(&self, tenant: &str, name: ComponentName<'_>) -> Result<Vec<SecretDocument>, ClientError> {
        self.all(&of_component(tenant, name, &["secrets"])).await
    }

    /// Operations of a tenant, newest first, at most `limit`.
    pub async fn operations(
        &self,
        tenant: &str,
        application: Option<&str>,
        component: Option<&str>,
        failed: bool,
        limit: u32,
    ) -> Result<Vec<OperationDocument>, ClientError> {
        let mut path = format!("{}?limit={limit}", of_tenant(tenant, &["operations"]));
        for (key, value) in
            [("application", application), ("component", component), ("failed", failed.then_some("true"))]
        {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", encode(value)));
            }
        }
        let page: Page<OperationDocument> = self.get(&path).await?;
        Ok(page.items)
    }

    /// One operation.
    pub async fn operation(&self, id: &str) -> Result<OperationDocument, ClientError> {
        self.get(&path(&["v1", "operations", id])).await
    }

    /// Asks an operation to end.
    pub async fn cancel(&self, id: &str) -> Result<OperationDocument, ClientError> {
        self.json(self.request(Method::POST, &path(&["v1", "operations", id, "cancel"]))).await
    }

    /// Lines of a log that are there now.
    pub async fn log(&self, of: &LogOf<'_>, query: &LogQuery) -> Result<LogAnswer, ClientError> {
        self.json(self.request(Method::GET, &of.path()).query(query)).await
    }
}

/// Whose log.
#[derive(Clone, Copy, Debug)]
pub enum LogOf<'a> {
    /// An operation's: its steps and its build.
    Operation(&'a str),
    /// What the instances of a component print.
    Component {
        /// Tenant.
        tenant: &'a str,
        /// Application and component.
        name: ComponentName<'a>,
    },
}

impl LogOf<'_> {
    pub(super) fn path(&self) -> String {
        match self {
            Self::Operation(id) => path(&["v1", "operations", id, "log"]),
            Self::Component { tenant, name } => of_component(tenant, *name, &["log"]),
        }
    }
}

/// What runs where: a program in a running instance (`exec`) or in one of its own (`run`).
#[derive(Clone, Debug)]
pub struct ExecCall<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Application and component.
    pub name: ComponentName<'a>,
    /// Whether it gets an instance of its own.
    pub one_off: bool,
    /// Program and arguments.
    pub argv: &'a [String],
    /// Whether it gets a terminal, and its size (columns, rows).
    pub terminal: Option<(u16, u16)>,
    /// Whether standard input is sent.
    pub input: bool,
    /// A certain instance.
    pub instance: Option<&'a str>,
}

/// A connection to a port inside a running instance.
#[derive(Clone, Copy, Debug)]
pub struct ForwardCall<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Application and component.
    pub name: ComponentName<'a>,
    /// Port inside the instance.
    pub port: u16,
    /// A certain instance.
    pub instance: Option<&'a str>,
}

impl ForwardCall<'_> {
    pub(super) fn path(&self) -> String {
        let path = of_component(self.tenant, self.name, &["port-forward"]);
        let instance = self.instance.map(|it| format!("&instance={}", encode(it))).unwrap_or_default();
        format!("{path}?port={}{instance}", self.port)
    }
}

impl ExecCall<'_> {
    pub(super) fn path(&self) -> String {
        let verb = if self.one_off { "run" } else { "exec" };
        let mut path = of_component(self.tenant, self.name, &[verb]);
        let mut mark = '?';
        let mut add = |key: &str, value: &str| {
            path.push_str(&format!("{mark}{key}={}", encode(value)));
            mark = '&';
        };
        self.argv.iter().for_each(|it| add("argv", it));
        if let Some((columns, rows)) = self.terminal {
            add("tty", "true");
            add("columns", &columns.to_string());
            add("rows", &rows.to_string());
        }
        if !self.input {
            add("input", "false");
        }
        if let Some(instance) = self.instance {
            add("instance", instance);
        }
        path
    }
}
