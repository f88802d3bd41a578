//! Where the log lines of this process go: to its own keeper, or to that of the platform; and who answers for logs.
//!
//! What must hold: what writes logs is stopped before what sends them, and that before what keeps them.

use super::keepers::Keepers;
use super::logs;
use super::peers::Peers;
use arco_config::{Config, Role};
use arco_daemon::health::Health;
use arco_daemon::metrics::Metrics;
use arco_daemon::{BoxError, OnExit, Supervisor};
use arco_eventlog::Eventlog;
use arco_store::logs::LogSink;
use axum::Router;
use std::time::Duration;

/// Batches of log lines on their way.
const BATCHES: usize = 1024;
/// How long the last log lines may take to leave, and to be on disk.
const GRACE: Duration = Duration::from_secs(3);

/// The logs, as this process knows them.
pub(super) struct Keeping {
    /// Takes lines.
    pub(super) sink: LogSink,
    /// Answers for every log of the platform.
    pub(super) router: Router,
    /// Who keeps logs, where there are several.
    pub(super) keepers: Option<Keepers>,
    /// What other servers ask, when this one keeps logs for them.
    pub(super) for_peers: Option<Router>,
    /// Supervisors of their own: they end after everything that writes.
    sends: Supervisor,
    keeps: Supervisor,
}

impl Keeping {
    /// Begins to take lines. Alone, a server keeps its logs whatever its roles are.
    pub(super) fn start(
        config: &Config,
        peers: Option<&Peers>,
        keepers: Option<Keepers>,
        metrics: &Metrics,
        health: &Health,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Self> {
        let (sends, keeps) = (Supervisor::new(), Supervisor::new());
        let here = match peers.is_none() || config.server.has(Role::Eventlog) {
            true => Some(Eventlog::open(&config.eventlog, config.server.data_dir.join("logs"))?),
            false => None,
        };
        let kept_here =
            here.map(|eventlog| {
                metrics.register("eventlog", |it| eventlog.metrics().register(it));
                let (sink, from) = LogSink::channel(BATCHES);
                let (router, stop) = (eventlog.router(), keeps.token().clone());
                keeps.spawn("eventlog", OnExit::Shutdown, async move {
                    eventlog.run(from, stop).await.map_err(BoxError::from)
                });
                health.role("eventlog").ready();
                (sink, router)
            });
        let (ended, whole) = (keeps.token().clone(), supervisor.token().clone());
        supervisor.spawn("eventlog watch", OnExit::Continue, async move {
            tokio::select! {
                () = whole.cancelled() => {}
                () = ended.cancelled() => whole.cancel(), // without logs the platform must not go on
            }
            Ok(())
        });
        let (sink, router, for_peers) = match (peers, kept_here) {
            (None, Some((sink, router))) => (sink, router, None),
            (Some(peers), kept_here) => {
                let (sink, from) = LogSink::channel(BATCHES);
                let (here, router) = kept_here.unzip();
                let stop = sends.token().clone();
                let forward = logs::forward(from, here.clone(), peers.clone(), stop);
                sends.spawn("log lines to their keepers", OnExit::Continue, async move {
                    forward.await;
                    Ok(())
                });
                let for_peers = router.clone().zip(here).map(|(router, here)| logs::keeper(router, here));
                (sink, logs::reader(peers.clone(), router), for_peers)
            }
            (None, None) => anyhow::bail!("a server alone keeps its own logs"), // decided above
        };
        Ok(Self { sink, router, keepers, for_peers, sends, keeps })
    }

    /// Waits until the last lines are where they belong.
    pub(super) async fn stop(&self) {
        if !self.sends.shutdown(GRACE).await {
            tracing::warn!("the last lines of logs did not reach their keeper");
        }
        if !self.keeps.shutdown(GRACE).await {
            tracing::warn!("the last lines of logs are not on disk");
        }
    }
}
