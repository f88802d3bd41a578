//! Stacks: the base image and the toolchains on it, made on first use and kept per machine.
//!
//! `<cache_dir>/stacks/` holds the blobs by digest and a description for each stack; a lock per stack lets only one
//! builder of the machine make it while the others wait. Each server imports what it needs into its own store, as
//! `stack/<name>`. What is made comes from the distribution or from the registries of the language, never from a source
//! that a person deploys, which is why it may be made outside of a container.

mod debian;
mod download;
pub(crate) mod golang;
mod node;
mod web;

use crate::access::Access;
use crate::detect::Stack;
use crate::layer::{self, FinishedLayer};
use arco_config::BuilderConfig;
use arco_model::artifact::{ImageConfig, ImageRef, Layer};
use arco_model::error::{ErrorKind, Problem};
use arco_store::blob::content_path;
use arco_store::images::{Image, Images};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Raised when a stack is made in another way; older ones are then left alone and new ones made.
fn edition(stack: &Stack) -> u32 {
    match stack {
        Stack::Web => 4,
        Stack::Go(_) => 3,
        Stack::Compilers(inner) => edition(inner),
        _ => 2,
    }
}

/// Says a line to whoever watches.
pub(crate) type Say<'a> = &'a (dyn Fn(String) + Send + Sync);

/// A stack as an image of this server.
#[derive(Clone, Debug)]
pub(crate) struct StackImage {
    /// For one-shots.
    pub(crate) reference: ImageRef,
    /// Its layers and configuration.
    pub(crate) image: Image,
}

/// What is kept about a made stack.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    layers: Vec<Layer>,
}

/// The stacks of this machine.
pub(crate) struct Stacks {
    folder: PathBuf,
    config: BuilderConfig,
    known: tokio::sync::Mutex<HashMap<Stack, StackImage>>,
}

fn failed(step: &str, stack: &Stack, cause: impl std::fmt::Display) -> Problem {
    let message = format!("failed to {step} the stack `{}`: {cause}", stack.name());
    Problem::new(
        ErrorKind::Unavailable,
        "stack_failed",
        message,
        "check that this machine reaches its package mirrors, then deploy again",
    )
}

impl Stacks {
    pub(crate) fn new(cache_dir: &Path, config: BuilderConfig) -> Self {
        Self { folder: cache_dir.join("stacks"), config, known: tokio::sync::Mutex::default() }
    }

    /// The stack as an image of this server, made or imported if it is not there.
    pub(crate) async fn ensure(
        &self,
        stack: &Stack,
        images: &Images,
        access: &Access,
        say: Say<'_>,
    ) -> Result<StackImage, Problem> {
        if let Some(found) = self.known.lock().await.get(stack) {
            return Ok(found.clone());
        }
        let stored = self.stored(stack, access, say).await?;
        let fail = |step: &'static str| move |it: Box<dyn std::error::Error + Send + Sync>| failed(step, stack, it);
        for layer in &stored.layers {
            let path = content_path(&layer.blob.digest);
            if images.blobs().stat(&path).await.map_err(|it| fail("import")(it.into()))?.is_none() {
                let file = std::fs::File::open(self.blob(layer)).map_err(|it| fail("import")(it.into()))?;
                layer::put_file(images, &path, file).await.map_err(|it| fail("import")(it.into()))?;
            }
        }
        let image = Image { layers: stored.layers, config: config(stack) };
        let repository = format!("stack/{}", stack.name());
        let reference = images.write(&repository, &image).await.map_err(|it| fail("register")(it.into()))?;
        images.tag(&repository, "latest", &reference.digest).await.map_err(|it| fail("register")(it.into()))?;
        let found = StackImage { reference, image };
        self.known.lock().await.insert(stack.clone(), found.clone());
        Ok(found)
    }

    fn blob(&self, layer: &Layer) -> PathBuf {
        self.folder.join("blobs").join(layer.blob.digest.hex())
    }

    fn read(&self, stack: &Stack) -> Option<Stored> {
        let text = std::fs::read(self.folder.join(format!("{}-{}.json", stack.name(), edition(stack)))).ok()?;
        let stored: Stored = serde_json::from_slice(&text).ok()?;
        let whole = |it: &Layer| std::fs::metadata(self.blob(it)).is_ok_and(|found| found.len() == it.blob.size);
        stored.layers.iter().all(whole).then_some(stored)
    }

