//! TLS to an instance that is asked whether it is ready: any certificate does, as for the gateway.

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Speaks TLS on a connection to the instance at `address`.
pub(super) async fn begin(stream: TcpStream, address: Ipv4Addr) -> Option<TlsStream<TcpStream>> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| arco_store::unverified::client().ok().map(Arc::new)).clone()?;
    TlsConnector::from(config).connect(ServerName::from(address), stream).await.ok()
}
