//! Builds with `builder.egress = "allowlist"`: listed hosts by name through the platform's proxy, and no other way out.

use crate::behave::{EXECUTABLE, dockerfile, good, says};
use crate::neighbour::Neighbour;
use arco_testkit::{Options, Platform, is_root, until};

#[test]
fn builds_reach_listed_hosts_only() {
    if !is_root() {
        return;
    }
    let neighbour = Neighbour::new();
    neighbour.repository("team/page.git", &[("index.html", "from the list")]);
    let (port, _) = neighbour.https("ada", "token");
    let (unlisted, _) = neighbour.https("ada", "token");
    let env = vec![
        ("ARCO_BUILDER__EGRESS", "allowlist".to_owned()),
        ("ARCO_BUILDER__ALLOWED_HOSTS", format!("[\"{}:{port}\", \"private.invalid\"]", neighbour.address)),
        ("ARCO_BUILDER__ALLOWED_NETWORKS", neighbour.network()),
        ("SSL_CERT_FILE", neighbour.trust().display().to_string()),
    ];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });

    // Git over the proxy, with a credential.
    let host = format!("https://{}:{port}", neighbour.address);
    let token = neighbour.folder.path().join("token");
    std::fs::write(&token, "token").unwrap();
    let at = format!("@{}", token.display());
    good(&platform, &["credential", "set", &host, "--user", "ada", "--token", &at]);
    good(&platform, &["deploy", &format!("{host}/team/page.git"), "--app", "demo", "--component", "listed"]);
    assert_eq!(platform.get("listed-demo.test.localhost", "/").unwrap().body, "from the list");

    // What is not listed is refused, and the error names host and setting.
    let other = format!("https://{}:{unlisted}/team/page.git", neighbour.address);
    let refused = platform.json(&["deploy", &other, "--app", "demo", "--component", "unlisted"]);
    says(&refused["message"], &[&format!("{}:{unlisted}", neighbour.address)]);
    says(&refused["advice"], &["builder.allowed_hosts"]);

    // There is no way around the proxy: no address, no name service; the proxy itself is given to clients.
    let looks = format!(
        "RUN (timeout 3 bash -c 'exec 3<>/dev/tcp/{0}/{port}' && echo REACHED direct); \
         (timeout 3 bash -c 'exec 3<>/dev/tcp/1.1.1.1/443' && echo REACHED public); \
         (getent hosts deb.debian.org && echo REACHED names); \
         echo proxy ${{https_proxy#*@}}; apt-get -o Acquire::Retries=0 update; echo looked; exit 3",
        neighbour.address
    );
    let failed = platform.json(&[
        "deploy",
        dockerfile(&platform, "around", &looks).to_str().unwrap(),
        "--app",
        "demo",
        "--component",
        "around",
    ]);
    assert_eq!(failed["code"], "egress_refused", "{failed}");
    let log = until("the log of the build", 60, || {
        let log = platform.arco(&["logs", "--operation", failed["operation"].as_str().unwrap()]).stdout;
        let refused = |it: &str| it.contains("refused by builder.allowed_hosts") && it.contains(":80");
        (log.contains("\nlooked\n") && log.lines().any(refused)).then_some(log)
    });
    assert!(!log.lines().any(|it| it.starts_with("REACHED")), "{log}");
    good(&platform, &["delete", "demo", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
