//! One stage: what each instruction does to it.

use super::copy::{self, From, Ownership};
use super::parse::{Form, Instruction};
use super::{Build, expand, platform};
use crate::cache::Key;
use crate::layer;
use crate::pipeline::{self, env_map};
use crate::runner::StepRun;
use crate::{blocking, storage};
use arco_model::artifact::{Digest, ImageConfig, ImageRef, Layer};
use arco_model::error::{ErrorKind, Problem};
use arco_model::plan::{CacheFolder, LayerExport, OneShotNetwork};
use std::collections::BTreeMap;
use std::io::Read as _;

/// A stage as far as it is built.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// The image that steps run on.
    pub(super) base: ImageRef,
    /// Its layers.
    pub(super) below: Vec<Layer>,
    /// Layers of this stage and of those that it is from.
    pub(super) layers: Vec<Layer>,
    pub(super) config: ImageConfig,
    pub(super) shell: Vec<String>,
    /// ARGs of this stage.
    pub(super) args: BTreeMap<String, String>,
    /// Key over everything that led here.
    pub(super) chain: String,
}

impl Stage {
    fn all_layers(&self) -> Vec<Layer> {
        self.below.iter().chain(&self.layers).cloned().collect()
    }

    fn working_dir(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", self.working_dir().trim_end_matches('/'))
        }
    }

    fn set_env(&mut self, name: &str, value: String) {
        self.config.env.retain(|it| it.split_once('=').is_none_or(|it| it.0 != name));
        self.config.env.push(format!("{name}={value}"));
    }

    fn lookup(&self, name: &str) -> Option<String> {
        // ENV wins over ARG of the same name
        let env = self.config.env.iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
        env.map(str::to_owned).or_else(|| self.args.get(name).cloned())
    }
}

/// What shell forms run with.
pub(super) fn default_shell() -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned()]
}

/// Dots and double slashes taken out; `..` does not climb over the root.
fn clean_path(path: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in path.split('/') {
        match word {
            "" | "." => {}
            ".." => {
                words.pop();
            }
            it => words.push(it),
        }
    }
    format!("/{}", words.join("/"))
}

