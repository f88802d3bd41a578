//! Precedence and shares, row by row.

use super::*;
use crate::metrics::Metrics;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

fn snapshot(rows: &[(&str, &[&str])]) -> Snapshot {
    let metrics = Metrics::new();
    let mut snapshot = Snapshot { wildcards: true, ..Snapshot::default() };
    for (host, paths) in rows {
        let rules = paths
            .iter()
            .map(|path| {
                let matcher = match path.strip_prefix('=') {
                    Some(exact) => PathMatch::Exact(exact.to_owned()),
                    None => PathMatch::Prefix((*path).to_owned()),
                };
                Rule::new(matcher, vec![(format!("{host}{path}").into(), 1)], None)
            })
            .collect();
        let name: Arc<str> = (*host).into();
        snapshot.hosts.insert(Arc::new(Host::new(name, rules, metrics.route(host))));
    }
    snapshot
}

#[test]
fn the_most_specific_host_and_path_win() {
    let snapshot = snapshot(&[
        ("a.example.com", &["/", "/api", "/api/v2/", "=/api/exact"]),
        ("*.example.com", &["/"]),
        ("*.deep.example.com", &["/"]),
        ("only.example.org", &["/only"]),
    ]);
    for (host, path, target) in [
        ("a.example.com", "/", Some("a.example.com/")),
        ("a.example.com", "/apis", Some("a.example.com/")),
        ("a.example.com", "/api", Some("a.example.com/api")),
        ("a.example.com", "/api/", Some("a.example.com/api")),
        ("a.example.com", "/api/v2", Some("a.example.com/api/v2/")),
        ("a.example.com", "/api/v2/x", Some("a.example.com/api/v2/")),
        ("a.example.com", "/api/v22", Some("a.example.com/api")),
        ("a.example.com", "/api/exact", Some("a.example.com=/api/exact")),
        ("a.example.com", "/api/exact/x", Some("a.example.com/api")),
        ("b.example.com", "/x", Some("*.example.com/")),
        ("c.b.example.com", "/x", Some("*.example.com/")),
        ("x.deep.example.com", "/x", Some("*.deep.example.com/")),
        ("example.com", "/", None),
        ("only.example.org", "/", None),
        ("only.example.org", "/only", Some("only.example.org/only")),
        ("", "/", None),
    ] {
        let found = snapshot.host(host).and_then(|it| it.rule(path)).map(|it| it.target().to_string());
        assert_eq!(found.as_deref(), target, "{host}{path}");
    }
}

#[test]
fn hosts_become_keys() {
    for (host, key) in [
        ("A.Example.com", Some("a.example.com")),
        ("a.example.com:8080", Some("a.example.com")),
        ("a.example.com.", Some("a.example.com")),
        ("[::1]:80", Some("[::1]")),
        ("[::1", None),
        (":80", None),
        ("user@a.example.com", None),
        ("", None),
    ] {
        assert_eq!(host_key(host).as_deref(), key, "{host}");
    }
}

#[test]
fn shares_are_exact_and_mixed() {
    for shares in [vec![90, 10], vec![1, 1, 1], vec![100], vec![0, 5], vec![0, 0], vec![7, 11, 13], vec![1, 999]] {
        let targets = shares.iter().enumerate().map(|(at, share)| (at.to_string().into(), *share));
        let rule = Rule::new(PathMatch::Prefix("/".to_owned()), targets, None);
        let total: u32 = shares.iter().sum();
        let mut seen = vec![0u32; shares.len()];
        for _ in 0..total.max(2) {
            seen[rule.target().parse::<usize>().unwrap()] += 1;
        }
        if total > 0 {
            assert_eq!(seen, shares);
        } else {
            assert_eq!(seen, [1, 1]);
        }
    }
    let rule = Rule::new(PathMatch::Prefix("/".into()), vec![("a".into(), 90), ("b".into(), 10)], None);
    let first: Vec<_> = (0..30).map(|_| rule.target().to_string()).collect();
    assert!(first.iter().any(|it| it == "b"), "the smaller share gets requests early");
}

