//! Dockerfiles: what their steps leave in the image, what is cached, and which errors people get.

use crate::harness::{Harness, can_run};
use arco_model::operation::OperationStatus;
use arco_model::spec::{Command, ComponentSpec};
use std::path::Path;

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

const FILE: &str = r#"ARG BASE=debian:12
FROM ${BASE} AS first
ARG COLOUR=red
RUN mkdir -p /out/deep && echo "$COLOUR" > /out/deep/colour && ln -s colour /out/deep/link

FROM debian:12
ENV NAME="the value" OTHER=$NAME
WORKDIR /srv/app
COPY --from=first /out/ ./out/
COPY *.txt docs/ ./
COPY --chmod=755 --chown=www-data:33 tool /bin/
COPY <<EOF greeting
hello ${NAME:-nobody} ${OTHER:-nothing}
EOF
RUN <<EOF
set -e
test "$(cat out/deep/link)" = red
test -x /usr/bin/tool && test "$(stat -c %u:%g /usr/bin/tool)" = 33:33
test -L /bin
test "$(cat greeting)" = "hello the value nothing"
test -f a.txt && test -f inner.md && test ! -e b.txt && test ! -e docs
EOF
EXPOSE 7000 7001/udp
USER www-data
ENTRYPOINT ["tool"]
CMD ["--all", "$NAME"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn steps_make_the_image_and_are_cached() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let source = tempfile::tempdir().unwrap();
    let files = [
        ("Dockerfile", FILE),
        ("a.txt", "a"),
        ("b.txt", "b"),
        ("docs/inner.md", "i"),
        ("tool", "#!/bin/sh\n"),
        (".dockerignore", "b.txt\n"),
    ];
    write(source.path(), &files);
    let (id, revision, _) = harness.built("docker", source.path()).await;
    let defaults = &revision.defaults;
    assert_eq!(defaults.command, Some(Command::Exec(vec!["tool".into(), "--all".into(), "$NAME".into()])));
    assert_eq!(
        (defaults.user.as_str(), defaults.working_dir.as_str(), defaults.env["NAME"].as_str()),
        ("www-data", "/srv/app", "the value")
    );
    assert_eq!(defaults.ports.iter().map(|it| it.port).collect::<Vec<_>>(), [7000, 7001]);
    let ran = harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(ran, 2);
    // Only what follows the changed file runs again.
    write(source.path(), &[("a.txt", "changed")]);
    harness.set_source(&id, harness.upload(source.path()).await).await;
    assert_eq!(harness.deploy(&id).await.status, OperationStatus::RollingOut);
    assert_eq!(harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst), ran + 1);
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_line() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    for (at, (text, code, part)) in [
        ("FROM debian:12\n\nRUN echo oops >&2; exit 3\n", "step_failed", "line 3"),
        ("FROM debian:12\nCOPY none /x\n", "dockerfile_invalid", "`none` was not found"),
        ("FROM redis:7\n", "image_unknown", "line 1"),
        ("FROM debian:12\nFLY away\n", "dockerfile_invalid", "`FLY`"),
        ("FROM debian:12\nCOPY --from=other/shop/web /x /x\n", "image_denied", "line 2"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = tempfile::tempdir().unwrap();
        write(source.path(), &[("Dockerfile", text)]);
        let id = harness.component(&format!("bad-{at}"), ComponentSpec::new(harness.upload(source.path()).await)).await;
        let operation = harness.deploy(&id).await;
        let problem = operation.problem.unwrap();
        assert_eq!((operation.status, problem.code.as_str()), (OperationStatus::Failed, code), "{text}: {problem:?}");
        assert!(problem.message.contains(part) && !problem.advice.is_empty(), "{text}: {problem:?}");
    }
    harness.stop().await;
}
