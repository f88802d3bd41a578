//! Calls that carry applications between platforms, and stacks to one. Blobs are streamed and have no time limit.

use super::{CALL_TIMEOUT, Client, ClientError, path};
use crate::wire::{
    CarriedApplication, ExportRequest, ImportRequest, ImportResult, Page, StackDocument, StackRequest, UploadReceipt,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::Method;

impl Client {
    /// An application as it is, secrets sealed with the key of the request.
    pub async fn export(
        &self,
        tenant: &str,
        application: &str,
        request: &ExportRequest,
    ) -> Result<CarriedApplication, ClientError> {
        let path = path(&["v1", "tenants", tenant, "applications", application, "export"]);
        self.call(Method::POST, &path, request).await
    }

    /// Makes an application as it was elsewhere, or (dry run) tells what that would do.
    pub async fn import(
        &self,
        tenant: &str,
        application: &str,
        request: &ImportRequest,
        dry_run: bool,
    ) -> Result<ImportResult, ClientError> {
        let path = path(&["v1", "tenants", tenant, "applications", application, "import"]);
        self.call(Method::POST, &format!("{path}?dry_run={dry_run}"), request).await
    }

    /// Stacks that the platform keeps.
    pub async fn stacks(&self) -> Result<Vec<StackDocument>, ClientError> {
        let page: Page<StackDocument> = self.get("/v1/stacks").await?;
        Ok(page.items)
    }

    /// Keeps a stack whose blobs are there.
    pub async fn keep_stack(&self, name: &str, request: &StackRequest) -> Result<StackDocument, ClientError> {
        self.call(Method::PUT, &path(&["v1", "stacks", name]), request).await
    }

    /// Forgets every edition of a stack.
    pub async fn forget_stack(&self, name: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &path(&["v1", "stacks", name])).timeout(CALL_TIMEOUT);
        self.send(request).await.map(drop)
    }

    /// Content by its digest.
    pub async fn blob(
        &self,
        tenant: &str,
        digest: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + use<>, ClientError> {
        let response = self.send(self.request(Method::GET, &path(&["v1", "tenants", tenant, "blobs", digest]))).await?;
        let api = self.api().to_owned();
        Ok(response.bytes_stream().map(move |it| it.map_err(|it| ClientError::from_http(&api, it))))
    }

    /// Sends content of `size` bytes that has this digest.
    pub async fn put_blob(
        &self,
        tenant: &str,
        digest: &str,
        size: u64,
        content: impl tokio::io::AsyncRead + Send + 'static,
    ) -> Result<UploadReceipt, ClientError> {
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(content, 1 << 16));
        let request = self
            .request(Method::PUT, &path(&["v1", "tenants", tenant, "blobs", digest]))
            .header(http::header::CONTENT_TYPE, "application/octet-stream")
            .header(http::header::CONTENT_LENGTH, size)
            .body(body);
        let bytes = self.send(request).await?.bytes().await.map_err(|it| ClientError::from_http(self.api(), it))?;
        serde_json::from_slice(&bytes).map_err(|it| ClientError::Answer(it.to_string()))
    }
}
