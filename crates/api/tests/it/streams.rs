//! Logs handed over to their role, and programs in instances.

use crate::platform::{Platform, WEB, code};
use arco_api::client::{ExecCall, ExecStream, ForwardCall, LogOf};
use arco_api::wire::{Channel, ExecControl, Frame, LogQuery, SpecPatch};
use arco_daemon::pki::Subject;
use arco_model::plan::OneShotNetwork;
use futures_util::StreamExt as _;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(180);

fn call<'a>(argv: &'a [String], one_off: bool, terminal: Option<(u16, u16)>) -> ExecCall<'a> {
    ExecCall { tenant: "default", name: WEB, one_off, argv, terminal, input: !one_off, instance: None }
}

#[tokio::test]
async fn logs_come_from_the_role_that_keeps_them() {
    let platform = Platform::start().await;
    let operation = platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    let component = platform.component(WEB).await;
    let query = LogQuery { tail: Some(5), grep: Some("a b".into()), ..LogQuery::default() };
    let answer = platform.client.log(&LogOf::Component { tenant: "default", name: WEB }, &query).await.unwrap();
    assert_eq!(answer.lines[0].text, format!("component {} tail=5&grep=a+b", component.id));
    let answer = platform.client.log(&LogOf::Operation(&operation.id), &LogQuery::default()).await.unwrap();
    assert_eq!(answer.lines[0].text.trim(), format!("operation {}", operation.id));
    assert_eq!(
        code(platform.client.log(&LogOf::Operation("00000000000000000000"), &LogQuery::default()).await),
        "not_found"
    );
}

#[tokio::test]
async fn a_web_socket_reaches_the_role_that_keeps_logs() {
    let platform = Platform::start().await;
    let operation = platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    let leaf = platform.pki.client(&Subject::admin()).unwrap();
    let tls = arco_daemon::tls::client_config(platform.pki.authority_pem(), Some(&leaf)).unwrap();
    let stream = TcpStream::connect(&platform.api).await.unwrap();
    let host = ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(host, stream).await.unwrap();
    let url = format!("wss://{}/v1/operations/{}/log?follow=true", platform.api, operation.id);
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), format!("operation {} follow=true", operation.id));
}

/// Everything of one program: standard output, standard error, the last control.
async fn collect(platform: &Platform, call: &ExecCall<'_>, input: &[Frame]) -> (String, String, ExecControl) {
    until_the_end(platform.client.exec(call).await.unwrap(), input).await
}

async fn until_the_end((mut sender, mut receiver): ExecStream, input: &[Frame]) -> (String, String, ExecControl) {
    for frame in input {
        assert!(sender.send(frame).await);
    }
    let (mut out, mut err) = (String::new(), String::new());
    let read = async {
        while let Some(frame) = receiver.next().await {
            match frame.unwrap() {
                Frame::Bytes(Channel::Stdout, bytes) => out.push_str(std::str::from_utf8(&bytes).unwrap()),
                Frame::Bytes(Channel::Stderr, bytes) => err.push_str(std::str::from_utf8(&bytes).unwrap()),
                Frame::Control(control) => return control,
                other => panic!("{other:?}"),
            }
        }
        panic!("closed without an end");
    };
    let control = tokio::time::timeout(PATIENCE, read).await.unwrap();
    (out, err, control)
}

#[tokio::test]
async fn a_program_in_an_instance_has_three_pipes_a_size_and_an_exit_status() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let argv = ["tr".to_owned()];
    let stdin = |text: &'static str| Frame::Bytes(Channel::Stdin, text.into());
    let input = [stdin("he"), stdin("llo"), Frame::Control(ExecControl::Resize { columns: 100, rows: 30 }), stdin("")];
    let (out, err, control) = collect(&platform, &call(&argv, false, Some((80, 24))), &input).await;
    assert_eq!((out.as_str(), err.as_str(), control), ("HELLO 100x30", "tr", ExecControl::Exit { status: 7 }));
}

#[tokio::test]
async fn a_one_off_runs_what_serves_with_its_variables() {
    let platform = Platform::start().await;
    let mut patch = SpecPatch { env: [("A".to_owned(), Some("1".to_owned()))].into(), ..SpecPatch::default() };
    patch.secrets.insert("S".into(), Some(arco_api::wire::SecretText("sealed".into())));
    let component = platform.running(WEB, patch).await;
    let argv = ["migrate".to_owned(), "up".to_owned()];
    let (out, err, control) = collect(&platform, &call(&argv, true, None), &[]).await;
    assert_eq!((out.as_str(), err.as_str(), control), ("migrate up\n", "done\n", ExecControl::Exit { status: 3 }));
    let ran = platform.orchestrator.ran.lock().unwrap().remove(0);
    assert_eq!((ran.component, ran.network), (component.id, OneShotNetwork::Instance));
    assert_eq!((ran.env["A"].as_str(), ran.env["S"].as_str(), ran.env["PORT"].as_str()), ("1", "sealed", "8080"));
}

#[tokio::test]
async fn a_driver_that_cannot_connect_input_says_so() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let argv = ["sh".to_owned()];
    for asked in [call(&argv, true, Some((80, 24))), ExecCall { input: true, ..call(&argv, true, None) }] {
        let (_, _, control) = collect(&platform, &asked, &[]).await;
        assert!(matches!(control, ExecControl::Error(body) if body.code == "not_supported"));
    }
}

#[tokio::test]
async fn a_refusal_arrives_while_input_is_sent() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let argv = ["tar".to_owned()];
    let input: Vec<Frame> = (0..128).map(|_| Frame::Bytes(Channel::Stdin, vec![0_u8; 65_536].into())).collect();
    let (_, _, control) = collect(&platform, &ExecCall { input: true, ..call(&argv, true, None) }, &input).await;
    assert!(matches!(control, ExecControl::Error(body) if body.code == "not_supported"));
}

#[tokio::test]
async fn the_end_of_a_forwarded_connection_arrives_while_input_is_sent() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let call = |port| ForwardCall { tenant: "default", name: WEB, port, instance: None };
    assert_eq!(code(platform.client.forward(&call(9)).await.map(drop)), "port_refused");
    let input: Vec<Frame> = (0..128).map(|_| Frame::Bytes(Channel::Stdin, vec![0_u8; 65_536].into())).collect();
    let (out, _, control) = until_the_end(platform.client.forward(&call(8080)).await.unwrap(), &input).await;
    let ExecControl::Error(body) = control else { panic!("{control:?}") };
    assert_eq!((out.as_str(), body.message.as_str()), ("answer", "it was reset"));
}

#[tokio::test]
async fn a_program_needs_an_instance_and_a_name() {
    let platform = Platform::start().await;
    let argv = ["sh".to_owned()];
    let refused = async |call: &ExecCall<'_>| code(platform.client.exec(call).await.map(drop));
    assert_eq!(refused(&call(&argv, false, None)).await, "not_found");
    platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    assert_eq!(refused(&call(&argv, false, None)).await, "nothing_runs");
    assert_eq!(refused(&call(&argv, true, None)).await, "no_revision");
    assert_eq!(refused(&call(&[], false, None)).await, "exec_invalid");
    let other = ExecCall { instance: Some("00000000000000000000"), ..call(&argv, false, None) };
    assert_eq!(refused(&other).await, "instance_not_running");
    let usage = platform.client.instances("default", WEB).await.unwrap();
    assert!(usage.is_empty());
}
