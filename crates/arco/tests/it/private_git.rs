//! Private repositories over https and ssh: fetched with a credential that nothing else ever shows.

use crate::behave::{EXECUTABLE, good, says};
use crate::neighbour::{Neighbour, base64};
use arco_testkit::{Options, Platform, is_root, until};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const TOKEN: &str = "tok3n-that-nobody-may-see";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Files below a folder that hold one of the words.
fn holding(folder: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for word in words {
        let done =
            Command::new("grep").args(["-rlaF", "--exclude-dir=blobs", "--", word]).arg(folder).output().unwrap();
        found.extend(String::from_utf8_lossy(&done.stdout).lines().map(|it| format!("{word}: {it}")));
    }
    found
}

/// Process lists that hold the word while `work` runs.
fn shown_in_process_lists(word: &str, work: impl FnOnce()) -> BTreeSet<String> {
    let (done, mut found) = (AtomicBool::new(false), BTreeSet::new());
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut found = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if line.contains(word) {
                        found.insert(line);
                    }
                }
            }
            found
        });
        work();
        done.store(true, Ordering::Relaxed);
        found = looking.join().unwrap();
    });
    found
}

#[test]
fn private_repositories_are_fetched_and_credentials_stay_hidden() {
    if !is_root() {
        return;
    }
    if !Path::new("/usr/sbin/sshd").exists() {
        eprintln!("SKIPPED: needs openssh-server");
        return;
    }
    let neighbour = Neighbour::new();
    let env = vec![
        ("ARCO_BUILDER__ALLOWED_NETWORKS", neighbour.network()),
        ("SSL_CERT_FILE", neighbour.trust().display().to_string()),
    ];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
    neighbour.repository("team/page.git", &[("index.html", "private page")]);
    over_https(&platform, &neighbour);
    over_ssh(&platform, &neighbour);

    // Neither rows nor logs nor what the command line shows hold any of it.
    let key = std::fs::read_to_string(neighbour.folder.path().join("deploy")).unwrap();
    let line = key.lines().nth(2).unwrap();
    assert_eq!(holding(&platform.data_dir(), &[TOKEN, &base64(&format!("ada:{TOKEN}")), line]), Vec::<String>::new());
    assert!(!platform.log().contains(TOKEN) && !platform.log().contains(line));
    for words in [&["revisions", "demo/https"][..], &["status", "demo/https"], &["operations"], &["credential", "list"]]
    {
        let shown = platform.json(words).to_string();
        assert!(!shown.contains(TOKEN) && !shown.contains(line), "{words:?}: {shown}");
    }
    for app in ["demo", "other"] {
        let _ = platform.arco(&["delete", app, "--yes"]);
    }
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

fn over_https(platform: &Platform, neighbour: &Neighbour) {
    let (port, _) = neighbour.https("ada", TOKEN);
    let host = format!("https://{}:{port}", neighbour.address);
    let url = format!("{host}/team/page.git");
    let deploy = ["deploy", &url, "--app", "demo", "--component", "https"];

    let denied = platform.json(&deploy);
    assert_eq!(denied["code"], "git_denied", "{denied}");
    says(&denied["advice"], &["arco credential set"]);

    // A password in the URL would be kept with each revision.
    let with = url.replace("https://", &format!("https://ada:{TOKEN}@"));
    let refused = platform.json(&["deploy", &with, "--app", "demo", "--component", "https"]);
    says(&refused["message"], &["refused", "arco credential set"]);
    assert!(!refused.to_string().contains(TOKEN), "{refused}");

    let file = neighbour.folder.path().join("token");
    std::fs::write(&file, "wrong\n").unwrap();
    let (at, scope) = (format!("@{}", text(&file)), format!("{host}/team"));
    let set = ["credential", "set", &scope, "--user", "ada", "--token", &at];
    good(platform, &set);
    let denied = platform.json(&deploy);
    assert_eq!(denied["code"], "git_denied", "{denied}");
    says(&denied["message"], &["does not let the credential"]);

    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let kept = good(platform, &set);
    assert_eq!((&kept["scope"], &kept["kind"]), (&scope.as_str().into(), &"token".into()), "{kept}");
    let shown = shown_in_process_lists(TOKEN, || drop(good(platform, &deploy)));
    assert_eq!(shown, BTreeSet::new());
    assert_eq!(platform.get("https-demo.test.localhost", "/").unwrap().body, "private page");
    let log = platform.arco(&["logs", "demo/https", "--build"]).stdout;
    assert!(log.contains("with the credential for") && !log.contains(TOKEN), "{log}");

    // A server that sends us on gets a credential of its own scope only, and the next one none.
    let (other, seen) = neighbour.https("eve", "nothing");
    let redirect = neighbour.redirect(format!("https://{}:{other}", neighbour.address));
    let lure = format!("https://{}:{redirect}", neighbour.address);
    good(platform, &["credential", "set", &lure, "--user", "ada", "--token", &at]);
    let failed = platform.json(&["deploy", &format!("{lure}/team/page.git"), "--app", "demo", "--component", "lure"]);
    assert!(failed["code"].is_string(), "{failed}");
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new(), "a redirect must not carry the credential on");

    // One of an application is for that application.
    good(platform, &["credential", "unset", &scope]);
    good(platform, &[&set[..], &["--app", "other"]].concat());
    let denied = platform.json(&[&deploy[..], &["--no-cache"]].concat());
    assert_eq!(denied["code"], "git_denied", "{denied}");
    good(platform, &["deploy", &url, "--app", "other", "--component", "https"]);
    assert_eq!(platform.arco(&["credential", "unset", &scope]).status, 5);
}