impl Build<'_> {
    fn expand(&self, stage: &Stage, word: &str) -> String {
        expand::value(word, self.escape, &|name| stage.lookup(name))
    }

    fn words(&self, stage: &Stage, text: &str) -> Vec<String> {
        expand::words(text, self.escape).iter().map(|it| self.expand(stage, it)).collect()
    }

    pub(super) async fn apply(&self, stage: &mut Stage, instruction: &Instruction) -> Result<(), Problem> {
        let rest = instruction.rest.as_str();
        match instruction.word.as_str() {
            "RUN" => return self.run(stage, instruction).await,
            "COPY" | "ADD" => return self.copy(stage, instruction).await,
            "ENV" => {
                let words = expand::words(rest, self.escape);
                if words.first().is_some_and(|it| !it.contains('=')) {
                    // the old form: one name, the rest is the value
                    let (name, value) =
                        rest.split_once(char::is_whitespace).ok_or_else(|| instruction.error("a value is missing"))?;
                    let value = self.expand(stage, value.trim());
                    stage.set_env(name, value);
                } else {
                    let pairs: Vec<_> = words
                        .iter()
                        .filter_map(|it| it.split_once('='))
                        .map(|(k, v)| (k.to_owned(), self.expand(stage, v)))
                        .collect();
                    for (name, value) in pairs {
                        stage.set_env(&name, value);
                    }
                }
            }
            "ARG" => {
                for word in expand::words(rest, self.escape) {
                    let (name, default) =
                        word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
                    let given = self.component.spec.build.env.get(name).cloned();
                    let value = given
                        .or_else(|| default.map(|it| self.expand(stage, it)))
                        .or_else(|| self.globals.get(name).cloned())
                        .or_else(|| platform(name));
                    if let Some(value) = value {
                        stage.args.insert(name.to_owned(), value);
                    }
                }
            }
            "WORKDIR" => {
                let path = self.expand(stage, rest);
                stage.config.working_dir = clean_path(&stage.absolute(&path));
            }
            "USER" => stage.config.user = self.expand(stage, rest),
            "EXPOSE" => {
                for word in self.words(stage, rest) {
                    let (number, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
                    if number.parse::<u16>().ok().filter(|it| *it != 0).is_none() || !matches!(protocol, "tcp" | "udp")
                    {
                        return Err(instruction.error(format!("`{word}` is not a port")));
                    }
                    let text = format!("{number}/{protocol}");
                    if !stage.config.exposed_ports.contains(&text) {
                        stage.config.exposed_ports.push(text);
                    }
                }
            }
            "CMD" => stage.config.cmd = self.command(stage, instruction),
            "ENTRYPOINT" => {
                stage.config.entrypoint = self.command(stage, instruction);
                stage.config.cmd.clear();
            }
            "SHELL" => match instruction.form() {
                Form::Exec(argv) if !argv.is_empty() => stage.shell = argv,
                _ => return Err(instruction.error("give it as [\"program\", \"argument\"]")),
            },
            "STOPSIGNAL" => stage.config.stop_signal = self.expand(stage, rest),
            "VOLUME" => {
                self.runner
                    .say(format!("note: VOLUME {rest} keeps nothing by itself; add `--volume NAME:PATH` to keep files"))
                    .await
            }
            "HEALTHCHECK" => self.runner.say("note: HEALTHCHECK is not used; the component's probe decides").await,
            "ONBUILD" => self.runner.say("note: ONBUILD is not used").await,
            _ => {} // LABEL, MAINTAINER
        }
        Ok(())
    }

    fn command(&self, stage: &Stage, instruction: &Instruction) -> Vec<String> {
        match instruction.form() {
            Form::Exec(argv) => argv,
            Form::Shell(line) => stage.shell.iter().cloned().chain([line]).collect(),
        }
    }

    async fn run(&self, stage: &mut Stage, instruction: &Instruction) -> Result<(), Problem> {
        let argv = match instruction.form() {
            Form::Exec(argv) => argv,
            Form::Shell(line) => {
                let only = instruction.heredocs.first().filter(|it| {
                    line.trim_start_matches("<<").trim_start_matches('-').trim_matches(['"', '\'']) == it.name
                });
                let text = match only {
                    Some(file) => file.content.clone(),
                    // the shell reads the inline files itself
                    None => instruction
                        .heredocs
                        .iter()
                        .fold(line, |text, file| format!("{text}\n{}{}\n", file.content, file.name)),
                };
                stage.shell.iter().cloned().chain([text]).collect()
            }
        };
        let mut env = env_map(&stage.config.env);
        for (name, value) in &stage.args {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let caches = self.caches(stage, instruction)?;
        let key = Key::new("run")
            .with(&stage.chain)
            .all(argv.iter().map(String::as_str))
            .all(env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]))
            .with(stage.working_dir())
            .with(&stage.config.user);
        let cached = if self.no_cache { None } else { self.runner.cache.get(&key, &self.runner.inner.images).await };
        let layer = match cached {
            Some(layer) => {
                self.runner.say("  unchanged, from the cache").await;
                layer
            }
            None => {
                env.entry("HOME".to_owned()).or_insert_with(|| "/root".to_owned());
                let mut step = StepRun::new("RUN", stage.base.clone(), argv);
                step.extra_layers.clone_from(&stage.layers);
                step.env = env;
                step.working_dir = stage.working_dir().to_owned();
                step.user.clone_from(&stage.config.user);
                step.network = if instruction.flag("network") == Some("none") {
                    OneShotNetwork::None
                } else {
                    OneShotNetwork::Build
                };
                step.export = Some(LayerExport {
                    include: Vec::new(),
                    exclude: caches.iter().map(|it| it.path.clone()).collect(),
                });
                step.caches = caches;
                let done = self.runner.run(step).await.map_err(|fault| {
                    let mut problem = fault.problem;
                    problem.message = format!("Dockerfile line {}: {}", instruction.line, problem.message);
                    problem
                })?;
                let layer = done.layer.ok_or_else(|| Problem::internal("keep what RUN made"))?;
                self.runner.cache.put(&key, &layer, &self.runner.inner.images).await;
                layer
            }
        };
        stage.layers.push(layer);
        stage.chain = key.text();
        Ok(())
    }

    /// `--mount=type=cache,target=…` becomes a kept folder; other kinds are refused rather than ignored.
    fn caches(&self, stage: &Stage, instruction: &Instruction) -> Result<Vec<CacheFolder>, Problem> {
        let mut caches = Vec::new();
        for (_, value) in instruction.flags.iter().filter(|it| it.0 == "mount") {
            let field = |names: &[&str]| {
                value
                    .split(',')
                    .find_map(|it| it.split_once('=').filter(|it| names.contains(&it.0)).map(|it| it.1.to_owned()))
            };
            match field(&["type"]).as_deref() {
                Some("cache") => {
                    let target = field(&["target", "dst", "destination"])
                        .ok_or_else(|| instruction.error("--mount needs a target"))?;
                    let target = clean_path(&stage.absolute(&self.expand(stage, &target)));
                    let id = field(&["id"]).unwrap_or_else(|| target.clone());
                    let name = format!("run-{}", &Digest::of(id.as_bytes()).hex()[..16]);
                    let folder = self.runner.cache.folder(&name, &target);
                    caches.push(folder.map_err(|it| storage("make a cache folder")(&it))?);
                }
                Some("tmpfs") => {}
                other => {
                    let kind = other.unwrap_or("bind");
                    return Err(instruction.error(format!(
                        "--mount=type={kind} is not supported; copy what is needed, or use type=cache"
                    )));
                }
            }
        }
        Ok(caches)
    }

    async fn copy(&self, stage: &mut Stage, instruction: &Instruction) -> Result<(), Problem> {
        let raw = match instruction.form() {
            Form::Exec(words) => words,
            Form::Shell(rest) => expand::words(&rest, self.escape),
        };
        let mut words: Vec<String> =
            raw.iter().map(|it| if it.starts_with("<<") { it.clone() } else { self.expand(stage, it) }).collect();
        let target = words
            .pop()
            .filter(|_| !words.is_empty())
            .ok_or_else(|| instruction.error("it needs sources and a target"))?;
        if let Some(url) = words.iter().find(|it| it.contains("://") || it.starts_with("git@")) {
            return Err(instruction.error(format!("`{url}` is not fetched; use RUN with curl or git")));
        }
        let trailing = target.ends_with('/') || target == "." || target.ends_with("/.");
        let absolute = clean_path(&stage.absolute(&target));
        let inside = absolute.trim_start_matches('/');
        let into_layers = stage.all_layers();
        let into = self.tree(&into_layers).await?;
        let target_word = if trailing { format!("{inside}/") } else { inside.to_owned() };
        let owner = self.ownership(stage, instruction, &into_layers).await?;

        let (inline_names, sources): (Vec<String>, Vec<String>) =
            words.into_iter().partition(|it| it.starts_with("<<"));
        let mut inline = Vec::new();
        for word in inline_names {
            let name = word.trim_start_matches("<<").trim_start_matches('-').trim_matches(['"', '\'']);
            if let Some(file) = instruction.heredocs.iter().find(|it| it.name == name) {
                let content = if file.expand {
                    expand::text(&file.content, &|name| stage.lookup(name))
                } else {
                    file.content.clone()
                };
                let place = if trailing || into.is_folder(inside) {
                    format!("{}/{name}", into.resolve(inside).0)
                } else {
                    into.resolve(inside).0
                };
                inline.push((place.trim_start_matches('/').to_owned(), content));
            }
        }
        let from_name = instruction.flag("from").map(|it| self.expand(stage, it));
        let (layers, root) = match &from_name {
            None => (vec![self.prepared.layer.clone()], "app"),
            Some(name) => (self.source_layers(instruction, name).await?, ""),
        };
        let tree = self.tree(&layers).await?;
        let everything = |_: &str, _: bool| true;
        let unless_ignored =
            |path: &str, folder: bool| !self.ignored.matched_path_or_any_parents(path, folder).is_ignore();
        let from = From { tree: &tree, root, visible: if from_name.is_some() { &everything } else { &unless_ignored } };
        let plan = copy::plan(&from, &into, &sources, &target_word, instruction.word == "ADD")
            .map_err(|it| instruction.error(it))?;
        let mut files = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            if plan.entries.contains_key(&number) || plan.archives.iter().any(|it| it.0 == number) {
                let file =
                    layer::open_blob(&self.runner.inner.images, &layer.blob.digest, &self.runner.inner.work).await;
                files.push((number, file.map_err(|it| storage("read a layer")(&it))?));
            }
        }
        let work = self.runner.inner.work.clone();
        let written = blocking("copy files", move || copy::write(&plan, &layers, files, &inline, owner, &work)).await?;
        let finished = written.map_err(|it| instruction.error(it))?;
        let layer =
            layer::store(&self.runner.inner.images, finished).await.map_err(|it| storage("keep copied files")(&it))?;
        stage.chain = Key::new("copy").with(&stage.chain).with(layer.diff_id.as_str()).text();
        stage.layers.push(layer);
        Ok(())
    }

    /// Layers of the stage or image that `--from` names.
    async fn source_layers(&self, instruction: &Instruction, name: &str) -> Result<Vec<Layer>, Problem> {
        let number = self
            .names
            .get(&name.to_lowercase())
            .copied()
            .or_else(|| name.parse().ok().filter(|it| *it < self.stages.len()));
        if let Some(stage) = number.and_then(|it| self.stages[it].as_ref()) {
            return Ok(stage.all_layers());
        }
        let resolved = pipeline::resolve(self.runner, name, &self.component.tenant).await;
        resolved
            .map(|it| it.1.layers)
            .map_err(|it| Problem { message: format!("Dockerfile line {}: {}", instruction.line, it.message), ..it })
    }

    async fn ownership(
        &self,
        stage: &Stage,
        instruction: &Instruction,
        layers: &[Layer],
    ) -> Result<Ownership, Problem> {
        let mut owner = Ownership::default();
        if let Some(mode) = instruction.flag("chmod") {
            let mode = u32::from_str_radix(mode, 8)
                .map_err(|_| instruction.error(format!("--chmod={mode} is not an octal mode")))?;
            owner.mode = Some(mode & 0o7777);
        }
        let Some(asked) = instruction.flag("chown").map(|it| self.expand(stage, it)) else { return Ok(owner) };
        let (user, group) = asked.split_once(':').map_or((asked.as_str(), None), |(user, group)| (user, Some(group)));
        let passwd = self.small_file(layers, "etc/passwd").await?;
        let number = |text: &str, name: &str, at: usize| {
            name.parse::<u64>().ok().or_else(|| {
                let line = text.lines().find(|it| it.split(':').next() == Some(name))?;
                line.split(':').nth(at)?.parse().ok()
            })
        };
        owner.user =
            number(&passwd, user, 2).ok_or_else(|| instruction.error(format!("the image has no user `{user}`")))?;
        owner.group = match group {
            None if user.parse::<u64>().is_ok() => owner.user,
            None => number(&passwd, user, 3).unwrap_or(owner.user),
            Some(group) => {
                let groups = self.small_file(layers, "etc/group").await?;
                number(&groups, group, 2)
                    .ok_or_else(|| instruction.error(format!("the image has no group `{group}`")))?
            }
        };
        Ok(owner)
    }

    /// The text of a small file of a stack of layers; empty when it is not there.
    async fn small_file(&self, layers: &[Layer], path: &str) -> Result<String, Problem> {
        let tree = self.tree(layers).await?;
        let (real, Some(found)) = tree.resolve(path) else { return Ok(String::new()) };
        let layer = layers[found.layer].clone();
        let wanted = found.content_of.clone().unwrap_or(real);
        let file = layer::open_blob(&self.runner.inner.images, &layer.blob.digest, &self.runner.inner.work)
            .await
            .map_err(|it| storage("read a layer")(&it))?;
        let read = blocking("read a file of an image", move || {
            let mut archive = tar::Archive::new(layer::read_tar(file, &layer.blob.media_type)?);
            for entry in archive.entries()? {
                let mut entry = entry?;
                if entry.path()?.to_string_lossy().trim_start_matches("./") == wanted {
                    let mut text = String::new();
                    entry.by_ref().take(1 << 20).read_to_string(&mut text)?;
                    return Ok(text);
                }
            }
            Ok::<_, std::io::Error>(String::new())
        });
        read.await?.map_err(|it| {
            Problem::new(
                ErrorKind::Failed,
                "image_invalid",
                format!("`{path}` of the image cannot be read: {it}"),
                "use another base image",
            )
        })
    }
}
