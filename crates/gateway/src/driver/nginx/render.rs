//! The gateway's file as a configuration of nginx. Pure.
//!
//! What must hold: what is rendered answers as the built-in engine does; what nginx cannot do so is told, by route, and
//! nothing is rendered then. No text of the file gets out of its quotes.

use crate::protect::canonical;
use crate::source::file::upstream::{BalanceFile, HashByFile, UpstreamFile, UpstreamProtocol};
use crate::source::file::{File, ListenerFile, ProtocolFile};
use arco_model::route::{PathMatch, Redirect, Route};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// Longest text of a fixed answer that fits a directive.
const MAX_ANSWER: usize = 2000;

/// What nobody but a proxy may tell, and what ends here; nginx knows them by name alone.
const NOT_PASSED: [&str; 11] = [
    "Forwarded",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-User",
    "Proxy-Authorization",
    "Proxy-Connection",
];
/// Paths that servers read in different ways, as they are written (`snapshot::Host::is_unclear`). A `/` that is hidden in a
/// parameter is refused here whatever it leads to: [`read_otherwise`] looks at decoded paths.
const UNCLEAR: &str = r"^[^?]*(?:\\|;[^/?]*%2f|(?:/|%2f|%5c)(?:\.|%2e){2}(?:[/;?]|%2f|%5c|%3b|$))";

/// The configuration, with what it writes below `folder`; else everything that nginx cannot do. Files of certificates are
/// relative to `base`; `here` says whether this machine has an address.
pub(super) fn render(
    file: &File,
    base: &Path,
    folder: &Path,
    here: &dyn Fn(SocketAddr) -> bool,
) -> Result<String, Vec<String>> {
    let cannot = cannot(file, base);
    if !cannot.is_empty() {
        return Err(cannot);
    }
    let mut out = String::from("# Written by arco; changes are lost.\n");
    let place = |name: &str| literal(&folder.join(name).to_string_lossy());
    let processes = if file.threads == 0 { "auto".to_owned() } else { file.threads.to_string() };
    let _ = write!(
        out,
        "worker_processes {processes};\npid {};\nerror_log {} warn;\n\
         events {{\n    worker_connections 8192;\n}}\nhttp {{\n    access_log off;\n    server_tokens off;\n    \
         default_type text/plain;\n    absolute_redirect off;\n    merge_slashes on;\n    server_names_hash_bucket_size 256;\n    \
         proxy_http_version 1.1;\n    proxy_buffering off;\n    proxy_request_buffering off;\n    \
         proxy_next_upstream error timeout;\n    proxy_next_upstream_tries 4;\n    proxy_ssl_server_name on;\n    \
         client_max_body_size 0;\n",
        place("nginx.pid"),
        place("nginx.log"),
    );
    for kind in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(out, "    {kind}_temp_path {};", place(&format!("{kind}_temp")));
    }
    // Bodies that wait belong on a disk.
    let bodies = file.buffer_folder.as_ref().map_or_else(|| folder.to_owned(), |it| base.join(it));
    let bodies = literal(&bodies.join("client_body_temp").to_string_lossy());
    let _ = writeln!(out, "    client_body_temp_path {bodies};");
    // A `$` in a text is this one: nginx has no other way to write it.
    out.push_str(
        "    geo $dollar {\n        default \"$\";\n    }\n    map $http_upgrade $connection_of_upgrade {\n        default upgrade;\n        \
         '' '';\n    }\n    map $http_x_request_id $known_request_id {\n        default $request_id;\n        \
         \"~^[-A-Za-z0-9_.:]{8,128}$\" $http_x_request_id;\n    }\n",
    );
    let times = &file.timeouts;
    let millis = |it: Option<u64>, default: u64| it.unwrap_or(default);
    let _ = write!(
        out,
        "    client_header_timeout {}ms;\n    client_body_timeout {}ms;\n    keepalive_timeout {}ms;\n    \
         proxy_connect_timeout {}ms;\n    proxy_read_timeout {}ms;\n    proxy_send_timeout {}ms;\n    \
         large_client_header_buffers 4 {};\n",
        millis(times.request_header_ms, 10_000),
        millis(times.request_body_ms, 30_000),
        millis(times.idle_ms, 60_000),
        millis(times.connect_ms, 3_000),
        millis(times.response_ms, 60_000),
        millis(times.response_ms, 60_000),
        file.limits.max_header_bytes,
    );
    for proxy in &file.trusted_proxies {
        let _ = writeln!(out, "    set_real_ip_from {};", canonical(proxy));
    }
    if !file.trusted_proxies.is_empty() {
        out.push_str("    real_ip_header X-Forwarded-For;\n    real_ip_recursive on;\n");
    }
    for (number, targets) in groups(file).iter().enumerate() {
        upstream(&mut out, file, number, targets);
    }
    let listeners: Vec<&ListenerFile> = file.listeners.iter().filter(|it| here(it.address)).collect();
    unknown(&mut out, &listeners);
    let mut hosts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, route) in file.routes.iter().enumerate() {
        for host in &route.hosts {
            hosts.entry(host.to_ascii_lowercase()).or_default().push(number);
        }
    }
    for (host, routes) in &hosts {
        server(&mut out, file, base, &listeners, host, routes);
    }
    out.push_str("}\n");
    Ok(out)
}

