//! Says which route, change and endpoint a request would take, and why. Asks nobody and changes nothing.

use crate::data_plane::GatewayError;
use crate::engine::Certificates;
use crate::metrics::Metrics;
use crate::pages::Page;
use crate::protect::RateKey;
use crate::snapshot::{Action, Asked, Policy, Rule, Snapshot, StickyCookie, host_key, normal_path};
use crate::source::file::FileSource;
use arco_model::traffic::RouteQuestion;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

/// A request that nobody sends.
#[derive(Clone, Debug)]
pub struct Question {
    /// `http://…` or `https://…`.
    pub url: String,
    /// Method.
    pub method: Method,
    /// Header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Who asks.
    pub client: IpAddr,
}

impl Question {
    /// A plain GET of `url` from this machine.
    pub fn get(url: &str) -> Self {
        Self { url: url.to_owned(), method: Method::GET, headers: Vec::new(), client: [127, 0, 0, 1].into() }
    }
}

impl Question {
    /// The question of somebody else; the reason when it cannot be understood.
    pub fn parse(asked: &RouteQuestion) -> Result<Self, String> {
        let method = asked.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        let header = |line: &String| {
            let (name, value) = line.split_once(':')?;
            Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::try_from(value.trim()).ok()?))
        };
        let headers = asked.headers.iter().map(|it| header(it).ok_or_else(|| format!("`{it}` is not `NAME: VALUE`")));
        Ok(Self {
            url: asked.url.clone(),
            method: Method::try_from(method.as_str()).map_err(|_| format!("`{method}` is not a method"))?,
            headers: headers.collect::<Result<_, _>>()?,
            client: asked.client.unwrap_or(IpAddr::from([127, 0, 0, 1])),
        })
    }
}

/// The way of a request by the running gateway's table, a line per decision.
pub(crate) fn steps(snapshot: &Snapshot, certificates: &Certificates, question: &Question) -> Vec<String> {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = describe(snapshot, certificates, question, &mut out);
    out.lines().map(str::to_owned).collect()
}

/// Answers by the file at `path`, in lines for people. What happens at run time (health, open requests) is not known.
pub fn explain(path: &Path, question: &Question) -> Result<String, GatewayError> {
    let loaded = FileSource::new(path, Metrics::new()).load()?;
    Ok(steps(&loaded.snapshot, &loaded.certificates, question).into_iter().map(|it| it + "\n").collect())
}

