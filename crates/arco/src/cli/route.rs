//! `arco route`: which requests lead to a component, and what is done with them on the way.

mod endpoints;
mod flags;
mod stream;

use super::apply;
use super::failure::{Failure, exit};
use super::reference::{Named, Reference};
use super::session::Session;
use arco_api::wire::{RouteDocument, RouteRequest, StreamDocument};
use clap::{Args, Subcommand};
use flags::RouteFlags;
use serde::Serialize;
use std::path::PathBuf;

/// What to do with routes.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// List routes with what passes through their hosts just now
    #[command(after_help = "Examples:\n  arco route list\n  arco route list demo/web -o json")]
    List {
        /// APP or APP/COMPONENT [default: all]
        #[arg(value_name = "APP[/COMPONENT]")]
        reference: Option<Reference>,
    },
    /// Add a route; one for the same requests is replaced
    #[command(
        after_help = "Examples:\n  arco route add demo/web shop.example.com --redirect-https --hsts\n  arco route add demo/api shop.example.com --path /api --rewrite-prefix / --port 9000\n  arco route add demo/web shop.example.com --weight 90 --target demo/canary=10 --sticky side\n  arco route add demo/beta shop.example.com --cookie beta=yes\n  arco route add demo/web -f route.yaml\n  arco route add demo/db --tcp\n  arco route add demo/dns --udp 10053 --port 53\n  arco route add demo/db db.example.com --tls passthrough\n\ndocs/guides/routing.md has an example for everything."
    )]
    Add(Box<AddArgs>),
    /// Change a route: what is given takes the place of what was there
    #[command(
        after_help = "Examples:\n  arco route set demo/web shop.example.com --weight 50 --target demo/canary=50\n  arco route set demo/web shop.example.com --maintenance 'Back at noon.'\n  arco route set demo/web shop.example.com --unset maintenance"
    )]
    Set(Box<SetArgs>),
    /// Delete a route
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  arco route delete demo/web shop.example.com --path /api\n  arco route delete demo/db --tcp 10000"
    )]
    Delete(DeleteArgs),
}

/// A component and its new route.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Host; `*.example.com` for all below it
    #[arg(value_name = "DOMAIN")]
    host: Option<String>,
    /// A further host (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// The route as a YAML or JSON file, or a list of them; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Paths below this (repeatable) [default: /]
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    /// The path itself, nothing below it
    #[arg(long, requires = "path", conflicts_with = "regex")]
    exact: bool,
    /// The path is a regular expression; anchor it with ^ and $
    #[arg(long, requires = "path")]
    regex: bool,
    #[command(flatten)]
    stream: stream::StreamFlags,
    #[command(flatten)]
    flags: RouteFlags,
}

/// A route and its changes.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    which: Which,
    /// Take a part away: methods, headers, cookies, query, sticky, balance, retry, circuit,
    /// health_check, upstream_tls, mirror, rewrite, redirect, answer, maintenance,
    /// request_headers, response_headers, cors, allow, deny, rate_limits, basic_auth, forward_auth, max_body_bytes, buffer, timeouts, tls
    #[arg(long, value_name = "PART")]
    unset: Vec<String>,
    #[command(flatten)]
    flags: RouteFlags,
}

/// A route that goes.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    stream: stream::StreamFlags,
}

/// One route of a component.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Its host
    #[arg(value_name = "DOMAIN")]
    host: Option<String>,
    /// Its host
    #[arg(long, value_name = "DOMAIN", conflicts_with = "host")]
    domain: Option<String>,
    /// Its path, when the host has several routes
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Its id, as `arco route list -o json` shows it
    #[arg(long, value_name = "ID", conflicts_with_all = ["host", "domain", "path"])]
    id: Option<String>,
}

