//! etcd's Lease service. A lease may be renewed by anybody who knows it, but ended only by who was granted it, or by who
//! may write every key: its end deletes keys.

use super::access::{Access, denied};
use super::convert::{header, revision, status};
use crate::kv::{KvError, LeaseId, SharedKv};
use arco_etcd_proto::etcdserverpb::lease_server::Lease;
use arco_etcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Leases {
    kv: SharedKv,
    access: Arc<Access>,
    stop: CancellationToken,
    /// Who was granted which, since this process began.
    owners: Mutex<HashMap<LeaseId, String>>,
}

impl Leases {
    pub(super) fn new(kv: SharedKv, access: Arc<Access>, stop: CancellationToken) -> Self {
        Self { kv, access, stop, owners: Mutex::default() }
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<LeaseId, String>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Lease for Leases {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let grant = self.access.of(&request)?;
        let asked = request.into_inner();
        if asked.id != 0 {
            return Err(Status::unimplemented("the store chooses the ids of leases"));
        }
        let ttl_s = u64::try_from(asked.ttl).unwrap_or(0).max(1);
        let lease = self.kv.lease_grant(ttl_s).await.map_err(status)?;
        self.owners().insert(lease, grant.common_name.clone());
        let header = Some(header(revision(&self.kv).await?));
        Ok(Response::new(LeaseGrantResponse { header, id: lease, ttl: ttl_s as i64, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let grant = self.access.of(&request)?;
        let lease = request.into_inner().id;
        let own = self.owners().get(&lease).is_some_and(|it| *it == grant.common_name);
        if !own && !grant.writes_all() {
            return Err(denied());
        }
        // As etcd: ending what is not there is an error, which our own driver takes for done.
        self.kv.lease_keep_alive(lease).await.map_err(status)?;
        self.kv.lease_revoke(lease).await.map_err(status)?;
        self.owners().remove(&lease);
        Ok(Response::new(LeaseRevokeResponse { header: Some(header(revision(&self.kv).await?)) }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.access.of(&request)?;
        let (responses, receiver) = mpsc::channel(8);
        tokio::spawn(renew(self.kv.clone(), request.into_inner(), responses, self.stop.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("the time that is left to a lease is not told"))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("leases are not listed: who knows one may renew it"))
    }
}

async fn renew(
    kv: SharedKv,
    mut requests: Streaming<LeaseKeepAliveRequest>,
    responses: mpsc::Sender<Result<LeaseKeepAliveResponse, Status>>,
    stop: CancellationToken,
) {
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = responses.closed() => return,
            () = stop.cancelled() => return,
        };
        let Ok(Some(request)) = request else { return };
        let response = match kv.lease_keep_alive(request.id).await {
            Ok(ttl_s) => Ok(ttl_s as i64),
            // etcd's way to say that it is gone.
            Err(KvError::NoLease(_)) => Ok(0),
            Err(error) => Err(status(error)),
        };
        let now = revision(&kv).await.unwrap_or(0);
        let response = response.map(|ttl| LeaseKeepAliveResponse { header: Some(header(now)), id: request.id, ttl });
        if responses.send(response).await.is_err() {
            return;
        }
    }
}
