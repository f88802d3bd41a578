//! The connection to the cluster: applying, patching and deleting objects, and what an answer of it means.
//!
//! What must hold: everything is applied by server-side apply under our field manager, with unknown fields refused; an
//! overloaded API server (429, 503, 504) is asked again with growing pauses by the client itself; no request waits for
//! ever ([`limited`]).

use crate::names;
use crate::render::{Kind, Object};
use arco_config::KubernetesConfig;
use arco_orchestrator::Error;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective,
};
use kube::client::{Body, UpgradeConnectionError};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Resource};
use serde_json::Value;
use std::time::Duration;

/// How long an answer may take, with what the client asks again meanwhile: as long as the API server itself gives it.
const ANSWER: Duration = Duration::from_secs(60);

/// The cluster, as one platform uses it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    prefix: String,
    /// Name under which we write.
    pub(crate) manager: String,
}

/// What an error of the API server asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is not there (any more).
    Missing,
    /// The request itself is refused: the same one cannot succeed.
    Refused,
    /// Later it may succeed.
    Later,
}

/// What to make of an error.
pub(crate) fn verdict(error: &kube::Error) -> Verdict {
    let status = match error {
        kube::Error::Api(status) => status,
        // Of a door into a pod that does not open only the number comes; the pod itself says when it is over.
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
            return match code.as_u16() {
                404 => Verdict::Missing,
                403 | 405 => Verdict::Refused,
                _ => Verdict::Later,
            };
        }
        _ => return Verdict::Later,
    };
    match status.code {
        404 => Verdict::Missing,
        // A namespace that is being deleted refuses with 403, and is made anew afterwards.
        403 if status.message.contains("because it is being terminated") => Verdict::Later,
        400 | 403 | 405 | 413 | 415 | 422 => Verdict::Refused,
        _ => Verdict::Later,
    }
}

/// What people read of an error.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Auth(error) => format!("the credential for the cluster does not work: {error}"),
        kube::Error::Service(error) => {
            let mut text = format!("the API server does not answer: {error}");
            let mut cause = error.source();
            while let Some(it) = cause {
                text = format!("{text}: {it}");
                cause = it.source();
            }
            text
        }
        other => other.to_string(),
    }
}

/// A failed step.
pub(crate) fn failed(step: impl Into<String>, error: &kube::Error) -> Error {
    match verdict(error) {
        Verdict::Refused => Error::Refused(format!("failed to {}: the cluster refuses: {}", step.into(), words(error))),
        Verdict::Missing | Verdict::Later => Error::failed(step, words(error)),
    }
}

/// What of an answer is waited for no longer than [`ANSWER`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Limit {
    /// All of it.
    Whole,
    /// Its head: what follows lasts as long as somebody listens.
    Head,
    /// Nothing: a node sends the head of a log with its first line. Who follows one has a limit of its own.
    Nothing,
}

impl Limit {
    fn of<B>(request: &http::Request<B>) -> Self {
        let asks = |what: &str| request.uri().query().is_some_and(|it| it.split('&').any(|it| it == what));
        if asks("follow=true") {
            Self::Nothing
        } else if asks("watch=true") || request.headers().contains_key(http::header::UPGRADE) {
            Self::Head
        } else {
            Self::Whole
        }
    }
}

/// A client whose requests end. Where the address of a control plane moves, or a load balancer forgets a connection, nobody
/// says so to who waits for an answer.
fn limited(client: Client) -> Client {
    let (namespace, valid_until) = (client.default_namespace().to_owned(), *client.valid_until());
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = client.clone();
        async move { answer(&client, request).await }
    });
    Client::new(service, namespace).with_valid_until(valid_until)
}

async fn answer(client: &Client, request: http::Request<Body>) -> Result<http::Response<Body>, kube::Error> {
    let limit = Limit::of(&request);
    let asked = ask(client, request, limit);
    if limit == Limit::Nothing {
        return asked.await;
    }
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", ANSWER.as_secs());
        Err(kube::Error::Service(why.into()))
    })
}

