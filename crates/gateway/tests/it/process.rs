//! The process around the data plane, without its holder: control socket, adoption, stop; also in a very deep data
//! directory. What the holder does is tested on the real executable.

use crate::kit::*;
use crate::rolling::patient;
use arco_daemon::Supervisor;
use arco_daemon::handover::{Sockets, Start};
use arco_gateway::data_plane::Listeners;
use arco_gateway::process::{DataPlaneArgs, Process, adopt, control};
use arco_store::kv::SharedKv;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_answers_on_its_control_socket_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("deep".repeat(40)).join("data");
    std::fs::create_dir_all(&data_dir).unwrap();
    let args = DataPlaneArgs {
        journal: data_dir.join("routes.journal"),
        config: patient(),
        id: "gw".to_owned(),
        build: "b".to_owned(),
        settings: "s".to_owned(),
        keys: keys(),
    };
    assert!(adopt(&data_dir).await.is_none());
    let supervisor = Supervisor::new();
    let start = Start { slot: 1, first: true };
    let socket = control(&data_dir).unwrap();
    let sockets = Sockets::alone();
    let listeners = Listeners::bind(&args.config, &sockets).unwrap();
    let process = Process::start(&supervisor, &args, listeners, socket, &sockets, start).unwrap();
    let (http, stop) = (process.http(), process.stop());
    let store: SharedKv = Store::new();
    let running = tokio::spawn(async move {
        process.run(store).await.unwrap();
        assert!(supervisor.shutdown(PATIENCE).await);
    });
    // It is asked with little patience: whoever does not answer now is asked again.
    let handle = at_last("an answer", || adopt(&data_dir)).await;
    assert_eq!((handle.status.pid, handle.status.http), (std::process::id(), http));
    assert_eq!((handle.status.build.as_str(), handle.status.settings.as_str()), ("b", "s"));
    eventually("the store", || async { handle.refresh().await.is_some_and(|it| it.live) }).await;
    assert_eq!(get(http, "nobody.test", "/").await.status(), 404);
    let metrics = at_last("its counters", || handle.metrics()).await;
    assert!(metrics.contains("arco_gateway_accepted_total"), "{metrics}");
    stop.cancel();
    running.await.unwrap();
    // A child of this process may have its sockets for a moment, until it is another program.
    eventually("nobody answers", || async { adopt(&data_dir).await.is_none() }).await;
    eventually("nobody listens", || async { tokio::net::TcpStream::connect(http).await.is_err() }).await;
}
