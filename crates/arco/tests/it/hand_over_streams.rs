//! Ports without HTTP of the gateway alone while a new executable takes over: what is open goes on, and every datagram is
//! answered.

use crate::behave::EXECUTABLE;
use crate::hand_over::{children, signal};
use arco_testkit::servers::free_port;
use arco_testkit::until;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Nothing here takes longer; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// `arco gateway --config FILE`.
struct Gateway {
    folder: tempfile::TempDir,
    child: Child,
}

impl Gateway {
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
        for pid in children(self.child.id()) {
            signal("KILL", pid);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sets what it is shown when it goes, also by a panic.
struct Sets<'a>(&'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Gives back what it gets.
fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    address
}

fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut word = [0; 8];
        while let Ok((length, from)) = socket.recv_from(&mut word) {
            let _ = socket.send_to(&word[..length], from);
        }
    });
    address
}

fn answered(client: &UdpSocket, number: u64) -> std::io::Result<bool> {
    client.send(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    Ok(client.recv(&mut answer)? == 8 && u64::from_be_bytes(answer) == number)
}

#[test]
fn streams_go_on_while_another_executable_takes_over() {
    let (tcp, udp) = (free_port(), free_port());
    let folder = tempfile::Builder::new().prefix("arco-hand-over-").tempdir().unwrap();
    let config = folder.path().join("gateway.yaml");
    let yaml = format!(
        "listeners: [{{name: tcp, address: \"127.0.0.1:{tcp}\", protocol: tcp, upstream: t}}, \
         {{name: udp, address: \"127.0.0.1:{udp}\", protocol: udp, upstream: u}}]\n\
         upstreams: [{{name: t, endpoints: [\"{}\"]}}, {{name: u, endpoints: [\"{}\"]}}]\n",
        tcp_echo(),
        udp_echo()
    );
    std::fs::write(&config, yaml).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut command = Command::new(EXECUTABLE);
    command.args(["gateway", "--config"]).arg(&config);
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let gateway = Gateway { folder, child };

    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.connect((Ipv4Addr::LOCALHOST, udp)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // Until the port is open, asking fails at once.
    until("the UDP port", 60, || answered(&client, 0).ok());
    let mut open = until("the TCP port", 60, || TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).ok());
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut exchange = |word: &[u8; 4]| {
        open.write_all(word).unwrap();
        let mut answer = [0; 4];
        open.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, word);
    };
    exchange(b"one.");
    let old = children(gateway.child.id());
    assert_eq!(old.len(), 1);

    let (count, over) = (AtomicU64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ends = Sets(&over);
        let asking = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                assert!(answered(&client, number).expect("an answer"), "answer {number} is another one's");
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        // Ends with the asking, which says what is wrong.
        let goes_on = || {
            let enough = count.load(Ordering::SeqCst) + 200;
            until("200 answers", 60, || (count.load(Ordering::SeqCst) >= enough || asking.is_finished()).then_some(()));
        };
        goes_on();
        signal("USR2", gateway.child.id());
        until("the old one leaves", 60, || {
            (gateway.log().contains("another process has taken over") || asking.is_finished()).then_some(())
        });
        goes_on();
        drop(ends);
    });
    exchange(b"two.");
    assert!(old.is_subset(&children(gateway.child.id())), "the old one has an open connection");
    drop(open);
    until("the old one ends", 60, || old.is_disjoint(&children(gateway.child.id())).then_some(()));
    assert!(answered(&client, 0).unwrap());
}
