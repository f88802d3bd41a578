//! A static site as its visitors see it.

use crate::behave::{EXECUTABLE, good};
use arco_testkit::{Platform, is_root, until};

/// What a browser decides by: body, entity tag, how long it may keep the page without asking.
fn page(platform: &Platform) -> (String, String, String) {
    let answer = platform.get("site.demo.test.localhost", "/").unwrap();
    let field = |name: &str| {
        let lines = answer.head.lines().filter_map(|it| it.split_once(": "));
        let mut found = lines.filter(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1.to_owned());
        found.next().unwrap_or_default()
    };
    (answer.body.clone(), field("etag"), field("cache-control"))
}

#[test]
fn browsers_show_the_new_site_after_a_deploy() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let mut tags = Vec::new();
    for text in ["<h1>one</h1>", "<h1>two</h1>"] {
        let folder = platform.folder("site", &[("index.html", text)]);
        good(&platform, &["deploy", folder.to_str().unwrap(), "--app", "demo", "--component", "site"]);
        let (body, tag, keep) = page(&platform);
        assert_eq!((body.as_str(), keep.as_str()), (text, "no-cache"), "{tag}");
        tags.push(tag);
    }
    assert!(!tags[0].is_empty() && tags[0] != tags[1], "files of one length are told apart: {tags:?}");
    good(&platform, &["delete", "demo", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
}

#[test]
fn dockerfiles_for_the_official_web_server_run() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let file = "FROM nginx:alpine\nCOPY index.html /usr/share/nginx/html/\nEXPOSE 80\n";
    let folder = platform.folder("copied", &[("Dockerfile", file), ("index.html", "<h1>copied</h1>")]);
    good(&platform, &["deploy", folder.to_str().unwrap(), "--app", "demo", "--component", "copied"]);
    assert_eq!(platform.get("copied.demo.test.localhost", "/").unwrap().body, "<h1>copied</h1>");
    platform.get("copied.demo.test.localhost", "/asked-for").unwrap();
    until("the request in the log", 30, || {
        platform.arco(&["logs", "demo/copied"]).stdout.contains("GET /asked-for").then_some(())
    });
    good(&platform, &["deploy", "image:nginx", "--app", "demo", "--component", "plain"]);
    let answer = platform.get("plain.demo.test.localhost", "/").unwrap();
    assert!(answer.body.contains("Welcome to nginx"), "{}", answer.body);
    good(&platform, &["delete", "demo", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
}
