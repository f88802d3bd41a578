//! A platform as people run it: the executable, a data dir, free ports.

use crate::{Response, get, leftovers, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What is not as usual about a platform.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it keeps everything; `None`: a fresh folder below the temporary folder.
    pub data_dir: Option<PathBuf>,
    /// Variables of the server, such as `ARCO_BUILDER__TIMEOUT_MS`.
    pub env: Vec<(&'static str, String)>,
}

/// A platform of its own; whatever is left of it goes with it.
pub struct Platform {
    executable: PathBuf,
    options: Options,
    work: tempfile::TempDir,
    child: Option<Child>,
    instances: Mutex<BTreeSet<String>>,
}

impl Platform {
    /// Starts a server and waits until it is ready.
    pub fn start(executable: impl AsRef<Path>) -> Self {
        Self::start_with(executable, Options::default())
    }

    /// Starts a server that is not as usual.
    pub fn start_with(executable: impl AsRef<Path>, options: Options) -> Self {
        let work = tempfile::Builder::new().prefix("arco-test-").tempdir().expect("a temporary folder");
        let executable = executable.as_ref().to_owned();
        let mut platform = Self { executable, options, work, child: None, instances: Mutex::default() };
        platform.boot();
        platform
    }

    /// The data dir.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.work.path().join("data"))
    }

    /// A fresh folder with these files, for sources; it goes with the platform.
    pub fn folder(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.work.path().join("sources").join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (path, content) in files {
            std::fs::write(folder.join(path), content).expect("a file");
        }
        folder
    }

    /// Process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the server (again) and waits until it is ready.
    pub fn boot(&mut self) {
        let _ = std::fs::remove_file(self.data_dir().join("server.json"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.work.path().join("server.log"))
            .expect("a log");
        let mut command = Command::new(&self.executable);
        command.arg("server").arg("--data-dir").arg(self.data_dir()).args(["--domain", "test.localhost"]);
        for listener in ["http", "https", "console", "api", "registry"] {
            command.args([&format!("--{listener}-listen"), "127.0.0.1:0"]);
        }
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("the server starts"));
        let mut last = String::new();
        until("the server is ready", 300, || {
            if let Some(Some(status)) = self.child.as_mut().map(|it| it.try_wait().ok().flatten()) {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            let ready = self.address("console").and_then(|it| get(it, "console", "/healthz").ok());
            last = ready.as_ref().map(|it| it.body.clone()).unwrap_or(std::mem::take(&mut last));
            ready.filter(|it| it.status == 200)
        });
    }

    /// The server's own log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.work.path().join("server.log")).unwrap_or_default()
    }

    /// Where a listener is bound.
    pub fn address(&self, listener: &str) -> Option<SocketAddr> {
        let text = std::fs::read_to_string(self.data_dir().join("server.json")).ok()?;
        serde_json::from_str::<Value>(&text).ok()?[listener].as_str()?.parse().ok()
    }

    /// Ends the server without a warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the server to stop; whether it did by itself.
    pub fn stop(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        let status = until("the server stops", 300, || child.try_wait().ok().flatten());
        status.success()
    }

    /// Runs a command of the command line.
    pub fn arco(&self, words: &[&str]) -> Outcome {
        let mut command = Command::new(&self.executable);
        command
            .args(words)
            .env("ARCO_CONTEXT", self.data_dir().join("admin.toml"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        let output = command.output().expect("the command line starts");
        let text = |it: Vec<u8>| String::from_utf8_lossy(&it).into_owned();
        Outcome { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command and reads its JSON document, whatever its exit status.
    pub fn json(&self, words: &[&str]) -> Value {
        let outcome = self.arco(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|_| serde_json::json!({ "no_json": format!("{outcome:?}") }))
    }

    /// The status document of a component.
    pub fn status(&self, reference: &str) -> Value {
        let status = self.json(&["status", reference]);
        for instance in status["instances"].as_array().into_iter().flatten() {
            self.instances.lock().expect("no panic").extend(instance["id"].as_str().map(str::to_owned));
        }
        status
    }

    /// Waits until an operation has ended; its document.
    pub fn ended(&self, operation: &str, seconds: u64) -> Value {
        until(&format!("operation {operation} ends"), seconds, || {
            let listed = self.json(&["operations"]);
            let found = listed["items"].as_array()?.iter().find(|it| it["id"] == operation)?.clone();
            let status = found["status"].as_str().unwrap_or_default();
            ["succeeded", "failed", "cancelled"].contains(&status).then_some(found)
        })
    }

    /// `GET path` of a host through the gateway.
    pub fn get(&self, host: &str, path: &str) -> std::io::Result<Response> {
        let gateway = self.address("http").ok_or_else(|| std::io::Error::other("no gateway address"))?;
        get(gateway, host, path)
    }

    /// What of the platform is still there: processes, mounts, cgroups, links.
    pub fn leftovers(&self) -> Vec<String> {
        leftovers::find(&self.data_dir(), &self.instance_ids())
    }

    fn instance_ids(&self) -> Vec<String> {
        self.instances.lock().map(|it| it.iter().cloned().collect()).unwrap_or_default()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        self.kill();
        leftovers::clean(&self.data_dir(), &self.instance_ids());
    }
}
