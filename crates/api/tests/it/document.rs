//! The OpenAPI document, and answers that no route gives.

use crate::platform::{Platform, WEB};
use arco_api::server::openapi;
use arco_api::wire::SpecPatch;
use arco_daemon::pki::Subject;
use std::collections::BTreeSet;

/// Every call of the contract. A route that is not here, or a line here without a route, is a failure: whoever changes
/// the API says so.
const CALLS: &str = "
GET /healthz
GET /metrics
GET /openapi.json
GET /v1/certificates
GET /v1/operations/{id}
GET /v1/operations/{id}/log
GET /v1/registry/token
GET /v1/stacks
GET /v1/tenants
GET /v1/tenants/{tenant}/applications
GET /v1/tenants/{tenant}/applications/{application}
GET /v1/tenants/{tenant}/applications/{application}/components/{component}
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/exec
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/instances
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/log
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/port-forward
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/revisions
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/routes
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/run
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/secrets
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/streams
GET /v1/tenants/{tenant}/applications/{application}/components/{component}/volumes
GET /v1/tenants/{tenant}/blobs/{digest}
GET /v1/tenants/{tenant}/certificates
GET /v1/tenants/{tenant}/credentials
GET /v1/tenants/{tenant}/operations
GET /v1/tenants/{tenant}/routes
GET /v1/tenants/{tenant}/streams
GET /v1/tenants/{tenant}/storage
GET /v1/tenants/{tenant}/uploads/{digest}
GET /v1/tenants/{tenant}/volumes
GET /v1/volume-classes
GET /v1/whoami
DELETE /v1/certificates/{name}
DELETE /v1/stacks/{name}
DELETE /v1/tenants/{tenant}
DELETE /v1/tenants/{tenant}/applications/{application}
DELETE /v1/tenants/{tenant}/applications/{application}/components/{component}
DELETE /v1/tenants/{tenant}/applications/{application}/components/{component}/routes/{id}
DELETE /v1/tenants/{tenant}/applications/{application}/components/{component}/secrets/{name}
DELETE /v1/tenants/{tenant}/applications/{application}/components/{component}/streams/{id}
DELETE /v1/tenants/{tenant}/certificates/{name}
DELETE /v1/tenants/{tenant}/credentials
DELETE /v1/tenants/{tenant}/volumes/{id}
PATCH /v1/tenants/{tenant}
PATCH /v1/tenants/{tenant}/applications/{application}/components/{component}
POST /v1/certificates
POST /v1/gateway/explain
POST /v1/gateway/follow
POST /v1/operations/{id}/cancel
POST /v1/tenants
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/deploy
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/restart
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/rollback
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/routes
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/scale
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/start
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/stop
POST /v1/tenants/{tenant}/applications/{application}/components/{component}/streams
POST /v1/tenants/{tenant}/applications/{application}/export
POST /v1/tenants/{tenant}/applications/{application}/import
POST /v1/tenants/{tenant}/certificates/{name}/renew
POST /v1/tenants/{tenant}/uploads
PUT /v1/stacks/{name}
PUT /v1/tenants/{tenant}/applications/{application}
PUT /v1/tenants/{tenant}/applications/{application}/components/{component}/routes/{id}
PUT /v1/tenants/{tenant}/applications/{application}/components/{component}/secrets/{name}
PUT /v1/tenants/{tenant}/blobs/{digest}
PUT /v1/tenants/{tenant}/certificates/{name}
PUT /v1/tenants/{tenant}/credentials
";

fn document() -> serde_json::Value {
    serde_json::to_value(openapi()).unwrap()
}

#[test]
fn the_document_names_every_call_and_no_other() {
    let document = document();
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        found.extend(item.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let expected: BTreeSet<String> = CALLS.lines().filter(|it| !it.is_empty()).map(str::to_owned).collect();
    assert_eq!(found, expected);
}

/// Every `$ref` leads to a schema.
#[test]
fn the_document_is_whole() {
    let document = document();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            if let Some(serde_json::Value::String(reference)) = fields.get("$ref") {
                into.push(reference.clone());
            }
            fields.values().for_each(|it| collect(it, into));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|it| collect(it, into)),
        _ => {}
    }
}

#[tokio::test]
async fn every_error_is_a_problem_document() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let leaf = platform.pki.client(&Subject::admin()).unwrap();
    let tls = arco_daemon::tls::client_config(platform.pki.authority_pem(), Some(&leaf)).unwrap();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
    let web = "/v1/tenants/default/applications/shop/components/web";
    let rows = [
        ("GET", "/nothing".to_owned(), "", 404, "path_unknown"),
        ("POST", "/v1/whoami".to_owned(), "", 405, "method_not_allowed"),
        ("GET", "/v1/tenants/NO/applications".to_owned(), "", 400, "name_invalid"),
        ("GET", "/v1/tenants/default/applications?limit=x".to_owned(), "", 400, "query_invalid"),
        ("GET", "/v1/tenants/default/applications?cursor=x".to_owned(), "", 400, "cursor_invalid"),
        ("PATCH", web.to_owned(), "{", 400, "body_invalid"),
        ("PATCH", web.to_owned(), r#"{"nonsense":1}"#, 400, "body_invalid"),
        ("POST", format!("{web}/deploy"), "", 400, "body_invalid"),
        ("POST", format!("{web}/deploy"), r#"{"source":{"kind":"git","url":"ext::sh -c id"}}"#, 400, "git_url_refused"),
        ("GET", format!("{web}/exec?argv=id"), "", 400, "websocket_expected"),
        ("GET", "/v1/registry/token?repository=nobody".to_owned(), "", 200, ""),
        ("GET", "/v1/registry/token".to_owned(), "", 400, "query_invalid"),
        ("GET", "/healthz".to_owned(), "", 200, ""),
        ("GET", "/metrics".to_owned(), "", 200, ""),
        ("GET", "/openapi.json".to_owned(), "", 200, ""),
    ];
    for (method, path, body, status, code) in rows {
        let url = format!("https://{}{path}", platform.api);
        let answer = http.request(method.parse().unwrap(), url).body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        let kind = answer.headers().get("content-type").map(|it| it.to_str().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        if status >= 400 {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{method} {path}");
            let problem: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(problem["code"], code, "{method} {path}: {text}");
            assert!(problem["message"].as_str().is_some_and(|it| !it.is_empty()), "{text}");
            assert!(problem["advice"].as_str().is_some_and(|it| !it.is_empty()), "{text}");
        }
    }
}