/// Runs.
pub(crate) async fn run(command: &RouteCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        RouteCommand::List { reference } => list(reference.as_ref(), session).await,
        RouteCommand::Add(args) => match args.stream.asked() {
            Some(asked) => {
                stream::add(&args.reference, asked, (args.flags.port(), args.stream.address()), session).await
            }
            None => add(args, session).await,
        },
        RouteCommand::Set(args) => set(args, session).await,
        RouteCommand::Delete(DeleteArgs { which, stream }) => {
            if let Some(asked) = stream.asked() {
                return stream::delete(&which.reference, asked, session).await;
            }
            let named = session.component(&which.reference).await?;
            let (id, route) = find(which, &named, session).await?;
            session.client.delete_route(&session.tenant, named.pair(), &id).await?;
            session.gateways_follow().await;
            let document = serde_json::json!({"deleted": route.host, "path": route.path, "id": id});
            let shown = format!("{} ({}) does not lead to {named} any more", route.host, route.route.meaning());
            session.ui.document(&document, |ui| ui.line(&shown));
            Ok(())
        }
    }
}

async fn list(reference: Option<&Reference>, session: &Session<'_>) -> Result<(), Failure> {
    let routes = match reference {
        None => session.client.tenant_routes(&session.tenant).await?,
        Some(reference) => {
            let mut routes = Vec::new();
            for named in session.components(reference).await? {
                routes.extend(session.client.routes(&session.tenant, named.pair()).await?);
            }
            routes
        }
    };
    let streams = stream::list(reference, session).await?;
    let header = ["COMPONENT", "HOST", "REQUESTS", "ANSWER", "TLS", "REQ/S", "ERR/S", "P50 MS", "P99 MS"];
    let mut items: Vec<Item<'_>> = routes.iter().map(Item::Route).collect();
    items.extend(streams.iter().map(Item::Stream));
    session.ui.list(&items, |ui| ui.table(&header, routes.iter().map(row).chain(streams.iter().map(stream::row))));
    Ok(())
}

async fn add(args: &AddArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let mut requests = match &args.file {
        Some(path) => read(path)?,
        None => vec![RouteRequest::default()],
    };
    for request in &mut requests {
        request.hosts.extend(args.host.iter().chain(&args.domain).cloned());
        if !args.path.is_empty() {
            request.paths = args.path.iter().map(|it| flags::path(it, args.exact, args.regex)).collect();
        }
        args.flags.apply(request, &named, session.ui)?;
        if request.hosts.is_empty() {
            let advice = "give one, as `arco route add APP/COMPONENT shop.example.com`";
            return Err(Failure::usage("host_missing", "no host is given", advice));
        }
    }
    let mut added = Vec::new();
    for request in &requests {
        added.extend(session.client.add_route(&session.tenant, named.pair(), request).await?);
    }
    session.gateways_follow().await;
    session.ui.list(&added, |ui| added.iter().for_each(|it| ui.line(&format!("{} leads to {}", it.url, answer(it)))));
    Ok(())
}

async fn set(args: &SetArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.which.reference).await?;
    let (id, mut document) = find(&args.which, &named, session).await?;
    flags::unset(&mut document.route, &args.unset)?;
    args.flags.apply(&mut document.route, &named, session.ui)?;
    let route = session.client.set_route(&session.tenant, named.pair(), &id, &document.route).await?;
    session.gateways_follow().await;
    session.ui.document(&route, |ui| ui.line(&format!("{} leads to {}", route.url, answer(&route))));
    Ok(())
}

/// The one route that is meant.
async fn find(which: &Which, named: &Named, session: &Session<'_>) -> Result<(String, RouteDocument), Failure> {
    let host = which.host.as_deref().or(which.domain.as_deref()).map(str::to_ascii_lowercase);
    if host.is_none() && which.id.is_none() {
        let advice = "name its host (or `--id`, or `--tcp PORT`); `arco route list` shows which there are";
        return Err(Failure::usage("host_missing", "no route is named", advice));
    }
    let path = which.path.as_deref().map(|it| if it.len() > 1 { it.trim_end_matches('/') } else { it });
    let routes = session.client.routes(&session.tenant, named.pair()).await?;
    let meant = |it: &RouteDocument| match (&which.id, &host) {
        (Some(id), _) => it.id.as_ref() == Some(id),
        (None, Some(host)) => {
            it.host == *host
                && path.is_none_or(|path| {
                    let all = path == "/" && it.route.paths.is_empty();
                    all || it.route.paths.iter().any(|it| it.text() == path)
                })
        }
        (None, None) => false,
    };
    let (added, default): (Vec<_>, Vec<_>) = routes.into_iter().filter(meant).partition(|it| it.id.is_some());
    let shown = which.id.clone().or(host).unwrap_or_default();
    let mut added = added.into_iter();
    match (added.next(), added.next()) {
        (Some(one), None) => Ok((one.id.clone().unwrap_or_default(), one)),
        (Some(one), Some(two)) => {
            let shown: Vec<_> = [one, two]
                .into_iter()
                .chain(added)
                .map(|it| format!("{} ({})", it.id.unwrap_or_default(), it.route.meaning()))
                .collect();
            Err(Failure::usage(
                "route_ambiguous",
                format!("several routes are meant: {}", shown.join(", ")),
                "name one by `--path`, or by `--id`",
            ))
        }
        _ if !default.is_empty() => Err(Failure::new(
            exit::CONFLICT,
            "route_is_default",
            format!("`{shown}` is the default host of `{named}`, it has no route of its own"),
            "it goes with the component (`arco stop` ends what answers there); `arco route add` with this host makes a route for it",
        )),
        _ => Err(Failure::new(
            exit::NOT_FOUND,
            "not_found",
            format!("`{named}` has no route for `{shown}`"),
            format!("`arco route list {named}` shows which there are"),
        )),
    }
}

