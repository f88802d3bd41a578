//! Tables: what a route may say, and how it is written.

use super::*;

fn route(more: &str) -> Result<Route<ComponentTarget>, String> {
    let mut document: serde_json::Value = serde_json::json!({"hosts": ["a.test"], "targets": [{"to": "shop/web"}]});
    let more: serde_json::Value = serde_json::from_str(more).map_err(|it| it.to_string())?;
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    let route: Route<ComponentTarget> = serde_json::from_value(document).map_err(|it| it.to_string())?;
    route.check().map(|()| route)
}

#[test]
fn what_a_route_may_say() {
    for good in [
        "{}",
        r#"{"hosts": ["*.a.test", "*", "127.0.0.1", "[::1]"]}"#,
        r#"{"paths": [{"exact": "/x"}, {"prefix": "/y/"}, {"regex": "^/v[0-9]+/"}]}"#,
        r#"{"methods": ["GET", "M-SEARCH"], "headers": [{"name": "X-V", "equals": "2"}]}"#,
        r#"{"targets": [{"to": "shop/web:8080", "weight": 90}, {"to": "shop/new", "weight": 10}]}"#,
        r#"{"targets": [], "answer": {"status": 200}}"#,
        r#"{"targets": [], "redirect": {"scheme": "https", "status": 308}}"#,
        r#"{"rate_limits": [{"requests": 5}, {"key": "header", "header": "x-key", "requests": 1, "per_ms": 60000}]}"#,
        r#"{"tls": {"certificate": "auto", "redirect": true, "hsts_max_age_s": 60}}"#,
        r#"{"rewrite": {"regex": {"pattern": "^/a", "replacement": "/b"}, "host": "b.test"}}"#,
        r#"{"maintenance": {}}"#,
        r#"{"balance": "ewma"}"#,
        r#"{"forward_auth": {"to": "shop/auth:4180", "path": "/oauth2/auth?a=b", "copy_headers": ["x-user"]}}"#,
        r#"{"balance": {"hash": "address"}}"#,
        r#"{"balance": {"hash": {"header": "x-user"}}}"#,
        r#"{"balance": {"sticky": {"cookie": "at"}}}"#,
        r#"{"tls": {"certificate": "passthrough"}}"#,
        r#"{"upstream_tls": {"name": "10.0.0.1", "ca": "-----BEGIN CERTIFICATE-----"}}"#,
    ] {
        route(good).unwrap_or_else(|it| panic!("{good}: {it}"));
    }
    for (bad, part) in [
        (r#"{"targets": []}"#, "needs `targets`"),
        (r#"{"answer": {"status": 200}}"#, "more than one"),
        (r#"{"targets": [{"to": "shop"}]}"#, "APP/COMPONENT"),
        (r#"{"targets": [{"to": "shop/web:0"}]}"#, "APP/COMPONENT"),
        (r#"{"targets": [{"to": "shop/web", "wait": 1}]}"#, "wait"),
        (r#"{"hosts": ["a b"]}"#, "not a host"),
        (r#"{"hosts": ["*.*.a"]}"#, "not a host"),
        (r#"{"hosts": ["a.test:80"]}"#, "not a host"),
        (r#"{"paths": [{"prefix": "x"}]}"#, "begin with /"),
        (r#"{"paths": [{"prefix": "/a/../b"}]}"#, "begin with /"),
        (r#"{"paths": [{"exact": "/a", "prefix": "/a"}]}"#, "either `prefix`"),
        (r#"{"paths": [{"regex": "("}]}"#, "not valid"),
        (r#"{"methods": ["get"]}"#, "capitals"),
        (r#"{"headers": [{"name": "a b", "present": true}]}"#, "header field"),
        (r#"{"headers": [{"name": "a"}]}"#, "needs one of"),
        (r#"{"cookies": [{"name": "a", "equals": "b", "present": true}]}"#, "needs one of"),
        (r#"{"mirror": {"to": "a/b", "percent": 101}}"#, "100 percent"),
        (r#"{"request_headers": {"set": {"Host": "x"}}}"#, "belongs to the connection"),
        (r#"{"response_headers": {"add": {"x": "a\r\nb: c"}}}"#, "cannot be the value"),
        (r#"{"rewrite": {"path": "/a", "prefix": "/b"}}"#, "needs one of"),
        (r#"{"rewrite": {"path": "/a?b"}}"#, "must begin with /"),
        (r#"{"targets": [], "redirect": {"status": 302}}"#, "needs a new"),
        (r#"{"targets": [], "redirect": {"scheme": "ftp"}}"#, "`ftp`"),
        (r#"{"targets": [], "redirect": {"scheme": "https", "status": 200}}"#, "not 200"),
        (r#"{"targets": [], "answer": {"status": 100}}"#, "not a status"),
        (r#"{"cors": {"origins": []}}"#, "needs `origins`"),
        (r#"{"cors": {"origins": ["*"], "credentials": true}}"#, "every site"),
        (r#"{"rate_limits": [{"requests": 0}]}"#, "1 to 1000000"),
        (r#"{"rate_limits": [{"key": "header", "requests": 1}]}"#, "`header`"),
        (r#"{"basic_auth": {"users": {}}}"#, "nobody could come in"),
        (r#"{"basic_auth": {"users": {"a": "secret"}}}"#, "needs a name"),
        (r#"{"timeouts": {"response_ms": 0}}"#, "86400000"),
        (r#"{"timeouts": {"idle_ms": 5}}"#, "idle_ms"),
        (r#"{"tls": {"client_ca": "x"}}"#, "BEGIN CERTIFICATE"),
        (r#"{"upstream_tls": {"name": "a.test", "ca": "x"}}"#, "`upstream_tls.ca` holds no"),
        (r#"{"upstream_tls": {"name": "*.a.test", "ca": "-----BEGIN CERTIFICATE-----"}}"#, "one host or address"),
        (r#"{"upstream_tls": {"name": "a.test"}}"#, "missing field `ca`"),
        (r#"{"allow": ["10.0.0.1/33"]}"#, "invalid IP address"),
        (r#"{"colour": 1}"#, "colour"),
        (r#"{"forward_auth": {"to": "shop/auth", "path": "x"}}"#, "begin with /"),
        (r#"{"forward_auth": {"to": "shop/auth", "copy_headers": ["Host"]}}"#, "cannot copy"),
        (r#"{"forward_auth": {"to": "a/b"}, "targets": [], "answer": {"status": 200}}"#, "goes with `targets`"),
        (r#"{"balance": "best"}"#, "best"),
        (r#"{"balance": {"hash": {"header": "a b"}}}"#, "cannot be hashed"),
        (r#"{"balance": {"sticky": {"cookie": "a b"}}}"#, "name for a cookie"),
        (r#"{"tls": {"certificate": "passthrough", "redirect": true}}"#, "not read"),
        (
            r#"{"tls": {"certificate": "passthrough"}, "upstream_tls": {"name": "a", "ca": "-----BEGIN CERTIFICATE-----"}}"#,
            "not read",
        ),
        (r#"{"tls": {"certificate": "passthrough"}, "paths": [{"prefix": "/a"}]}"#, "not read"),
        (r#"{"tls": {"certificate": "passthrough"}, "targets": [{"to": "a/b"}, {"to": "a/c"}]}"#, "one of `targets`"),
    ] {
        let error = route(bad).expect_err(bad);
        assert!(error.contains(part), "{bad}: {error}");
    }
}

#[test]
fn a_route_comes_back_as_it_was_written_and_says_no_more() {
    let text = r#"{"paths":[{"prefix":"/api"}],"targets":[{"to":"shop/web:80","weight":100}],"tls":{"redirect":true}}"#;
    let route: Route<ComponentTarget> = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&route).unwrap(), text);
    let file: Target<String> = serde_json::from_str(r#"{"upstream": "a"}"#).unwrap();
    assert_eq!(file, Target { to: "a".to_owned(), weight: 100 });
}

#[test]
fn balances_are_read_as_they_are_shown() {
    for text in [
        "round_robin",
        "least_requests",
        "ewma",
        "hash",
        "hash:header=x-user",
        "hash:cookie=side",
        "sticky:at",
        "sticky:at=60",
    ] {
        assert_eq!(text.parse::<Balance>().unwrap().to_string(), text);
    }
    for bad in ["best", "hash:x", "sticky", "sticky:a=b", "ewma:1"] {
        assert!(bad.parse::<Balance>().is_err(), "{bad}");
    }
}

#[test]
fn equal_meanings_are_seen_through_their_spelling() {
    let meaning = |text: &str| route(text).unwrap().meaning();
    assert_eq!(meaning("{}"), meaning(r#"{"paths": [{"prefix": "/"}]}"#));
    assert_eq!(
        meaning(r#"{"methods": ["GET", "HEAD"], "headers": [{"name": "X-A", "present": true}]}"#),
        meaning(r#"{"methods": ["HEAD", "GET"], "headers": [{"name": "x-a", "present": true}]}"#)
    );
    for other in [
        r#"{"paths": [{"exact": "/"}]}"#,
        r#"{"methods": ["GET"]}"#,
        r#"{"headers": [{"name": "a", "present": true}]}"#,
        r#"{"cookies": [{"name": "a", "present": true}]}"#,
    ] {
        assert_ne!(meaning("{}"), meaning(other));
    }
}

fn route_with_auth() -> Route<ComponentTarget> {
    route(r#"{"forward_auth": {"to": "shop/auth"}}"#).unwrap()
}

#[test]
fn targets_are_renamed_or_left_out() {
    let route =
        route(r#"{"targets": [{"to": "a/b", "weight": 1}, {"to": "a/c", "weight": 2}], "mirror": {"to": "a/d"}}"#);
    let named =
        route.unwrap().rename(|it| Ok::<_, ()>((it.component.as_str() == "c").then(|| it.to_string()))).unwrap();
    assert_eq!(named.targets, [Target { to: "a/c".to_owned(), weight: 2 }]);
    assert_eq!(named.mirror, None);
    let guarded = route_with_auth().rename(|it| Ok::<_, ()>((it.component.as_str() != "auth").then_some(it))).unwrap();
    assert!(guarded.targets.is_empty() && guarded.answer.is_some_and(|it| it.status == 503), "nobody comes in");
}
