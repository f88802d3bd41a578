//! An address that several gateway machines share, one at a time: keepalived (VRRPv3), configured, started and watched by
//! us.
//!
//! What must hold: a machine whose gateway does not answer lets another one have the address, also when everything of
//! ours on it is dead (keepalived asks by itself, with [`probe`]); keepalived outlives a process that is replaced, and the
//! next one goes on with it; a stop gives the address away at once.
//!
//! Not here: who listens on the address (any listener on all addresses, or one that waits for it: [`crate::addresses`]).

use crate::addresses::Addresses;
use arco_config::VirtualAddress;
use arco_daemon::CancellationToken;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Pause before keepalived is started again: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// One that ran for so long had no trouble to start.
const SETTLED: Duration = Duration::from_secs(60);
/// How long it may take to give its address away and end.
const GRACE: Duration = Duration::from_secs(3);
/// Longest wait for each step of [`probe`].
const PATIENCE: Duration = Duration::from_millis(800);
/// Pause before [`probe`] asks again: keepalived itself can ask no more often than each second.
const AGAIN: Duration = Duration::from_millis(200);
/// Largest answer that [`probe`] looks at.
const ENOUGH: usize = 12;

/// What keepalived is told, and where.
#[derive(Clone, Debug)]
pub struct Keepalived {
    settings: VirtualAddress,
    /// Its configuration and process id; root's alone.
    folder: PathBuf,
    /// This executable: it asks the gateway whether it is well.
    executable: PathBuf,
    /// Where the gateway serves plain HTTP on this machine.
    asked: SocketAddr,
    /// Whether connections begin with a PROXY header there.
    proxied: bool,
}

/// How the shared address stands on this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// keepalived does not run.
    Down,
    /// Another machine has the address.
    Standby,
    /// This machine has it.
    Active,
}

/// What happens to keepalived when we stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// It ends, and the address goes to another machine.
    pub end: CancellationToken,
    /// It goes on: another process looks after it.
    pub leave: CancellationToken,
    /// Either has been done.
    pub done: CancellationToken,
}

impl Stop {
    /// Gives the address away, and waits until that is done.
    pub async fn give_away(&self) {
        self.end.cancel();
        // Whoever takes longer is ended by whoever ends this process.
        let _ = tokio::time::timeout(GRACE * 2, self.done.cancelled()).await;
    }
}

impl Keepalived {
    /// For these settings. `listener` is where the gateway serves plain HTTP, behind a proxy that writes PROXY headers when
    /// it is `proxied`.
    pub fn new(
        settings: VirtualAddress,
        folder: &Path,
        executable: &Path,
        listener: SocketAddr,
        proxied: bool,
    ) -> Result<Self, String> {
        settings.check()?;
        for path in [folder, executable] {
            let fine = path.to_str().is_some_and(|it| it.bytes().all(|it| it > b' ' && !b"\"'\\#!$".contains(&it)));
            if !fine {
                return Err(format!(
                    "`virtual_address` cannot be used from `{}`: move it to a path without spaces and quotes",
                    path.display()
                ));
            }
        }
        let local = |it: IpAddr| if it.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { it };
        let asked = SocketAddr::new(local(listener.ip()), listener.port());
        Ok(Self { settings, folder: folder.to_owned(), executable: executable.to_owned(), asked, proxied })
    }

    /// The configuration file.
    fn render(&self) -> String {
        let it = &self.settings;
        let mut text = String::from("# Written by arco; changes are lost.\n");
        let (executable, asked) = (self.executable.display(), self.asked);
        let proxied = if self.proxied { " --proxied" } else { "" };
        // Script security would refuse an executable below a folder that others may write in; it is root's already.
        // A gateway that is not well counts less than every one that is; among themselves they keep their order.
        let _ = write!(
            text,
            "global_defs {{\n    vrrp_version 3\n    script_user root\n}}\n\
             vrrp_script gateway {{\n    script \"{executable} gateway --probe {asked}{proxied}\"\n    interval 1\n    timeout 2\n    \
             fall 1\n    rise 2\n    weight -253\n}}\n\
             vrrp_instance arco {{\n    state BACKUP\n    interface {}\n    virtual_router_id {}\n    priority {}\n    \
             advert_int {}.{:02}\n",
            it.interface,
            it.router_id,
            it.priority,
            it.advert_ms / 1000,
            it.advert_ms % 1000 / 10,
        );
        if !it.peers.is_empty() {
            let peers: String = it.peers.iter().map(|it| format!("        {it}\n")).collect();
            let _ = write!(text, "    unicast_peer {{\n{peers}    }}\n");
        }
        let _ = write!(
            text,
            "    virtual_ipaddress {{\n        {} dev {}\n    }}\n    track_script {{\n        gateway\n    }}\n}}\n",
            it.address, it.interface
        );
        text
    }