fn describe(
    snapshot: &Snapshot,
    certificates: &Certificates,
    question: &Question,
    out: &mut String,
) -> std::fmt::Result {
    let Some((uri, authority)) = question
        .url
        .parse::<Uri>()
        .ok()
        .filter(|it| it.scheme().is_some())
        .and_then(|it| Some((it.clone(), it.authority()?.clone())))
    else {
        return writeln!(out, "`{}` is not a URL: write `http://HOST/PATH`", question.url);
    };
    let scheme = uri.scheme_str().unwrap_or("http");
    let Some(host) = host_key(authority.as_str()) else { return writeln!(out, "host: none; answer 404") };
    if let Some(upstream) = snapshot.passed_through(&host).filter(|_| scheme == "https") {
        return writeln!(
            out,
            "TLS: connections for `{host}` are passed on unread, to `{}`",
            called(snapshot, upstream)
        );
    }
    if scheme == "https" {
        if certificates.covers(&host) {
            writeln!(out, "TLS: a certificate covers `{host}`; on a connection for hosts of another one answer 421")?;
        } else if snapshot.trusted_proxies.is_empty() {
            return writeln!(out, "TLS: no certificate covers `{host}`; the handshake is refused");
        } else {
            writeln!(out, "TLS: no certificate covers `{host}`; only a trusted proxy can ask for it")?;
        }
    }
    let Some(entry) = snapshot.host(&host) else {
        return writeln!(out, "host: no route names `{host}`, and no wildcard covers it; answer 404");
    };
    let how = if **entry.name() == *host { "exactly" } else { "as a wildcard" };
    writeln!(out, "host: `{host}` is matched by `{}` {how}", entry.name())?;
    let headers: HeaderMap = question.headers.iter().cloned().collect();
    let normal = normal_path(uri.path());
    if normal != uri.path() {
        writeln!(out, "path: `{}` is matched as `{normal}`", uri.path())?;
    }
    if entry.is_unclear(uri.path()) {
        return writeln!(out, "path: `..` or `\\` in it, which servers read in different ways; answer 400");
    }
    let secure = scheme == "https";
    let asked = Asked { method: &question.method, path: &normal, query: uri.query(), headers: &headers, secure };
    let mut chosen = None;
    for (number, rule) in entry.rules().iter().enumerate() {
        let verdict = if !rule.is_for(&normal) {
            Some("the path is another".to_owned())
        } else {
            rule.conditions().broken(&asked)
        };
        match verdict {
            Some(why) => writeln!(out, "rule {}: {}: no, {why}", number + 1, rule.path)?,
            None => {
                writeln!(out, "rule {}: {}: yes; the rules after it are less specific", number + 1, rule.path)?;
                chosen = Some(rule);
                break;
            }
        }
    }
    if entry.is_read_otherwise(uri.path(), &asked, chosen) {
        return writeln!(out, "path: servers that leave `;…` out of it find another rule; answer 400");
    }
    let Some(rule) = chosen else { return writeln!(out, "route: none; answer 404") };
    let written = authority.as_str();
    if let Some(redirect) = rule.redirect_to_https(secure) {
        let answer = redirect.answer(&rule.path, scheme, written, &uri);
        let location = answer.as_ref().and_then(|it| it.headers().get("location")?.to_str().ok());
        return writeln!(
            out,
            "https: plain HTTP is not served; answer {} to {}",
            redirect.status.as_u16(),
            location.unwrap_or_default()
        );
    }
    if let Some(policy) = rule.policy.as_deref()
        && !applied(snapshot, policy, rule, question, (&uri, scheme, written), out)?
    {
        return Ok(());
    }
    targets(snapshot, rule, question, &headers, out)
}

/// Writes what the policy does; whether the request goes on to an endpoint.
fn applied(
    snapshot: &Snapshot,
    policy: &Policy,
    rule: &Rule,
    question: &Question,
    (uri, scheme, written_host): (&Uri, &str, &str),
    out: &mut String,
) -> Result<bool, std::fmt::Error> {
    let protection = &policy.protection;
    if !protection.admits(question.client) {
        writeln!(out, "address: {} may not come in; answer 403", question.client)?;
        return Ok(false);
    }
    let headers: HeaderMap = question.headers.iter().cloned().collect();
    if let Some(answer) = policy.cors.as_ref().and_then(|it| it.preflight(&question.method, &headers)) {
        let allowed = answer.headers().contains_key("access-control-allow-origin");
        let verdict = if allowed { "allowed" } else { "not allowed" };
        writeln!(out, "cors: a browser asks before its request; answer 204, the origin is {verdict}")?;
        return Ok(false);
    }
    for rate in &protection.rates {
        let by = match &rate.key {
            RateKey::Route => "the route".to_owned(),
            RateKey::Address => "address".to_owned(),
            RateKey::Header(name) => format!("header `{name}`"),
        };
        writeln!(out, "rate: limited by {by}; beyond it answer 429")?;
    }
    if let Some(auth) = &policy.forward_auth {
        let who = snapshot.upstreams.get(&auth.upstream).map_or(&*auth.upstream, |it| &*it.reference);
        writeln!(out, "access: `{who}` is asked ({}) and decides", auth.path)?;
    }
    if protection.users.is_some() {
        writeln!(out, "password: needed; without a right one answer 401")?;
    }
    if let Some(max) = protection.max_body_bytes {
        writeln!(out, "body: at most {max} bytes; beyond it answer 413")?;
    }
    if let Some(maintenance) = &policy.maintenance
        && !maintenance.allow.iter().any(|it| it.contains(&question.client.to_canonical()))
    {
        writeln!(out, "maintenance: answer 503, `{}`", maintenance.message)?;
        return Ok(false);
    }
    match &policy.action {
        Action::Forward => {}
        Action::Answer(answer) => {
            writeln!(out, "answer: {} by the gateway itself", answer.status.as_u16())?;
            return Ok(false);
        }
        Action::Redirect(redirect) => {
            let answer = redirect.answer(&rule.path, scheme, written_host, uri);
            let location = answer.as_ref().and_then(|it| it.headers().get("location")?.to_str().ok());
            writeln!(out, "redirect: {} to {}", redirect.status.as_u16(), location.unwrap_or("nowhere: answer 400"))?;
            return Ok(false);
        }
    }
    if let Some(path) = &policy.rewrite.path {
        match path.apply(&rule.path, uri) {
            Some(new) => writeln!(out, "rewrite: path `{}` becomes `{new}`", uri.path())?,
            None => writeln!(out, "rewrite: no valid path comes out; answer 400")?,
        }
    }
    if let Some(host) = &policy.rewrite.host {
        writeln!(out, "rewrite: Host becomes `{}`", String::from_utf8_lossy(host.as_bytes()))?;
    }
    if let Some(retry) = &policy.retry {
        writeln!(out, "retry: at most {} endpoints are asked", retry.attempts)?;
    }
    if policy.buffer.request {
        writeln!(out, "buffer: the request is taken whole before an endpoint is asked")?;
    }
    if policy.buffer.response {
        writeln!(out, "buffer: the response is taken from the endpoint as fast as it comes")?;
    }
    if let Some(mirror) = &policy.mirror {
        let shown = called(snapshot, &mirror.upstream);
        writeln!(out, "mirror: {} % of the requests also go to `{shown}`", mirror.percent)?;
    }
    Ok(true)
}

