//! Builds from a Dockerfile: RUN steps are one-shot workloads, COPY and ADD are layers written from other layers.
//!
//! Each step's layer is kept under a key over everything before it, so that what did not change is not run again.
//! What is not supported is an error with its line, never silently something else; what only documents is noted.

mod copy;
mod expand;
mod outline;
mod parse;
mod stage;

use crate::cache::Key;
use crate::layer::{self, FileTree};
use crate::runner::Runner;
use crate::source::Prepared;
use crate::{blocking, pipeline, storage};
use arco_model::artifact::{ImageConfig, Layer};
use arco_model::component::Component;
use arco_model::error::Problem;
use arco_store::images::Image;
pub(crate) use outline::outline;
use parse::{Dockerfile, Instruction};
use stage::Stage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What all stages of a build share.
struct Build<'a> {
    runner: &'a Runner<'a>,
    component: &'a Component,
    prepared: &'a Prepared,
    no_cache: bool,
    escape: char,
    /// ARGs before the first FROM, with their values.
    globals: BTreeMap<String, String>,
    /// Finished stages, by number.
    stages: Vec<Option<Stage>>,
    /// Names of stages.
    names: BTreeMap<String, usize>,
    /// File trees of stacks of layers, by their diff_ids.
    trees: std::sync::Mutex<BTreeMap<String, Arc<FileTree>>>,
    ignored: ignore::gitignore::Gitignore,
}

/// Builds the last stage of the file.
pub(crate) async fn build(
    runner: &Runner<'_>,
    component: &Component,
    prepared: &Prepared,
    path: &str,
    no_cache: bool,
) -> Result<Image, Problem> {
    let Some(text) = prepared.tree.text(path) else {
        return Err(Problem::invalid(
            "dockerfile_unreadable",
            format!("`{path}` is not a readable text of at most 256 KiB"),
            "correct the Dockerfile",
        ));
    };
    let Dockerfile { instructions, escape } = parse::parse(text)?;
    let mut build = Build {
        runner,
        component,
        prepared,
        no_cache,
        escape,
        globals: BTreeMap::new(),
        stages: Vec::new(),
        names: BTreeMap::new(),
        trees: std::sync::Mutex::default(),
        ignored: ignored(prepared, path),
    };
    let first = instructions.iter().position(|it| it.word == "FROM").unwrap_or(0);
    for instruction in &instructions[..first] {
        build.global(instruction);
    }
    let stages = split(&instructions[first..]);
    let needed = needed(&stages, &build);
    let mut steps =
        stages.iter().enumerate().filter(|(number, _)| needed.contains(number)).flat_map(|(_, it)| it.iter());
    if let Some(run) = steps.find(|it| it.word == "RUN") {
        runner.may_be_root(&format!("Dockerfile line {}: RUN", run.line))?;
    }
    for (number, stage) in stages.iter().enumerate() {
        let name = stage_name(&stage[0]);
        let finished =
            if needed.contains(&number) { Some(build.stage(number, stages.len(), stage).await?) } else { None };
        build.stages.push(finished);
        if let Some(name) = name {
            build.names.insert(name.to_lowercase(), number);
        }
    }
    let last = build.stages.pop().flatten().ok_or_else(|| Problem::internal("find the last stage"))?;
    let mut layers = last.below;
    layers.extend(last.layers);
    Ok(Image { layers, config: last.config })
}

/// Instructions of each stage, its FROM first.
fn split(instructions: &[Instruction]) -> Vec<&[Instruction]> {
    let starts: Vec<usize> =
        instructions.iter().enumerate().filter(|(_, it)| it.word == "FROM").map(|it| it.0).collect();
    starts
        .iter()
        .enumerate()
        .map(|(at, start)| &instructions[*start..starts.get(at + 1).copied().unwrap_or(instructions.len())])
        .collect()
}

/// `NAME` of `FROM image AS NAME`.
fn stage_name(from: &Instruction) -> Option<&str> {
    let mut words = from.rest.split_whitespace().skip(1);
    words.next().filter(|it| it.eq_ignore_ascii_case("as"))?;
    words.next()
}

/// Numbers of the stages that the last one is made of.
fn needed(stages: &[&[Instruction]], build: &Build<'_>) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut todo: Vec<usize> = stages.len().checked_sub(1).into_iter().collect();
    while let Some(number) = todo.pop() {
        if !needed.insert(number) {
            continue;
        }
        let named = |name: &str| {
            stages[..number].iter().rposition(|it| stage_name(&it[0]).is_some_and(|it| it.eq_ignore_ascii_case(name)))
        };
        let image = build.expand_global(stages[number][0].rest.split_whitespace().next().unwrap_or(""));
        todo.extend(named(&image));
        for from in stages[number].iter().filter_map(|it| it.flag("from")) {
            todo.extend(named(from).or_else(|| from.parse().ok().filter(|it| *it < number)));
        }
        for mount in stages[number].iter().flat_map(|it| &it.flags).filter(|it| it.0 == "mount") {
            todo.extend(mount.1.split(',').find_map(|it| named(it.strip_prefix("from=")?)));
        }
    }
    needed
}