    fn config(&self) -> PathBuf {
        self.folder.join("keepalived.conf")
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("keepalived.pid")
    }

    /// The shared address.
    pub fn address(&self) -> IpAddr {
        self.settings.address.addr()
    }

    /// Keeps keepalived running until it is told to stop; `tell` hears how the address stands.
    pub async fn run(self, addresses: Addresses, tell: impl Fn(Standing), stop: Stop) {
        self.keep(addresses, tell, &stop).await;
        stop.done.cancel();
    }

    async fn keep(&self, mut addresses: Addresses, tell: impl Fn(Standing), stop: &Stop) {
        let address = self.address();
        tell(Standing::Down);
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            let running = match self.start().await {
                Ok(process) => process,
                Err(error) => {
                    tracing::error!(%address, error, "the shared address is not looked after, it is tried again");
                    tokio::select! {
                        () = stop.end.cancelled() => return,
                        () = stop.leave.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE.1);
                    continue;
                }
            };
            let mut told = None;
            loop {
                let standing = if addresses.owns(address) { Standing::Active } else { Standing::Standby };
                if told.replace(standing) != Some(standing) {
                    tracing::info!(%address, ?standing, "the shared address");
                    tell(standing);
                }
                tokio::select! {
                    () = stop.end.cancelled() => {
                        let _ = pidfd_send_signal(running.get_ref(), Signal::TERM);
                        if tokio::time::timeout(GRACE, ended(&running)).await.is_err() {
                            let _ = pidfd_send_signal(running.get_ref(), Signal::KILL);
                        }
                        tell(Standing::Down);
                        return;
                    }
                    () = stop.leave.cancelled() => return,
                    () = ended(&running) => break,
                    () = addresses.changed() => {}
                }
            }
            tell(Standing::Down);
            tracing::error!(%address, "keepalived ended, it is started again");
            if began.elapsed() > SETTLED {
                pause = PAUSE.0;
            }
            tokio::select! {
                () = stop.end.cancelled() => return,
                () = stop.leave.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Goes on with the keepalived that runs for this folder, or starts one.
    async fn start(&self) -> Result<AsyncFd<OwnedFd>, String> {
        let step = |step: &'static str| move |it: std::io::Error| format!("cannot {step}: {it}");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(step("make its folder"))?;
        let (text, path) = (self.render(), self.config());
        let fresh = std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str());
        if fresh {
            let written = path.with_extension("new");
            let mut file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&written)
                .map_err(step("write its configuration"))?;
            file.write_all(text.as_bytes()).map_err(step("write its configuration"))?;
            std::fs::rename(&written, &path).map_err(step("write its configuration"))?;
        }
        if let Some(process) = self.running() {
            tracing::info!(folder = %self.folder.display(), "keepalived runs already, it is gone on with");
            if fresh {
                pidfd_send_signal(&process, Signal::HUP).map_err(|it| step("tell keepalived")(it.into()))?;
            }
            return watched(process);
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.folder.join("keepalived.log"))
            .map_err(step("open its log"))?;
        let errors = log.try_clone().map_err(step("share its log"))?;
        let mut command = tokio::process::Command::new("keepalived");
        command.args(["--dont-fork", "--vrrp", "--log-console", "--no-syslog"]);
        command.arg("--use-file").arg(&path).arg("--pid").arg(self.pid_file());
        command.arg("--vrrp_pid").arg(self.folder.join("vrrp.pid"));
        // Of a session of its own: it outlives whoever starts it.
        command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(errors);
        // Whoever drops it is not waited for: the runtime collects it when it ends.
        let child = command.spawn().map_err(|it| match it.kind() {
            std::io::ErrorKind::NotFound => "keepalived is not installed: `apt install keepalived`".to_owned(),
            _ => format!("cannot start keepalived: {it}"),
        })?;
        let pid = child.id().and_then(|it| Pid::from_raw(it.cast_signed())).ok_or("keepalived ended at once")?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|it| step("watch keepalived")(it.into()))?;
        watched(process)
    }

    /// The keepalived of this folder, if one runs.
    fn running(&self) -> Option<OwnedFd> {
        let pid: i32 = std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // The number may be another process' by now.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = self.config();
        let ours = line.split(|it| *it == 0).any(|it| it == config.as_os_str().as_encoded_bytes());
        ours.then_some(process)
    }
}

