//! `arco export` and `arco import`: two platforms, one application that moves with image, secret, route and content.

use crate::behave::{EXECUTABLE, good, says};
use arco_testkit::{Platform, is_root, until};
use serde_json::Value;

const DOCKERFILE: &str = "FROM debian:12\nCOPY note.pl /note.pl\nEXPOSE 8080\nCMD [\"perl\", \"/note.pl\"]\n";
/// Answers with its secret and what stands in its volume.
const PROGRAM: &str = r#"use strict; use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $ENV{PORT} // 8080, Listen => 128, ReuseAddr => 1) or die "listen: $!";
for (;;) {
  my $client = $server->accept or next;
  sysread($client, my $request, 8192);
  my $note = 'nothing';
  if (open my $file, '<', '/data/note') { $note = <$file>; chomp $note }
  my $body = "$ENV{TOKEN} $note";
  print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
  close $client;
}
"#;
const TOKEN: &str = "token-that-nobody-reads";
/// A component with two places, each with a volume of its own.
const PLACES: &str = "application: demo\ncomponents:\n  db:\n    source: .\n    kind: stateful\n    replicas: 2\n    volumes: [{name: files, path: /data, size_mb: 16, kind: local}]\n";

fn answers(platform: &Platform, host: &str, expected: &str) {
    until(&format!("{host} answers `{expected}`"), 120, || {
        platform.get(host, "/").ok().filter(|it| it.status == 200 && it.body == expected)
    });
}