/// Every part of the file that nginx cannot do as the engine does.
fn cannot(file: &File, base: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |whose: &str, it: &str| found.push(format!("{whose}: {it}"));
    for it in &file.listeners {
        let whose = format!("listener `{}`", it.name);
        if !matches!(it.protocol, ProtocolFile::Http | ProtocolFile::Https) {
            say(&whose, "`tcp` and `udp`");
        }
        if it.proxy_protocol {
            say(&whose, "`proxy_protocol`");
        }
        if it.address.port() == 0 {
            say(&whose, "port 0: it would not tell which one it took");
        }
    }
    for it in file.certificates.iter().filter(|it| it.client_ca_file.is_some()) {
        say(&format!("certificate `{}`", it.certificate_file.display()), "`client_ca_file`");
    }
    for it in &file.certificates {
        if [&it.certificate_file, &it.key_file].iter().any(|it| base.join(it).to_string_lossy().contains('$')) {
            say(
                &format!("certificate `{}`", it.certificate_file.display()),
                "a `$` in a path: it would see a variable",
            );
        }
    }
    let limits = &file.limits;
    if limits.max_connections.is_some_and(|it| it > 0) || limits.max_connections_per_address.is_some_and(|it| it > 0) {
        say("limits", "`max_connections` and `max_connections_per_address`");
    }
    if file.access_log.is_on() {
        say("access_log", "it has none here");
    }
    if file.limits.max_buffered_bytes.is_some() {
        say("limits", "`max_buffered_bytes`: it has limits for each body only");
    }
    if file.buffer_folder.is_none() && file.routes.iter().any(|it| it.buffer.request) {
        say("buffer_folder", "`buffer` needs it: what nginx has of its own lies in memory");
    }
    for it in &file.upstreams {
        let whose = format!("upstream `{}`", it.name);
        for (is_set, part) in [
            (it.check.is_some(), "`check`: it finds out by requests alone (`ejection`)"),
            (it.sticky.is_some(), "`balance: sticky`"),
            (it.balance == BalanceFile::Ewma, "`balance: ewma`"),
            (it.protocol == UpstreamProtocol::Http2, "`protocol: http2`"),
            (it.proxy_protocol.is_some(), "`proxy_protocol`"),
            (it.timeouts.total_ms.is_some(), "`timeouts.total_ms`"),
            (it.endpoints.is_empty(), "no `endpoints`"),
        ] {
            if is_set {
                say(&whose, part);
            }
        }
    }
    if file.timeouts.total_ms.is_some() {
        say("timeouts", "`total_ms`");
    }
    for (number, route) in file.routes.iter().enumerate() {
        let whose = format!("route {} ({})", number + 1, route.hosts.join(", "));
        for part in of_route(file, route) {
            say(&whose, part);
        }
    }
    found
}

