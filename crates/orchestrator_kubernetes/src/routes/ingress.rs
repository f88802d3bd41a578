//! Ingresses of our class as rules of hosts. Pure.

use super::annotations::{Wishes, path, wishes};
use super::backend::{Backends, Port, Speech};
use super::kind::Kind;
use super::object::{IngressBackend, IngressSpec};
use super::status::{Status, changed};
use super::table::{Age, Draft, certificate};
use super::translate::Terms;
use super::world::{Known, Name, World};
use arco_model::route::{Answer, PathMatch, Redirect, Rewrite, Route, Scheme, Target, UpstreamTarget};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Ingresses of the class.
pub(super) fn ours<'a>(
    world: &'a World,
    terms: &'a Terms,
) -> impl Iterator<Item = (&'a Name, &'a Known<IngressSpec>)> + 'a {
    world.ingresses.iter().filter(|(_, it)| it.spec.ingress_class_name.as_deref() == Some(&terms.class))
}

/// Translates one; what cannot be served of it is told.
pub(super) fn translate(
    world: &World,
    (name, known): (&Name, &Known<IngressSpec>),
    terms: &Terms,
    draft: &mut Draft,
    backends: &mut Backends<'_>,
) -> Vec<String> {
    let wishes = wishes(&known.annotations);
    let mut problems = wishes.problems.clone();
    if let Some(why) = &wishes.closed {
        problems.push(format!("it is not served: {why}"));
    }
    let age = (known.created, name.clone());
    let spec = &known.spec;
    if let Some(port) = wishes.stream {
        if wishes.closed.is_some() {
            return problems;
        }
        problems.extend(stream(name, spec, port, terms, &age, draft, backends).err());
        return problems;
    }
    let host_of = |host: &str| if host.is_empty() { "*".to_owned() } else { host.to_ascii_lowercase() };
    let mut hosts: BTreeSet<String> = spec.rules.iter().map(|it| host_of(&it.host)).collect();
    if hosts.is_empty() && spec.default_backend.is_some() {
        hosts.insert("*".to_owned());
    }
    let mut secure = BTreeSet::new();
    let mut covered = Vec::new();
    for tls in spec.tls.iter().filter(|it| !it.secret_name.is_empty()) {
        match certificate(world, &Name::new(&name.namespace, &tls.secret_name)) {
            Ok(served) => {
                let named: BTreeSet<String> =
                    if tls.hosts.is_empty() { hosts.clone() } else { tls.hosts.iter().map(|it| host_of(it)).collect() };
                named.iter().for_each(|it| draft.serve(it, &age, served));
                let below = hosts.iter().filter(|host| named.iter().any(|it| covers(it, host)));
                covered.extend(below.map(|it| (it.clone(), served)));
                secure.extend(named);
            }
            Err(why) => problems.push(format!("`tls`: {why}")),
        }
    }
    // After those that are named: a certificate of the host itself comes before one of a wildcard.
    for (host, served) in covered {
        draft.serve(&host, &age, served);
        secure.insert(host);
    }
    let is_secure = |host: &str| {
        let names = |it: &String| host_of(it) == host || covers(&host_of(it), host);
        secure.contains(host) || spec.tls.iter().any(|it| it.hosts.iter().any(names))
    };
    let mut place = Place { name, wishes: &wishes, age: &age, draft, backends, problems: &mut problems };
    for rule in &spec.rules {
        let host = host_of(&rule.host);
        let tls = is_secure(&host);
        for it in &rule.http.paths {
            let (matched, rewrite) = path(&wishes, &it.path_type, &it.path);
            place.rule(&host, tls, (matched, rewrite), &it.backend);
        }
        if let Some(root) = wishes.app_root.as_ref().filter(|_| wishes.closed.is_none()) {
            let redirect = Redirect { path: Some(root.clone()), status: Some(302), ..Redirect::default() };
            let rule = Route { paths: vec![PathMatch::exact("/")], redirect: Some(redirect), ..Route::default() };
            place.add(&host, tls, rule);
        }
    }
    if let Some(backend) = &spec.default_backend {
        // After the paths above: it gets what is left.
        for host in &hosts {
            place.rule(host, is_secure(host), (PathMatch::prefix("/"), None), backend);
        }
    }
    problems
}

/// Whether a host of `tls` is a wildcard that stands for `host`: for one label, as in certificates.
fn covers(named: &str, host: &str) -> bool {
    let below = named.strip_prefix("*.").zip(host.split_once('.'));
    below.is_some_and(|(suffix, (label, rest))| label != "*" && rest == suffix)
}

/// One Ingress while its rules are made.
struct Place<'a, 'w> {
    name: &'a Name,
    wishes: &'a Wishes,
    age: &'a Age,
    draft: &'a mut Draft,
    backends: &'a mut Backends<'w>,
    problems: &'a mut Vec<String>,
}

impl Place<'_, '_> {
    fn rule(&mut self, host: &str, tls: bool, path: (PathMatch, Option<Rewrite>), backend: &IngressBackend) {
        let (matched, rewrite) = path;
        let mut rule = self.wishes.rule.clone();
        let found = match &self.wishes.closed {
            Some(_) => Err(None), // told once for all of it
            None => target(self.name, backend, self.backends, self.wishes.speech).map_err(Some),
        };
        match found {
            Ok(to) => {
                rule.rewrite = rewrite.or(rule.rewrite);
                rule.targets = vec![Target { to, weight: 100 }];
            }
            Err(why) => {
                self.problems.extend(why.map(|why| format!("`{host}` {matched}: {why}")));
                rule = closed(rule, "No backend of this path can answer.\n");
            }
        }
        rule.paths = vec![matched];
        self.add(host, tls, rule);
    }

