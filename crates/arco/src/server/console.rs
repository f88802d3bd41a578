//! The console's listener until the web console is there: health, metrics, and one page that says what runs here.

use super::data_plane::Running;
use arco_daemon::health::{Health, healthz};
use arco_daemon::metrics::{Metrics, OPEN_METRICS, metrics};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use std::sync::Arc;

/// What the page tells.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) health: Health,
    /// How URLs of applications look.
    pub(crate) applications: Option<String>,
    pub(crate) gateway: String,
    pub(crate) api: String,
    pub(crate) registry: String,
    pub(crate) data_dir: String,
}

/// `/`, `/healthz` and `/metrics`; where a gateway runs also `/metrics/gateway`.
pub(crate) fn router(page: Page, registry: Metrics, gateway: Option<Running>) -> Router {
    let health = page.health.clone();
    let router = Router::new()
        .route("/", get(index).with_state(Arc::new(page)))
        .route("/healthz", get(healthz).with_state(health))
        .route("/metrics", get(metrics).with_state(registry));
    match gateway {
        Some(gateway) => router.route("/metrics/gateway", get(of_gateway).with_state(gateway)),
        None => router,
    }
}

/// Counters of the gateway, which is a process of its own.
async fn of_gateway(State(gateway): State<Running>) -> Response {
    let handle = gateway.handle();
    match handle.metrics().await {
        Some(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        None => {
            let advice = "the gateway does not answer; `data-plane.log` in the data dir says more\n";
            (StatusCode::SERVICE_UNAVAILABLE, advice).into_response()
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

async fn index(State(page): State<Arc<Page>>) -> Html<String> {
    let report = page.health.report();
    let roles: String = report
        .roles
        .iter()
        .map(|(name, role)| {
            let (class, word) = if role.ready { ("ok", "ready") } else { ("no", "not ready") };
            let detail = escape(&role.detail);
            format!("<tr><td>{}</td><td class={class}>{word}</td><td>{detail}</td></tr>", escape(name))
        })
        .collect();
    let context = if page.data_dir == "/var/lib/arco" {
        String::new()
    } else {
        format!(" --context {}/admin.toml", page.data_dir)
    };
    Html(format!(
        r#"<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Arco</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --dim: #888; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; }}
p {{ margin: .25rem 0 .75rem; }} .dim {{ color: var(--dim); }}
table {{ border-collapse: collapse; width: 100%; }} td {{ padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
.ok {{ color: #1a7f37; }} .no {{ color: #cf222e; }}
pre {{ background: #8881; border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem; overflow-x: auto; font-size: .9rem; }}
</style>
<h1>Arco runs on this machine</h1>
<p class="dim">Version {version}. {applications}</p>
<h2>Deploy an application</h2>
<p>In the folder of its source code:</p>
<pre>arco{context} deploy . --app demo</pre>
<p>Then see how it is, and what it says:</p>
<pre>arco{context} status demo
arco{context} logs demo -f</pre>
<h2>What runs here</h2>
<table>{roles}</table>
<h2>Addresses</h2>
<table><tr><td>Gateway</td><td><code>{gateway}</code></td></tr><tr><td>REST API (mutual TLS)</td><td><code>{api}</code></td></tr>
<tr><td>Image registry</td><td><code>{registry}</code></td></tr></table>
<p class="dim">Machine-readable: <a href="/healthz">/healthz</a>, <a href="/metrics">/metrics</a>.</p></html>
"#,
        version = env!("CARGO_PKG_VERSION"),
        applications = page
            .applications
            .as_ref()
            .map_or_else(String::new, |it| format!("Applications answer at <code>{}</code>.", escape(it))),
        gateway = escape(&page.gateway),
        api = escape(&page.api),
        registry = escape(&page.registry),
        context = escape(&context),
    ))
}