    /// The stack in the machine's cache; made under its lock if it is not there.
    async fn stored(&self, stack: &Stack, access: &Access, say: Say<'_>) -> Result<Stored, Problem> {
        if let Some(found) = self.read(stack) {
            return Ok(found);
        }
        let fail = |step: &'static str| move |it: std::io::Error| failed(step, stack, it);
        for folder in ["blobs", "work"] {
            std::fs::create_dir_all(self.folder.join(folder)).map_err(fail("make the folder of"))?;
        }
        let below = match stack {
            Stack::Base => Vec::new(),
            Stack::Compilers(inner) => Box::pin(self.stored(inner, access, say)).await?.layers,
            _ => Box::pin(self.stored(&Stack::Base, access, say)).await?.layers,
        };
        let _lock = self.lock(stack, say).await.map_err(fail("lock"))?;
        if let Some(found) = self.read(stack) {
            return Ok(found);
        }
        say(format!("making the stack `{}`; this happens once per machine", stack.name()));
        let began = std::time::Instant::now();
        let work = tempfile::Builder::new()
            .prefix("make-")
            .tempdir_in(self.folder.join("work"))
            .map_err(fail("make a folder for"))?;
        let made = self.make(stack, &below, work.path(), access, say).await?;
        let mut layers = below;
        for finished in made {
            let target = self.blob(&finished.layer);
            finished.file.as_file().sync_all().map_err(fail("write"))?;
            finished.file.persist(target).map_err(|it| failed("write", stack, it.error))?;
            layers.push(finished.layer);
        }
        let stored = Stored { layers };
        let text = serde_json::to_vec(&stored).map_err(|it| failed("describe", stack, it))?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(fail("describe"))?;
        std::io::Write::write_all(&mut file, &text).map_err(fail("describe"))?;
        file.as_file().sync_all().map_err(fail("describe"))?;
        file.persist(self.folder.join(format!("{}-{}.json", stack.name(), edition(stack))))
            .map_err(|it| failed("describe", stack, it.error))?;
        say(format!("made the stack `{}` in {:.1} s", stack.name(), began.elapsed().as_secs_f64()));
        Ok(stored)
    }

    /// Waits for the lock of a stack; it is freed when the file is dropped, also by a crash.
    async fn lock(&self, stack: &Stack, say: Say<'_>) -> std::io::Result<std::fs::File> {
        let file = std::fs::File::create(self.folder.join(format!("{}.lock", stack.name())))?;
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if !told {
                        say(format!("another build makes the stack `{}`; waiting", stack.name()));
                        told = true;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn make(
        &self,
        stack: &Stack,
        below: &[Layer],
        work: &Path,
        access: &Access,
        say: Say<'_>,
    ) -> Result<Vec<FinishedLayer>, Problem> {
        let apt = |packages: &'static [&'static str]| debian::Packages {
            packages,
            then: if *stack == Stack::Web { web::AS_OFFICIAL } else { ":" },
            access,
            blobs: self.folder.join("blobs"),
        };
        match stack {
            Stack::Base => Ok(vec![debian::base(&self.config, access, work, say).await?]),
            Stack::Fetch => Ok(vec![apt(&["git", "openssh-client"]).layer(stack, below, work, say).await?]),
            Stack::Web => Ok(vec![
                apt(&["nginx-light"]).layer(stack, below, work, say).await?,
                web::layer(work).map_err(|it| failed("write", stack, it))?,
            ]),
            Stack::Python => {
                let packages = &["python3", "python3-venv", "python3-pip", "python-is-python3"];
                Ok(vec![apt(packages).layer(stack, below, work, say).await?])
            }
            Stack::Compilers(inner) => {
                let packages: &[&str] = match **inner {
                    Stack::Python => &[
                        "build-essential",
                        "pkg-config",
                        "python3-dev",
                        "libffi-dev",
                        "libssl-dev",
                        "libpq-dev",
                        "default-libmysqlclient-dev",
                        "git",
                    ],
                    _ => &["build-essential", "pkg-config", "python3", "git"],
                };
                Ok(vec![apt(packages).layer(stack, below, work, say).await?])
            }
            Stack::Node(major) => {
                Ok(vec![node::layer(*major, &self.config, work, say).await.map_err(|it| failed("make", stack, it))?])
            }
            Stack::Go(minor) => Ok(vec![
                golang::layer(*minor, &self.config, access, work, say).await.map_err(|it| failed("make", stack, it))?,
            ]),
        }
    }
}

/// The variable `PATH` of a stack.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn config(stack: &Stack) -> ImageConfig {
    let mut config = ImageConfig {
        env: vec![PATH.to_owned(), "LANG=C.UTF-8".to_owned()],
        cmd: vec!["/bin/bash".to_owned()],
        ..ImageConfig::default()
    };
    match stack {
        Stack::Go(_) => {
            config.env[0] = format!("PATH=/usr/local/go/bin:/go/bin:{}", PATH.trim_start_matches("PATH="));
            config.env.push("GOPATH=/go".to_owned());
            config.env.push("GOTOOLCHAIN=local".to_owned());
        }
        Stack::Web => {
            config.cmd = ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec();
            config.exposed_ports = vec!["80/tcp".to_owned()];
            config.stop_signal = "SIGQUIT".to_owned();
        }
        Stack::Node(_) => config.cmd = vec!["node".to_owned()],
        Stack::Python => config.cmd = vec!["python3".to_owned()],
        Stack::Compilers(inner) => return self::config(inner),
        Stack::Base | Stack::Fetch => {}
    }
    config
}
