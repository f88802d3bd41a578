//! A kubelet that does not answer any more, on a real node: it is told, what runs goes on, and is what runs when the kubelet
//! answers again. The node is that of all tests, so this one runs alone, after those of `real_node::`.

use crate::cluster::place::kubeconfig;
use crate::cluster::real_node::{SERVE, on_a_node};
use arco_model::observed::Observed;
use arco_orchestrator::contract::{plan, reached, ready, until_within};
use arco_orchestrator::{Orchestrator as _, Removal};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use tokio::net::TcpStream;

/// The cluster waits 50 s for a kubelet.
const PATIENCE: Duration = Duration::from_secs(300);

/// The kubelet, stopped until this is dropped: a test that fails must not leave a node that does not answer.
struct Stopped(String);

impl Stopped {
    fn kubelet() -> Self {
        let folder = kubeconfig().unwrap().parent().unwrap().join("kubelet.json");
        let wanted = format!("--config={}", folder.display());
        let is_it = |pid: &String| {
            // A process may end meanwhile.
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|it| *it == 0).any(|it| it == wanted.as_bytes())
        };
        let all = std::fs::read_dir("/proc").unwrap().filter_map(|it| it.unwrap().file_name().into_string().ok());
        let pid = all.filter(|it| it.bytes().all(|it| it.is_ascii_digit())).find(is_it).expect("a kubelet runs");
        let it = Self(pid);
        assert!(it.signal("-STOP"), "the kubelet {} cannot be stopped", it.0);
        it
    }

    fn signal(&self, which: &str) -> bool {
        Command::new("kill").args([which, &self.0]).status().is_ok_and(|it| it.success())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("-CONT"); // what fails then shows in the test
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_its_node_goes_on_and_is_the_same_when_it_is_back() {
    on_a_node(|place| async move {
        let driver = place.driver.as_ref();
        let asked = plan(place.image.clone(), &SERVE);
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        let address = SocketAddr::from((first.instances[0].address.unwrap(), 8080));

        let stopped = Stopped::kubelet();
        let is_silent = |it: &Observed| it.instances.iter().any(|it| it.node_silent);
        let silent = until_within(PATIENCE, driver, &id, "its silence is told", is_silent).await;
        assert!(ready(&silent).is_empty(), "{silent:#?}");
        assert!(TcpStream::connect(address).await.is_ok(), "what runs goes on");
        drop(stopped);

        let is_back = |it: &Observed| ready(it) == ready(&first);
        let back = until_within(PATIENCE, driver, &id, "the same instance is ready again", is_back).await;
        assert_eq!((back.instances.len(), back.instances[0].restarts), (1, 0), "{back:#?}");
        driver.remove(&id, &Removal::Everything).await.unwrap();
    })
    .await;
}
