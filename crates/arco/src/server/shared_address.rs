//! The address that this machine's gateway shares with those of other machines, as the settings say.

use anyhow::Context as _;
use arco_config::Config;
use arco_daemon::health::Health;
use arco_daemon::metrics::Metrics;
use arco_daemon::{OnExit, Supervisor};
use arco_gateway::addresses::Addresses;
use arco_gateway::virtual_address::{Keepalived, Standing, Stop};
use prometheus_client::metrics::gauge::Gauge;
use std::net::SocketAddr;

/// Looks after it, if there is one. `http` is where the gateway serves plain HTTP.
pub(crate) fn keep(
    config: &Config,
    http: SocketAddr,
    health: &Health,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> anyhow::Result<Option<Stop>> {
    let Some(settings) = config.gateway.virtual_address.clone() else { return Ok(None) };
    let executable = std::env::current_exe().context("failed to find this executable")?;
    let folder = std::path::absolute(config.server.data_dir.join("run").join("shared-address"))?;
    let proxied = config.gateway.proxy_protocol;
    let keepalived = Keepalived::new(settings, &folder, &executable, http, proxied).map_err(anyhow::Error::msg)?;
    let (role, gauge) = (health.role("shared_address"), Gauge::<i64>::default());
    metrics.register("shared_address", |it| {
        it.register("standing", "0 keepalived is down, 1 standby, 2 active here", gauge.clone());
    });
    let addresses = Addresses::follow(supervisor, &config.gateway.ignore_interfaces);
    let tell = move |standing: Standing| {
        gauge.set(standing as i64);
        match standing {
            Standing::Down => role.unready("keepalived does not run; `shared-address/keepalived.log` may say why"),
            Standing::Standby | Standing::Active => role.ready(),
        }
    };
    let stop = Stop::default();
    let looking = keepalived.run(addresses, tell, stop.clone());
    supervisor.spawn("shared address", OnExit::Continue, async move {
        looking.await;
        Ok(())
    });
    Ok(Some(stop))
}