fn conditions(methods: &[Method], headers: usize, query: usize) -> Conditions {
    let name = |at: usize| HeaderName::try_from(format!("x-{at}")).unwrap();
    Conditions {
        secure: None,
        methods: methods.to_vec(),
        headers: (0..headers).map(|it| (name(it), Test::Present)).collect(),
        cookies: Vec::new(),
        query: (0..query).map(|it| (format!("q{it}"), Test::Present)).collect(),
    }
}

fn host(rules: Vec<(&str, PathMatch, Conditions)>) -> Host {
    let rules = rules
        .into_iter()
        .map(|(name, path, conditions)| Rule::new(path, vec![(name.into(), 1)], None).with(conditions, None));
    Host::new("h".into(), rules.collect(), Metrics::new().route("h"))
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

#[test]
fn precedence_is_that_of_the_gateway_api() {
    let regex = PathMatch::Regex(Pattern::new("^/v[0-9]+/").unwrap());
    let host = host(vec![
        ("all", prefix("/"), conditions(&[], 0, 0)),
        ("two queries", prefix("/"), conditions(&[], 0, 2)),
        ("one header", prefix("/"), conditions(&[], 1, 0)),
        ("two headers", prefix("/"), conditions(&[], 2, 0)),
        ("post", prefix("/"), conditions(&[Method::POST], 0, 0)),
        ("longer", prefix("/long"), conditions(&[], 0, 0)),
        ("regex", regex, conditions(&[], 0, 0)),
        ("exact", PathMatch::Exact("/v1/x".to_owned()), conditions(&[], 0, 0)),
        ("second all", prefix("/"), conditions(&[], 0, 0)),
    ]);
    let fields = |count: usize| -> HeaderMap {
        (0..count).map(|it| (HeaderName::try_from(format!("x-{it}")).unwrap(), HeaderValue::from_static("1"))).collect()
    };
    for (method, path, query, headers, expected) in [
        (Method::GET, "/", None, 0, "all"),
        (Method::GET, "/", Some("q0=1&q1"), 0, "two queries"),
        (Method::GET, "/", Some("q0=1&q1"), 1, "one header"),
        (Method::GET, "/", Some("q0=1&q1"), 2, "two headers"),
        (Method::POST, "/", None, 2, "post"),
        (Method::POST, "/long/x", None, 2, "longer"),
        (Method::GET, "/v1/y", None, 0, "regex"),
        (Method::GET, "/v1/x", None, 0, "exact"),
    ] {
        let headers = fields(headers);
        let asked = Asked { method: &method, path, query, headers: &headers, secure: false };
        assert_eq!(&**host.find(&asked).unwrap().target(), expected, "{method} {path} {query:?}");
    }
}

#[test]
fn conditions_look_at_headers_cookies_and_query() {
    let matches = |it: &str| Test::Matches(Pattern::new(it).unwrap());
    let equals = |it: &str| Test::Equals(it.to_owned());
    let all = Conditions {
        secure: None,
        methods: vec![Method::GET, Method::HEAD],
        headers: vec![(HeaderName::from_static("x-a"), equals("1")), (HeaderName::from_static("x-no"), Test::Absent)],
        cookies: vec![("c".to_owned(), matches("^v[0-9]$"))],
        query: vec![("q".to_owned(), equals("a b&c")), ("p".to_owned(), Test::Present)],
    };
    let good = [("x-a", "0"), ("x-a", "1"), ("cookie", "b=1; c=v2"), ("cookie", "d=1")];
    let good_query = "q=a+b%26c&p";
    for (method, query, extra, without, fails) in [
        (Method::GET, good_query, None, None, ""),
        (Method::HEAD, "p=&q=x&q=a%20b%26c", None, None, ""),
        (Method::POST, good_query, None, None, "method POST"),
        (Method::GET, "q=a&p", None, None, "query parameter `q`"),
        (Method::GET, "q=a+b%26c", None, None, "query parameter `p`"),
        (Method::GET, good_query, Some(("x-no", "")), None, "header `x-no`"),
        (Method::GET, good_query, None, Some("x-a"), "header `x-a`"),
        (Method::GET, good_query, None, Some("cookie"), "cookie `c`"),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in good.iter().copied().filter(|it| Some(it.0) != without).chain(extra) {
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(value));
        }
        let asked = Asked { method: &method, path: "/", query: Some(query), headers: &headers, secure: false };
        let broken = all.broken(&asked).unwrap_or_default();
        assert!(broken.contains(fails) && broken.is_empty() == fails.is_empty(), "{fails}: {broken}");
    }
}

