//! h2spec, the conformance tests of HTTP/2 (RFC 9113) and HPACK (RFC 7541), against the gateway.

use crate::kit::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where programs for tests are kept between runs.
const TOOLS: &str = "/var/cache/arco/test-tools";
const MODULE: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";

/// h2spec, made from its Go module if it is not there; `None` when it cannot be had here.
fn h2spec() -> Option<PathBuf> {
    let path = Path::new(TOOLS).join("h2spec");
    if path.exists() {
        return Some(path);
    }
    std::fs::create_dir_all(TOOLS).ok()?;
    let made = Command::new("go").args(["install", MODULE]).env("GOBIN", TOOLS).status();
    made.is_ok_and(|it| it.success()).then_some(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_what_its_standard_says() {
    let Some(h2spec) = tokio::task::spawn_blocking(h2spec).await.unwrap() else {
        eprintln!("SKIPPED: conformance of HTTP/2: there is no Go to make h2spec with (`go install {MODULE}`)");
        return;
    };
    let (folder, _) = certified(&["localhost"]);
    let yaml = file(&[echo().await])
        .replace("a.test", "localhost")
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        + "certificates: [{hosts: [localhost], certificate_file: c.pem, key_file: c.key}]\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let port = gateway.addresses["tls"].port().to_string();
    let report = gateway.folder.path().join("report.xml");
    let run = || {
        let mut command = Command::new(&h2spec);
        command.args(["--tls", "--insecure", "--host", "localhost", "--port", &port, "--timeout", "30"]);
        command.arg("--junit-report").arg(&report);
        tokio::task::spawn_blocking(move || command.output())
    };
    // It judges the first frame that comes: on a busy machine the answer may be whole before its next frame is sent, and
    // the stream then ends in another way that RFC 9113 allows (8.1). What is wrong indeed is wrong each time.
    let mut output = run().await.unwrap().unwrap();
    for _ in 0..2 {
        if output.status.success() {
            break;
        }
        output = run().await.unwrap().unwrap();
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let summary = said.lines().rev().find(|it| it.contains("tests,")).unwrap_or_default();
    eprintln!("h2spec: {summary}");
    assert!(output.status.success(), "{said}");
    // A run that tested nothing proves nothing.
    let tests = summary.split(' ').next().and_then(|it| it.parse::<u32>().ok()).unwrap_or_default();
    assert!(tests >= 140 && summary.contains(" 0 failed"), "{said}");
}
