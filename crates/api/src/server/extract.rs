//! Parts of requests, parsed at the edge: names in paths, queries, JSON bodies. A failure is a problem like any other.

use super::error::ApiError;
use arco_model::error::Problem;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;

/// Largest JSON body, in bytes: applications with some components, each of which may have 1 MiB of configuration files, twice
/// when it comes with its revision. Only who may call at all gets as far as to send one.
const BODY_MAX: usize = 32 << 20;

/// Names and ids of a path.
pub(crate) struct Named<T>(pub(crate) T);

/// Tenant, application and component of a path.
pub(crate) type ComponentPath = Named<(TenantName, ApplicationName, ComponentName)>;
/// Tenant and application of a path.
pub(crate) type ApplicationPath = Named<(TenantName, ApplicationName)>;

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => {
                Err(invalid("name_invalid", error.body_text(), "names are a-z, 0-9 and -, at most 30 characters"))
            }
        }
    }
}

/// The query.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(invalid("query_invalid", error.body_text(), "`/openapi.json` lists the parameters")),
        }
    }
}

/// A JSON body; an empty one counts as `{}`.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let advice = "`/openapi.json` describes the body";
        let too_large =
            |_| invalid("body_invalid", format!("the body is larger than {BODY_MAX} bytes, or broke off"), advice);
        let bytes = to_bytes(request.into_body(), BODY_MAX).await.map_err(too_large)?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // The message may quote what was sent; it goes back to the sender and nowhere else.
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|it| invalid("body_invalid", format!("the body is not as expected: {it}"), advice))
    }
}

fn invalid(code: &str, message: impl Into<String>, advice: &str) -> ApiError {
    Problem::invalid(code, message, advice).into()
}