fn over_ssh(platform: &Platform, neighbour: &Neighbour) {
    let (key, first, second) = (neighbour.key("deploy"), neighbour.key("host1"), neighbour.key("host2"));
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let port = neighbour.ssh(&first, &public);
    let at = format!("@{}", text(&key));
    let scope = |port: u16| format!("ssh://{}:{port}", neighbour.address);
    let url = |port: u16| {
        let path = neighbour.folder.path().join("git/team/page.git");
        format!("ssh://root@{}:{port}{}", neighbour.address, path.display())
    };
    let deploy = |name: &str, port: u16| platform.json(&["deploy", &url(port), "--app", "demo", "--component", name]);

    let denied = deploy("ssh", port);
    assert_eq!(denied["code"], "git_denied", "{denied}");
    let kept = good(platform, &["credential", "set", &scope(port), "--ssh-key", &at]);
    assert_eq!(kept["host_keys"], serde_json::json!([]), "{kept}");
    let done = deploy("ssh", port);
    assert_eq!(done["status"], "running", "{done}");
    assert_eq!(platform.get("ssh-demo.test.localhost", "/").unwrap().body, "private page");

    // The key that the host showed first is kept. The same scope with another key is somebody else.
    let listed = platform.json(&["credential", "list"]);
    let pinned = listed["items"].as_array().unwrap().iter().find(|it| it["kind"] == "ssh_key").unwrap().clone();
    let shown = std::fs::read_to_string(first.with_extension("pub")).unwrap();
    assert_eq!(pinned["host_keys"], serde_json::json!([shown.trim()]), "{pinned}");
    let other = neighbour.ssh(&second, &public);
    let wrong = format!("@{}", text(&first.with_extension("pub")));
    let given = ["credential", "set", &scope(other), "--ssh-key", &at, "--host-key", &wrong];
    good(platform, &given);
    let changed = deploy("given", other);
    assert_eq!(changed["code"], "host_key_changed", "{changed}");
    says(&changed["advice"], &["--host-key"]);
    let right = format!("@{}", text(&second.with_extension("pub")));
    good(platform, &["credential", "set", &scope(other), "--ssh-key", &at, "--host-key", &right]);
    let done = deploy("given", other);
    assert_eq!(done["status"], "running", "{done}");
}
