//! Active checks: asks endpoints whether they are well, and leaves out those that are not.

use super::body::RequestBody;
use super::forward::Failure;
use super::{Shared, room, transport};
use crate::balance::Check;
use crate::upstream::Upstream;
use arco_daemon::{BoxError, OnExit, Supervisor};
use http::{Request, header};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How exact the times of checks are.
const TICK: Duration = Duration::from_millis(50);
/// How often it is looked whether there is something to check, while there is nothing.
const LOOK: Duration = Duration::from_millis(500);

/// Starts every check when it is due, until the supervisor stops.
pub(super) async fn run(shared: Arc<Shared>, supervisor: Supervisor) -> Result<(), BoxError> {
    while !supervisor.token().is_cancelled() {
        let snapshot = shared.snapshot.load_full();
        for upstream in &snapshot.checked {
            let Some(check) = &upstream.settings.check else { continue };
            for endpoint in &upstream.endpoints {
                let Some(checking) = endpoint.state.begin_check(check.interval) else { continue };
                let (upstream, check, endpoint) = (Arc::clone(upstream), check.clone(), endpoint.clone());
                let asked = supervisor.clone();
                supervisor.spawn("health check", OnExit::Continue, async move {
                    let _checking = checking;
                    let Some(well) = ask(&asked, &upstream, &check, endpoint.address).await else { return Ok(()) };
                    if endpoint.state.checked(well, &check) {
                        let (name, address) = (&upstream.name, endpoint.address);
                        tracing::info!(upstream = %name, %address, well, "an endpoint changed its health");
                    }
                    Ok(())
                });
            }
        }
        let pause = if snapshot.checked.is_empty() { LOOK } else { TICK };
        drop(snapshot);
        // Only ends early; what comes of it is seen above.
        let _ = tokio::time::timeout(pause, supervisor.token().cancelled()).await;
    }
    Ok(())
}

/// Whether the endpoint is well; `None` when it could not even be asked.
async fn ask(supervisor: &Supervisor, upstream: &Upstream, check: &Check, address: SocketAddr) -> Option<bool> {
    let asking = async {
        let Some(http) = &check.http else {
            return match tokio::net::TcpStream::connect(address).await {
                Err(error) if room::is_used_up(&error) => None,
                connected => Some(connected.is_ok()),
            };
        };
        let transport = &upstream.settings.transport;
        let mut sender = match transport::connect(supervisor, transport, address, check.timeout).await {
            Ok(sender) => sender,
            Err(failure) => return (failure != Failure::NoRoom).then_some(false),
        };
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = http.path.clone().into();
        request.headers_mut().insert(header::HOST, http.host.clone());
        request.headers_mut().insert(header::USER_AGENT, http::HeaderValue::from_static("arco-gateway-check"));
        if transport.http2 && super::forward::for_http2(&mut request, transport).is_err() {
            return Some(false);
        }
        match sender.send(request).await {
            Ok(response) => {
                let status = response.status().as_u16();
                Some(http.status.map_or((200..400).contains(&status), |it| it == status))
            }
            Err(_) => Some(false),
        }
    };
    tokio::time::timeout(check.timeout, asking).await.unwrap_or(Some(false))
}
