//! The store as others see it: any [`Kv`](super::Kv) answers etcd's v3 interface (KV, Watch, Lease, Maintenance.Status)
//! with mutual TLS, so that a role in another process uses the etcd driver unchanged and `etcdctl` can look inside.
//!
//! What must hold: nothing is answered without a certificate of our authority; its common name decides which prefixes
//! may be read and written ([`Grant`]). Not here: nested transactions, ranges in conditions, members, users, snapshots.

mod access;
mod compare;
mod convert;
mod keys;
mod lease;
#[cfg(test)]
mod tests;
mod watch;

pub use access::Grant;

use super::{EtcdTls, SharedKv, tls};
use access::Access;
use arco_etcd_proto::etcdserverpb::kv_server::KvServer;
use arco_etcd_proto::etcdserverpb::lease_server::LeaseServer;
use arco_etcd_proto::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use arco_etcd_proto::etcdserverpb::watch_server::WatchServer;
use arco_etcd_proto::etcdserverpb::{StatusRequest, StatusResponse};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Most connections that may be in their TLS handshake.
const HANDSHAKES: usize = 64;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long calls under way may take when the front stops.
const GRACE: Duration = Duration::from_secs(2);

/// Why the front does not serve.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The address cannot be opened.
    #[error("the store's etcd interface cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// The certificates do not fit.
    #[error("the store's etcd interface cannot use its certificates: {0}")]
    Tls(String),
    /// The server ended by itself.
    #[error("the store's etcd interface stopped: {0}")]
    Serve(String),
}

/// A listening front; [`Front::serve`] is its task.
pub struct Front {
    listener: TcpListener,
    address: SocketAddr,
    kv: SharedKv,
    access: Arc<Access>,
    tls: Certificates,
}

/// The front's certificates, to be replaced while it serves; cheap to clone.
#[derive(Clone)]
pub struct Certificates(Arc<RwLock<Arc<rustls::ServerConfig>>>);

impl Certificates {
    /// Connections from now on see the new certificates; those that are open go on.
    pub fn replace(&self, tls: &EtcdTls) -> Result<(), FrontError> {
        let config = tls::server(tls).map_err(FrontError::Tls)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Front {
    /// Opens the address (port 0 takes a free one). Each client is known by its certificate's common name; who has no
    /// grant may do nothing.
    pub async fn bind(
        address: SocketAddr,
        kv: SharedKv,
        tls: &EtcdTls,
        grants: Vec<Grant>,
    ) -> Result<Self, FrontError> {
        let config = tls::server(tls).map_err(FrontError::Tls)?;
        let failed = |cause| FrontError::Listen { address, cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = Certificates(Arc::new(RwLock::new(config)));
        Ok(Self { listener, address, kv, access: Arc::new(Access::new(grants)), tls })
    }

    /// Where it really listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Handle for replacing the certificates.
    pub fn certificates(&self) -> Certificates {
        self.tls.clone()
    }

    /// Serves until `stop`; then calls under way have 2 s to end.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), FrontError> {
        let (connections, incoming) = mpsc::channel(HANDSHAKES);
        let accept = accept(self.listener, self.tls, connections);
        let keys = keys::Keys { kv: self.kv.clone(), access: self.access.clone() };
        let watches = watch::Watches { kv: self.kv.clone(), access: self.access.clone(), stop: stop.clone() };
        let leases = lease::Leases::new(self.kv.clone(), self.access.clone(), stop.clone());
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(KvServer::new(keys))
            .add_service(WatchServer::new(watches))
            .add_service(LeaseServer::new(leases))
            .add_service(MaintenanceServer::new(State { kv: self.kv, access: self.access }))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
        tokio::select! {
            ended = server => ended.map_err(|it| FrontError::Serve(it.to_string())),
            never = accept => match never {},
            () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
        }
    }
}

/// Takes connections and does their handshakes beside each other.
async fn accept(
    listener: TcpListener,
    tls: Certificates,
    connections: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
) -> std::convert::Infallible {
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.len() >= HANDSHAKES {
            handshakes.join_next().await;
        }
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
        };
        match stream {
            Ok((stream, peer)) => {
                let (acceptor, connections) = (tls.acceptor(), connections.clone());
                handshakes.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => drop(connections.send(Ok(stream)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others must end before it goes on.
                tracing::warn!(%error, "the store's etcd interface cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct State {
    kv: SharedKv,
    access: Arc<Access>,
}

#[tonic::async_trait]
impl Maintenance for State {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.access.of(&request)?;
        let revision = convert::revision(&self.kv).await?;
        let header = convert::header(revision);
        let (leader, term) = (header.member_id, header.raft_term);
        Ok(Response::new(StatusResponse {
            header: Some(header),
            version: concat!("3.5.0-arco-", env!("CARGO_PKG_VERSION")).to_owned(),
            leader,
            raft_index: revision,
            raft_applied_index: revision,
            raft_term: term,
            ..StatusResponse::default()
        }))
    }
}
