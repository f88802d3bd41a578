//! Stacks: the base image and the toolchains on it, made on first use.
//!
//! A stack that the platform keeps ([`arco_store::images::KeptStack`]: an operator loaded it, or steps made it) is taken
//! before any other. Else root makes it on this machine: `<cache_dir>/stacks/` holds the blobs by digest and a description
//! for each stack, a lock per stack lets only one builder of the machine make it while the others wait, and each server
//! imports what it needs into its own store. A process that is not root has steps make it ([`steps`]), but not the base,
//! for which root is needed. What is made comes from the distribution or from the registries of the language, never from a
//! source that a person deploys, which is why it may be made outside of a container.

mod debian;
mod download;
pub(crate) mod golang;
mod node;
pub(crate) mod save;
mod steps;
mod web;

use crate::access::Access;
use crate::detect::Stack;
use crate::layer::{self, FinishedLayer};
use crate::runner::Runner;
use arco_config::BuilderConfig;
use arco_model::artifact::{ImageConfig, ImageRef, Layer};
use arco_model::error::{ErrorKind, Problem};
use arco_store::images::{Image, ImageError, Images, stack_repository};
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

/// The stacks of this machine and of the platform.
pub(crate) struct Stacks {
    folder: PathBuf,
    config: BuilderConfig,
    /// Whether this process may make them: it is root of its machine.
    by_machine: bool,
    /// Those of the machine that were imported.
    imported: tokio::sync::Mutex<HashMap<Stack, StackImage>>,
    /// Those of the platform that were read.
    kept: tokio::sync::Mutex<HashMap<Stack, StackImage>>,
}

fn failed(step: &str, stack: &Stack, cause: impl std::fmt::Display) -> Problem {
    let message = format!("failed to {step} the stack `{}`: {cause}", stack.name());
    Problem::new(
        ErrorKind::Unavailable,
        "stack_failed",
        message,
        "check that this machine reaches its package mirrors, or load the stack (`arco stack load`), then deploy again",
    )
}

/// The error when a stack must be loaded.
fn missing(stack: &Stack) -> Problem {
    let (name, edition) = (stack.name(), edition(stack));
    let message = format!(
        "the stack `{name}` (edition {edition}) is not on this platform, and its server cannot make it: that needs root and debootstrap"
    );
    let advice = "on a Debian machine, as root: `arco stack save stacks.tar`; then, as an administrator: `arco stack load stacks.tar`";
    Problem::new(ErrorKind::Unavailable, "stack_missing", message, advice)
}

impl Stacks {
    pub(crate) fn new(cache_dir: &Path, config: BuilderConfig, by_machine: bool) -> Self {
        let folder = cache_dir.join("stacks");
        Self { folder, config, by_machine, imported: Default::default(), kept: Default::default() }
    }

    /// The stack as an image of this server; made or imported if it is not there.
    pub(crate) async fn ensure(&self, stack: &Stack, runner: &Runner<'_>, say: Say<'_>) -> Result<StackImage, Problem> {
        let images = &runner.inner.images;
        if let Some(found) = self.kept(stack, images).await? {
            return Ok(found);
        }
        if !self.by_machine {
            return self.by_steps(stack, runner, say).await;
        }
        if let Some(found) = self.imported.lock().await.get(stack) {
            return Ok(found.clone());
        }
        let stored = self.stored(stack, runner.inner.access().await?, say).await?;
        self.import(stack, stored, images).await
    }

    /// The stack that the platform keeps.
    async fn kept(&self, stack: &Stack, images: &Images) -> Result<Option<StackImage>, Problem> {
        let unreadable = |it: ImageError| {
            let message = format!("the stack `{}` that the platform keeps cannot be read: {it}", stack.name());
            let advice = "load it again: `arco stack load`";
            Problem::new(ErrorKind::Unavailable, "stack_failed", message, advice)
        };
        let found = images.stack(&stack.name(), edition(stack)).await.map_err(unreadable)?;
        let Some(reference) = found else { return Ok(None) };
        let mut kept = self.kept.lock().await;
        if let Some(found) = kept.get(stack).filter(|it| it.reference == reference) {
            return Ok(Some(found.clone()));
        }
        let image = images.read(&reference).await.map_err(unreadable)?;
        let found = StackImage { reference, image };
        kept.insert(stack.clone(), found.clone());
        Ok(Some(found))
    }