#[test]
fn no_spelling_of_a_path_gets_around_its_rule() {
    for (written, normal) in [
        ("/a/b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a%2f..%2Fb", "/b"),
        ("//b", "/b"),
        ("/./b/.", "/b/"),
        ("/../..", "/"),
        ("/%61dmin", "/admin"),
        ("/a//b/", "/a/b/"),
        ("/%zz%4", "/%zz%4"),
        ("/.well-known/x", "/.well-known/x"),
    ] {
        assert_eq!(normal_path(written), normal, "{written}");
    }
    // What servers do not agree about is unclear where its rule depends on it.
    let two = snapshot(&[("a.test", &["/", "/admin"]), ("b.test", &["/"]), ("c.test", &["/app"])]);
    for (written, unclear) in [
        ("/admin/x/..%2f..%2f", true),
        ("/admin/%2e%2E/", true),
        ("/x/../admin", true),
        ("/..", true),
        ("/x/..;y/admin", true),
        ("/x%5c..%5cadmin", true),
        ("/x\\admin", true),
        ("/x/..y/...", false),
        ("/x..", false),
        ("/.well-known/./x", false),
        ("/a%2fb//c%20d", false),
        ("/%252e%252e/", false),
    ] {
        let found = ["a.test", "b.test", "c.test"].map(|it| two.host(it).unwrap().is_unclear(written));
        assert_eq!(found, [unclear, false, unclear], "{written}");
    }
}

#[test]
fn parameters_of_segments_get_around_no_rule() {
    let hosts =
        snapshot(&[("a.test", &["/", "/admin", "/a/b", "/m;v=1", "=/e"]), ("b.test", &["/"]), ("c.test", &["/app"])]);
    let headers = HeaderMap::new();
    let refused = |host: &str, written: &str| {
        let host = hosts.host(host).unwrap();
        let path = &normal_path(written);
        let asked = Asked { method: &Method::GET, path, query: None, headers: &headers, secure: false };
        host.is_read_otherwise(written, &asked, host.find(&asked))
    };
    for (written, expected) in [
        ("/admin;x/users", true),
        ("/admin;", true),
        ("/;/admin", true),
        ("/;x/;y/admin;z", true),
        ("/.;x/admin", true),
        ("/a;x//b", true),
        ("/e;x", true),
        // Left out before it is decoded, or after.
        ("/admin%3Bx", true),
        ("/a;x%2fb", true),
        ("/admin;%2fx", true),
        // All of these are for the same rule, whoever reads them.
        ("/admin", false),
        ("/admin/users;x=%2e", false),
        ("/e/x;y", false),
        ("/x/;/admin", false),
        ("/shop;jsessionid=1/cart", false),
        ("/m;v=2", false),
        // This rule knows of them.
        ("/m;v=1/x", false),
        ("/m%3bv=1", false),
    ] {
        assert_eq!((refused("a.test", written), refused("b.test", written)), (expected, false), "{written}");
    }
    assert!(refused("c.test", "/app;x") && !refused("c.test", "/x;y") && !refused("c.test", "/app/x;y"));
}

