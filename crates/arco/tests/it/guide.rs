//! The guide of routes: each of its commands runs as it is written, in its order, against one platform, and what it says
//! comes back does.
//!
//! Commands are the lines of blocks marked `sh`; `# →` begins what their output has in it. A block of YAML whose first line
//! is `# NAME.yaml` is that file.

use crate::behave::EXECUTABLE;
use arco_testkit::{Options, Platform, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::Path;
use std::process::Command;

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guides/routing.md");
/// A command that needs an authority on the Internet; `acme.rs` has one of its own.
const TRIED_ELSEWHERE: &str = "--tls auto";

/// A command and what its output has in it.
#[derive(Debug, PartialEq)]
struct Example<'g> {
    line: usize,
    command: &'g str,
    answer: Option<&'g str>,
}

/// What a guide tells to run, and the files that it shows.
fn examples(text: &str) -> (Vec<Example<'_>>, Vec<(&str, String)>) {
    let (mut examples, mut files) = (Vec::new(), Vec::new());
    let mut block: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), block) {
            (Some(kind), None) => block = Some(kind),
            (Some(_), Some(_)) => block = None,
            (None, Some("sh")) => {
                let (command, answer) = line.split_once("# →").map_or((line, None), |(it, answer)| (it, Some(answer)));
                examples.push(Example { line: number + 1, command: command.trim(), answer: answer.map(str::trim) });
            }
            (None, Some("yaml")) => match line.strip_prefix("# ").filter(|it| it.contains(".yaml")) {
                Some(name) => files.push((name.split(':').next().unwrap_or(name), String::new())),
                None => files.last_mut().into_iter().for_each(|(_, text)| *text += &format!("{line}\n")),
            },
            _ => {}
        }
    }
    (examples, files)
}

/// Certificates of the hosts and of a client in `folder`, and what signed them.
fn certificates(folder: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let signed = |hosts: &[&str], by: &CertifiedIssuer<'_, KeyPair>, names: [&str; 2]| {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|it| (*it).to_owned()).collect();
        let pem = CertificateParams::new(hosts).unwrap().signed_by(&key, by).unwrap().pem();
        std::fs::write(folder.join(names[0]), pem).unwrap();
        std::fs::write(folder.join(names[1]), key.serialize_pem()).unwrap();
    };
    let (servers, clients) = (authority("servers"), authority("clients"));
    std::fs::write(folder.join("ca.pem"), servers.pem()).unwrap();
    std::fs::write(folder.join("clients-ca.pem"), clients.pem()).unwrap();
    signed(&["*.example.com"], &servers, ["fullchain.pem", "privkey.pem"]);
    signed(&["client.example.com"], &clients, ["client.pem", "client-key.pem"]);
}

#[test]
fn every_example_of_the_guide_works() {
    if !arco_testkit::is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    // The guide's ports may be somebody else's on this machine.
    let first = arco_testkit::servers::free_ports(3);
    let text = std::fs::read_to_string(GUIDE).unwrap();
    let text = text.replace("10042", &(first + 1).to_string()).replace("10053", &(first + 2).to_string());
    let env = vec![
        ("ARCO_GATEWAY__PUBLIC_HTTP_PORT", "80".to_owned()),
        ("ARCO_GATEWAY__PUBLIC_HTTPS_PORT", "443".to_owned()),
        ("ARCO_GATEWAY__STREAM_PORTS", format!("{first}-{}", first + 2)),
    ];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
    let (examples, files) = examples(&text);
    assert!(examples.len() > 80 && files.len() == 2, "the guide is read: {} {}", examples.len(), files.len());

    let folder = platform.folder("guide", &[]);
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    certificates(&folder);
    std::os::unix::fs::symlink(Path::new(GUIDE).ancestors().nth(2).unwrap(), folder.join("docs")).unwrap();
    std::fs::create_dir(folder.join("bin")).unwrap();
    std::os::unix::fs::symlink(EXECUTABLE, folder.join("bin/arco")).unwrap();
    let to = |port: u16, listener: &str| format!("connect-to = \":{port}:{}\"\n", platform.address(listener).unwrap());
    let to = to(80, "http") + &to(443, "https");
    let curl = format!("{to}cacert = \"{}\"\nmax-time = 240\n", folder.join("ca.pem").display());
    std::fs::write(folder.join(".curlrc"), curl).unwrap();
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());

    let run = |command: &str| {
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(&folder)
            .env("PATH", &path)
            .env("CURL_HOME", &folder)
            .env("ARCO_CONTEXT", platform.data_dir().join("admin.toml"))
            .env("NO_COLOR", "1")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for Example { line, command, answer } in examples {
        // What changes something is done once; answers are asked for until they have changed.
        let place = format!("{GUIDE}:{line}: `{command}`");
        let changes = command.starts_with("arco ") && !command.starts_with("arco gateway");
        if changes || answer.is_none() {
            let (well, said, complaint) = run(command);
            assert!(well, "{place}: {said}{complaint}");
            let said = said + &complaint;
            assert!(answer.is_none_or(|it| said.contains(it)), "{place}: {answer:?} is not in {said}");
            continue;
        }
        let mut last = String::new();
        let answer = answer.unwrap_or_default();
        until(&format!("`{answer}` in what {place} says"), 60, || {
            let (_, said, complaint) = run(command);
            let said = said + &complaint;
            if said != last {
                eprintln!("{place}: {said}");
            }
            last = said;
            last.contains(answer).then_some(())
        });
    }
    let deleted = platform.arco(&["delete", "shop", "--yes"]);
    assert_eq!(deleted.status, 0, "{deleted:?}");
    assert!(platform.stop(), "the server stops by itself");
}

#[test]
fn every_command_of_the_guide_is_run() {
    let text = std::fs::read_to_string(GUIDE).unwrap();
    let run: Vec<_> = examples(&text).0.iter().map(|it| it.line).collect();
    let mut block = String::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            block.clear();
        }
        block += line;
        let is_command = line.starts_with("arco ") || line.starts_with("curl ");
        assert!(
            !is_command || run.contains(&(number + 1)) || block.contains(TRIED_ELSEWHERE),
            "line {} of the guide is not run: mark its block `sh`: {line}",
            number + 1
        );
    }
}