    /// Has steps make the stack on the one below it, and keeps it for every server of the platform.
    async fn by_steps(&self, stack: &Stack, runner: &Runner<'_>, say: Say<'_>) -> Result<StackImage, Problem> {
        let below = match stack {
            Stack::Base => return Err(missing(stack)),
            Stack::Compilers(inner) => Box::pin(self.ensure(inner, runner, say)).await?,
            _ => Box::pin(self.ensure(&Stack::Base, runner, say)).await?,
        };
        let fail = |step: &'static str| move |it: std::io::Error| failed(step, stack, it);
        let work = self.folder.join("work");
        std::fs::create_dir_all(&work).map_err(fail("make the folder of"))?;
        let _lock = self.lock(stack, say).await.map_err(fail("lock"))?;
        let images = &runner.inner.images;
        if let Some(found) = self.kept(stack, images).await? {
            return Ok(found);
        }
        say(format!("making the stack `{}`; this happens once per platform", stack.name()));
        let began = std::time::Instant::now();
        let work = tempfile::Builder::new().prefix("make-").tempdir_in(work).map_err(fail("make a folder for"))?;
        let own = Box::pin(steps::make(stack, &below, &self.config, runner, work.path(), say)).await?;
        let layers = below.image.layers.into_iter().chain(own).collect();
        let image = Image { layers, config: config(stack) };
        let unwritten = |it: ImageError| failed("register", stack, it);
        let reference = images.write(&stack_repository(&stack.name()), &image).await.map_err(unwritten)?;
        images.keep_stack(&stack.name(), edition(stack), &reference.digest).await.map_err(unwritten)?;
        say(format!("made the stack `{}` in {:.1} s", stack.name(), began.elapsed().as_secs_f64()));
        let found = StackImage { reference, image };
        self.kept.lock().await.insert(stack.clone(), found.clone());
        Ok(found)
    }

    /// Brings a stack of the machine into the platform's store.
    async fn import(&self, stack: &Stack, stored: Stored, images: &Images) -> Result<StackImage, Problem> {
        let fail = |step: &'static str| move |it: Box<dyn std::error::Error + Send + Sync>| failed(step, stack, it);
        for layer in &stored.layers {
            let digest = &layer.blob.digest;
            if images.claim(digest).await.map_err(|it| fail("import")(it.into()))?.is_none() {
                let file = std::fs::File::open(self.blob(layer)).map_err(|it| fail("import")(it.into()))?;
                layer::put_file(images, digest, file).await.map_err(|it| fail("import")(it.into()))?;
            }
        }
        let image = Image { layers: stored.layers, config: config(stack) };
        let repository = stack_repository(&stack.name());
        let reference = images.write(&repository, &image).await.map_err(|it| fail("register")(it.into()))?;
        images.tag(&repository, "latest", &reference.digest).await.map_err(|it| fail("register")(it.into()))?;
        let found = StackImage { reference, image };
        self.imported.lock().await.insert(stack.clone(), found.clone());
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
        let apt = || debian::Packages {
            packages: packages(stack),
            then: after_packages(stack),
            access,
            blobs: self.folder.join("blobs"),
        };
        let made = |it| failed("make", stack, it);
        Ok(match stack {
            Stack::Base => vec![debian::base(&self.config, access, work, say).await?],
            Stack::Web => vec![apt().layer(stack, below, work, say).await?, web::layer(work).map_err(made)?],
            Stack::Node(major) => vec![node::layer(*major, &self.config, work, say).await.map_err(made)?],
            Stack::Go(minor) => vec![
                golang::layer(*minor, golang::Library::Compiled, &self.config, access, work, say)
                    .await
                    .map_err(made)?,
            ],
            Stack::Fetch | Stack::Python | Stack::Compilers(_) => vec![apt().layer(stack, below, work, say).await?],
        })
    }
}

/// A line of shell, run in the tree once its packages are there.
fn after_packages(stack: &Stack) -> &'static str {
    if *stack == Stack::Web { web::AS_OFFICIAL } else { ":" }
}

/// Debian's packages that make a stack of the one below it.
fn packages(stack: &Stack) -> &'static [&'static str] {
    match stack {
        Stack::Base | Stack::Node(_) | Stack::Go(_) => &[],
        Stack::Fetch => &["git", "openssh-client"],
        Stack::Web => &["nginx-light"],
        Stack::Python => &["python3", "python3-venv", "python3-pip", "python-is-python3"],
        Stack::Compilers(inner) if **inner == Stack::Python => &[
            "build-essential",
            "pkg-config",
            "python3-dev",
            "libffi-dev",
            "libssl-dev",
            "libpq-dev",
            "default-libmysqlclient-dev",
            "git",
        ],
        Stack::Compilers(_) => &["build-essential", "pkg-config", "python3", "git"],
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
