//! From a request to the call that answers it: route, token, then the work.

use crate::Registry;
use crate::access::exchange;
use crate::refusal::Refusal;
use crate::route::{Target, parse};
use crate::tokens::Action;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::{HeaderName, HeaderValue, Method, StatusCode};

/// By which scheme the client came; set by what ends TLS before us.
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

pub(crate) fn router(registry: Registry) -> Router {
    Router::new()
        .route("/token", get(exchange))
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*path}", any(serve))
        .with_state(registry)
}

/// The same behind TLS: what it tells clients to call is `https`, too.
pub(crate) fn over_tls(registry: Registry) -> Router {
    router(registry).layer(axum::middleware::map_request(|mut request: Request| async move {
        request.headers_mut().insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        request
    }))
}

async fn serve(
    State(registry): State<Registry>,
    path: Option<Path<String>>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    let path = path.map(|it| it.0).unwrap_or_default();
    let mut answer = registry.dispatch(&path, &query, request).await.unwrap_or_else(IntoResponse::into_response);
    answer.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    answer
}

impl Registry {
    async fn dispatch(&self, path: &str, query: &[(String, String)], request: Request) -> Result<Response, Refusal> {
        let target = match parse(path) {
            Ok(target) => target,
            Err(error) => {
                self.admit(request.headers(), None)?;
                return Err(error.into());
            }
        };
        let (head, body) = request.into_parts();
        let (method, headers, body) = (head.method, head.headers, body.into_data_stream());
        let need = match (&target, &method) {
            (Target::Base, _) => None,
            (Target::Uploads(name) | Target::Upload(name, _), _) => Some((name, Action::Push)),
            (
                Target::Manifest(name, _) | Target::Blob(name, _) | Target::Tags(name) | Target::Referrers(name, _),
                method,
            ) => Some((
                name,
                match *method {
                    Method::GET | Method::HEAD => Action::Pull,
                    Method::DELETE => Action::Delete,
                    _ => Action::Push,
                },
            )),
        };
        let scope = self.admit(&headers, need.map(|(name, action)| (name.as_str(), action)))?;
        match (&target, &method) {
            (Target::Base, &Method::GET | &Method::HEAD) => Ok(StatusCode::OK.into_response()),
            (Target::Manifest(name, reference), &Method::GET | &Method::HEAD) => {
                self.read_manifest(&method, name, reference).await
            }
            (Target::Manifest(name, reference), &Method::PUT) => {
                Box::pin(self.put_manifest(name, reference, &headers, body)).await
            }
            (Target::Manifest(name, reference), &Method::DELETE) => self.delete_manifest(name, reference).await,
            (Target::Blob(name, digest), &Method::GET | &Method::HEAD) => {
                self.read_blob(&method, name, digest, &headers).await
            }
            (Target::Blob(name, digest), &Method::DELETE) => self.delete_blob(name, digest).await,
            (Target::Uploads(name), &Method::POST) => Box::pin(self.begin_upload(name, query, &scope, body)).await,
            (Target::Upload(name, id), &Method::GET) => self.upload_status(name, id).await,
            (Target::Upload(name, id), &Method::PATCH) => self.upload_chunk(name, id, &headers, body).await,
            (Target::Upload(name, id), &Method::PUT) => {
                Box::pin(self.finish_upload(name, id, query, &headers, body)).await
            }
            (Target::Upload(name, id), &Method::DELETE) => self.cancel_upload(name, id).await,
            (Target::Tags(name), &Method::GET) => self.list_tags(name, query).await,
            (Target::Referrers(name, digest), &Method::GET) => self.referrers(name, digest, query).await,
            _ => Err(Refusal::unsupported("this address does not take this method")),
        }
    }
}
