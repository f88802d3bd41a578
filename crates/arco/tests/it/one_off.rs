//! `arco run`: an instance of its own with input, output, a terminal and an exit status, of which nothing is left.

use crate::behave::{EXECUTABLE, good, source};
use arco_testkit::{Platform, is_root, until};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

fn arco(platform: &Platform, words: &[&str]) -> Command {
    // Tests that were started in the background of a shell ignore SIGINT, and so would their programs.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", EXECUTABLE])
        .args(words)
        .env("ARCO_CONTEXT", platform.data_dir().join("admin.toml"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Containers of one-offs: their run folders below `/run/arco`, by the server's own digits.
fn containers(platform: &Platform) -> usize {
    let folder = platform.data_dir().join("instances");
    std::fs::read_dir(folder).map(|it| it.count()).unwrap_or(0)
}

/// A terminal: what a person holds, and what the program gets.
fn terminal() -> (File, File) {
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = nix::pty::openpty(Some(&size), None::<&nix::sys::termios::Termios>).unwrap();
    (pair.master.into(), pair.slave.into())
}

fn at_terminal(platform: &Platform, words: &[&str]) -> (File, Child) {
    let (master, slave) = terminal();
    let mut command = arco(platform, words);
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    (master, command.spawn().unwrap())
}

/// Reads until a text came.
fn read_until(master: &mut File, wanted: &str) -> String {
    let mut text = String::new();
    let mut piece = [0; 1024];
    while !text.contains(wanted) {
        let count = master.read(&mut piece).unwrap_or(0);
        assert!(count > 0, "closed before {wanted:?} came: {text:?}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    text
}

#[test]
fn a_one_off_has_input_a_terminal_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let folder = source(&platform);
    good(
        &platform,
        &["deploy", folder.to_str().unwrap(), "--app", "demo", "--component", "web", "--env", "GREETING=hi"],
    );
    let before = containers(&platform);
    let gone = |what: &str| {
        until(&format!("nothing is left of {what}"), 60, || (containers(&platform) == before).then_some(()))
    };

    // Bytes go in and come out as they are; the exit status is the program's own.
    let bytes: Vec<u8> = (0..200_000u32).map(|it| (it * 7 % 256) as u8).collect();
    let mut child =
        arco(&platform, &["run", "demo/web", "-i", "--", "sh", "-c", "cat; echo problem >&2; exit 7"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let ended = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(ended.status.code(), Some(7), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(ended.stdout == bytes, "{} bytes came back of {}", ended.stdout.len(), bytes.len());
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "problem\n");
    assert_eq!(containers(&platform), before, "it is gone when the command ends");

    // Without -i there is no input to wait for; it has the variables of what serves and an id of its own.
    let script = "cat; echo $GREETING $ARCO_COMPONENT; test \"$ARCO_INSTANCE\" && id -u";
    let ended = platform.arco(&["run", "demo/web", "--", "sh", "-c", script]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "hi web\n0\n"), "{ended:?}");
    let missing = platform.arco(&["run", "demo/web", "--", "no-such-program"]);
    assert_eq!(missing.status, 127, "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");

    // A terminal of the person's size, and Ctrl-C for the program. (A shell that is about to become its last command
    // loses the signal.)
    let script = "stty size; echo ready; while :; do sleep 1; done";
    let (mut master, mut child) = at_terminal(&platform, &["run", "demo/web", "-it", "--", "sh", "-c", script]);
    let text = read_until(&mut master, "ready");
    assert!(text.contains("33 99"), "{text:?}");
    master.write_all(&[3]).unwrap();
    let status = until("the program ends", 60, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    gone("what Ctrl-C ended");

    // Without a terminal Ctrl-C ends the command, and with it the instance.
    let mut child = arco(&platform, &["run", "demo/web", "--", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"ready\n");
    assert!(containers(&platform) > before);
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    let status = until("the command ends", 60, || child.try_wait().unwrap());
    assert!(!status.success());
    gone("what lost its person");

    good(&platform, &["delete", "demo", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