/// What a script says in each instance of the component with places.
fn in_each_place(platform: &Platform, script: &str) -> Vec<String> {
    let status = platform.status("demo/db");
    let instances = status["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2, "{status}");
    let one = |it: &Value| {
        let done =
            platform.arco(&["exec", "demo/db", "--instance", it["id"].as_str().unwrap(), "--", "sh", "-c", script]);
        assert_eq!(done.status, 0, "{done:?}");
        done.stdout
    };
    let mut said: Vec<_> = instances.iter().map(one).collect();
    said.sort();
    said
}

fn actions(report: &Value) -> Vec<&str> {
    report["components"].as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect()
}

#[test]
fn an_application_moves_with_everything_that_belongs_to_it() {
    if !is_root() {
        return;
    }
    let mut from = Platform::start(EXECUTABLE);
    let folder = from.folder(
        "note",
        &[
            ("Dockerfile", DOCKERFILE),
            ("note.pl", PROGRAM),
            ("token", TOKEN),
            ("phrase", "correct horse battery\n"),
            ("wrong", "incorrect horse battery\n"),
        ],
    );
    let file = |name: &str| folder.join(name).display().to_string();
    let (archive, phrase, wrong) = (file("demo.arco"), format!("@{}", file("phrase")), format!("@{}", file("wrong")));
    let token = format!("TOKEN=@{}", file("token"));
    let source = folder.display().to_string();
    let web =
        ["deploy", &source, "--app", "demo", "--component", "web", "--secret", &token, "--volume", "files:/data:16"];
    good(&from, &web);
    good(&from, &["deploy", &source, "--app", "demo", "--component", "front", "--bind", "demo/web=WEB"]);
    good(&from, &["route", "add", "demo/web", "shop.test"]);
    let wrote = from.arco(&[
        "exec",
        "demo/web",
        "--",
        "sh",
        "-c",
        "mkdir /data/deep && echo kept > /data/note && chmod 640 /data/note",
    ]);
    assert_eq!(wrote.status, 0, "{wrote:?}");

    let places = from.folder("places", &[("Dockerfile", DOCKERFILE), ("note.pl", PROGRAM), ("arco.yaml", PLACES)]);
    good(&from, &["apply", "-f", &places.join("arco.yaml").display().to_string()]);
    in_each_place(&from, "read host < /proc/sys/kernel/hostname && echo of $host > /data/note");
    // What has no instance any more keeps its content, and travels too.
    good(&from, &["scale", "demo/db", "--replicas", "1"]);

    let refused = from.arco(&["export", "demo", "-f", &archive]);
    assert!(refused.status == 2 && refused.stderr.contains("--passphrase"), "{refused:?}");
    assert!(!std::path::Path::new(&archive).exists());
    let report = good(&from, &["export", "demo", "-f", &archive, "--passphrase", &phrase]);
    assert_eq!((report["components"].as_u64(), report["volumes"].as_u64()), (Some(3), Some(3)), "{report}");
    let bytes = std::fs::read(&archive).unwrap();
    assert!(!bytes.windows(TOKEN.len()).any(|it| it == TOKEN.as_bytes()), "the secret is sealed");
    assert_eq!(
        from.arco(&["export", "demo", "-f", &archive, "--passphrase", &phrase]).status,
        6,
        "nothing is overwritten"
    );

    let mut into = Platform::start(EXECUTABLE);
    let import = ["import", "-f", &archive, "--passphrase", &phrase];
    let looked = good(&into, &[&import[..], &["--dry-run"]].concat());
    assert_eq!(actions(&looked), ["create"; 3], "{looked}");
    assert_eq!(good(&into, &["list"])["items"].as_array().map(Vec::len), Some(0));
    let denied = into.arco(&["import", "-f", &archive, "--passphrase", &wrong]);
    assert!(denied.status == 4 && denied.stderr.contains("passphrase"), "{denied:?}");

    // An archive that was changed on its way is refused before anything is done.
    let mut changed = bytes;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(file("changed.arco"), changed).unwrap();
    let hostile = into.arco(&["import", "-f", &file("changed.arco"), "--passphrase", &phrase]);
    assert!(hostile.status == 2 && hostile.stderr.contains("refused"), "{hostile:?}");
    assert_eq!(good(&into, &["list"])["items"].as_array().map(Vec::len), Some(0));

    let made = good(&into, &import);
    assert_eq!(actions(&made), ["create"; 3], "{made}");
    assert!(made["blobs_sent"].as_u64() > Some(0) && made["volumes"] == 3, "{made}");
    let expected = format!("{TOKEN} kept");
    answers(&into, "web.demo.test.localhost", &expected);
    answers(&into, "shop.test", &expected);
    let content = into.arco(&["exec", "demo/web", "--", "sh", "-c", "stat -c '%a %F' /data/note /data/deep"]);
    assert_eq!(content.stdout, "640 regular file\n755 directory\n", "{content:?}");
    let bound = into.arco(&["exec", "demo/front", "--", "printenv", "WEB_HOST"]);
    says(&Value::from(bound.stdout), &["web.demo.default"]);

    // Again: nothing to do. What was written here since stays.
    let wrote = into.arco(&["exec", "demo/web", "--", "sh", "-c", "echo newer > /data/note"]);
    assert_eq!(wrote.status, 0, "{wrote:?}");
    let again = good(&into, &import);
    assert_eq!(actions(&again), ["same"; 3], "{again}");
    assert_eq!(
        (&again["blobs_sent"], &again["volumes"], &again["operations"]),
        (&0.into(), &0.into(), &Value::Array(Vec::new()))
    );
    answers(&into, "shop.test", &format!("{TOKEN} newer"));
    good(&into, &["scale", "demo/db", "--replicas", "2"]);
    let each = in_each_place(&into, "read host < /proc/sys/kernel/hostname; read note < /data/note; echo $host $note");
    assert_eq!(each, ["db-0 of db-0\n", "db-1 of db-1\n"]);

    // What became another one here is not overwritten.
    good(&into, &["env", "set", "demo/front", "LEVEL=3"]);
    let differs = into.arco(&import);
    assert!(differs.status == 6 && differs.stderr.contains("env.LEVEL"), "{differs:?}");

    // Its volume grows with what is in it, and cannot be what this machine has not.
    let volume = |of: &Value| of["items"][0].clone();
    let small = volume(&good(&into, &["volume", "list", "demo/web"]));
    assert_eq!(
        (&small["class"], &small["access"][0], &small["size_bytes"]),
        (&"local".into(), &"RWO".into(), &(16 << 20).into())
    );
    assert!(small["used_bytes"].as_u64() > Some(0), "{small}");
    let classes = good(&into, &["volume", "classes"]);
    assert_eq!((&classes["items"][0]["class"], &classes["items"][0]["grows"]), (&"local".into(), &true.into()));
    // Not while it is used: the kernel of a container may refuse that.
    good(&into, &["stop", "demo/web"]);
    good(&into, &["volume", "resize", "demo/web", "files", "32"]);
    good(&into, &["start", "demo/web"]);
    assert_eq!(volume(&good(&into, &["volume", "list", "demo/web"]))["size_bytes"], 32 << 20);
    answers(&into, "shop.test", &format!("{TOKEN} newer"));
    let smaller = into.arco(&["volume", "resize", "demo/web", "files", "8"]);
    assert!(smaller.status == 6 && smaller.stderr.contains("cannot become smaller"), "{smaller:?}");
    let missing = into.arco(&["volume", "resize", "demo/web", "none", "8"]);
    assert!(missing.status == 5 && missing.stderr.contains("has no volume"), "{missing:?}");
    let classless = into.arco(&["volume", "add", "demo/web", "more:/more:8", "--class", "fast"]);
    assert!(classless.status == 2 && classless.stderr.contains("there is no class `fast`"), "{classless:?}");

    for platform in [&mut from, &mut into] {
        platform.status("demo/web");
        platform.status("demo/front");
        platform.status("demo/db");
        good(platform, &["delete", "demo", "--yes"]);
        assert!(platform.stop(), "the server stops by itself");
        until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
    }
}