/// Routes of a file: one, or a list.
fn read(path: &std::path::Path) -> Result<Vec<RouteRequest>, Failure> {
    let shown = path.display();
    let fail = |why: String| {
        Failure::usage(
            "route_invalid",
            format!("`{shown}` is not a route: {why}"),
            "docs/guides/routing.md describes the file",
        )
    };
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let text = text.map_err(|it| fail(it.to_string()))?;
    let one_or_more: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).map_err(|it| fail(it.to_string()))?;
    // Read again from the text, so that an error has its line.
    let routes: Result<Vec<RouteRequest>, _> = match one_or_more {
        serde_yaml_ng::Value::Sequence(_) => apply::from_yaml(&text),
        _ => apply::from_yaml(&text).map(|it| vec![it]),
    };
    routes.map_err(|it| fail(it.to_string()))
}

/// What a list shows.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Route(&'a RouteDocument),
    Stream(&'a StreamDocument),
}

/// Who or what answers, in a few words.
fn answer(document: &RouteDocument) -> String {
    let route = &document.route;
    if let Some(it) = &route.maintenance {
        return format!("maintenance: {}", it.message);
    }
    match (&route.redirect, &route.answer) {
        (Some(it), _) => {
            let status = it.status.unwrap_or(302);
            let parts = [it.scheme.as_deref(), it.host.as_deref(), it.path.as_deref().or(it.prefix.as_deref())];
            return format!("redirect {status} {}", parts.into_iter().flatten().collect::<Vec<_>>().join(" "));
        }
        (_, Some(it)) => return format!("answer {}", it.status),
        _ => {}
    }
    let total: u64 = route.targets.iter().map(|it| u64::from(it.weight)).sum();
    let share = |weight: u32| {
        if total == 0 { 100.0 / route.targets.len() as f64 } else { f64::from(weight) * 100.0 / total as f64 }
    };
    let shown: Vec<_> = match &route.targets[..] {
        [] => vec!["nothing: its target is gone".to_owned()],
        [one] => vec![one.to.to_string()],
        several => several.iter().map(|it| format!("{} {:.0}%", it.to, share(it.weight))).collect(),
    };
    shown.join(", ")
}

fn row(route: &RouteDocument) -> Vec<String> {
    let requests = if route.default { "all that no route is for".to_owned() } else { route.route.meaning() };
    let tls = &route.route.tls;
    let tls = match (&tls.certificate, tls.redirect || tls.client_ca.is_some()) {
        (Some(it), true) => format!("{it}, only"),
        (None, true) => "only".to_owned(),
        (Some(it), false) => it.clone(),
        (None, false) => String::new(),
    };
    let number = |it: Option<f64>| it.map_or_else(|| "-".to_owned(), |it| format!("{it:.1}"));
    let rates = route.rates;
    vec![
        format!("{}/{}", route.application, route.component),
        route.host.clone(),
        requests,
        answer(route),
        tls,
        number(rates.map(|it| it.requests_per_s)),
        number(rates.map(|it| it.errors_per_s)),
        number(rates.and_then(|it| it.p50_ms)),
        number(rates.and_then(|it| it.p99_ms)),
    ]
}