#[test]
fn paths_and_locations_are_rewritten() {
    let of = |pattern: &str, new: &str| PathRewrite::Regex(Pattern::new(pattern).unwrap(), new.to_owned());
    let regex = || of("^/u/([0-9]+)", "/users/${1}/x");
    let all = || of("^/(.*)$", "/new/$1");
    let asking = || of("^/u/([0-9]+)$", "/find?user=$1");
    for (rewrite, matched, uri, expected) in [
        (PathRewrite::Full("/new".into()), prefix("/"), "/old/x?q=1", "/new?q=1"),
        (PathRewrite::Prefix("/new/".into()), prefix("/old"), "/old/x%20y?q", "/new/x%20y?q"),
        (PathRewrite::Prefix("/".into()), prefix("/old"), "/old", "/"),
        (PathRewrite::Prefix("/".into()), prefix("/old"), "/old/", "/"),
        (PathRewrite::Prefix("/new".into()), prefix("/old"), "/x/../old/../old/y z", "/new/y%20z"),
        (regex(), prefix("/"), "/u/42/y?z=1", "/users/42/x/y?z=1"),
        (regex(), prefix("/"), "/v", "/v"),
        // Nobody climbs out of what a path is rewritten to, and no spelling gets around it.
        (PathRewrite::Prefix("/new".into()), prefix("/"), "/%2e%2e/y", "/new/y"),
        (PathRewrite::Prefix("/new".into()), prefix("/"), "/x%2f..%2f..%2fy", "/new/y"),
        (PathRewrite::Prefix("/new".into()), prefix("/old"), "/old/a%2fb", "/new/a%2fb"),
        (all(), prefix("/"), "/../y", "/new/y"),
        (all(), prefix("/"), "/a%2fb?q", "/new/a%2fb?q"),
        (regex(), prefix("/"), "/%75/42", "/users/42/x"),
        (regex(), prefix("/"), "//u/42", "/users/42/x"),
        (regex(), prefix("/"), "//v%20w", "//v%20w"),
        (asking(), prefix("/"), "/u/42?z=1", "/find?user=42&z=1"),
        (asking(), prefix("/"), "/u/42", "/find?user=42"),
    ] {
        let uri: http::Uri = uri.replace(' ', "%20").parse().unwrap();
        assert_eq!(rewrite.apply(&matched, &uri).unwrap().as_str(), expected, "{uri}");
    }
    let redirect = |scheme, host: Option<&str>, port, path| Redirect {
        scheme,
        host: host.map(str::to_owned),
        port,
        path,
        status: http::StatusCode::FOUND,
    };
    for (redirect, host, expected) in [
        (redirect(Some("https"), None, None, None), "a.test:8080", "https://a.test/x?q=1"),
        (redirect(Some("https"), None, Some(8443), None), "a.test:80", "https://a.test:8443/x?q=1"),
        (redirect(Some("https"), None, Some(443), None), "a.test:80", "https://a.test/x?q=1"),
        (redirect(None, Some("b.test"), None, None), "a.test:8080", "http://b.test/x?q=1"),
        (redirect(None, None, None, Some(PathRewrite::Full("/y".into()))), "a.test:8080", "http://a.test:8080/y?q=1"),
        (redirect(None, None, None, Some(PathRewrite::Full("/y".into()))), "[::1]", "http://[::1]/y?q=1"),
    ] {
        let answer = redirect.answer(&prefix("/"), "http", host, &"/x?q=1".parse().unwrap()).unwrap();
        assert_eq!(answer.headers()["location"], expected);
    }
}

