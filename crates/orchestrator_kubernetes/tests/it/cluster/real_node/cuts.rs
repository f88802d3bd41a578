//! Steps of builds while the way to the API server is cut: what runs goes on, and nothing of it is lost.

use super::{SERVE, on_a_node};
use crate::several_nodes::eventually;
use arco_config::KubernetesConfig;
use arco_model::plan::{HostMount, LayerExport, OneShot, OneShotNetwork};
use arco_orchestrator::Orchestrator as _;
use arco_orchestrator::contract::{in_time, one_shot, plan};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);

struct Shared {
    to: String,
    /// Cancelled when what is open is cut; `None` while everybody is turned away.
    open: Mutex<Option<CancellationToken>>,
    refused: AtomicU64,
}

/// A way to the API server that can be cut; ends with the runtime of its test.
struct Way {
    shared: Arc<Shared>,
    /// Leads over it.
    kubeconfig: PathBuf,
}

impl Way {
    async fn to(kubeconfig: &Path, folder: &Path) -> Self {
        let mut config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(kubeconfig).unwrap()).expect("cluster.py writes JSON");
        let server = &mut config["clusters"][0]["cluster"]["server"];
        let to = server.as_str().unwrap().trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        // The server's certificate is good for this address, too.
        *server = format!("https://{}", listener.local_addr().unwrap()).into();
        let file = folder.join("way.kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        let open = Mutex::new(Some(CancellationToken::new()));
        let shared = Arc::new(Shared { to, open, refused: AtomicU64::new(0) });
        tokio::spawn(lead(listener, shared.clone()));
        Self { shared, kubeconfig: file }
    }

    /// Ends every connection, and takes no other.
    fn cut(&self) {
        self.shared.refused.store(0, Ordering::SeqCst);
        if let Some(open) = self.shared.open.lock().unwrap().take() {
            open.cancel();
        }
    }

    fn mend(&self) {
        *self.shared.open.lock().unwrap() = Some(CancellationToken::new());
    }

    fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }
}

async fn lead(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((mut here, _)) = listener.accept().await {
        let Some(open) = shared.open.lock().unwrap().clone() else {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let to = shared.to.clone();
        tokio::spawn(async move {
            let Ok(mut there) = TcpStream::connect(to).await else { return };
            tokio::select! {
                () = open.cancelled() => {}
                _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_goes_on_while_the_way_to_the_api_server_is_cut() {
    on_a_node(|place| async move {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("input"), "42").unwrap();
        let way = Way::to(&place.config.kubeconfig, folder.path()).await;
        let config = KubernetesConfig { kubeconfig: way.kubeconfig.clone(), ..place.config.clone() };
        let driver = place.another(config, None).await;

        let asked = plan(place.image.clone(), &SERVE);
        let script = "mkdir /out; cat /source/input > /out/answer; n=0; \
            while [ $n -lt 400 ]; do echo $n; n=$((n+1)); sleep 0.05; done; printf end";
        let mut step = OneShot { export: Some(LayerExport::default()), ..one_shot(&asked, &["sh", "-c", script]) };
        (step.network, step.timeout_ms) = (OneShotNetwork::None, 600_000);
        step.mounts =
            vec![HostMount { host_path: folder.path().to_owned(), path: "/source".to_owned(), writable: false }];
        let pods: Api<Pod> = place.api();
        let name = format!("run-{}", step.id);
        let (output, mut lines) = mpsc::channel(1024);
        let (_keep, cancel) = oneshot::channel();
        let runner = driver.clone();
        let running = tokio::spawn(async move { runner.run(&step, output, cancel).await });

        let mut read: Vec<String> = Vec::new();
        let mut read_until = async |wanted: usize| {
            while read.len() < wanted {
                let line = tokio::time::timeout(in_time(PATIENCE), lines.recv()).await;
                let line = line.unwrap_or_else(|_| panic!("after {} lines no more come", read.len()));
                read.push(line.expect("it has not ended").text);
            }
            read.len()
        };
        let log = async || {
            let how = LogParams { container: Some("app".to_owned()), ..LogParams::default() };
            pods.logs(&name, &how).await.unwrap_or_default()
        };
        // It writes on while nobody hears it.
        let heard = read_until(20).await;
        way.cut();
        eventually("it is asked for in vain", async || way.refused() >= 3).await;
        eventually("it goes on", async || log().await.lines().count() > heard + 20).await;
        way.mend();
        // Its end, too, nobody hears at first.
        read_until(200).await;
        way.cut();
        eventually("it ends", async || log().await.contains("end[")).await;
        eventually("its end is asked for in vain", async || way.refused() >= 3).await;
        way.mend();

        let result = tokio::time::timeout(in_time(PATIENCE), running).await.expect("its end is told").unwrap().unwrap();
        while let Ok(line) = lines.try_recv() {
            read.push(line.text);
        }
        let wanted: Vec<String> = (0..400).map(|it| it.to_string()).chain(["end".to_owned()]).collect();
        assert_eq!(read, wanted);
        assert!(result.exit.status == 0 && result.layer.is_some(), "{result:?}");
        assert!(pods.get_opt(&name).await.unwrap().is_none(), "nothing of it is left");
        driver.shutdown(false).await.unwrap();
    })
    .await;
}
