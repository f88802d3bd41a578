//! Real servers for the contract suites: started on free loopback ports in folders of their own, or named by
//! `ARCO_TEST_MYSQL_URL`, `ARCO_TEST_POSTGRES_URL`, `ARCO_TEST_ETCD_URL`, `ARCO_TEST_S3_URL`. Only for tests.
//!
//! One of each kind serves a whole test program. A small shell process guards it (see `servers/guard.sh`), so that
//! nothing stays behind when the program ends or is killed. It is handed out when it answers as one that serves. Where a
//! package is missing the test says SKIPPED.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long one answer may take until it is asked for again.
const ANSWER: Duration = Duration::from_secs(10);
/// Debian's user and group `nobody`, `nogroup`: some servers refuse to run as root.
const NOBODY: u32 = 65534;
/// Ports that the kernel does not hand out by itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

type Made = Result<String, String>;

/// How a server shows that it serves: what it is told, and how its answer begins. One that takes connections may still be
/// starting.
struct Hello {
    told: &'static [u8],
    answer: &'static [u8],
}

/// It greets by itself when all of its start is done.
const MYSQL: Hello = Hello { told: b"", answer: b"" };
/// It asks user `arco` for a password; as long as it starts it answers with an error.
const POSTGRES: Hello = Hello { told: b"\0\0\0\x25\0\x03\0\0user\0arco\0database\0postgres\0\0", answer: b"R" };
/// Whatever it says of its health.
const HTTP: Hello =
    Hello { told: b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", answer: b"HTTP/1." };

fn once(cell: &OnceLock<Made>, variable: &str, make: fn() -> Made) -> Option<String> {
    let made = || match std::env::var(variable) {
        Ok(url) if !url.is_empty() => Ok(url),
        _ => make(),
    };
    match cell.get_or_init(made) {
        Ok(url) => Some(url.clone()),
        Err(why) => {
            eprintln!("SKIPPED: {why}; or name a server with {variable}");
            None
        }
    }
}

/// URL of a MySQL or MariaDB server and its database, of a user who may make databases.
pub fn mysql() -> Option<String> {
    static CELL: OnceLock<Made> = OnceLock::new();
    once(&CELL, "ARCO_TEST_MYSQL_URL", start_mysql)
}

/// URL of a MariaDB server that nobody else uses, with its database, of a user who may do everything.
pub fn mysql_of_its_own() -> Option<String> {
    said(start_mysql())
}

fn start_mysql() -> Made {
    let (install, server) = (found("mariadb-install-db", "mariadb-server")?, found("mariadbd", "mariadb-server")?);
    let folder = folder();
    let init = folder.join("init.sql");
    let user = "CREATE DATABASE arco;\nCREATE USER arco IDENTIFIED BY 'a secret';\nGRANT ALL ON *.* TO arco WITH GRANT OPTION;\n";
    std::fs::write(&init, user).unwrap();
    let data = folder.join("data");
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    done(unprivileged(&install).args(["--no-defaults", "--skip-test-db"]).arg(flag("datadir", &data)));
    let port = free_port();
    let mut command = unprivileged(&server);
    command.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"]);
    command.args(["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]);
    command.args([flag("datadir", &data), flag("init-file", &init), flag("socket", &folder.join("socket"))]);
    start(folder, command.arg(format!("--port={port}")), port, &MYSQL);
    Ok(format!("mysql://arco:a%20secret@127.0.0.1:{port}/arco"))
}

/// URL of a PostgreSQL server and its database, of a user who may make databases.
pub fn postgres() -> Option<String> {
    static CELL: OnceLock<Made> = OnceLock::new();
    once(&CELL, "ARCO_TEST_POSTGRES_URL", start_postgres)
}

fn start_postgres() -> Made {
    let (init, server) = (found("initdb", "postgresql")?, found("postgres", "postgresql")?);
    let folder = folder();
    let (data, password) = (folder.join("data"), folder.join("password"));
    std::fs::write(&password, "a secret\n").unwrap();
    let mut command = unprivileged(&init);
    command.args(["--no-sync", "--username=arco", "--auth=scram-sha-256", "--encoding=UTF8"]);
    done(command.arg(format!("--pwfile={}", password.display())).arg("-D").arg(&data));
    let port = free_port();
    let mut command = unprivileged(&server);
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    command.args(["-c", "fsync=off", "-c", "max_connections=200", "-c"]);
    start(folder.clone(), command.arg(format!("unix_socket_directories={}", folder.display())), port, &POSTGRES);
    Ok(format!("postgres://arco:a%20secret@127.0.0.1:{port}/postgres"))
}

/// URL of an etcd without TLS.
pub fn etcd() -> Option<String> {
    static CELL: OnceLock<Made> = OnceLock::new();
    once(&CELL, "ARCO_TEST_ETCD_URL", start_etcd)
}

fn start_etcd() -> Made {
    let server = found("etcd", "etcd-server")?;
    let (folder, port, peer) = (folder(), free_port(), free_port());
    let mut command = etcd_command(&server, &folder, "one", port, peer, &format!("one=http://127.0.0.1:{peer}"));
    start(folder, &mut command, port, &HTTP);
    Ok(format!("http://127.0.0.1:{port}"))
}

/// `members`: every member of its cluster, as etcd wants them.
fn etcd_command(server: &Path, folder: &Path, name: &str, port: u16, peer: u16, members: &str) -> Command {
    let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let mut command = unprivileged(server);
    command.arg("--data-dir").arg(folder.join("data")).args(["--log-level", "error", "--name", name]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", members]);
    command
}

/// An etcd, alone or a member of several, that a test kills and starts again, with what it holds; ended and removed when it
/// is dropped.
#[derive(Debug)]
pub struct RestartableEtcd {
    /// URL, the same after each start.
    pub url: String,
    folder: PathBuf,
    name: String,
    port: u16,
    peer: u16,
    members: String,
    guard: Option<Child>,
    /// Of this start.
    start: PathBuf,
}

impl RestartableEtcd {
    /// One that runs; `None` where the package is missing, which is said.
    pub fn start() -> Option<Self> {
        Self::members(1)?.pop()
    }

    /// So many that are one etcd.
    pub fn members(count: usize) -> Option<Vec<Self>> {
        if let Err(why) = found("etcd", "etcd-server") {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let member = |(at, (_, peer)): (usize, &(u16, u16))| format!("m{at}=http://127.0.0.1:{peer}");
        let members = ports.iter().enumerate().map(member).collect::<Vec<_>>().join(",");
        let made = ports.into_iter().enumerate().map(|(at, (port, peer))| {
            let (url, name, members) = (format!("http://127.0.0.1:{port}"), format!("m{at}"), members.clone());
            let (folder, start) = (folder(), PathBuf::new());
            let mut made = Self { url, folder, name, port, peer, members, guard: None, start };
            made.boot();
            made
        });
        Some(made.collect())
    }

    /// Starts it (again) and waits until it serves, or, of several, until it takes connections: it serves with the others.
    pub fn boot(&mut self) {
        let server = found("etcd", "etcd-server").expect("it was found before");
        let mut command = etcd_command(&server, &self.folder, &self.name, self.port, self.peer, &self.members);
        if self.members.contains(',') {
            // Members that wait for the disk of a busy machine are not to take each other for dead.
            command.args(["--heartbeat-interval", "250", "--election-timeout", "2500"]);
        }
        // The guard removes the folder that it is given: one of this start alone.
        self.start = folder();
        let hello = (!self.members.contains(',')).then_some(&HTTP);
        self.guard = Some(guarded(&self.start, &self.folder.join("log"), &mut command, self.port, hello));
    }

    /// Whether it leads the members of its etcd. Not to be asked while it is frozen.
    pub fn leads(&self) -> bool {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.port));
        let Ok(answer) = crate::http::post(address, "/v3/maintenance/status", "{}") else { return false };
        // The body may be in chunks: the document is what is in braces.
        let document = answer.body.find('{').zip(answer.body.rfind('}')).map(|(from, to)| &answer.body[from..=to]);
        let status = document.and_then(|it| serde_json::from_str::<serde_json::Value>(it).ok()).unwrap_or_default();
        status["leader"].is_string() && status["leader"] == status["header"]["member_id"]
    }

    /// Stops its process without ending it: its connections stay, and nothing is said on them.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = crate::until("the server's process id", 60, || {
            std::fs::read_to_string(self.start.join("pid")).ok().filter(|it| it.ends_with('\n'))
        });
        done(Command::new("kill").args([signal, pid.trim()]));
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}

impl Drop for RestartableEtcd {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// URLs of an etcd and of a PostgreSQL server that nobody else uses: for whole platforms, which take all of them.
pub fn of_its_own() -> Option<(String, String)> {
    said(start_etcd().and_then(|etcd| Ok((etcd, start_postgres()?))))
}

/// The same with an etcd of so many members.
pub fn of_its_own_with_members(count: usize) -> Option<(Vec<RestartableEtcd>, String)> {
    Some((RestartableEtcd::members(count)?, said(start_postgres())?))
}

fn said<T>(made: Result<T, String>) -> Option<T> {
    made.map_err(|why| eprintln!("SKIPPED: {why}")).ok()
}

/// URL of an S3 server as our driver takes it, without a bucket: `s3://?endpoint=http://HOST:PORT&region=…`.
/// A bucket named `arco-test` exists or may be made. Its credentials are in the variables that S3 programs read, else
/// both are `testing`.
pub fn s3() -> Option<String> {
    static CELL: OnceLock<Made> = OnceLock::new();
    once(&CELL, "ARCO_TEST_S3_URL", || {
        let python = s3_program()?;
        let (folder, port) = (folder(), free_port());
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        start(folder, &mut command, port, &HTTP);
        Ok(format!("s3://?endpoint=http://127.0.0.1:{port}&region=us-east-1"))
    })
}

/// Python with moto, in an environment below the target folder, made once.
fn s3_program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().unwrap();
    let target =
        own.ancestors().find(|it| it.join("CACHEDIR.TAG").exists()).ok_or("no target folder above the test")?;
    let (environment, ready) = (target.join("s3-server"), target.join("s3-server/ready"));
    let python = environment.join("bin/python3");
    if !ready.exists() {
        let venv = Command::new("python3").args(["-m", "venv"]).arg(&environment).output();
        if !venv.is_ok_and(|it| it.status.success()) {
            return Err("python3 -m venv does not work (Debian: python3-venv)".to_owned());
        }
        let mut pip = Command::new(&python);
        let pip = pip.args(["-m", "pip", "install", "--quiet", "moto[server]==5.2.5"]).output();
        let pip = pip.map_err(|it| format!("pip: {it}"))?;
        if !pip.status.success() {
            return Err(format!("pip cannot install moto: {}", String::from_utf8_lossy(&pip.stderr)));
        }
        std::fs::write(&ready, "").unwrap();
    }
    Ok(python)
}

fn found(program: &str, package: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    // Debian keeps each version of PostgreSQL apart; the newest is last.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|it| it.path().join("bin")).collect();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    let found = folders.into_iter().map(|it| it.join(program)).find(|it| it.exists());
    found.ok_or_else(|| format!("{program} is not installed (Debian: {package})"))
}

/// A folder that the server's user owns; the guard removes it.
fn folder() -> PathBuf {
    let folder = tempfile::Builder::new().prefix("arco-server-").tempdir().unwrap().keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    folder
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

/// A command that runs as `nobody` when we are root.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
    command
}

fn done(command: &mut Command) {
    let output = command.current_dir("/").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A port of this machine that nobody listens on, for a program that cannot be given a socket. It is below those that the
/// kernel hands out by itself (from 32768 on), and no other process is given it here as long as this one lives, so that
/// nobody gets it before the program, or while the program is started again; each is given once by a process.
///
/// # Panics
/// When all 12,000 of them are in use.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` such ports in a row.
///
/// # Panics
/// When there are none.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static GIVEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let begin = std::process::id() % 1000 * 7919;
    let mut firsts = (0..PORTS.len()).map(|_| {
        let at = begin.wrapping_add(NEXT.fetch_add(u32::from(count), Ordering::Relaxed));
        PORTS.start + u16::try_from(at as usize % PORTS.len()).unwrap_or_default()
    });
    let others = taken();
    let signs = |first: u16| (first..first + count).map(|it| sign(it, &others)).collect::<Option<Vec<_>>>();
    let (first, signs) = firsts.find_map(|it| Some((it, signs(it)?))).expect("free ports in a row");
    GIVEN.lock().unwrap().extend(signs);
    first
}

/// Ports that somebody has. They are looked up: who tries one has it for a moment, and so has a program that another thread
/// starts in this moment, for as long as its start takes.
fn taken() -> BTreeSet<u16> {
    let table = |name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let port = |line: &str| u16::from_str_radix(line.split_whitespace().nth(1)?.rsplit_once(':')?.1, 16).ok();
    ["tcp", "tcp6", "udp", "udp6"]
        .into_iter()
        .flat_map(|name| table(name).lines().filter_map(port).collect::<Vec<_>>())
        .collect()
}

/// That the port is this process's, when nobody else has it: a name that only one process can have.
fn sign(port: u16, others: &BTreeSet<u16>) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("arco-test-port-{port}")).ok()?;
    let sign = UnixListener::bind_addr(&name).ok()?;
    (!others.contains(&port)).then_some(sign)
}

