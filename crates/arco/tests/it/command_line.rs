//! The contract of the command line: exit statuses, the form of errors, documents.

use super::fake_api::{FakeApi, arco};
use serde_json::{Value, json};
use std::io::Read as _;

#[test]
fn every_refusal_has_its_exit_status_and_a_short_error() {
    let api = FakeApi::start();
    for (status, code) in [(400, 2), (403, 4), (404, 5), (409, 6), (422, 1), (429, 1), (500, 1), (503, 3)] {
        let reference = format!("e{status}/web");
        let ended = api.run(&["status", &reference]);
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{status}: {ended:?}");
        assert_eq!(ended.stderr, format!("error: this is · {status}\nadvice: do this\n"));
        let ended = api.run(&["status", &reference, "-o", "json"]);
        let body =
            json!({"code": format!("code_{status}"), "message": format!("this is\n{status}"), "advice": "do this"});
        assert_eq!((ended.code, ended.json()), (code, body));
    }
}

#[test]
fn a_platform_that_is_away_is_exit_3() {
    let api = FakeApi::start();
    api.stop();
    let ended = api.run(&["list", "-o", "json"]);
    assert_eq!((ended.code, ended.json()["code"].as_str()), (3, Some("unreachable")), "{ended:?}");
    assert!(ended.stderr.contains("arco server") && ended.stderr.lines().count() <= 3, "{ended:?}");
    let ended = arco(Some("/no/such/context.toml".as_ref()), &["list"]);
    assert!(ended.code == 3 && ended.stderr.contains("/no/such/context.toml"), "{ended:?}");
}

#[test]
fn wrong_usage_is_exit_2_in_three_lines() {
    for words in [
        &["status", "--no-such-option"][..],
        &["no-such-command"],
        &["status"],
        &["status", "Not A Name"],
        &["scale", "a/b"],
        &["deploy", ".", "--app", "a", "--port", "0"],
        &["logs", "a/b", "--since", "soon"],
    ] {
        let ended = arco(None, words);
        assert!(ended.code == 2 && ended.stdout.is_empty() && ended.stderr.lines().count() <= 3, "{words:?} {ended:?}");
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        let ended = arco(None, &words);
        assert_eq!((ended.code, ended.json()["code"].as_str()), (2, Some("usage")), "{ended:?}");
    }
    let ended = arco(None, &["deploy", "/no/such/folder", "--app", "a"]);
    assert_eq!(ended.code, 3, "without a context nothing else is looked at: {ended:?}");
}

#[test]
fn a_folder_is_packed_sent_once_and_followed_to_its_end() {
    let api = FakeApi::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "hi").unwrap();
    let source = folder.path().to_str().unwrap();
    let words =
        ["deploy", source, "--app", "good", "--component", "web", "--env", "A=b=c", "--port", "9000", "-o", "json"];
    let ended = api.run(&words);
    let wanted = json!({
        "application": "good", "component": "web", "revision": 3, "operation": "good", "status": "running",
        "urls": ["http://web-good.localhost:8080"], "build_ms": 11, "rollout_ms": 22
    });
    assert_eq!((ended.code, ended.json()), (0, wanted), "{ended:?}");
    assert!(
        ended.stderr.contains("step 1") && ended.stderr.contains("--domain") && !ended.stderr.contains('\u{1b}'),
        "{ended:?}"
    );
    let uploads =
        |calls: Vec<String>| calls.iter().filter(|it| it.starts_with("POST /v1/tenants/default/uploads")).count();
    assert_eq!(uploads(api.calls()), 1);
    let body = api.bodies().remove(0);
    assert_eq!(body["source"]["kind"], "upload");
    assert_eq!(
        body["patch"],
        json!({"env": {"A": "b=c"}, "ports": [{"port": 9000, "protocol": "http", "outer": true}]})
    );
    assert_eq!(api.run(&words).code, 0);
    assert_eq!(uploads(api.calls()), 0, "the same content is not sent again");
}

#[test]
fn a_failed_operation_says_why() {
    let api = FakeApi::start();
    let ended = api.run(&["deploy", "image:a", "--app", "bad", "--component", "web", "-o", "json"]);
    let wanted = json!({"code": "build_failed", "message": "step 2 failed\nwith two lines", "advice": "mend it", "operation": "bad"});
    assert_eq!((ended.code, ended.json()), (1, wanted));
    let ended = api.run(&["scale", "bad/web", "--replicas", "2"]);
    assert_eq!(ended.code, 1);
    let wanted =
        "error: step 2 failed · with two lines\nadvice: mend it\noperation: bad (`arco logs --operation bad`)\n";
    assert_eq!(ended.stderr, wanted);
}