fn targets(
    snapshot: &Snapshot,
    rule: &Rule,
    question: &Question,
    headers: &HeaderMap,
    out: &mut String,
) -> std::fmt::Result {
    let total: u64 = rule.targets.iter().map(|it| u64::from(it.1)).sum::<u64>().max(1);
    let sticky = rule.policy.as_ref().and_then(|it| it.sticky.as_ref());
    // Whoever asks takes nobody's turn.
    let token = sticky.and_then(|it| it.value(headers));
    let known = token.and_then(|it| rule.targets.iter().find(|target| StickyCookie::token(&target.0) == it));
    let chosen = known.map_or_else(|| rule.next_target(), |it| &it.0);
    for (name, weight) in &rule.targets {
        let name = called(snapshot, name);
        writeln!(out, "target: `{name}` gets {:.1} % of the requests", f64::from(*weight) * 100.0 / total as f64)?;
    }
    let shown = called(snapshot, chosen);
    if known.is_some() {
        writeln!(out, "target: `{shown}`, as the cookie says")?;
    } else if rule.targets.len() > 1 {
        writeln!(out, "target: `{shown}` is next")?;
    }
    let Some(upstream) = snapshot.upstreams.get(chosen) else {
        return writeln!(out, "upstream: `{shown}` does not exist; answer 503");
    };
    let settings = &upstream.settings;
    let choice = settings.balance.choice(headers, question.client);
    match upstream.next_for(&choice) {
        Some(endpoint) => {
            let address = endpoint.address;
            let tls = settings.transport.tls.as_ref().map_or("", |it| match (&it.config, &it.name) {
                (Err(_), _) => "; not asked: its authority cannot be read",
                (Ok(_), None) => "; over TLS, with any certificate",
                (Ok(_), Some(_)) => "; over TLS, with a certificate of its authority",
            });
            let (count, balance) = (upstream.endpoints.len(), &settings.balance);
            writeln!(out, "endpoint: {address} of {count} in `{shown}`, chosen by {balance:?}{tls}")
        }
        None => {
            let status = Page::not_up(upstream.state, &upstream.reference).status.as_u16();
            writeln!(out, "endpoint: `{shown}` has none ({:?}); answer {status}", upstream.state)
        }
    }
}