    /// Adds a rule, and a redirect for plain HTTP where that is asked for.
    fn add(&mut self, host: &str, tls: bool, mut rule: Route<UpstreamTarget>) {
        if let Err(why) = arco_model::route::check_host(host) {
            return self.problems.push(format!("`{host}`: {why}"));
        }
        if let Err(why) = rule.check() {
            self.problems.push(format!("`{host}`: {why}"));
            let paths = std::mem::take(&mut rule.paths);
            rule = Route { paths, ..closed(rule, "This path cannot be served as it is configured.\n") };
            if rule.check().is_err() {
                return; // what matches it says nothing
            }
        }
        if self.wishes.redirect.unwrap_or(tls) {
            let redirect = Redirect { scheme: Some("https".to_owned()), status: Some(308), ..Redirect::default() };
            let plain = Route {
                paths: rule.paths.clone(),
                headers: rule.headers.clone(),
                cookies: rule.cookies.clone(),
                scheme: Some(Scheme::Http),
                redirect: Some(redirect),
                ..Route::default()
            };
            self.draft.rule(host, self.age, None, plain);
            rule.scheme = Some(Scheme::Https);
        }
        let share = self.wishes.share.filter(|_| !rule.answers_itself());
        self.draft.rule(host, self.age, share, rule);
    }
}

/// A rule that answers 503 where `rule` matches: its requests must not get to whoever has the path above.
fn closed(rule: Route<UpstreamTarget>, body: &str) -> Route<UpstreamTarget> {
    let answer = Some(Answer { status: 503, body: body.to_owned(), content_type: None });
    Route { answer, headers: rule.headers, cookies: rule.cookies, ..Route::default() }
}

fn target(
    name: &Name,
    backend: &IngressBackend,
    backends: &mut Backends<'_>,
    speech: Speech,
) -> Result<UpstreamTarget, String> {
    let service = backend.service.as_ref().ok_or("its backend is no service")?;
    let port = match service.port.number {
        0 => Port::Named(&service.port.name),
        number => Port::Number(number),
    };
    backends.port(&Name::new(&name.namespace, &service.name), port, speech).map_err(|it| it.message)
}

/// A port of the gateway that leads to the first backend.
fn stream(
    name: &Name,
    spec: &IngressSpec,
    port: u16,
    terms: &Terms,
    age: &Age,
    draft: &mut Draft,
    backends: &mut Backends<'_>,
) -> Result<(), String> {
    let range = &terms.ports.streams;
    if !range.contains(&port) {
        return Err(format!("`l4-port`: {port} is none of {}-{} (`gateway.stream_ports`)", range.start(), range.end()));
    }
    let first = spec.rules.iter().flat_map(|it| &it.http.paths).map(|it| &it.backend).next();
    let backend = first.or(spec.default_backend.as_ref()).ok_or("`l4-port`: there is no backend")?;
    let target = target(name, backend, backends, Speech::default())?;
    draft.stream(age, port, target).map_err(|other| format!("`l4-port`: {port} is taken by `{other}`"))
}

/// Where it is reached.
pub(super) fn status(name: &Name, known: &Known<IngressSpec>, addresses: &[String]) -> Option<Status> {
    let entry = |it: &String| match it.parse::<std::net::IpAddr>() {
        Ok(_) => json!({ "ip": it }),
        Err(_) => json!({ "hostname": it }),
    };
    let wanted: Vec<Value> = addresses.iter().map(entry).collect();
    let before = known.status.pointer("/loadBalancer/ingress").cloned().unwrap_or(json!([]));
    // What others know about ports of an address is not ours to remove.
    let addresses_of = |list: &Value| -> BTreeSet<String> {
        let of = |it: &Value| it["ip"].as_str().or(it["hostname"].as_str()).unwrap_or_default().to_owned();
        list.as_array().into_iter().flatten().map(of).collect()
    };
    if addresses_of(&before) == addresses.iter().cloned().collect() {
        return None;
    }
    changed(Kind::Ingress, name, json!({ "loadBalancer": { "ingress": wanted } }), &known.status)
}

/// Takes our addresses from those that are of another class now. Who else wrote them since, or has others, keeps them: several
/// platforms of a cluster write under one name.
pub(super) fn left(world: &World, terms: &Terms, addresses: &[String]) -> Vec<Status> {
    let foreign = world.ingresses.iter().filter(|it| it.1.spec.ingress_class_name.as_deref() != Some(&terms.class));
    let taken = |(name, known): (&Name, &Known<IngressSpec>)| {
        known.said.pointer("/f:loadBalancer/f:ingress")?;
        let there = known.status.pointer("/loadBalancer/ingress")?.as_array()?;
        let is_ours = |it: &Value| {
            let text = it["ip"].as_str().or(it["hostname"].as_str()).unwrap_or_default();
            addresses.iter().any(|own| own == text)
        };
        if there.is_empty() || !there.iter().all(is_ours) {
            return None;
        }
        changed(Kind::Ingress, name, json!({ "loadBalancer": { "ingress": [] } }), &known.status)
    };
    foreign.filter_map(taken).collect()
}