#[test]
fn a_wrong_value_is_answered_with_what_its_command_takes() {
    for (words, command) in [
        (&["context", "create", "--name", "a", "--role", "king"][..], "`arco context create --help`"),
        (&["logs", "a/b", "--since", "10x"], "`arco logs --help`"),
        (&["volume", "add", "a/b", "bad:relative"], "`arco volume add --help`"),
    ] {
        let ended = arco(None, words);
        assert!(ended.code == 2 && ended.stderr.contains(command), "{ended:?}");
        assert!(!ended.stderr.contains("For more information"), "{ended:?}");
    }
}

#[test]
fn an_application_with_one_component_means_that_one() {
    let api = FakeApi::start();
    let ended = api.run(&["env", "set", "one", "B=2"]);
    assert!(ended.code == 0 && ended.stdout.contains("changed"), "{ended:?}");
    assert_eq!(api.bodies(), [json!({"env": {"B": "2"}})]);
    let ended = api.run(&["env", "unset", "one", "A", "NOPE"]);
    assert!(ended.code == 5 && ended.stderr.contains("`NOPE`") && ended.stderr.contains("env list"), "{ended:?}");
    assert!(api.bodies().is_empty(), "nothing is changed");
    let ended = api.run(&["env", "unset", "one", "A"]);
    assert!(ended.code == 0 && api.bodies() == [json!({"env": {"A": null}})], "{ended:?}");
    let ended = api.run(&["env", "set", "two", "B=2"]);
    assert!(ended.code == 2 && ended.stderr.contains("web1, web2"), "{ended:?}");
    let ended = api.run(&["status", "two", "-o", "json"]);
    assert_eq!(ended.json()["components"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_token_of_the_registry_is_all_that_stands_on_standard_output() {
    let api = FakeApi::start();
    let ended = api.run(&["registry", "token", "new/web"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "a.token\n"), "{ended:?}");
    assert!(ended.stderr.contains("default/new/web") && !ended.stderr.contains("a.token"), "{ended:?}");
    assert_eq!(api.calls(), ["GET /v1/registry/token?repository=default%2Fnew%2Fweb"], "it need not be there yet");
    let ended = api.run(&["--tenant", "team-b", "registry", "token", "one", "-o", "json"]);
    assert_eq!(ended.json(), json!({"repository": "team-b/one/web1", "token": "a.token"}), "{ended:?}");
    assert_eq!(api.run(&["registry", "token", "e403/web"]).code, 4);
}

#[test]
fn a_configuration_file_is_set_from_a_file_or_a_secret() {
    let api = FakeApi::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.conf");
    std::fs::write(&file, "a=1\n").unwrap();
    let from = file.to_str().unwrap();
    let ended = api.run(&["file", "set", "one", "/etc/app.conf", "--from", from]);
    assert!(ended.code == 0 && ended.stdout.contains("changed"), "{ended:?}");
    assert_eq!(api.bodies(), [json!({"files": {"/etc/app.conf": {"path": "/etc/app.conf", "content": "a=1\n"}}})]);
    let ended = api.run(&["file", "set", "one", "/etc/key", "--secret", "KEY", "--mode", "400"]);
    let key = json!({"files": {"/etc/key": {"path": "/etc/key", "secret": "KEY", "mode": "0400"}}});
    assert!(ended.code == 0 && api.bodies() == [key], "{ended:?}");
    let ended = api.run(&["file", "list", "one"]);
    assert!(ended.stdout.contains("/etc/there") && ended.stdout.contains("0444") && ended.stdout.contains("2 bytes"));
    assert_eq!(api.run(&["file", "list", "one", "-o", "json"]).json()["items"][0]["content"], "hi");
    let ended = api.run(&["file", "unset", "one", "/etc/there"]);
    assert!(ended.code == 0 && api.bodies() == [json!({"files": {"/etc/there": null}})], "{ended:?}");
    let ended = api.run(&["file", "unset", "one", "/etc/none"]);
    assert!(ended.code == 5 && ended.stderr.contains("`/etc/none`") && api.bodies().is_empty(), "{ended:?}");
    for wrong in [
        &["file", "set", "one", "/etc/a"][..],
        &["file", "set", "one", "/etc/a", "--from", from, "--secret", "KEY"],
        &["file", "set", "one", "/etc/a", "--from", from, "--mode", "9"],
        &["file", "set", "one", "/etc/a", "--from", "/no/such/file"],
    ] {
        assert_eq!(api.run(wrong).code, 2, "{wrong:?}");
    }
    let flag = format!("/etc/app.conf=@{from}");
    let ended = api.run(&["deploy", "image:a", "--app", "good", "--component", "web", "--file", &flag]);
    let body = api.bodies().remove(0);
    assert_eq!((ended.code, &body["patch"]["files"]["/etc/app.conf"]["content"]), (0, &json!("a=1\n")), "{body}");
}

#[test]
fn status_keeps_its_fields() {
    let api = FakeApi::start();
    let document = api.run(&["status", "one/web", "-o", "json"]).json();
    let keys = |it: &Value| it.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for wanted in [
        "application",
        "component",
        "status",
        "reason",
        "advice",
        "replicas",
        "ready_replicas",
        "revision",
        "generation",
        "observed_generation",
        "urls",
        "instances",
    ] {
        assert!(keys(&document).iter().any(|it| it == wanted), "{wanted}");
    }
    for wanted in ["id", "status", "reason", "restarts", "address", "node", "started_at"] {
        assert!(keys(&document["instances"][0]).iter().any(|it| it == wanted), "{wanted}");
    }
    let listed = api.run(&["list"]).stdout;
    insta::assert_snapshot!("list", listed);
    assert_eq!(api.run(&["list", "-o", "json"]).json()["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_log_of_several_pages_is_whole_and_without_doubles() {
    let api = FakeApi::start();
    let ended = api.run(&["logs", "one/web"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "a\nb\nc\nd\n"), "{ended:?}");
    let ended = api.run(&["logs", "one/web", "-o", "json"]);
    assert_eq!(
        ended.json()["lines"][3],
        json!({"at": "1970-01-01T00:00:00.007Z", "instance": null, "origin": "stdout", "text": "d"})
    );
    let ended = api.run(&["logs", "--operation", "good", "-f"]);
    assert!(ended.code == 0 && ended.stdout.starts_with("step 1\nstep 2"), "{ended:?}");
}

#[test]
fn exec_hands_over_input_output_and_exit_status() {
    let api = FakeApi::start();
    let ended = api.run(&["exec", "one/web", "--", "echo", "hi"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (7, "echo hi ", "oh"), "{ended:?}");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_arco"))
        .args(["exec", "one/web", "-i", "--", "cat"])
        .env("ARCO_CONTEXT", api.context())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"some input").unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((said.as_str(), child.wait().unwrap().code()), ("cat SOME INPUT", Some(7)));
    let ended = api.run(&["exec", "one/web", "-it", "--", "sh"]);
    assert!(ended.code == 2 && ended.stderr.contains("terminal"), "{ended:?}");
}

#[test]
fn waiting_has_an_end_and_deleting_needs_a_yes() {
    let api = FakeApi::start();
    let ended = api.run(&["scale", "one/web", "--replicas", "2", "--detach"]);
    assert!(ended.code == 0 && ended.stderr.contains("arco logs --operation good"), "{ended:?}");
    for words in [&["delete", "one/web"][..], &["certificate", "delete", "one"], &["tenant", "delete", "team-b"]] {
        let ended = api.run(words);
        assert!(ended.code == 2 && ended.stderr.contains("--yes"), "{ended:?}");
    }
    let ended = api.run(&["delete", "one/web", "--yes", "--keep-volumes"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        api.calls()
            .iter()
            .any(|it| it == "DELETE /v1/tenants/default/applications/one/components/web?keep_volumes=true")
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_arco"))
        .args(["config", "template"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    assert_eq!(said, "");
}

#[test]
fn every_command_has_help_with_an_example() {
    let top = arco(None, &["--help"]);
    assert_eq!(top.code, 0);
    insta::assert_snapshot!("help", top.stdout);
    let commands = top.stdout.lines().skip_while(|it| *it != "Commands:").skip(1).take_while(|it| !it.is_empty());
    let names: Vec<&str> =
        commands.filter(|it| !it.starts_with("   ")).filter_map(|it| it.split_whitespace().next()).collect();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let help = arco(None, &[name, "--help"]).stdout;
        assert!(help.contains("Example"), "{name} --help has no example:\n{help}");
    }
    insta::assert_snapshot!("help_deploy", arco(None, &["deploy", "--help"]).stdout);
}

#[test]
fn completion_and_configuration_need_no_platform() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = arco(None, &["completion", shell]);
        assert!(ended.code == 0 && ended.stdout.contains("rollback"), "{shell}");
    }
    let template = arco(None, &["config", "template"]).stdout;
    assert!(template.contains("[server]"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("arco.toml");
    std::fs::write(&file, &template).unwrap();
    assert_eq!(arco(None, &["config", "check", file.to_str().unwrap()]).code, 0);
    std::fs::write(&file, "[server]\nno_such_key = 1\n").unwrap();
    let ended = arco(None, &["config", "check", file.to_str().unwrap(), "-o", "json"]);
    assert!(ended.code == 2 && ended.json()["message"].as_str().unwrap().contains("no_such_key"), "{ended:?}");
}