/// An upstream's name for people: from the store it is an id and a port.
fn called(snapshot: &Snapshot, name: &str) -> String {
    // The name may say how endpoints are chosen, too.
    let target = name.split(' ').next().unwrap_or(name);
    match (snapshot.upstreams.get(name), target.rsplit_once(':')) {
        (Some(upstream), Some((_, port))) if *upstream.reference != *name => format!("{}:{port}", upstream.reference),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["s.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("c.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("k.pem"), key.serialize_pem()).unwrap();
        std::fs::write(
            &path,
            "certificates: [{hosts: [s.test], certificate_file: c.pem, key_file: k.pem}]\n\
             upstreams: [{name: a, endpoints: ['127.0.0.1:9000']}, {name: b, endpoints: ['127.0.0.1:9001']}]\n\
             routes:\n\
             \x20 - {hosts: ['*.test'], paths: [{prefix: /api}], rewrite: {prefix: /}, targets: [{upstream: a, weight: 3}, {upstream: b, weight: 1}]}\n\
             \x20 - {hosts: ['*.test'], paths: [{prefix: /api}], methods: [POST], deny: [10.0.0.0/8], targets: [{upstream: b}]}\n\
             \x20 - {hosts: [s.test], targets: [{upstream: a}]}\n\
             \x20 - {hosts: [s.test], paths: [{prefix: /api}], targets: [{upstream: b}]}\n\
             \x20 - {hosts: [r.test], redirect: {scheme: https}}\n\
             \x20 - {hosts: [c.test], cors: {origins: ['https://web.test']}, targets: [{upstream: a}]}\n",
        )
        .unwrap();
        let question = Question::get;
        let preflight = |origin: &'static str| Question {
            method: Method::OPTIONS,
            headers: [("origin", origin), ("access-control-request-method", "PUT")]
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .into(),
            ..question("http://c.test/")
        };
        let post = |client| Question { method: Method::POST, client, ..question("http://a.test/api/x") };
        for (question, parts) in [
            (
                question("http://a.test/api/%78?q"),
                &[
                    "matched by `*.test` as a wildcard",
                    "`/api/%78` is matched as `/api/x`",
                    "rule 1: prefix /api: no, the method GET is none of [POST]",
                    "rule 2: prefix /api: yes",
                    "`/api/%78` becomes `/%78?q`",
                    "`a` gets 75.0 %",
                    "endpoint: 127.0.0.1:900",
                ][..],
            ),
            (post([10, 0, 0, 1].into()), &["may not come in; answer 403"]),
            (post([11, 0, 0, 1].into()), &["endpoint: 127.0.0.1:9001 of 1 in `b`"]),
            (question("http://a.test/other"), &["no, the path is another", "answer 404"]),
            (question("http://a.test/api/x%2f..%2f.."), &["which servers read in different ways; answer 400"]),
            (
                question("http://s.test/api;v=1/x"),
                &["rule 2: prefix /: yes", "leave `;…` out of it find another rule; answer 400"],
            ),
            (question("http://s.test/api/x;v=1"), &["rule 1: prefix /api: yes", "endpoint: 127.0.0.1:9001"]),
            (preflight("https://web.test"), &["answer 204, the origin is allowed"]),
            (preflight("https://evil.test"), &["answer 204, the origin is not allowed"]),
            (
                question("https://s.test/api"),
                &["covers `s.test`; on a connection for hosts of another one answer 421", "endpoint: 127.0.0.1:9001"],
            ),
            (question("https://c.test/"), &["no certificate covers `c.test`; the handshake is refused"]),
            (question("http://r.test:81/x?y"), &["redirect: 302 to https://r.test/x?y"]),
            (question("http://nobody.example/"), &["no route names `nobody.example`"]),
            (question("nonsense"), &["is not a URL"]),
        ] {
            let told = explain(&path, &question).unwrap();
            assert!(parts.iter().all(|it| told.contains(it)), "{question:?}:\n{told}");
        }
        // A proxy in front may have the certificate.
        let text = std::fs::read_to_string(&path).unwrap() + "trusted_proxies: [192.0.2.1/32]\n";
        std::fs::write(&path, text).unwrap();
        let told = explain(&path, &question("https://c.test/")).unwrap();
        assert!(told.contains("only a trusted proxy can ask for it") && told.contains("endpoint: "), "{told}");
        // Whoever asks takes nobody's turn.
        let loaded = FileSource::new(&path, Metrics::new()).load().unwrap();
        let steps = || steps(&loaded.snapshot, &loaded.certificates, &question("http://c.test/"));
        assert_eq!(steps(), steps());
        let upstream = &loaded.snapshot.upstreams["a"];
        assert_eq!(upstream.turn.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}