fn watched(process: OwnedFd) -> Result<AsyncFd<OwnedFd>, String> {
    // SAFETY: the descriptor is owned by what watches it, and is always the same one.
    unsafe { AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) }
        .map_err(|it| format!("cannot watch keepalived: {it}"))
}

async fn ended(process: &AsyncFd<OwnedFd>) {
    drop(process.readable().await);
}

/// Whether a gateway answers HTTP at `address`, whatever it answers: what keepalived asks every second. One silence is none: it
/// is asked again at once. Where connections begin with a PROXY header (`proxied`), one that speaks for nobody is enough from
/// the same machine.
pub fn probe(address: SocketAddr, proxied: bool) -> std::io::Result<()> {
    probe_in(address, proxied, PATIENCE)
}

fn probe_in(address: SocketAddr, proxied: bool, patience: Duration) -> std::io::Result<()> {
    ask(address, proxied, patience).or_else(|_| {
        std::thread::sleep(AGAIN);
        ask(address, proxied, patience)
    })
}

fn ask(address: SocketAddr, proxied: bool, patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let header: &[u8] = if proxied { b"PROXY UNKNOWN\r\n" } else { b"" };
    let request = b"GET /healthz HTTP/1.1\r\nHost: probe.invalid\r\nConnection: close\r\n\r\n";
    stream.write_all(&[header, request].concat())?;
    let mut answer = Vec::with_capacity(ENOUGH);
    stream.take(ENOUGH as u64).read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 ") && answer.len() == ENOUGH {
        true => Ok(()),
        false => Err(std::io::Error::other("what answers does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> VirtualAddress {
        VirtualAddress {
            address: "192.0.2.10/24".parse().unwrap(),
            interface: "eth0".to_owned(),
            router_id: 51,
            priority: 120,
            peers: vec!["192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap()],
            advert_ms: 250,
        }
    }

    #[test]
    fn the_configuration_says_what_the_settings_say() {
        let new = |settings| {
            let listener = "0.0.0.0:8080".parse().unwrap();
            Keepalived::new(settings, Path::new("/run/a"), Path::new("/usr/bin/arco"), listener, false)
        };
        let text = new(settings()).unwrap().render();
        for line in [
            "vrrp_version 3",
            "script \"/usr/bin/arco gateway --probe 127.0.0.1:8080\"",
            "interface eth0",
            "virtual_router_id 51",
            "priority 120",
            "advert_int 0.25",
            "192.0.2.3",
            "192.0.2.10/24 dev eth0",
        ] {
            assert!(text.lines().any(|it| it.trim() == line), "{line}:\n{text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        let behind = Keepalived { proxied: true, ..new(settings()).unwrap() };
        assert!(behind.render().contains("--probe 127.0.0.1:8080 --proxied\""));
        let alone = VirtualAddress { peers: Vec::new(), advert_ms: 500, ..settings() };
        let text = new(alone).unwrap().render();
        assert!(!text.contains("unicast_peer") && text.contains("advert_int 0.50"), "{text}");
        let wrong = VirtualAddress { interface: "eth0\n}".to_owned(), ..settings() };
        assert!(new(wrong).unwrap_err().contains("interface"));
        let listener = "0.0.0.0:80".parse().unwrap();
        let spaced = Keepalived::new(settings(), Path::new("/run/a b"), Path::new("/usr/bin/arco"), listener, false);
        assert!(spaced.unwrap_err().contains("without spaces"));
    }

    #[test]
    fn a_probe_wants_an_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = std::thread::spawn(move || {
            const WELL: &str = "HTTP/1.1 404 Not Found\r\n\r\n";
            for answer in [WELL, "SSH-2.0-x 1234567890", "", "", "SSH-2.0-x 1234567890", "", WELL] {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut request, mut byte) = (Vec::new(), [0]);
                // What is left unread when it closes would reset the connection.
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let probe = |address| probe_in(address, false, Duration::from_secs(60));
        assert!(probe(address).is_ok());
        assert!(probe(address).is_err());
        assert!(probe(address).is_err());
        assert!(probe(address).is_ok(), "when it is asked again");
        serve.join().unwrap();
        // Has the port, and does not listen.
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = silent.local_addr().unwrap().as_socket().unwrap();
        assert!(super::probe(address, false).is_err(), "nobody listens");
    }
}
