//! Routes from the store: changes under load lose no request, silence of the store changes nothing.

use crate::kit::*;
use arco_config::GatewayConfig;
use arco_daemon::{CancellationToken, Supervisor};
use arco_gateway::DataPlane;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::UpstreamTarget;
use arco_model::traffic::*;
use arco_store::kv::SharedKv;
use arco_store::kv::mirror::Mirror;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PORT: u16 = 18_080;
const STATUS: &str = "/gateway-status/gw";

pub(crate) struct Plane {
    supervisor: Supervisor,
    stop: CancellationToken,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    problems: Box<dyn Fn() -> Vec<(StreamProtocol, u16, String)> + Send + Sync>,
}

impl Plane {
    pub(crate) fn start(store: &Arc<Store>, path: &Path) -> Self {
        Self::start_as(store, path, "gw", patient())
    }

    pub(crate) fn start_as(store: &Arc<Store>, path: &Path, id: &str, config: GatewayConfig) -> Self {
        let supervisor = Supervisor::new();
        let mirror = Mirror::open(GATEWAY_PREFIX, path).unwrap();
        let plane = DataPlane::build(&supervisor, &config, Arc::clone(&mirror), id, keys()).unwrap();
        let (http, https, stop) = (plane.http(), plane.https(), CancellationToken::new());
        let problems = Box::new(plane.stream_problems());
        let kv: SharedKv = Arc::clone(store) as SharedKv;
        tokio::spawn(mirror.run(Arc::clone(&kv), supervisor.token().clone()));
        tokio::spawn(plane.run(kv, stop.clone()));
        Self { supervisor, stop, http, https, problems }
    }

    /// Ports for components that are not open, and why.
    pub(crate) fn stream_problems(&self) -> Vec<(StreamProtocol, u16, String)> {
        (self.problems)()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
        self.supervisor.token().cancel();
    }
}

/// Settings of a gateway on free ports; no limit of time that a busy machine could reach.
pub(crate) fn patient() -> GatewayConfig {
    let any = "127.0.0.1:0".parse().unwrap();
    GatewayConfig {
        http_listen: any,
        https_listen: any,
        request_header_ms: 600_000,
        request_body_ms: 600_000,
        connect_ms: 600_000,
        response_ms: 600_000,
        idle_ms: 600_000,
        ..GatewayConfig::default()
    }
}

fn component() -> ComponentId {
    ComponentId::from_parts(1, 1)
}

fn instance(number: u8) -> InstanceId {
    InstanceId::from_parts(2, number.into())
}

pub(crate) async fn put<T: serde::Serialize>(store: &Arc<Store>, key: String, value: &T) -> u64 {
    let kv: SharedKv = Arc::clone(store) as SharedKv;
    kv.put(&key, serde_json::to_vec(value).unwrap(), None).await.unwrap()
}

async fn put_host(store: &Arc<Store>) -> u64 {
    let default = Some(UpstreamTarget { component: component(), port: PORT });
    put(store, format!("{HOSTS}web.test"), &HostEntry { host: "web.test".to_owned(), default, ..HostEntry::default() })
        .await
}

/// All instances have one port, so each has an address of its own; another process of these tests has others.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high, low, number)
}

/// Endpoints at [`address`]; those in `draining` get nothing new.
async fn put_endpoints(store: &Arc<Store>, ready: &[u8], draining: &[u8], state: UpstreamState) -> u64 {
    let endpoint =
        |number: u8, draining| Endpoint { instance: instance(number), address: address(number), port: None, draining };
    let endpoints = ready.iter().map(|it| endpoint(*it, false)).chain(draining.iter().map(|it| endpoint(*it, true)));
    let entry = UpstreamEntry {
        component: component(),
        reference: "demo/web".to_owned(),
        state,
        endpoints: endpoints.collect(),
        http2_ports: Vec::new(),
        tls_ports: Vec::new(),
    };
    put(store, format!("{UPSTREAMS}{}", component()), &entry).await
}

pub(crate) async fn acknowledged(store: &Arc<Store>, revision: u64) -> GatewayStatus {
    at_last("the acknowledgement", || async {
        store.value::<GatewayStatus>(STATUS).await.filter(|it| it.applied_revision >= revision)
    })
    .await
}

