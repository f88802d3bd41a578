//! The logs over HTTP: JSON, server-sent events, WebSocket, errors.

use super::*;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use tokio_tungstenite::tungstenite::Message;
use tower::ServiceExt as _;

async fn get(logs: &Running, method: &str, path: &str, accept: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).header("accept", accept).body(Body::empty()).unwrap();
    let response = logs.log.router().oneshot(request).await.unwrap();
    let status = response.status();
    let body = tokio::time::timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn json_events_and_errors() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let LogStream::Component { id } = component(1) else { unreachable!() };
    logs.sink.append_durably(component(1), lines(0..5)).await;
    let path = format!("/streams/component/{id}");

    let (status, body) = get(&logs, "GET", &format!("{path}?tail=2&grep=line"), "*/*").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["more"], body["lines"].as_array().unwrap().len()), (StatusCode::OK, &true.into(), 2));
    assert_eq!(body["lines"][1], serde_json::json!({ "at": 1004, "origin": "stdout", "text": "line 4" }));

    let (_, body) = get(&logs, "GET", &format!("{path}?tail=2&own=true"), "*/*").await;
    assert!(body.contains("\"lines\":[]"), "{body}");

    let (_, body) = get(&logs, "GET", &format!("{path}?since_ms=1003"), "text/event-stream").await;
    let names: Vec<_> = body.lines().filter_map(|it| it.strip_prefix("event: ")).collect();
    assert_eq!(names, ["line", "line", "end"], "{body}");
    assert!(body.contains("id: 4"), "{body}");

    for (path, status) in [
        ("/streams/component/nonsense".to_owned(), StatusCode::BAD_REQUEST),
        (format!("{path}?tail=x"), StatusCode::BAD_REQUEST),
        (format!("{path}?no=1"), StatusCode::BAD_REQUEST),
        (format!("{path}?follow=maybe"), StatusCode::BAD_REQUEST),
        (format!("{path}?own=maybe"), StatusCode::BAD_REQUEST),
        (format!("{path}?instance=../x"), StatusCode::BAD_REQUEST),
        (format!("/streams/other/{id}"), StatusCode::NOT_FOUND),
    ] {
        let (found, body) = get(&logs, "GET", &path, "*/*").await;
        assert_eq!(found, status, "{path}");
        assert!(body.contains("\"advice\""), "{body}");
    }
    assert_eq!(get(&logs, "DELETE", &path, "*/*").await.0, StatusCode::NO_CONTENT);
    let (_, body) = get(&logs, "GET", &path, "*/*").await;
    assert!(body.contains("\"lines\":[]"), "{body}");
    logs.stop().await;
}

/// The next message that is no sign of life.
async fn said<S>(socket: &mut S) -> Message
where
    S: futures_util::Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    loop {
        let message = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap().unwrap().unwrap();
        if !message.is_ping() {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_gets_what_is_there_and_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let LogStream::Operation { id } = operation(1) else { unreachable!() };
    logs.sink.append_durably(operation(1), lines(0..2)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, logs.log.router()).into_future());
    let (mut socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/streams/operation/{id}?follow=true")).await.unwrap();
    let mut texts = Vec::new();
    for round in 0..2 {
        for _ in 0..2 {
            let message = said(&mut socket).await;
            let line: LogLine = serde_json::from_str(message.to_text().unwrap()).unwrap();
            texts.push(line.text);
        }
        if round == 0 {
            logs.sink.append(operation(1), lines(2..4)).await;
        }
    }
    assert_eq!(texts, ["line 0", "line 1", "line 2", "line 3"]);
    logs.stop().await;
    assert!(said(&mut socket).await.is_close());
    server.abort();
}