fn of_route(file: &File, route: &Route<String>) -> Vec<&'static str> {
    let is_regex = |it: &PathMatch| it.regex.is_some();
    let upstreams = || route.targets.iter().filter_map(|it| file.upstreams.iter().find(|up| up.name == it.to));
    let several = route.targets.len() > 1;
    let differ = several
        && upstreams()
            .any(|it| it.tls.is_some() || !matches!(it.balance, BalanceFile::RoundRobin | BalanceFile::Weighted));
    let rewrite = route.rewrite.as_ref();
    let redirect = route.redirect.as_ref();
    let listed = !route.allow.is_empty() || !route.deny.is_empty();
    let parts = [
        (
            listed && (route.answers_itself() || route.maintenance.is_some()),
            "`allow` and `deny` of what it answers itself",
        ),
        (route.passes_through(), "`tls.certificate: passthrough`"),
        (!route.methods.is_empty(), "`methods`"),
        (!route.headers.is_empty(), "`headers`"),
        (!route.cookies.is_empty(), "`cookies`"),
        (!route.query.is_empty(), "`query`"),
        (route.scheme.is_some(), "`scheme`"),
        (route.sticky.is_some(), "`sticky`"),
        (route.mirror.is_some(), "`mirror`"),
        (route.retry.is_some(), "`retry`"),
        (route.cors.is_some(), "`cors`"),
        (!route.rate_limits.is_empty(), "`rate_limits`"),
        (route.basic_auth.is_some(), "`basic_auth`: it knows no PBKDF2"),
        (route.forward_auth.is_some(), "`forward_auth`"),
        (route.maintenance.as_ref().is_some_and(|it| !it.allow.is_empty()), "`maintenance.allow`"),
        (!route.request_headers.add.is_empty(), "`request_headers.add`: it can only `set`"),
        (route.timeouts.total_ms.is_some(), "`timeouts.total_ms`"),
        (rewrite.is_some_and(|it| it.regex.is_some()), "`rewrite.regex`: it replaces whole paths"),
        (
            rewrite.is_some_and(|it| it.prefix.is_some()) && route.paths.iter().any(is_regex),
            "`rewrite.prefix` of a `regex` path",
        ),
        (
            redirect.is_some_and(|it| it.prefix.is_some() || it.regex.is_some()),
            "`redirect.prefix` and `redirect.regex`",
        ),
        (route.answer.as_ref().is_some_and(|it| it.body.len() > MAX_ANSWER), "an `answer` longer than 2000 bytes"),
        (route.buffer.response, "`buffer.response`: it would hold back streams of events"),
        (
            route.buffer.request && route.max_body_bytes.is_none(),
            "`buffer.request` without `max_body_bytes`: it has no limit for all bodies together",
        ),
        (differ, "several `targets` whose upstreams have `tls` or a `balance` of their own"),
    ];
    parts.into_iter().filter(|it| it.0).map(|it| it.1).collect()
}

/// The distinct sets of targets; each is one `upstream` of nginx, so that shares are exact.
fn groups(file: &File) -> Vec<Vec<(String, u32)>> {
    let mut groups = Vec::new();
    for route in &file.routes {
        let targets = targets(route);
        if !targets.is_empty() && !groups.contains(&targets) {
            groups.push(targets);
        }
    }
    groups
}

fn targets(route: &Route<String>) -> Vec<(String, u32)> {
    let any = route.targets.iter().any(|it| it.weight > 0);
    let weighed = route.targets.iter().map(|it| (it.to.clone(), if any { it.weight } else { 1 }));
    weighed.filter(|it| it.1 > 0).collect()
}

fn upstream(out: &mut String, file: &File, number: usize, targets: &[(String, u32)]) {
    let of = |name: &str| file.upstreams.iter().find(|it| it.name == name);
    let _ = writeln!(out, "    upstream group{number} {{\n        zone group{number} 64k;");
    let only = match targets {
        [(name, _)] => of(name),
        _ => None,
    };
    if let Some(it) = only {
        match (it.balance, &it.hash_by) {
            (BalanceFile::LeastRequests, _) => out.push_str("        least_conn;\n"),
            (BalanceFile::ConsistentHash, Some(HashByFile { cookie: Some(cookie), .. })) => {
                let _ = writeln!(out, "        hash $cookie_{} consistent;", variable(cookie));
            }
            (BalanceFile::ConsistentHash, Some(HashByFile { header: Some(header), .. })) => {
                let _ = writeln!(out, "        hash $http_{} consistent;", variable(header));
            }
            (BalanceFile::ConsistentHash, _) => out.push_str("        hash $remote_addr consistent;\n"),
            _ => {}
        }
    }
    // Shares of targets are spread over their endpoints: weights over a common multiple of what each sums up to.
    let sums: Vec<u64> = targets.iter().map(|it| of(&it.0).map_or(1, weights).max(1)).collect();
    let common = sums.iter().fold(1, |all, it| all / gcd(all, *it) * it);
    for ((name, share), sum) in targets.iter().zip(&sums) {
        let Some(it) = of(name) else { continue };
        for (at, address) in it.endpoints.iter().enumerate() {
            let own = u64::from(it.weights.get(at).copied().unwrap_or(1));
            let weight = own * u64::from(*share) * (common / sum);
            let (fails, out_s) = match &it.ejection {
                Some(ejection) => (ejection.failures, ejection.base_ms.div_ceil(1000).max(1)),
                None => (1, 2),
            };
            let max = it.max_open.map(|it| format!(" max_conns={it}")).unwrap_or_default();
            let _ =
                writeln!(out, "        server {address} weight={weight} max_fails={fails} fail_timeout={out_s}s{max};");
        }
    }
    out.push_str("        keepalive 64;\n    }\n");
}

