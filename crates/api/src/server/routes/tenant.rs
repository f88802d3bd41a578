//! Tenants, and what belongs to a tenant as a whole: uploads and volumes.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Asked, Body, Named};
use super::super::identity::Caller;
use super::super::read;
use crate::wire::{
    ChangeTenant, CreateTenant, ErrorBody, Page, PageQuery, StorageDocument, TenantDocument, TenantRemoval,
    UploadReceipt, VolumeClassDocument, VolumeDocument,
};
use arco_model::application::Tenant;
use arco_model::artifact::Digest;
use arco_model::error::Problem;
use arco_model::name::TenantName;
use arco_store::clock;
use arco_store::sql::Query;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;

fn document(tenant: &Tenant, memory_asked_mb: u64) -> TenantDocument {
    let Tenant { name, memory_quota_mb, created_at } = tenant;
    TenantDocument {
        name: name.to_string(),
        memory_quota_mb: *memory_quota_mb,
        memory_asked_mb,
        created_at: created_at.rfc3339(),
    }
}

/// Tenants that the caller may see.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(PageQuery), responses((status = 200, body = Page<TenantDocument>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Asked(query): Asked<PageQuery>,
) -> Result<Json<Page<TenantDocument>>, ApiError> {
    let (limit, after) = read::page(&query)?;
    let page = api.deps.metadata.list::<Tenant>(&Query { limit, after, ..Query::default() }).await?;
    let next = page.next.map(|it| format!("{}.{}", it.created_at.0, it.key));
    let mut items = Vec::new();
    for tenant in page.items.iter().map(|it| &it.value).filter(|it| caller.sees(it.name.as_str())) {
        items.push(document(tenant, api.memory_asked_mb(&tenant.name).await?));
    }
    Ok(Json(Page { items, next }))
}

/// Makes a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant,
    responses((status = 201, body = TenantDocument), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn create(
    State(api): State<Api>,
    Body(request): Body<CreateTenant>,
) -> Result<(StatusCode, Json<TenantDocument>), ApiError> {
    let name = TenantName::new(request.name)
        .map_err(|it| Problem::invalid("name_invalid", it.to_string(), "choose another name"))?;
    let tenant = Tenant { name, memory_quota_mb: request.memory_quota_mb, created_at: clock::now() };
    api.deps.metadata.insert(&tenant).await?;
    Ok((StatusCode::CREATED, Json(document(&tenant, 0))))
}

/// Changes the quota of a tenant.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    request_body = ChangeTenant,
    responses((status = 200, body = TenantDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn change(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Body(request): Body<ChangeTenant>,
) -> Result<Json<TenantDocument>, ApiError> {
    let changed = api.change_tenant(&tenant, &request).await?;
    Ok(Json(document(&changed, api.memory_asked_mb(&tenant).await?)))
}

/// Deletes a tenant in which no application and no volume is left.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, body = TenantRemoval), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<TenantRemoval>, ApiError> {
    api.delete_tenant(&tenant).await.map(Json)
}

/// Sends an archive (gzip-compressed tar) that components are then built from.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/uploads", tag = "tenants", params(("tenant" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/gzip"),
    responses((status = 201, body = UploadReceipt), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody, description = "Too large, or no room")))]
pub(super) async fn upload(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<UploadReceipt>), ApiError> {
    api.tenant_exists(&tenant).await?;
    Ok((StatusCode::CREATED, Json(api.upload(&tenant, body).await?)))
}

/// An archive that is there for the tenant already. (HEAD would do, but its answer has no place for why it failed.)
#[utoipa::path(get, path = "/v1/tenants/{tenant}/uploads/{digest}", tag = "tenants",
    params(("tenant" = String, Path), ("digest" = String, Path)),
    responses((status = 200, body = UploadReceipt), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn has_upload(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, digest)): Named<(TenantName, Digest)>,
) -> Result<Json<UploadReceipt>, ApiError> {
    api.tenant_exists(&tenant).await?;
    let found = api.find_upload(&caller, &tenant, &digest).await?;
    let found = found.ok_or_else(|| Problem::not_found("upload", &digest))?;
    Ok(Json(UploadReceipt { digest: digest.to_string(), size: found.size }))
}

/// Volumes of a tenant, kept ones included.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/volumes", tag = "tenants", params(("tenant" = String, Path), PageQuery),
    responses((status = 200, body = Page<VolumeDocument>)))]
pub(super) async fn volumes(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Asked(query): Asked<PageQuery>,
) -> Result<Json<Page<VolumeDocument>>, ApiError> {
    api.tenant_volumes(&tenant, &query).await.map(Json)
}

/// How much storage a tenant has, and each of its components.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/storage", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, body = StorageDocument), (status = 404, body = ErrorBody)))]
pub(super) async fn storage(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<StorageDocument>, ApiError> {
    api.storage(&tenant).await.map(Json)
}

/// What volumes can be made of, and what they can then.
#[utoipa::path(get, path = "/v1/volume-classes", tag = "tenants", responses((status = 200, body = Page<VolumeClassDocument>)))]
pub(super) async fn volume_classes(State(api): State<Api>) -> Result<Json<Page<VolumeClassDocument>>, ApiError> {
    Ok(Json(Page::whole(api.volume_classes().await?)))
}

/// Deletes a volume that was kept when its component was deleted.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/volumes/{id}", tag = "tenants",
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete_volume(
    State(api): State<Api>,
    Named((tenant, id)): Named<(TenantName, String)>,
) -> Result<StatusCode, ApiError> {
    api.delete_volume(&tenant, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
