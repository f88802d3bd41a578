//! The process around the data plane: lock, control socket, adoption, stop; also in a very deep data directory.

use crate::kit::*;
use arco_config::GatewayConfig;
use arco_daemon::Supervisor;
use arco_gateway::GatewayError;
use arco_gateway::process::{DataPlaneArgs, Process, adopt};
use arco_store::kv::SharedKv;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_is_found_again_watched_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("deep".repeat(40)).join("data");
    std::fs::create_dir_all(&data_dir).unwrap();
    let config = GatewayConfig {
        http_listen: "127.0.0.1:0".parse().unwrap(),
        https_listen: "127.0.0.1:0".parse().unwrap(),
        ..GatewayConfig::default()
    };
    let args = DataPlaneArgs { data_dir: data_dir.clone(), config, id: "gw".to_owned(), keys: keys() };
    assert!(adopt(&data_dir).await.is_none());
    let supervisor = Supervisor::new();
    let process = Process::start(&supervisor, &args).unwrap();
    let http = process.http();
    let store: SharedKv = Store::new();
    let running = tokio::spawn(async move {
        process.run(store).await.unwrap();
        assert!(supervisor.shutdown(PATIENCE).await);
    });
    let other = Supervisor::new();
    match Process::start(&other, &args) {
        Err(GatewayError::Running(pid)) => assert_eq!(pid, std::process::id().to_string()),
        _ => panic!("a second data plane started"),
    }
    let handle = adopt(&data_dir).await.unwrap();
    assert_eq!((handle.status.pid, handle.status.http), (std::process::id(), http));
    eventually("the store", || async { handle.refresh().await.is_some_and(|it| it.live) }).await;
    assert_eq!(get(http, "nobody.test", "/").await.status(), 404);
    assert!(handle.metrics().await.unwrap().contains("arco_gateway_accepted_total"));
    let watched = handle.clone();
    let ended = tokio::spawn(async move { watched.ended().await });
    assert!(!ended.is_finished());
    assert!(handle.stop(Duration::from_secs(8)).await);
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    running.await.unwrap();
    assert!(adopt(&data_dir).await.is_none());
    assert!(tokio::net::TcpStream::connect(http).await.is_err());
}
