//! Requests that are nearly good, changed at random, on both paths: each ends with an answer or the end of its connection,
//! what reaches an endpoint is written as every reader reads it, and nobody else notices.

use crate::kit::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest::{collection, prop_assert, sample};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt as _;

const HOSTS: [&str; 2] = ["a.test", "b.test"];

/// Requests with nothing wrong; HOST stands for the host.
const GOOD: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "GET /a/../b?x=%20 HTTP/1.1\r\nHost: HOST:80\r\nAccept: */*\r\nCookie: a=1; b=2\r\n\r\n",
    "HEAD /x HTTP/1.1\r\nHost: HOST\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "PUT /y HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "GET http://HOST/abs HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: HOST\r\n\r\n",
];

/// What is put in: separators, pieces of framing, bytes that are no text.
const PIECES: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    "\u{b}",
    ":",
    ",",
    ";",
    "\"",
    "0",
    "5",
    "-",
    "_",
    "%",
    "%00",
    "\u{fc}",
    "\u{212a}",
    "Host: b.test\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: x\r\n",
    "Connection: close, content-length\r\n",
    "X: y\r\n z\r\n",
    "HTTP/1.1",
    "chunked",
    "ffffffffffffffff\r\n",
];

/// One change: how, where (of the length, in 65536ths), how much, and what.
type Change = (u8, u16, u8, &'static str);

fn changed(bytes: &mut Vec<u8>, (how, at, length, what): Change) {
    let at = usize::from(at) * bytes.len() / 65_536;
    let end = (at + usize::from(length)).min(bytes.len());
    match how {
        0 => drop(bytes.splice(at..at, what.bytes())),
        1 => drop(bytes.splice(at..end, what.bytes())),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let again = bytes[at..end].to_vec();
            drop(bytes.splice(at..at, again));
        }
        4 => bytes[at..end].reverse(),
        _ => bytes.truncate(at),
    }
}

/// Fields of a head by this name, as a generous reader finds them.
fn fields<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let lines = head.split(['\r', '\n']).skip(1).filter_map(|it| it.split_once(':'));
    lines.filter(|it| it.0.trim().eq_ignore_ascii_case(name)).map(|it| it.1.trim()).collect()
}

/// Why two readers could cut a request with this head in another way.
fn is_ambiguous(head: &str) -> Option<&'static str> {
    let (lengths, codings) = (fields(head, "content-length"), fields(head, "transfer-encoding"));
    let bare = head.replace("\r\n", "").contains(['\r', '\n', '\0']);
    let wrong = [
        (bare, "a bare CR, LF or NUL"),
        (fields(head, "host").len() != 1, "not one host"),
        (lengths.len() + codings.len() > 1, "framed twice"),
        (!lengths.iter().all(|it| it.bytes().all(|it| it.is_ascii_digit())), "a length"),
        (!codings.iter().all(|it| *it == "chunked"), "a coding"),
        (head.contains("\r\n ") || head.contains("\r\n\t"), "a folded line"),
    ];
    wrong.into_iter().find(|it| it.0).map(|it| it.1)
}

#[test]
fn whatever_is_changed_in_a_request_harms_itself_alone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let writer = Arc::clone(&heads);
    let gateway = runtime.block_on(async {
        let address = origin(move |mut wire| {
            let heads = Arc::clone(&writer);
            async move {
                while let Some(head) = wire.until("\r\n\r\n").await {
                    heads.lock().unwrap().push(head.clone());
                    let is_head = head.starts_with("HEAD ");
                    if is_ambiguous(&head).is_some() || wire.body_of(head).await.is_none() {
                        break;
                    }
                    wire.send(if is_head { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" } else { OK }).await;
                }
            }
        })
        .await;
        let general = "routes: [{hosts: [b.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, ";
        Gateway::start(&file(&[address]).replace("routes: [", general)).await
    });
    let change = (0u8..6, proptest::num::u16::ANY, 1u8..20, sample::select(PIECES));
    let requests = (sample::select(GOOD), collection::vec(change, 1..5));
    let config = Config { cases: 300, failure_persistence: None, max_shrink_time: 10_000, ..Config::default() };
    // The same requests each time: what fails here fails again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = runner.run(&requests, |(good, changes)| {
        for host in HOSTS {
            let mut bytes = good.replace("HOST", host).into_bytes();
            changes.iter().for_each(|it| changed(&mut bytes, *it));
            let answers = runtime.block_on(async {
                let mut wire = Wire::connect(gateway.web()).await;
                // It may be refused before all of it is sent. Nothing comes after it: whoever waits for more ends as well.
                let _ = wire.stream.write_all(&bytes).await;
                let _ = wire.stream.shutdown().await;
                wire.rest().await
            });
            let sent = String::from_utf8_lossy(&bytes).into_owned();
            let answers = String::from_utf8_lossy(&answers).into_owned();
            prop_assert!(answers.is_empty() || answers.starts_with("HTTP/1."), "{sent:?}: {answers:?}");
            let seen = std::mem::take(&mut *heads.lock().unwrap());
            for head in seen {
                prop_assert!(is_ambiguous(&head).is_none(), "{:?}: {sent:?} became {head:?}", is_ambiguous(&head));
            }
        }
        Ok(())
    });
    checked.unwrap_or_else(|it| panic!("{it}"));
    for host in HOSTS {
        assert_eq!(runtime.block_on(get(gateway.web(), host, "/")).status(), 200, "{host}");
    }
}
