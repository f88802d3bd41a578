//! nginx as the data plane: its configuration is rendered from the file, checked with `nginx -t`, and reloaded only when
//! it differs.
//!
//! What must hold: a file that nginx cannot serve as it is written is refused with every part that it cannot do; nginx
//! outlives the process that started it, and the next one goes on with it.
//!
//! Not here: what is rendered (`render`).

mod render;

use super::Driver;
use crate::addresses::Addresses;
use crate::bind::check_free;
use crate::data_plane::GatewayError;
use crate::source::file::{ListenerSpec, Loaded};
use futures_util::future::BoxFuture;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long open requests may finish.
const GRACE: Duration = Duration::from_secs(10);
/// Pause before nginx is started again: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long it may take to be there after it listens.
const START: Duration = Duration::from_secs(20);
/// How often a process that starts or ends is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// See the module. Files and programs are waited for beside the async tasks.
pub struct Nginx {
    /// Configuration, process id and logs; root's alone.
    folder: PathBuf,
    addresses: Addresses,
    /// What is in effect.
    loaded: Option<Loaded>,
    process: Option<OwnedFd>,
    pause: Duration,
    again_at: Option<Instant>,
}

impl Nginx {
    /// An nginx that is not started yet.
    pub fn new(folder: &Path, addresses: Addresses) -> Self {
        let folder = folder.to_owned();
        Self { folder, addresses, loaded: None, process: None, pause: PAUSE.0, again_at: None }
    }

    /// Whether nginx can do everything that the file asks for.
    pub fn check(loaded: &Loaded) -> Result<(), GatewayError> {
        render::render(&loaded.written, &loaded.folder, Path::new("/run"), &|_| true).map(|_| ()).map_err(cannot)
    }

    /// Puts this configuration into effect, if it differs; gives it back.
    async fn serve(&mut self, loaded: Loaded) -> (Option<Loaded>, Result<(), GatewayError>) {
        let (folder, addresses) = (self.folder.clone(), self.addresses.clone());
        let mut work = Work { folder, addresses, process: self.process.take() };
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work.serve(&loaded);
            (work.process, loaded, outcome)
        });
        match done.await {
            Ok((process, loaded, outcome)) => {
                self.process = process;
                (Some(loaded), outcome)
            }
            Err(error) => (None, Err(GatewayError::Driver(format!("nginx was not looked after: {error}")))),
        }
    }
}

/// What is done for it on a thread of its own.
struct Work {
    folder: PathBuf,
    addresses: Addresses,
    process: Option<OwnedFd>,
}

impl Work {
    /// Puts this configuration into effect, if it differs.
    fn serve(&mut self, loaded: &Loaded) -> Result<(), GatewayError> {
        let here = |it: SocketAddr| self.addresses.has(it.ip());
        // Relative names are nginx's own otherwise.
        let base = std::path::absolute(Path::new(".").join(&loaded.folder)).map_err(step("find its files"))?;
        let text = render::render(&loaded.written, &base, &self.folder, &here).map_err(cannot)?;
        let process = self.process.take().filter(is_alive).or_else(|| self.running());
        let path = self.folder.join("nginx.conf");
        let known = std::fs::read_to_string(&path).ok().as_deref() == Some(text.as_str());
        if let Some(process) = process {
            self.process = Some(process);
            if known {
                return Ok(());
            }
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.folder).map_err(step("make its folder"))?;
        let fresh = self.folder.join("nginx.conf.new");
        std::fs::write(&fresh, &text).map_err(step("write its configuration"))?;
        nginx(&["-t", "-q"], &fresh, &self.folder)?;
        if self.process.is_some() {
            // It looks at no address, and one that is taken would be told in its log alone: everything before goes on then.
            let before = std::fs::read_to_string(&path).unwrap_or_default();
            let addresses = loaded.listeners.iter().map(|it| it.address).filter(|it| here(*it));
            for address in addresses.filter(|it| !before.contains(&format!("listen {it} "))) {
                check_free(address)?;
            }
        }
        std::fs::rename(&fresh, &path).map_err(step("write its configuration"))?;
        match &self.process {
            Some(process) => pidfd_send_signal(process, Signal::HUP).map_err(|it| step("be told")(it.into()))?,
            None => {
                nginx(&["-q"], &path, &self.folder)?;
                // It listens now, and is about to write its number down.
                let began = Instant::now();
                while self.process.is_none() && began.elapsed() < START {
                    std::thread::sleep(LOOK);
                    self.process = self.running();
                }
                if self.process.is_none() {
                    let log = self.folder.join("nginx.log");
                    return Err(GatewayError::Driver(format!("nginx ended at once; `{}` says why", log.display())));
                }
            }
        }
        Ok(())
    }

