//! A host beside this machine, in a network namespace of its own: Git over https and over ssh, as others run it.

use arco_daemon::pki::{Leaf, Pki};
use arco_daemon::tls::{ClientAuth, HotCertificate, server_config};
use arco_daemon::{Supervisor, listener};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// The host; it goes with its value.
pub(crate) struct Neighbour {
    name: String,
    /// Its address: private, so that builds reach it only when that is allowed.
    pub(crate) address: Ipv4Addr,
    pub(crate) folder: tempfile::TempDir,
    pki: Pki,
    runtime: tokio::runtime::Runtime,
    children: Mutex<Vec<Child>>,
}

fn run(words: &[&str]) {
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Neighbour {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Process ids are below 2^22; a few hosts of one process lie side by side.
        let id = (std::process::id() << 2) | (COUNT.fetch_add(1, Ordering::Relaxed) & 3);
        let (name, near, far) = (format!("arcotest{id}"), format!("ag{id}"), format!("ah{id}"));
        let address = Ipv4Addr::new(10, 213, (id >> 6) as u8, (id << 2) as u8 | 2);
        let network = |last: u8| {
            let [a, b, c, d] = address.octets();
            format!("{a}.{b}.{c}.{}/30", d & 0xfc | last)
        };
        run(&["ip", "netns", "add", &name]);
        run(&["ip", "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name]);
        run(&["ip", "addr", "add", &network(1), "dev", &near]);
        run(&["ip", "link", "set", &near, "up"]);
        let inside = |words: &[&str]| run(&[&["ip", "-n", &name], words].concat());
        inside(&["addr", "add", &network(2), "dev", &far]);
        inside(&["link", "set", &far, "up"]);
        inside(&["link", "set", "lo", "up"]);
        let folder = tempfile::Builder::new().prefix("arco-neighbour-").tempdir().unwrap();
        let pki = Pki::open(&folder.path().join("pki")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { name, address, folder, pki, runtime, children: Mutex::default() }
    }

    /// The network that builds must be allowed to reach.
    pub(crate) fn network(&self) -> String {
        format!("[\"{}/32\"]", self.address)
    }

    /// What the machine trusts, and the authority of this host.
    pub(crate) fn trust(&self) -> PathBuf {
        let file = self.folder.path().join("trust.pem");
        let mut text = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
        text.push_str(self.pki.authority_pem());
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A listener on this host.
    fn listen(&self) -> std::net::TcpListener {
        let namespace = std::fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let address = self.address;
        let bind = move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind((address, 0)).unwrap()
        };
        std::thread::spawn(bind).join().unwrap()
    }

    /// Serves with TLS; the port.
    fn serve(&self, router: axum::Router) -> u16 {
        let socket = self.listen();
        let port = socket.local_addr().unwrap().port();
        socket.set_nonblocking(true).unwrap();
        let leaf: Leaf = self.pki.server(&[self.address.to_string()]).unwrap();
        let certificate = HotCertificate::new(&leaf).unwrap();
        let tls = server_config(certificate, self.pki.authority_pem(), ClientAuth::None).unwrap();
        self.runtime.spawn(async move {
            let socket = tokio::net::TcpListener::from_std(socket).unwrap();
            listener::serve(socket, Some(tls), router, Supervisor::new()).await.unwrap();
        });
        port
    }

    /// A repository `<folder>/<path>` with these files and one commit.
    pub(crate) fn repository(&self, path: &str, files: &[(&str, &str)]) {
        let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_bytes())).collect();
        self.repository_of(path, &files);
    }

    /// The same with bytes.
    pub(crate) fn repository_of(&self, path: &str, files: &[(&str, &[u8])]) {
        let (work, bare) = (self.folder.path().join("work"), self.folder.path().join("git").join(path));
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir_all(&work).unwrap();
        for (name, content) in files {
            std::fs::write(work.join(name), content).unwrap();
        }
        let git = |words: &[&str]| {
            let mut all =
                vec!["git", "-C", work.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@example.com"];
            all.extend_from_slice(words);
            run(&all);
        };
        git(&["init", "-q"]);
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "first"]);
        run(&["git", "clone", "-q", "--bare", work.to_str().unwrap(), bare.to_str().unwrap()]);
    }

    /// Git over https for one user with one password; the port, and every `Authorization` that came.
    pub(crate) fn https(&self, user: &str, password: &str) -> (u16, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let door = Door {
            root: self.folder.path().join("git"),
            expected: format!("Basic {}", base64(&format!("{user}:{password}"))),
            seen: seen.clone(),
        };
        (self.serve(axum::Router::new().fallback(backend).with_state(door)), seen)
    }

    /// Sends everybody on to another place, and remembers what was shown.
    pub(crate) fn redirect(&self, to: String) -> u16 {
        let answer = move |request: Request| {
            let place = format!("{to}{}", request.uri().path_and_query().map_or("/", |it| it.as_str()));
            async move { (http_status(302), [("location", place)]).into_response() }
        };
        self.serve(axum::Router::new().fallback(answer))
    }

    /// sshd for whoever has the key in `authorized`, showing the host key of that name; the port.
    pub(crate) fn ssh(&self, host_key: &Path, authorized: &str) -> u16 {
        let port = self.listen().local_addr().unwrap().port();
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        std::fs::write(file("authorized"), authorized).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let settings = format!(
            "Port {port}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n",
            self.address,
            host_key.display(),
            file("authorized")
        );
        let config = file(&format!("sshd-{port}"));
        std::fs::write(&config, settings).unwrap();
        let namespace = format!("--net=/run/netns/{}", self.name);
        let child = Command::new("nsenter")
            .args([&namespace, "/usr/sbin/sshd", "-D", "-e", "-f", &config])
            .stderr(std::fs::File::create(file("sshd.log")).unwrap())
            .spawn()
            .unwrap();
        self.children.lock().unwrap().push(child);
        let at = (self.address, port);
        arco_testkit::until("sshd listens", 60, || std::net::TcpStream::connect(at).ok());
        port
    }

    /// A key pair; the path of its private half.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path.to_str().unwrap()]);
        path
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("sshd.log")).unwrap_or_default();
            eprintln!("sshd said:\n{log}");
        }
        for child in self.children.get_mut().unwrap() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        let _ = Command::new("ip")
            .args(["link", "delete", &self.name.replace("arcotest", "ag")])
            .stderr(Stdio::null())
            .status();
    }
}

fn http_status(code: u16) -> axum::http::StatusCode {
    axum::http::StatusCode::from_u16(code).unwrap()
}

pub(crate) fn base64(text: &str) -> String {
    let mut child = Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[derive(Clone)]
struct Door {
    root: PathBuf,
    expected: String,
    seen: Arc<Mutex<Vec<String>>>,
}

/// `git http-backend` behind basic authentication.
async fn backend(State(door): State<Door>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let shown = header("authorization");
    if !shown.is_empty() {
        door.seen.lock().unwrap().push(shown.clone());
    }
    if shown != door.expected {
        return (http_status(401), [("www-authenticate", "Basic realm=\"git\"")]).into_response();
    }
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &door.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let work = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&body).unwrap();
        child.wait_with_output().unwrap().stdout
    });
    let output = work.await.unwrap();
    let end = output.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
    let mut answer = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        answer = match name {
            "Status" => answer.status(value.split(' ').next().unwrap().parse::<u16>().unwrap()),
            _ => answer.header(name, value),
        };
    }
    answer.body(Body::from(output[end + 4..].to_vec())).unwrap()
}
