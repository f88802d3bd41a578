//! One member: its address, a connection that is made when it is needed, and what is known of its health.
//!
//! What must hold: nobody waits for a connection longer than [`CONNECT`], however many calls queue for it: when it does
//! not come about in time, it is not tried again for those that queued behind, until the member is asked anew.

use super::health::Health;
use super::verdict::chain;
use crate::kv::{EtcdTls, KvError};
use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tonic::codegen::{Service, StdError};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};

/// How long a connection may take to be made; as long again its TLS.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection that failed only after so long was not refused: nobody was there.
const SLOW: Duration = Duration::from_secs(1);
/// Largest answer: a listing is one message.
const ANSWER_BYTES: usize = 256 << 20;

/// A member.
pub(super) struct Member {
    /// For errors and the log.
    pub(super) url: String,
    pub(super) health: Arc<Health>,
    keys: KvClient,
    leases: LeaseClient,
    watches: WatchClient,
}

impl Member {
    /// Does not connect yet.
    pub(super) async fn new(address: &str, tls: Option<&EtcdTls>) -> Result<Self, KvError> {
        let (url, endpoint) = endpoint(address, tls)?;
        let health = Arc::new(Health::new());
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Divided among the addresses of a name.
        tcp.set_connect_timeout(Some(CONNECT));
        let channel = endpoint.connect_with_connector_lazy(Door { tcp, health: health.clone() });
        let client = |options| Client::from_channel(etcd_client::Channel::Tonic(channel.clone()), options);
        let failed = |it: Error| KvError::Unavailable { step: "connect", cause: format!("{url}: {it}") };
        let plain = client(None).await.map_err(failed)?;
        // A member without a leader ends such streams: nothing would come on them. Other calls wait while one is elected.
        let led = client(Some(ConnectOptions::new().with_require_leader(true))).await.map_err(failed)?;
        Ok(Self {
            health,
            keys: plain.kv_client().max_decoding_message_size(ANSWER_BYTES),
            leases: plain.lease_client(),
            watches: led.watch_client().max_decoding_message_size(ANSWER_BYTES),
            url,
        })
    }
}

/// A client of one of etcd's services.
pub(super) trait OfMember {
    /// That of a member; cheap.
    fn of(member: &Member) -> Self;
}

impl OfMember for KvClient {
    fn of(member: &Member) -> Self {
        member.keys.clone()
    }
}

impl OfMember for LeaseClient {
    fn of(member: &Member) -> Self {
        member.leases.clone()
    }
}

impl OfMember for WatchClient {
    fn of(member: &Member) -> Self {
        member.watches.clone()
    }
}

fn endpoint(address: &str, tls: Option<&EtcdTls>) -> Result<(String, Endpoint), KvError> {
    let refused = |why: &dyn Display| {
        let cause = format!("the address `{address}`: {why}");
        KvError::Unavailable { step: "connect", cause }
    };
    let url = match tls {
        _ if address.contains("://") => address.to_owned(),
        Some(_) => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|it| refused(&it))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        // etcd closes connections that ping without a call or watch under way.
        .keep_alive_while_idle(false);
    match (url.starts_with("https://"), tls) {
        (false, None) => Ok((url, endpoint)),
        (false, Some(_)) => Err(refused(&"certificates are given, which are for https:// alone")),
        (true, _) => {
            let config = tls.map_or_else(ClientTlsConfig::new, |it| {
                let identity = Identity::from_pem(&it.cert_pem, &it.key_pem);
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&it.ca_pem)).identity(identity)
            });
            let endpoint = endpoint.tls_config(config.timeout(CONNECT)).map_err(|it| refused(&it))?;
            Ok((url, endpoint))
        }
    }
}

/// Makes connections of one member.
struct Door {
    tcp: HttpConnector,
    health: Arc<Health>,
}

impl Service<Uri> for Door {
    type Response = TokioIo<TcpStream>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Service::<Uri>::poll_ready(&mut self.tcp, context).map_err(StdError::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        if self.health.is_dark() {
            let why = self.health.why();
            return Box::pin(async move { Err(StdError::from(why)) });
        }
        let (connecting, health) = (self.tcp.call(to), self.health.clone());
        Box::pin(async move {
            let began = Instant::now();
            let why = match tokio::time::timeout(CONNECT, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no connection within {} s", CONNECT.as_secs()),
            };
            if began.elapsed() >= SLOW {
                // Before the next call in the queue asks for one.
                health.leave_in_the_dark(&why);
            }
            Err(StdError::from(why))
        })
    }
}
