//! Bytes that are passed on, on ports for TCP and as TLS unread: clients and endpoints that end, refuse or vanish.

use crate::kit::*;
use tokio::io::AsyncWriteExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_within_the_first_message_holds_nobody_up() {
    let yaml = format!(
        "threads: 1\n\
         listeners: [{{name: web, address: \"127.0.0.1:0\", protocol: http}}, \
         {{name: tls, address: \"127.0.0.1:0\", protocol: https}}]\n\
         upstreams: [{{name: t, endpoints: [\"{}\"]}}]\n\
         routes: [{{hosts: [t.test], targets: [{{upstream: t}}], tls: {{certificate: passthrough}}}}, \
         {{hosts: [a.test], answer: {{status: 200, body: here}}}}]\n",
        echo().await
    );
    let gateway = Gateway::start(&yaml).await;
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", b"GET"] {
        let mut wire = Wire::connect(gateway.addresses["tls"]).await;
        wire.send(begun).await;
        wire.stream.shutdown().await.unwrap();
        assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "here", "{begun:?}");
        // It is let go, with an alert or without one.
        wire.rest().await;
        assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "here", "{begun:?}");
    }
}