#[test]
fn only_named_origins_are_allowed() {
    let cors = |origins: &[&str], credentials| Cors {
        origins: origins.iter().map(|it| (*it).to_owned()).collect(),
        methods: HeaderValue::from_static("GET"),
        headers: None,
        expose: None,
        credentials,
        max_age_s: 5,
    };
    for (rule, origin, shown) in [
        (cors(&["*"], false), "https://x.test", Some("*")),
        (cors(&["https://a.test"], true), "https://a.test", Some("https://a.test")),
        (cors(&["https://a.test"], true), "https://a.test.evil", None),
        (cors(&["https://*.a.test"], true), "https://b.a.test", Some("https://b.a.test")),
        (cors(&["https://*.a.test"], true), "https://a.test", None),
        (cors(&["https://*.a.test"], true), "https://evila.test", None),
        (cors(&["https://*.a.test"], true), "https://evil.test/.a.test", None),
        (cors(&["https://*.a.test"], true), "http://b.a.test", None),
    ] {
        let request: HeaderMap = [(http::header::ORIGIN, HeaderValue::try_from(origin).unwrap())].into_iter().collect();
        let mut response = HeaderMap::new();
        response.insert("access-control-allow-origin", HeaderValue::from_static("http://from-the-endpoint"));
        assert_eq!(rule.mark(&request, &mut response), shown.is_some(), "{origin}");
        let found = response.get("access-control-allow-origin").map(|it| it.to_str().unwrap());
        assert_eq!(found, shown, "{origin}");
    }
}

proptest! {
    /// Whatever their order, the same rule answers, and no matching rule is more specific by path.
    #[test]
    fn order_does_not_matter_between_different_ranks(
        prefixes in proptest::collection::hash_set("(/[ab]{1,2}){1,3}", 1..8),
        exacts in proptest::collection::hash_set("(/[ab]{1,2}){1,3}", 0..4),
        path in "(/[ab]{1,2}){1,4}",
        turn in 0usize..8,
    ) {
        let paths: Vec<PathMatch> = prefixes.iter().map(|it| PathMatch::Prefix(it.clone()))
            .chain(exacts.iter().map(|it| PathMatch::Exact(it.clone()))).collect();
        let made = |paths: &[PathMatch]| {
            let rules = paths.iter().map(|it| Rule::new(it.clone(), vec![(it.to_string().into(), 1)], None)).collect();
            Host::new("h".into(), rules, Metrics::new().route("h"))
        };
        let mut turned = paths.clone();
        turned.rotate_left(turn % paths.len());
        let first = made(&paths).rule(&path).map(|it| it.path.clone());
        prop_assert_eq!(&first, &made(&turned).rule(&path).map(|it| it.path.clone()));
        let longest = prefixes.iter().filter(|it| path == **it || path.starts_with(&format!("{it}/"))).map(String::len).max();
        match first {
            Some(PathMatch::Exact(exact)) => prop_assert_eq!(exact, path),
            Some(PathMatch::Prefix(found)) => {
                prop_assert!(!exacts.contains(&path));
                prop_assert_eq!(Some(found.len()), longest);
            }
            _ => prop_assert!(longest.is_none() && !exacts.contains(&path)),
        }
    }

    /// Over each whole round every target gets exactly its weight, and never strays far within it.
    #[test]
    fn weights_hold(weights in proptest::collection::vec(0u32..200, 1..6)) {
        let sum: u32 = weights.iter().sum();
        prop_assume!(sum > 0);
        let targets = weights.iter().enumerate().map(|(at, weight)| (at.to_string().into(), *weight));
        let rule = Rule::new(prefix("/"), targets, None);
        let mut seen = vec![0u32; weights.len()];
        for turn in 1..=sum * 2 {
            seen[rule.target().parse::<usize>().unwrap()] += 1;
            for (seen, weight) in seen.iter().zip(&weights) {
                let ideal = f64::from(turn) * f64::from(*weight) / f64::from(sum);
                prop_assert!((f64::from(*seen) - ideal).abs() <= 1.0 + 0.25 * f64::from(sum).sqrt() + 5.0);
            }
        }
        prop_assert_eq!(seen, weights.iter().map(|it| it * 2).collect::<Vec<_>>());
    }
}