fn weights(it: &UpstreamFile) -> u64 {
    let given: u64 = it.weights.iter().map(|it| u64::from(*it)).sum();
    if given > 0 { given } else { it.endpoints.len() as u64 }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What answers hosts that no route names.
fn unknown(out: &mut String, listeners: &[&ListenerFile]) {
    for it in listeners {
        let address = it.address;
        if it.protocol == ProtocolFile::Https {
            let _ = writeln!(
                out,
                "    server {{\n        listen {address} ssl http2 default_server;\n        server_name \"\";\n        \
                 ssl_reject_handshake on;\n    }}"
            );
        } else {
            let _ = writeln!(
                out,
                "    server {{\n        listen {address} default_server;\n        server_name \"\";\n        return 404;\n    }}"
            );
        }
    }
}

/// One host.
fn server(out: &mut String, file: &File, base: &Path, listeners: &[&ListenerFile], host: &str, routes: &[usize]) {
    let certificate = file
        .certificates
        .iter()
        .filter(|it| it.hosts.iter().any(|name| covers(name, host)))
        .max_by_key(|it| it.hosts.iter().any(|name| name.eq_ignore_ascii_case(host)));
    let _ = writeln!(out, "    server {{");
    for it in listeners {
        match it.protocol {
            ProtocolFile::Http => {
                let _ = writeln!(out, "        listen {};", it.address);
            }
            ProtocolFile::Https if certificate.is_some() => {
                let _ = writeln!(out, "        listen {} ssl http2;", it.address);
            }
            _ => {}
        }
    }
    // A regular expression comes after every other name, as `*` does.
    let name = if host == "*" { "\"~^\"".to_owned() } else { quoted(host) };
    let _ = writeln!(out, "        server_name {name};");
    if let Some(it) = certificate {
        let path = |it: &Path| literal(&base.join(it).to_string_lossy());
        let (chain, key) = (path(&it.certificate_file), path(&it.key_file));
        let _ = writeln!(
            out,
            "        ssl_certificate {chain};\n        ssl_certificate_key {key};\n        ssl_protocols TLSv1.2 TLSv1.3;"
        );
    }
    let https = file.listeners.iter().find(|it| it.protocol == ProtocolFile::Https).map_or(443, |it| it.address.port());
    let mut locations: Vec<(PathMatch, usize)> = Vec::new();
    for number in routes {
        let paths = &file.routes[*number].paths;
        let all = [PathMatch::prefix("/")];
        let paths = if paths.is_empty() { &all[..] } else { paths };
        locations.extend(paths.iter().map(|it| (it.clone(), *number)));
    }
    // Of several expressions the first one wins: the longer ones come first.
    locations.sort_by_key(|(path, _)| std::cmp::Reverse(path.regex.as_ref().map_or(0, String::len)));
    if locations.iter().any(|it| it.0.prefix.as_deref() != Some("/")) {
        let _ = writeln!(out, "        if ($request_uri ~* {}) {{ return 400; }}", literal(UNCLEAR));
        for it in read_otherwise(&locations) {
            let _ = writeln!(out, "        if ($uri ~ {}) {{ return 400; }}", literal(&it));
        }
    }
    let exact: Vec<String> = locations.iter().filter_map(|it| it.0.exact.clone()).collect();
    for (path, number) in &locations {
        let body = location(file, base, &file.routes[*number], path, https);
        for head in heads(path, &exact) {
            let _ = write!(out, "        location {head} {{\n{body}        }}\n");
        }
    }
    if !locations.iter().any(|it| it.0.prefix.as_deref() == Some("/")) {
        out.push_str("        location / {\n            return 404;\n        }\n");
    }
    out.push_str("    }\n");
}

/// Expressions for decoded paths that servers which leave parameters (`;…`) out take for those of another location
/// (`snapshot::Host::is_read_otherwise`). Beside expressions it is all that have some: what these find without parameters
/// cannot be asked.
fn read_otherwise(locations: &[(PathMatch, usize)]) -> Vec<String> {
    /// Segments of which nothing is left.
    const NOTHING: &str = r"(?:/\.?;[^/]*)*";
    // Whoever names a `;` knows what it is for.
    let knows = |it: &PathMatch| match (&it.exact, &it.prefix, &it.regex) {
        (Some(it), ..) if it.contains(';') => format!("(?!{}$)", escaped(it)),
        (_, Some(it), _) if it.contains(';') => format!("(?!{}(?:/|$))", escaped(it.trim_end_matches('/'))),
        (.., Some(it)) if it.contains(';') => format!("(?!.*(?:{it}))"),
        _ => String::new(),
    };
    let known: String = locations.iter().map(|it| knows(&it.0)).collect();
    if locations.iter().any(|it| it.0.regex.is_some()) {
        return vec![format!("^{known}.*;")];
    }
    let other = |it: &PathMatch| {
        let (path, end) = match (&it.exact, &it.prefix) {
            (Some(it), _) => (it.as_str(), "$"),
            (_, Some(it)) if it != "/" => (it.trim_end_matches('/'), "(?:/|$)"),
            _ => return None,
        };
        // Without parameters no path leads there.
        if path.contains(';') {
            return None;
        }
        let names = path.split('/').filter(|it| !it.is_empty());
        let segments: String = names.map(|it| format!("{NOTHING}/{}(?:;[^/]*)?", escaped(it))).collect();
        let open = if path.ends_with('/') { format!(r"{NOTHING}/(?:\.?;[^/]*)?") } else { String::new() };
        Some(format!("^{known}(?!{}{end}){segments}{open}{end}", escaped(path)))
    };
    locations.iter().filter_map(|it| other(&it.0)).collect()
}

/// What stands behind `location`, so that prefixes match whole segments.
fn heads(path: &PathMatch, exact: &[String]) -> Vec<String> {
    match (&path.exact, &path.prefix, &path.regex) {
        (Some(it), ..) => vec![format!("= {}", literal(it))],
        (_, Some(it), _) if it == "/" => vec!["/".to_owned()],
        (_, Some(it), _) => {
            let it = it.trim_end_matches('/');
            let itself = (!exact.iter().any(|known| known == it)).then(|| format!("= {}", literal(it)));
            itself.into_iter().chain([literal(&format!("{it}/"))]).collect()
        }
        (.., Some(it)) => vec![format!("~ {}", literal(it))],
        _ => Vec::new(),
    }
}

fn location(file: &File, base: &Path, route: &Route<String>, path: &PathMatch, https: u16) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "            {text}");
    };
    if route.tls.redirect {
        let port = if https == 443 { String::new() } else { format!(":{https}") };
        line(format!("if ($scheme = http) {{ return 308 https://$host{port}$request_uri; }}"));
    }
    for it in &route.deny {
        line(format!("deny {};", canonical(it)));
    }
    for it in &route.allow {
        line(format!("allow {};", canonical(it)));
    }
    if !route.allow.is_empty() {
        line("deny all;".to_owned());
    }
    let headers = &route.response_headers;
    for name in headers.remove.iter().chain(headers.set.keys()) {
        line(format!("proxy_hide_header {};", literal(name)));
    }
    for (name, value) in headers.set.iter().chain(&headers.add) {
        line(format!("add_header {} {} always;", literal(name), quoted(value)));
    }
    if let Some(age) = route.tls.hsts_max_age_s {
        line(format!("set $hsts \"\"; if ($scheme = https) {{ set $hsts max-age={age}; }}"));
        line("add_header Strict-Transport-Security $hsts always;".to_owned());
    }
    if let Some(it) = &route.maintenance {
        line(format!("add_header Retry-After {} always;", it.retry_after_s));
        line(format!("return 503 {};", quoted(&it.message)));
        return out;
    }
    if let Some(it) = &route.redirect {
        line(format!("return {} {};", it.status.unwrap_or(302), place(it)));
        return out;
    }
    if let Some(it) = &route.answer {
        let kind = it.content_type.as_deref().unwrap_or("text/plain; charset=utf-8");
        line(format!("default_type {};", literal(kind)));
        line(format!("return {} {};", it.status, quoted(&it.body)));
        return out;
    }
    if let Some(it) = route.max_body_bytes {
        line(format!("client_max_body_size {it};"));
    }
    if route.buffer.request {
        line("proxy_request_buffering on;".to_owned());
    }
    let first = route.targets.first().and_then(|it| file.upstreams.iter().find(|up| up.name == it.to));
    let times = first.map(|it| it.timeouts).unwrap_or_default();
    let chosen = [
        ("client_body_timeout", route.timeouts.request_body_ms.or(times.request_body_ms)),
        ("proxy_connect_timeout", route.timeouts.connect_ms.or(times.connect_ms)),
        ("proxy_read_timeout", route.timeouts.response_ms.or(times.response_ms)),
    ];
    for (name, millis) in chosen.into_iter().filter_map(|(name, it)| Some((name, it?))) {
        line(format!("{name} {millis}ms;"));
    }
    let rewrite = route.rewrite.as_ref();
    if let Some(full) = rewrite.and_then(|it| it.path.as_ref()) {
        line(format!("rewrite ^ {} break;", quoted(full)));
    }
    if let Some(prefix) = rewrite.and_then(|it| it.prefix.as_ref()) {
        let old = path.prefix.as_deref().or(path.exact.as_deref()).unwrap_or("/").trim_end_matches('/');
        let new = prefix.strip_suffix('/').unwrap_or(prefix);
        let pattern = literal(&format!("^{}/?(.*)$", escaped(old)));
        // What is left of the path stays behind one slash, and nothing behind none.
        if new.is_empty() {
            line(format!("rewrite {pattern} /$1 break;"));
        } else {
            let whole = literal(&format!("^{}$", escaped(old)));
            line(format!("rewrite {whole} {} break;", quoted(new)));
            line(format!("rewrite {pattern} {} break;", quoted_with(&format!("{new}/"), "$1")));
        }
    }
    let host = rewrite.and_then(|it| it.host.as_ref()).map_or("$http_host".to_owned(), |it| quoted(it));
    let edited = |name: &str| {
        let mut names = route.request_headers.set.keys().chain(&route.request_headers.remove);
        names.any(|it| it.eq_ignore_ascii_case(name))
    };
    for (name, value) in [
        ("Host", host.as_str()),
        ("X-Forwarded-For", "$remote_addr"),
        ("X-Real-IP", "$remote_addr"),
        ("X-Forwarded-Proto", "$scheme"),
        ("X-Forwarded-Host", "$http_host"),
        ("X-Request-Id", "$known_request_id"),
        ("Upgrade", "$http_upgrade"),
        ("Connection", "$connection_of_upgrade"),
    ] {
        if !edited(name) {
            line(format!("proxy_set_header {name} {value};"));
        }
    }
    for name in NOT_PASSED.iter().filter(|it| !edited(it)) {
        line(format!("proxy_set_header {name} \"\";"));
    }
    for (name, value) in &route.request_headers.set {
        line(format!("proxy_set_header {} {};", literal(name), quoted(value)));
    }
    for name in &route.request_headers.remove {
        line(format!("proxy_set_header {} \"\";", literal(name)));
    }
    let targets = targets(route);
    let group = groups(file).iter().position(|it| *it == targets).unwrap_or(0);
    match first.and_then(|it| it.tls.as_ref()) {
        Some(tls) => {
            line(format!("proxy_ssl_name {};", quoted(&tls.name)));
            line(format!("proxy_ssl_trusted_certificate {};", literal(&base.join(&tls.ca_file).to_string_lossy())));
            line("proxy_ssl_verify on;".to_owned());
            line("proxy_ssl_verify_depth 4;".to_owned());
            line(format!("proxy_pass https://group{group};"));
        }
        None => line(format!("proxy_pass http://group{group};")),
    }
    out
}