/// What .dockerignore leaves out. Its patterns begin at the root (unlike those of git).
fn ignored(prepared: &Prepared, dockerfile: &str) -> ignore::gitignore::Gitignore {
    let own = format!("{dockerfile}.dockerignore");
    let text = prepared.tree.text(&own).or_else(|| prepared.tree.text(".dockerignore")).unwrap_or_default();
    let mut builder = ignore::gitignore::GitignoreBuilder::new("");
    for line in text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#')) {
        let (sign, pattern) = line.strip_prefix('!').map_or(("", line), |it| ("!", it));
        let pattern = pattern.trim_start_matches("./").trim_start_matches('/').trim_end_matches('/');
        // A pattern that is not one is left out, as Docker's own reader warns and goes on.
        let _ = builder.add_line(None, &format!("{sign}/{pattern}"));
    }
    builder.build().unwrap_or_else(|_| ignore::gitignore::Gitignore::empty())
}

impl Build<'_> {
    fn lookup_global(&self, name: &str) -> Option<String> {
        self.globals.get(name).cloned().or_else(|| platform(name))
    }

    fn expand_global(&self, word: &str) -> String {
        expand::value(word, self.escape, &|name| self.lookup_global(name))
    }

    /// An ARG before the first FROM.
    fn global(&mut self, instruction: &Instruction) {
        for word in expand::words(&instruction.rest, self.escape) {
            let (name, default) =
                word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let given = self.component.spec.build.env.get(name).cloned();
            if let Some(value) = given.or_else(|| default.map(|it| self.expand_global(it))) {
                self.globals.insert(name.to_owned(), value);
            }
        }
    }

    /// Runs one stage.
    async fn stage(&mut self, number: usize, count: usize, instructions: &[Instruction]) -> Result<Stage, Problem> {
        let from = &instructions[0];
        let image = self.expand_global(from.rest.split_whitespace().next().unwrap_or(""));
        if image.is_empty() {
            return Err(from.error("the image name is empty; an ARG that it uses has no value"));
        }
        let name = stage_name(from).map(|it| format!(" as {it}")).unwrap_or_default();
        self.runner.say(format!("stage {} of {count}: FROM {image}{name}", number + 1)).await;
        let earlier = self.names.get(&image.to_lowercase()).and_then(|it| self.stages[*it].as_ref());
        let mut stage = match earlier {
            Some(earlier) => Stage { args: BTreeMap::new(), ..earlier.clone() },
            None => {
                let (reference, content) =
                    pipeline::resolve(self.runner, &image, &self.component.tenant).await.map_err(|mut it| {
                        it.message = format!("Dockerfile line {}: {}", from.line, it.message);
                        it
                    })?;
                let chain = Key::new("from").all(content.layers.iter().map(|it| it.diff_id.as_str())).text();
                // A stack's own command is a shell for people; only what the Dockerfile says is meant to run.
                let config = ImageConfig {
                    cmd: if reference.repository == "stack/base" { Vec::new() } else { content.config.cmd.clone() },
                    ..content.config
                };
                Stage {
                    base: reference,
                    below: content.layers,
                    layers: Vec::new(),
                    config,
                    shell: stage::default_shell(),
                    args: BTreeMap::new(),
                    chain,
                }
            }
        };
        for (at, instruction) in instructions.iter().enumerate().skip(1) {
            if matches!(instruction.word.as_str(), "RUN" | "COPY" | "ADD") {
                let shown: String = instruction.rest.chars().take(120).collect();
                self.runner.say(format!("step {at} of {}: {} {shown}", instructions.len() - 1, instruction.word)).await;
            }
            self.apply(&mut stage, instruction).await?;
        }
        Ok(stage)
    }

    /// The file tree of a stack of layers.
    async fn tree(&self, layers: &[Layer]) -> Result<Arc<FileTree>, Problem> {
        let key: String = layers.iter().map(|it| it.diff_id.as_str()).collect();
        let known = self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&key).cloned();
        if let Some(found) = known {
            return Ok(found);
        }
        // Usually one more layer than a tree that is known.
        let below = layers.split_last().map(|it| it.1.iter().map(|it| it.diff_id.as_str()).collect::<String>());
        let start =
            below.and_then(|it| self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&it).cloned());
        let (mut tree, from) = start.map_or((FileTree::default(), 0), |it| ((*it).clone(), layers.len() - 1));
        let mut files = Vec::new();
        for layer in &layers[from..] {
            let file = layer::open_blob(&self.runner.inner.images, &layer.blob.digest, &self.runner.inner.work).await;
            files.push((layer.clone(), file.map_err(|it| storage("read a layer")(&it))?));
        }
        let tree = blocking("read a layer", move || {
            for (at, (layer, file)) in files.into_iter().enumerate() {
                tree.add(&layer, from + at, file)?;
            }
            Ok::<_, std::io::Error>(tree)
        })
        .await?
        .map_err(|it| storage("read a layer")(&it))?;
        let tree = Arc::new(tree);
        self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key, tree.clone());
        Ok(tree)
    }
}

/// Values that every build knows of its machine.
fn platform(name: &str) -> Option<String> {
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    match name {
        "TARGETOS" | "BUILDOS" => Some("linux".to_owned()),
        "TARGETARCH" | "BUILDARCH" => Some(machine.to_owned()),
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(format!("linux/{machine}")),
        _ => None,
    }
}
