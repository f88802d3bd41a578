//! The servers of the platform, as a node asks them: HTTP over mutual TLS, one connection that is made again when it breaks.
//!
//! What must hold: credentials are read anew for each connection, because they are renewed; only servers of the platform's
//! own authority are talked to; no call waits for ever.

use crate::Keeper;
use crate::wire::{ANY_SERVER, CURSORS, Cursor, Kept, OUTPUT, Output, Pod};
use arco_daemon::pki::Leaf;
use arco_daemon::tls;
use arco_model::time::Timestamp;
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

/// How long a connection may take, and a call: lines wait for the disk of their keeper.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(40);
/// Largest answer, in bytes.
const ANSWER_MAX: usize = 16 << 20;

/// Any server of the platform, by a name that leads to one of them.
pub struct Servers {
    address: String,
    credentials: PathBuf,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Servers {
    /// At `HOST:PORT`, with `ca.pem`, `node.pem` and `node.key` of a folder.
    pub fn new(address: String, credentials: PathBuf) -> Self {
        Self { address, credentials, connection: Mutex::new(None) }
    }

    async fn ask<Q: Serialize + ?Sized, A: DeserializeOwned>(&self, path: &str, question: &Q) -> Result<A, String> {
        let body = serde_json::to_vec(question).map_err(|it| it.to_string())?;
        let request = Request::builder().method(Method::POST).uri(path).header(header::HOST, ANY_SERVER);
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)));
        let request = request.map_err(|it| it.to_string())?;
        let mut held = self.connection.lock().await;
        // An answer that did not come leaves no connection behind.
        let mut connection = self.ready(held.take()).await?;
        let call = async {
            let response = connection.send_request(request).await.map_err(|it| it.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|it| it.to_string())?;
            let body = body.to_bytes();
            if status != StatusCode::OK {
                let said = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
                return Err(format!("{} answered with {status}: {said}", self.address));
            }
            serde_json::from_slice(&body)
                .map_err(|it| format!("{} answered what is not understood: {it}", self.address))
        };
        let answered = tokio::time::timeout(CALL, call).await;
        let answer = answered.map_err(|_| format!("{} did not answer within {} s", self.address, CALL.as_secs()))??;
        *held = Some(connection);
        Ok(answer)
    }

    /// The connection, made anew when there is none that lives.
    async fn ready(&self, held: Option<SendRequest<Full<Bytes>>>) -> Result<SendRequest<Full<Bytes>>, String> {
        if let Some(mut held) = held
            && held.ready().await.is_ok()
        {
            return Ok(held);
        }
        let made = tokio::time::timeout(CONNECT, self.connect()).await;
        let made = made.map_err(|_| format!("no connection to {} within {} s", self.address, CONNECT.as_secs()))?;
        made.map_err(|it| format!("no connection to {}: {it}", self.address))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let never = Timestamp(u64::MAX);
        let leaf = Leaf {
            certificate_pem: read(&self.credentials, "node.pem")?,
            key_pem: read(&self.credentials, "node.key")?,
            expires_at: never,
            renew_at: never,
        };
        let mut config =
            tls::client_config(&read(&self.credentials, "ca.pem")?, Some(&leaf)).map_err(|it| it.to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(&self.address).await.map_err(|it| it.to_string())?;
        stream.set_nodelay(true).map_err(|it| it.to_string())?;
        let name = ServerName::try_from(ANY_SERVER).map_err(|it| it.to_string())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|it| it.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|it| it.to_string())?;
        // Ends with the connection, when either side has gone.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn read(folder: &Path, name: &str) -> Result<String, String> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).map_err(|it| format!("`{}` cannot be read: {it}", path.display()))
}

#[async_trait]
impl Keeper for Servers {
    async fn cursors(&self, pods: &[Pod]) -> Result<Vec<Cursor>, String> {
        self.ask(CURSORS, pods).await
    }

    async fn keep(&self, output: &[Output]) -> Result<Vec<Kept>, String> {
        self.ask(OUTPUT, output).await
    }
}