/// An instance that can be ended: it stops listening and cuts every connection.
fn instance_at(number: u8) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from((address(number), PORT))).unwrap();
    let listener = socket.listen(1024).unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            connections.spawn(async move {
                let mut wire = Wire::new(stream);
                while wire.message().await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    // Long enough that requests are open while endpoints change.
                    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", number % 10)).await;
                }
            });
        }
    });
    (task, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_changes_under_load_lose_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    let mut running = vec![(1u8, instance_at(1).0), (2, instance_at(2).0)];
    put_host(&store).await;
    let revision = put_endpoints(&store, &[1, 2], &[], UpstreamState::Up).await;
    acknowledged(&store, revision).await;
    let stop = CancellationToken::new();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (stop, answered, http) = (stop.clone(), Arc::clone(&answered), plane.http);
        clients.spawn(async move {
            let mut wire = Wire::connect(http).await;
            while !stop.is_cancelled() {
                let request = if number % 2 == 0 {
                    "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
                } else {
                    "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 4\r\n\r\nbody"
                };
                let answer = wire.ask(request).await;
                assert_eq!(answer.status(), 200, "{answer:?}");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for next in 3..20u8 {
        // As the controller does it: start, make ready, drain, wait for the gateway, end.
        let (old, task) = running.remove(0);
        let (fresh, _) = instance_at(next);
        running.push((next, fresh));
        let ready: Vec<u8> = running.iter().map(|it| it.0).collect();
        let revision = put_endpoints(&store, &ready, &[old], UpstreamState::Up).await;
        eventually("the drained instance", || async {
            store
                .value::<GatewayStatus>(STATUS)
                .await
                .is_some_and(|it| it.applied_revision >= revision && !it.busy_draining.contains(&instance(old)))
        })
        .await;
        task.abort();
        put_endpoints(&store, &ready, &[], UpstreamState::Up).await;
        let seen = answered.load(Ordering::SeqCst);
        eventually("load", || async { answered.load(Ordering::SeqCst) > seen + 20 }).await;
    }
    stop.cancel();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    running.into_iter().for_each(|it| it.1.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_changes_under_load_lose_no_request() {
    const CHANGES: usize = 10_000;
    const HOSTS_CHANGED: usize = 500;
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    let (task, _) = instance_at(210);
    put_host(&store).await;
    let revision = put_endpoints(&store, &[210], &[], UpstreamState::Up).await;
    acknowledged(&store, revision).await;
    let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (stop, answered, http) = (stop.clone(), Arc::clone(&answered), plane.http);
        clients.spawn(async move {
            let mut wire = Wire::connect(http).await;
            while !stop.is_cancelled() {
                let answer = wire.ask("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
                assert_eq!(answer.status(), 200, "{answer:?}");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let host = |number: usize| format!("h{}.test", number % HOSTS_CHANGED);
    let mut last = 0;
    for number in 0..CHANGES {
        let answer = serde_json::json!({"answer": {"status": 200, "body": number.to_string()}});
        let rules = vec![serde_json::from_value(answer).unwrap()];
        let entry = HostEntry { host: host(number), rules, ..HostEntry::default() };
        last = put(&store, format!("{HOSTS}{}", host(number)), &entry).await;
    }
    acknowledged(&store, last).await;
    for number in CHANGES - HOSTS_CHANGED..CHANGES {
        assert_eq!(get(plane.http, &host(number), "/").await.text(), number.to_string());
    }
    let seen = answered.load(Ordering::SeqCst);
    eventually("load", || async { answered.load(Ordering::SeqCst) > seen + 20 }).await;
    stop.cancel();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn states_have_pages_and_a_draining_instance_keeps_its_open_request() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    put_host(&store).await;
    for (state, status, word) in [
        (UpstreamState::Stopped, 503, "is stopped"),
        (UpstreamState::Starting, 503, "is starting"),
        (UpstreamState::Abnormal, 503, "is not well"),
        (UpstreamState::Missing, 500, "cannot lead to"),
        (UpstreamState::Up, 503, "no instance that is ready"),
    ] {
        let revision = put_endpoints(&store, &[], &[], state).await;
        acknowledged(&store, revision).await;
        let answer = get(plane.http, "web.test", "/").await;
        assert_eq!(answer.status(), status);
        assert!(answer.text().contains("demo/web") && answer.text().contains(word), "{answer:?}");
    }
    let (release, arrival) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (held, arrived) = (Arc::clone(&release), Arc::clone(&arrival));
    origin_at(&format!("{}:{PORT}", address(100)), move |mut wire| {
        let (held, arrived) = (Arc::clone(&held), Arc::clone(&arrived));
        async move {
            wire.message().await;
            arrived.notify_one();
            held.notified().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await;
        }
    })
    .await;
    let revision = put_endpoints(&store, &[100], &[], UpstreamState::Up).await;
    acknowledged(&store, revision).await;
    let mut wire = Wire::connect(plane.http).await;
    wire.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    arrival.notified().await;
    let revision = put_endpoints(&store, &[], &[100], UpstreamState::Up).await;
    assert_eq!(acknowledged(&store, revision).await.busy_draining, [instance(100)]);
    assert_eq!(get(plane.http, "web.test", "/").await.status(), 503, "nothing new goes to a draining instance");
    release.notify_one();
    assert_eq!(wire.message().await.unwrap().text(), "late");
    eventually("the end of draining", || async {
        store.value::<GatewayStatus>(STATUS).await.is_some_and(|it| it.busy_draining.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_snapshot_serves_while_the_store_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let (task, _) = instance_at(200);
    let store = Store::new();
    {
        let plane = Plane::start(&store, &path);
        put_host(&store).await;
        let revision = put_endpoints(&store, &[200], &[], UpstreamState::Up).await;
        acknowledged(&store, revision).await;
        // Routes count before they are on disk.
        eventually("it is on disk", || async {
            let kept = Mirror::open_shared(GATEWAY_PREFIX, &path).unwrap();
            kept.read(|it| it.revision >= revision)
        })
        .await;
        store.silence(true);
        assert_eq!(get(plane.http, "web.test", "/").await.text(), "0");
        plane.supervisor.token().cancel();
    }
    let plane = Plane::start(&store, &path);
    assert_eq!(get(plane.http, "web.test", "/").await.text(), "0", "a new process serves from disk at once");
    store.silence(false);
    let revision = put_endpoints(&store, &[], &[], UpstreamState::Stopped).await;
    acknowledged(&store, revision).await;
    assert_eq!(get(plane.http, "web.test", "/").await.status(), 503);
    let kv: SharedKv = Arc::clone(&store) as SharedKv;
    kv.delete(&format!("{HOSTS}web.test")).await.unwrap();
    eventually("the removed host", || async { get(plane.http, "web.test", "/").await.status() == 404 }).await;
    task.abort();
}