async fn ask(client: &Client, request: http::Request<Body>, limit: Limit) -> Result<http::Response<Body>, kube::Error> {
    let response = client.send(request).await?;
    if limit != Limit::Whole {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    Ok(http::Response::from_parts(head, Body::from(body.collect_bytes().await?)))
}

impl Cluster {
    /// Connects by the settings; asks nothing yet.
    pub(crate) async fn connect(config: &KubernetesConfig) -> Result<Self, Error> {
        // The first provider of the process stays; without one, TLS could not begin.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let step = "read the cluster's address and credential";
        let context = Some(config.context.clone()).filter(|it| !it.is_empty());
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        let found = if !config.kubeconfig.as_os_str().is_empty() {
            let shown = config.kubeconfig.display();
            let file = Kubeconfig::read_from(&config.kubeconfig)
                .map_err(|it| Error::failed(format!("read the file `{shown}` (`kubernetes.kubeconfig`)"), it))?;
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|it| Error::failed(step, it))?
        } else if options.context.is_some() {
            kube::Config::from_kubeconfig(&options).await.map_err(|it| Error::failed(step, it))?
        } else {
            let found = kube::Config::infer().await;
            found.map_err(|it| Error::Refused(format!("no cluster is known: set `kubernetes.kubeconfig` ({it})")))?
        };
        let client =
            Client::try_from(found).map_err(|it| Error::failed("prepare the connection to the cluster", it))?;
        Ok(Self {
            client: limited(client),
            prefix: config.namespace_prefix.clone(),
            manager: config.field_manager.clone(),
        })
    }

    /// Objects of a kind, as documents.
    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let (version, word, plural) = kind.wire();
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, word), plural);
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        }
    }

    /// Objects of a type in one namespace.
    pub(crate) fn typed<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Applies an object; returns what the cluster made of it.
    pub(crate) async fn apply(&self, object: &Object) -> Result<DynamicObject, kube::Error> {
        let mut how = PatchParams::apply(&self.manager).force();
        how.field_validation = Some(ValidationDirective::Strict);
        tracing::debug!(kind = object.kind.wire().1, namespace = object.namespace, name = object.name, "apply");
        self.api(object.kind, &object.namespace).patch(&object.name, &how, &Patch::Apply(&object.body)).await
    }

    /// Makes an object that must not be there yet; `None` when it is.
    pub(crate) async fn make(&self, object: &Object) -> Result<Option<DynamicObject>, kube::Error> {
        let how = PostParams { field_manager: Some(self.manager.clone()), ..PostParams::default() };
        tracing::debug!(kind = object.kind.wire().1, namespace = object.namespace, name = object.name, "make");
        let body = serde_json::from_value(object.body.clone()).map_err(kube::Error::SerdeError)?;
        match self.api(object.kind, &object.namespace).create(&how, &body).await {
            Ok(made) => Ok(Some(made)),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes a few fields of an object that is there.
    pub(crate) async fn change(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        fields: &Value,
    ) -> Result<DynamicObject, kube::Error> {
        let how = PatchParams { field_manager: Some(self.manager.clone()), ..PatchParams::default() };
        tracing::debug!(kind = kind.wire().1, namespace, name, %fields, "change");
        self.api(kind, namespace).patch(name, &how, &Patch::Merge(fields)).await
    }

    /// Writes fields of an object's status. `version`: only when the object is still that one.
    pub(crate) async fn say(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
        status: &Value,
        version: Option<&str>,
    ) -> Result<DynamicObject, kube::Error> {
        let api: Api<DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        };
        let how = PatchParams { field_manager: Some(self.manager.clone()), ..PatchParams::default() };
        let mut fields = serde_json::json!({ "status": status });
        if let Some(version) = version {
            fields["metadata"] = serde_json::json!({ "resourceVersion": version });
        }
        tracing::debug!(kind = resource.kind, namespace, name, %status, "status");
        api.patch_status(name, &how, &Patch::Merge(&fields)).await
    }

    /// An object, if it is there.
    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        self.api(kind, namespace).get_opt(name).await
    }

    /// Metadata of the objects of a kind that a selector of labels chooses, in every namespace.
    pub(crate) async fn labelled(&self, kind: Kind, selector: &str) -> Result<Vec<ObjectMeta>, kube::Error> {
        let found = self.api(kind, "").list_metadata(&ListParams::default().labels(selector)).await?;
        Ok(found.items.into_iter().map(|it| it.metadata).collect())
    }

    /// Metadata of every object of a resource in a namespace, whoever made it.
    pub(crate) async fn everything(
        &self,
        resource: &ApiResource,
        namespace: &str,
    ) -> Result<Vec<ObjectMeta>, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        Ok(api.list_metadata(&ListParams::default()).await?.items.into_iter().map(|it| it.metadata).collect())
    }

    /// Deletes an object; one that is not there is deleted.
    pub(crate) async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        how: &DeleteParams,
    ) -> Result<(), kube::Error> {
        tracing::debug!(kind = kind.wire().1, namespace, name, "delete");
        match self.api(kind, namespace).delete(name, how).await {
            Err(error) if verdict(&error) != Verdict::Missing => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether an object is this platform's.
    pub(crate) fn is_ours(&self, meta: &ObjectMeta) -> bool {
        let label = |name| crate::seen::convert::word(&meta.labels, name);
        label(names::MANAGED_BY) == names::OURS && label(names::PLATFORM) == names::platform(&self.prefix)
    }

    /// Nodes that instances may run on and that cannot give them a user namespace.
    pub(crate) async fn nodes_without_user_namespaces(&self, selector: &str) -> Result<Vec<String>, kube::Error> {
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        let list = nodes.list(&ListParams::default().labels(selector)).await?;
        let unable = list.items.into_iter().filter(|node| {
            let handlers = node.status.iter().flat_map(|it| it.runtime_handlers.iter().flatten());
            let mut features = handlers.filter_map(|it| it.features.as_ref());
            !features.any(|it| it.user_namespaces == Some(true))
        });
        Ok(unable.filter_map(|it| it.metadata.name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use futures_util::stream;
    use kube::core::Status;
    use std::future::pending;

    fn request(path: &str) -> http::Request<Body> {
        http::Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    #[test]
    fn only_what_lasts_has_no_limit() {
        for (path, wanted) in [
            ("/api/v1/pods", Limit::Whole),
            ("/api/v1/pods?limit=500&continue=watch%3Dtrue", Limit::Whole),
            ("/api/v1/namespaces/a/pods/b/log?container=app", Limit::Whole),
            ("/api/v1/pods?&watch=true&timeoutSeconds=290", Limit::Head),
            ("/api/v1/namespaces/a/pods/b/log?&follow=true&timestamps=true", Limit::Nothing),
        ] {
            assert_eq!(Limit::of(&request(path)), wanted, "{path}");
        }
        let mut upgraded = request("/api/v1/namespaces/a/pods/b/exec?&stdin=true");
        upgraded.headers_mut().insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
        assert_eq!(Limit::of(&upgraded), Limit::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_or_end_is_an_error() {
        let silent = tower::service_fn(|_: http::Request<Body>| pending::<Result<http::Response<Body>, kube::Error>>());
        let silent = limited(Client::new(silent, "default"));
        let stuck = tower::service_fn(|_: http::Request<Body>| async {
            let begun = stream::iter([Ok::<_, std::io::Error>("{")]).chain(stream::pending());
            Ok::<_, kube::Error>(http::Response::new(axum::body::Body::from_stream(begun)))
        });
        let stuck = limited(Client::new(stuck, "default"));
        for (client, path) in
            [(&silent, "/api/v1/pods"), (&silent, "/api/v1/pods?watch=true"), (&stuck, "/api/v1/pods")]
        {
            let error = client.send(request(path)).await.unwrap_err();
            let text = words(&error);
            assert!(text.contains("does not answer: no answer within 60 s"), "{path}: {text}");
            assert_eq!(verdict(&error), Verdict::Later);
        }
        for lasting in ["/api/v1/pods?watch=true", "/api/v1/namespaces/a/pods/b/log?follow=true"] {
            assert!(stuck.send(request(lasting)).await.is_ok(), "{lasting}");
        }
    }

    #[test]
    fn an_answer_is_final_later_or_nothing_there() {
        let of = |code: u16, message: &str| {
            verdict(&kube::Error::Api(Box::new(Status::failure(message, "").with_code(code))))
        };
        for (code, message, wanted) in [
            (404, "", Verdict::Missing),
            (422, "field is immutable", Verdict::Refused),
            (403, "exceeded quota", Verdict::Refused),
            (403, "unable to create new content because it is being terminated", Verdict::Later),
            (401, "Unauthorized", Verdict::Later),
            (409, "conflict", Verdict::Later),
            (410, "expired", Verdict::Later),
            (429, "slow down", Verdict::Later),
            (500, "etcd", Verdict::Later),
        ] {
            assert_eq!(of(code, message), wanted, "{code} {message}");
        }
        let door = |code: u16| {
            let code = http::StatusCode::from_u16(code).unwrap();
            verdict(&kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)))
        };
        for (code, wanted) in
            [(403, Verdict::Refused), (404, Verdict::Missing), (400, Verdict::Later), (502, Verdict::Later)]
        {
            assert_eq!(door(code), wanted, "{code}");
        }
    }
}