    /// The nginx of this folder, if one runs.
    fn running(&self) -> Option<OwnedFd> {
        let pid: i32 = std::fs::read_to_string(self.folder.join("nginx.pid")).ok()?.trim().parse().ok()?;
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // The number may be another process' by now.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let ours = name.trim_end() == "nginx" && line.contains(self.folder.to_str()?);
        ours.then_some(process)
    }
}

impl Driver for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn put(&mut self, loaded: Loaded) -> BoxFuture<'_, Result<(), GatewayError>> {
        Box::pin(async move {
            let (loaded, outcome) = self.serve(loaded).await;
            outcome?;
            self.loaded = loaded;
            Ok(())
        })
    }

    fn follow_addresses(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(loaded) = self.loaded.take() else { return };
            let (loaded, outcome) = self.serve(loaded).await;
            self.loaded = loaded;
            if let Err(error) = outcome {
                tracing::error!(%error, "nginx does not follow the addresses of this machine");
            }
        })
    }

    fn tend(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.process.as_ref().is_some_and(is_alive) {
                return;
            }
            let due = *self.again_at.get_or_insert_with(|| {
                tracing::error!(folder = %self.folder.display(), "nginx ended, it is started again");
                Instant::now() + self.pause
            });
            if Instant::now() < due {
                return;
            }
            let Some(loaded) = self.loaded.take() else { return };
            let (loaded, outcome) = self.serve(loaded).await;
            self.loaded = loaded;
            match outcome {
                Ok(()) => (self.again_at, self.pause) = (None, PAUSE.0),
                Err(error) => {
                    tracing::error!(%error, "nginx cannot be started");
                    self.pause = (self.pause * 2).min(PAUSE.1);
                    self.again_at = Some(Instant::now() + self.pause);
                }
            }
        })
    }

    fn listeners(&self) -> Vec<(ListenerSpec, SocketAddr)> {
        let wanted = self.loaded.iter().flat_map(|it| &it.listeners);
        let here = wanted.filter(|it| self.addresses.has(it.address.ip()));
        here.map(|it| (it.clone(), it.address)).collect()
    }

    fn end(&mut self, successor: bool) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(process) = self.process.take().filter(|_| !successor) else { return true };
            // Workers finish what is open.
            let _ = pidfd_send_signal(&process, Signal::QUIT);
            let ended = async {
                while is_alive(&process) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let whole = tokio::time::timeout(GRACE, ended).await.is_ok();
            if !whole {
                let _ = pidfd_send_signal(&process, Signal::TERM);
            }
            whole
        })
    }
}

/// Runs nginx for the configuration and waits: it checks, or puts itself into the background when it listens.
fn nginx(arguments: &[&str], config: &Path, folder: &Path) -> Result<(), GatewayError> {
    let output = Command::new("nginx")
        .args(arguments)
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(folder)
        .arg("-e")
        .arg(folder.join("nginx.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|it| match it.kind() {
            std::io::ErrorKind::NotFound => {
                GatewayError::Driver("nginx is not installed: `apt install nginx-light`".to_owned())
            }
            _ => GatewayError::Driver(format!("cannot run nginx: {it}")),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let log = folder.join("nginx.log");
    Err(GatewayError::Driver(format!("nginx refuses its configuration ({}): {}", log.display(), said.trim())))
}

fn is_alive(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut ended, Some(&now)), Ok(1..))
}

fn step(step: &'static str) -> impl Fn(std::io::Error) -> GatewayError {
    move |it| GatewayError::Driver(format!("nginx cannot {step}: {it}"))
}

fn cannot(parts: Vec<String>) -> GatewayError {
    GatewayError::Driver(format!("the driver `nginx` cannot do all of the file:\n  {}", parts.join("\n  ")))
}