/// Starts a server under its guard and waits until it serves.
fn start(folder: PathBuf, command: &mut Command, port: u16, hello: &Hello) {
    /// The guards' pipes; they close when this process ends.
    static GUARDS: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    let guard = guarded(&folder, &folder.join("log"), command, port, Some(hello));
    GUARDS.lock().unwrap().push(guard);
}

/// Whether a server answers as it should; without a `hello`, whether it takes connections.
fn answers(port: u16, hello: Option<&Hello>) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let Some(hello) = hello else { return true };
    let mut begin = vec![0; hello.answer.len().max(1)];
    let said = stream.set_read_timeout(Some(ANSWER)).and_then(|()| stream.write_all(hello.told));
    said.and_then(|()| stream.read_exact(&mut begin)).is_ok() && begin.starts_with(hello.answer)
}

/// Starts a server under a guard, which ends it and removes `folder` when its input closes.
fn guarded(folder: &Path, log: &Path, command: &mut Command, port: u16, hello: Option<&Hello>) -> Child {
    let mut guard = Command::new("sh");
    guard.args(["-c", include_str!("servers/guard.sh"), "guard"]).args([folder, log]);
    guard.arg(command.get_program()).args(command.get_args());
    guard.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own, so that an interrupt from the terminal ends the test first.
    std::os::unix::process::CommandExt::process_group(&mut guard, 0);
    let guard = guard.spawn().unwrap();
    wait(log, || answers(port, hello));
    guard
}

/// Waits until a server is ready; says what it wrote to its log when it is not in time.
fn wait(log: &Path, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < deadline, "the server does not answer: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
}
