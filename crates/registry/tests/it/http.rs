//! Requests by hand: what the distribution spec says for each, and its error codes.

use super::*;

#[tokio::test]
async fn errors_have_the_codes_of_the_specification() {
    let it = Running::new();
    let config = it.push_blob(REPOSITORY, b"{}").await;
    let missing = Digest::of(b"missing");
    let upload = it.call("POST", "/v2/default/shop/web/blobs/uploads/", &[], "").await.header("location").to_owned();
    let elsewhere = upload.replace("/web/", "/other/");
    let unknown = upload.split_at(upload.len() - 32).0.to_owned() + &"0".repeat(32);
    let manifests = format!("/v2/{REPOSITORY}/manifests/v1");
    let image = manifest(&config, 2, &missing, 7).to_string();
    let index =
        serde_json::json!({ "schemaVersion": 2, "manifests": [{ "mediaType": "x", "digest": missing, "size": 7 }] })
            .to_string();
    let large = " ".repeat((4 << 20) + 1);
    for (method, path, headers, body, status, code) in [
        ("GET", "/v2/default/shop/web/manifests/v1", vec![], "", 404, "MANIFEST_UNKNOWN"),
        ("GET", &format!("/v2/{REPOSITORY}/manifests/{missing}"), vec![], "", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/default/shop/web/manifests/sha256:1", vec![], "", 400, "DIGEST_INVALID"),
        ("GET", "/v2/Default/shop/web/manifests/v1", vec![], "", 400, "NAME_INVALID"),
        ("GET", "/v2/a/..%2Fb/manifests/v1", vec![], "", 400, "NAME_INVALID"),
        ("GET", "/v2/_catalog", vec![], "", 404, "UNSUPPORTED"),
        ("GET", &format!("/v2/{REPOSITORY}/blobs/{missing}"), vec![], "", 404, "BLOB_UNKNOWN"),
        ("GET", &format!("/v2/{REPOSITORY}/blobs/{config}"), vec![("range", "bytes=9-")], "", 416, "SIZE_INVALID"),
        ("GET", "/v2/default/shop/none/tags/list", vec![], "", 404, "NAME_UNKNOWN"),
        ("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/?digest={missing}"), vec![], "other", 400, "DIGEST_INVALID"),
        ("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/?digest=md5:1"), vec![], "", 400, "DIGEST_INVALID"),
        ("PATCH", &unknown, vec![], "x", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", &elsewhere, vec![], "x", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "/v2/default/shop/web/blobs/uploads/..%2f..%2ftoken.key", vec![], "x", 404, "UNSUPPORTED"),
        ("PATCH", &upload, vec![("content-range", "5-6")], "xx", 416, "BLOB_UPLOAD_INVALID"),
        ("PATCH", &upload, vec![("content-range", "x")], "xx", 416, "BLOB_UPLOAD_INVALID"),
        ("PUT", &upload, vec![], "", 400, "DIGEST_INVALID"),
        ("PUT", &manifests, vec![], "{", 400, "MANIFEST_INVALID"),
        ("PUT", &manifests, vec![], "{\"schemaVersion\":1}", 400, "MANIFEST_INVALID"),
        ("PUT", &manifests, vec![("content-type", "text/html")], &image, 400, "MANIFEST_INVALID"),
        ("PUT", &manifests, vec![], &image, 404, "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", &manifests, vec![], &index, 404, "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", &manifests, vec![], &large, 413, "SIZE_INVALID"),
        ("PUT", &format!("/v2/{REPOSITORY}/manifests/{missing}"), vec![], &image, 400, "DIGEST_INVALID"),
        ("PUT", "/v2/default/shop/web/manifests/-v", vec![], &image, 400, "MANIFEST_INVALID"),
        ("DELETE", &manifests, vec![], "", 404, "MANIFEST_UNKNOWN"),
        ("DELETE", &format!("/v2/{REPOSITORY}/blobs/{missing}"), vec![], "", 404, "BLOB_UNKNOWN"),
        ("PATCH", &manifests, vec![], "", 405, "UNSUPPORTED"),
    ] {
        let answer = it.call(method, path, &headers, body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{method} {path} {headers:?}");
    }
}

#[tokio::test]
async fn nothing_is_done_without_a_token_that_names_it() {
    let it = Running::new();
    let digest = it.push_image(REPOSITORY, "v1", b"layer", serde_json::json!({})).await;
    let layer = Digest::of(b"layer");
    let (pull, other) = (it.token(REPOSITORY, &[Action::Pull]), it.token("default/shop/other", &ALL));
    for (method, path, pull_may) in [
        ("GET", "/v2/".to_owned(), true),
        ("GET", format!("/v2/{REPOSITORY}/manifests/v1"), true),
        ("HEAD", format!("/v2/{REPOSITORY}/manifests/{digest}"), true),
        ("GET", format!("/v2/{REPOSITORY}/blobs/{layer}"), true),
        ("GET", format!("/v2/{REPOSITORY}/tags/list"), true),
        ("GET", format!("/v2/{REPOSITORY}/referrers/{digest}"), true),
        ("POST", format!("/v2/{REPOSITORY}/blobs/uploads/"), false),
        ("PATCH", format!("/v2/{REPOSITORY}/blobs/uploads/x"), false),
        ("PUT", format!("/v2/{REPOSITORY}/manifests/v2"), false),
        ("DELETE", format!("/v2/{REPOSITORY}/manifests/v1"), false),
        ("DELETE", format!("/v2/{REPOSITORY}/blobs/{layer}"), false),
    ] {
        let none = it.send(method, &path, &[("host", "registry.test:5000")], "").await;
        assert_eq!(none.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert!(
            none.header("www-authenticate")
                .starts_with("Bearer realm=\"http://registry.test:5000/token\",service=\"arco-registry\"")
        );
        let foreign = it.send(method, &path, &[("authorization", &format!("Bearer {other}"))], "").await;
        assert_eq!(foreign.status == StatusCode::UNAUTHORIZED, path != "/v2/", "{method} {path}");
        let reader = it.send(method, &path, &[("authorization", &format!("Bearer {pull}"))], "").await;
        assert_eq!(reader.status.is_success(), pull_may, "{method} {path} {}", reader.status);
        let wrong = it.send(method, &path, &[("authorization", "Bearer x.y.z")], "").await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test]
async fn a_credential_becomes_a_token_with_no_more_rights() {
    use base64::Engine as _;
    let it = Running::new();
    it.push_image(REPOSITORY, "v1", b"layer", serde_json::json!({})).await;
    let basic = |it: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("robot:{it}")));
    let credential = it.token(REPOSITORY, &[Action::Pull]);
    let path = format!("/token?service=arco-registry&scope=repository:{REPOSITORY}:pull,push");
    for headers in [vec![], vec![("authorization", basic("guess"))], vec![("authorization", "Basic !".to_owned())]] {
        let headers: Vec<_> = headers.iter().map(|it| (it.0, it.1.as_str())).collect();
        assert_eq!(it.send("GET", &path, &headers, "").await.status, StatusCode::UNAUTHORIZED);
    }
    let answer = it.send("GET", &path, &[("authorization", &basic(&credential))], "").await;
    let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(it.send("GET", &format!("/v2/{REPOSITORY}/manifests/v1"), &headers, "").await.status, StatusCode::OK);
    let push = it.send("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &headers, "").await;
    assert_eq!(push.status, StatusCode::UNAUTHORIZED);
    assert!(
        push.header("www-authenticate")
            .ends_with("scope=\"repository:default/shop/web:pull,push\",error=\"insufficient_scope\"")
    );
}

#[tokio::test]
async fn blobs_come_in_pieces_and_go_on_after_an_interruption() {
    let it = Running::new();
    let start = it.call("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[], "").await;
    let upload = start.header("location").to_owned();
    assert_eq!((start.status, start.header("range")), (StatusCode::ACCEPTED, "0-0"));
    let first = it.call("PATCH", &upload, &[("content-range", "0-4")], "hello").await;
    assert_eq!((first.status, first.header("range")), (StatusCode::ACCEPTED, "0-4"));
    let again = it.call("PATCH", &upload, &[("content-range", "0-4")], "hello").await;
    assert_eq!((again.status, again.header("range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-4"));
    let status = it.call("GET", &upload, &[], "").await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-4"));
    let digest = Digest::of(b"hello world");
    let wrong = it.call("PUT", &format!("{upload}?digest={digest}"), &[("content-range", "6-9")], "orld").await;
    assert_eq!(wrong.status, StatusCode::RANGE_NOT_SATISFIABLE);
    let done = it.call("PUT", &format!("{upload}?digest={digest}"), &[("content-range", "5-10")], " world").await;
    assert_eq!((done.status, done.header("docker-content-digest")), (StatusCode::CREATED, digest.as_str()));
    assert_eq!(it.call("GET", &upload, &[], "").await.status, StatusCode::NOT_FOUND);

    let blob = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let whole = it.call("GET", &blob, &[], "").await;
    assert_eq!(
        (whole.status, whole.body.as_slice(), whole.header("content-length")),
        (StatusCode::OK, &b"hello world"[..], "11")
    );
    let head = it.call("HEAD", &blob, &[], "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "11", 0));
    let part = it.call("GET", &blob, &[("range", "bytes=3-6")], "").await;
    assert_eq!(
        (part.status, part.body.as_slice(), part.header("content-range")),
        (StatusCode::PARTIAL_CONTENT, &b"lo w"[..], "bytes 3-6/11")
    );

    let cancelled =
        it.call("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[], "").await.header("location").to_owned();
    assert_eq!(it.call("DELETE", &cancelled, &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(it.call("PATCH", &cancelled, &[], "x").await.status, StatusCode::NOT_FOUND);

    let bad = it.call("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[], "").await.header("location").to_owned();
    it.call("PATCH", &bad, &[], "other").await;
    let answer = it.call("PUT", &format!("{bad}?digest={}", Digest::of(b"not this")), &[], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    assert!(!it.has(&Digest::of(b"not this")).await && !it.has(&Digest::of(b"other")).await);
}

#[tokio::test]
async fn a_digest_alone_opens_nothing() {
    let it = Running::new();
    let secret = it.push_blob(REPOSITORY, b"secret layer").await;
    let config = it.push_blob("evil/shop/web", b"{}").await;
    let token = it.token("evil/shop/web", &ALL);
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let blob = format!("/v2/evil/shop/web/blobs/{secret}");
    assert_eq!(it.send("GET", &blob, &headers, "").await.status, StatusCode::NOT_FOUND);
    let mount = format!("/v2/evil/shop/web/blobs/uploads/?mount={secret}&from={REPOSITORY}");
    assert_eq!(it.send("POST", &mount, &headers, "").await.status, StatusCode::ACCEPTED, "an upload begins instead");
    let document = manifest(&config, 2, &secret, 12).to_string();
    let put = it.send("PUT", "/v2/evil/shop/web/manifests/v1", &headers, document).await;
    assert_eq!((put.status, put.code().as_str()), (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(it.send("GET", &blob, &headers, "").await.status, StatusCode::NOT_FOUND);

    let both = Scope::repository("default/shop/api", &ALL).and(Scope::repository(REPOSITORY, &[Action::Pull]));
    let bearer = format!("Bearer {}", it.registry.tokens().issue(&both, LIFE));
    let headers = [("authorization", bearer.as_str())];
    let mount = format!("/v2/default/shop/api/blobs/uploads/?mount={secret}&from={REPOSITORY}");
    assert_eq!(it.send("POST", &mount, &headers, "").await.status, StatusCode::CREATED);
    assert_eq!(
        it.send("GET", &format!("/v2/default/shop/api/blobs/{secret}"), &headers, "").await.body,
        b"secret layer"
    );
}

#[tokio::test]
async fn manifests_tags_and_referrers() {
    let it = Running::new();
    let digest = it.push_image(REPOSITORY, "v1", b"layer", serde_json::json!({})).await;
    for tag in ["v2", "v10", "latest"] {
        it.push_image(REPOSITORY, tag, b"layer", serde_json::json!({})).await;
    }
    let by_tag = it.call("GET", &format!("/v2/{REPOSITORY}/manifests/latest"), &[], "").await;
    assert_eq!(
        (by_tag.header("docker-content-digest"), by_tag.header("content-type")),
        (digest.as_str(), arco_store::images::MANIFEST_TYPE)
    );
    assert_eq!(Digest::of(&by_tag.body), digest);

    let page = it.call("GET", &format!("/v2/{REPOSITORY}/tags/list?n=3"), &[], "").await;
    assert_eq!(page.json()["tags"], serde_json::json!(["latest", "v1", "v10"]));
    let next = page.header("link").split(['<', '>']).nth(1).unwrap().to_owned();
    let page = it.call("GET", &next, &[], "").await;
    assert_eq!((page.json()["tags"].clone(), page.header("link")), (serde_json::json!(["v2"]), ""));
    let none = it.call("GET", &format!("/v2/{REPOSITORY}/tags/list?n=0"), &[], "").await;
    assert_eq!(none.json()["tags"], serde_json::json!([]));

    let subject = serde_json::json!({ "mediaType": arco_store::images::MANIFEST_TYPE, "digest": digest, "size": 1 });
    let extra =
        serde_json::json!({ "subject": subject, "artifactType": "application/sbom", "annotations": { "a": "b" } });
    let about = it.push_image(REPOSITORY, "", b"about", extra).await;
    let referrers =
        it.call("GET", &format!("/v2/{REPOSITORY}/referrers/{digest}?artifactType=application/sbom"), &[], "").await;
    assert_eq!(referrers.header("oci-filters-applied"), "artifactType");
    let found = &referrers.json()["manifests"];
    assert_eq!(
        (found.as_array().unwrap().len(), &found[0]["digest"], &found[0]["annotations"]["a"]),
        (1, &about.as_str().into(), &"b".into())
    );
    let others = it.call("GET", &format!("/v2/{REPOSITORY}/referrers/{digest}?artifactType=x/y"), &[], "").await;
    assert_eq!(others.json()["manifests"], serde_json::json!([]));

    assert_eq!(
        it.call("DELETE", &format!("/v2/{REPOSITORY}/manifests/v1"), &[], "").await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(it.call("GET", &format!("/v2/{REPOSITORY}/manifests/v1"), &[], "").await.status, StatusCode::NOT_FOUND);
    let layer = format!("/v2/{REPOSITORY}/blobs/{}", Digest::of(b"layer"));
    assert_eq!(it.call("DELETE", &layer, &[], "").await.code(), "DENIED", "a manifest names it");
    assert_eq!(
        it.call("DELETE", &format!("/v2/{REPOSITORY}/manifests/{digest}"), &[], "").await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(
        it.call("GET", &format!("/v2/{REPOSITORY}/manifests/latest"), &[], "").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(it.call("DELETE", &layer, &[], "").await.status, StatusCode::ACCEPTED);
    assert_eq!(it.call("GET", &layer, &[], "").await.status, StatusCode::NOT_FOUND);
}