/// Where a redirect leads.
fn place(it: &Redirect) -> String {
    let scheme = it.scheme.as_deref().unwrap_or("$scheme");
    let default = match it.scheme.as_deref() {
        Some("https") => Some(443),
        Some(_) => Some(80),
        None => None,
    };
    // Without a new host or scheme the port of the request stays.
    let host = match (&it.host, it.port, &it.scheme) {
        (Some(host), ..) => quoted(host).trim_matches('"').to_owned(),
        (None, None, None) => "$http_host".to_owned(),
        _ => "$host".to_owned(),
    };
    let port = it.port.filter(|port| Some(*port) != default).map(|it| format!(":{it}")).unwrap_or_default();
    let path = match &it.path {
        Some(path) => format!("{}$is_args$args", quoted(path).trim_matches('"')),
        None => "$request_uri".to_owned(),
    };
    format!("\"{scheme}://{host}{port}{path}\"")
}

fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(suffix) => {
            host.to_ascii_lowercase().strip_suffix(&suffix.to_ascii_lowercase()).is_some_and(|it| it.ends_with('.'))
        }
        None => name == "*" || name.eq_ignore_ascii_case(host),
    }
}

/// A text in quotes as it is: also `$`, where nginx would see a variable.
fn quoted(text: &str) -> String {
    quoted_with(text, "")
}

/// The same with something of nginx's own behind it.
fn quoted_with(text: &str, own: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "${dollar}");
    format!("\"{text}{own}\"")
}

/// A text in quotes where nginx knows no variables: most paths, expressions, names of fields, types.
fn literal(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A text that a regular expression finds as it is.
fn escaped(text: &str) -> String {
    regex::escape(text)
}

/// A header's or cookie's name as part of a variable's.
fn variable(name: &str) -> String {
    name.to_ascii_lowercase().bytes().map(|it| if it.is_ascii_alphanumeric() { char::from(it) } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
listeners: [{name: web, address: "127.0.0.1:8080", protocol: http}, {name: tls, address: "192.0.2.9:8443", protocol: https}]
certificates: [{hosts: ["*.a.test"], certificate_file: c.pem, key_file: k.pem}]
upstreams: [{name: a, endpoints: ["127.0.0.1:1"]}, {name: b, endpoints: ["127.0.0.1:2", "127.0.0.1:3"], weights: [2, 1]}]
routes:
  - {hosts: [x.a.test], paths: [{prefix: /api}, {exact: /api}], targets: [{upstream: a, weight: 1}, {upstream: b, weight: 3}]}
  - {hosts: [x.a.test], response_headers: {set: {x-text: 'say "$100" \'}}, targets: [{upstream: a}]}
"#;

    fn file(text: &str) -> File {
        serde_yaml_ng::from_str(text).unwrap()
    }

    fn rendered(text: &str, here: bool) -> Result<String, Vec<String>> {
        let here = |it: SocketAddr| here || it.ip().is_loopback();
        render(&file(text), Path::new("/etc/gateway"), Path::new("/run/x"), &here)
    }

    #[test]
    fn a_file_becomes_a_configuration() {
        let text = rendered(FILE, true).unwrap();
        for line in [
            "server 127.0.0.1:1 weight=3 max_fails=1 fail_timeout=2s;",
            "server 127.0.0.1:2 weight=6 max_fails=1 fail_timeout=2s;",
            "server 127.0.0.1:3 weight=3 max_fails=1 fail_timeout=2s;",
            "listen 192.0.2.9:8443 ssl http2;",
            "ssl_certificate \"/etc/gateway/c.pem\";",
            "location \"/api/\" {",
            "proxy_set_header Forwarded \"\";",
            "proxy_set_header X-Forwarded-Prefix \"\";",
            r#"if ($uri ~ "^(?!/api(?:/|$))(?:/\\.?;[^/]*)*/api(?:;[^/]*)?(?:/|$)") { return 400; }"#,
            r#"if ($uri ~ "^(?!/api$)(?:/\\.?;[^/]*)*/api(?:;[^/]*)?$") { return 400; }"#,
            r#"if ($request_uri ~* "^[^?]*(?:\\\\|;[^/?]*%2f|(?:/|%2f|%5c)(?:\\.|%2e){2}(?:[/;?]|%2f|%5c|%3b|$))") { return 400; }"#,
            "add_header \"x-text\" \"say \\\"${dollar}100\\\" \\\\\" always;",
        ] {
            assert!(text.lines().any(|it| it.trim() == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("location = \"/api\" {").count(), 1, "the exact path wins\n{text}");
        // What expressions find without parameters is not known, unless they name some.
        let found = FILE.replacen("{exact: /api}", "{regex: '^/m;v=[0-9]'}, {prefix: '/p;q'}", 1);
        let line = r#"if ($uri ~ "^(?!.*(?:^/m;v=[0-9]))(?!/p;q(?:/|$)).*;") { return 400; }"#;
        let text = rendered(&found, true).unwrap();
        assert!(text.lines().any(|it| it.trim() == line), "{text}");
        let whole = "buffer: {request: true}, max_body_bytes: 9, targets: [{upstream: a}]";
        let whole = FILE.replacen("targets: [{upstream: a}]", whole, 1) + "buffer_folder: bodies\n";
        let text = rendered(&whole, true).unwrap();
        for line in ["client_body_temp_path \"/etc/gateway/bodies/client_body_temp\";", "proxy_request_buffering on;"] {
            assert!(text.lines().any(|it| it.trim() == line), "{line}\n{text}");
        }
        // Where nginx knows no variables, a `$` is nothing special.
        let named = FILE
            .replacen("name: a,", "name: a, tls: {name: $n, ca_file: $ca.pem},", 1)
            .replacen("a, weight: 1}, {upstream: b, weight: 3}]", "a}], request_headers: {set: {x-$y: $z}}", 1)
            .replacen("{x-text:", "{x-$text:", 1)
            + "  - {hosts: [f.test], answer: {status: 200, body: $b, content_type: text/$t}}\n";
        let text = rendered(&named, true).unwrap();
        for line in [
            "proxy_ssl_trusted_certificate \"/etc/gateway/$ca.pem\";",
            "proxy_ssl_name \"${dollar}n\";",
            "proxy_set_header \"x-$y\" \"${dollar}z\";",
            "proxy_hide_header \"x-$text\";",
            "default_type \"text/$t\";",
            "return 200 \"${dollar}b\";",
        ] {
            assert!(text.lines().any(|it| it.trim() == line), "{line}\n{text}");
        }
        let unlimited = format!("{FILE}limits: {{max_connections: 0, max_connections_per_address: 0}}\n");
        assert!(rendered(&unlimited, true).is_ok());
        let elsewhere = rendered(FILE, false).unwrap();
        assert!(!elsewhere.contains("192.0.2.9"), "another machine's address");
    }

    #[test]
    fn what_nginx_cannot_do_is_told_by_route() {
        for (from, to, part) in [
            (
                "targets: [{upstream: a}]",
                "mirror: {upstream: b}, targets: [{upstream: a}]",
                "route 2 (x.a.test): `mirror`",
            ),
            ("targets: [{upstream: a}]", "methods: [GET], targets: [{upstream: a}]", "route 2 (x.a.test): `methods`"),
            ("targets: [{upstream: a}]", "rate_limits: [{requests: 1}], targets: [{upstream: a}]", "`rate_limits`"),
            ("weights: [2, 1]", "check: {}", "upstream `b`: `check`"),
            ("protocol: http}", "protocol: udp, upstream: a}", "listener `web`"),
            ("127.0.0.1:8080", "127.0.0.1:0", "port 0"),
            ("c.pem", "$c.pem", "certificate `$c.pem`: a `$`"),
            ("routes:", "limits: {max_connections_per_address: 5}\nroutes:", "limits: `max_connections`"),
            ("targets: [{upstream: a}]", "buffer: {request: true}, targets: [{upstream: a}]", "`buffer` needs it"),
            (
                "targets: [{upstream: a}]",
                "buffer: {request: true}, targets: [{upstream: a}]",
                "without `max_body_bytes`",
            ),
            ("targets: [{upstream: a}]", "buffer: {response: true}, targets: [{upstream: a}]", "streams of events"),
        ] {
            let told = rendered(&FILE.replacen(from, to, 1), true).unwrap_err();
            assert!(told.iter().any(|it| it.contains(part)), "{part}: {told:?}");
        }
    }
}
