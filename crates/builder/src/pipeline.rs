//! From a source to an image: which steps run, which are found in the cache, and which layers make the image.

use crate::cache::Key;
use crate::detect::{self, Detection, Inputs, Recipe, Serve, Stack, Step, Steps, Wishes, ports};
use crate::dockerfile;
use crate::layer::{self, rewrite};
use crate::names::{self, Meaning};
use crate::runner::{Runner, StepFault, StepRun};
use crate::source::{self, Limits, Prepared};
use crate::stack::StackImage;
use crate::{blocking, storage};
use arco_model::artifact::{ImageConfig, ImageRef, Layer};
use arco_model::component::{Component, RunDefaults};
use arco_model::error::Problem;
use arco_model::plan::{LayerExport, OneShotNetwork};
use arco_model::source::Source;
use arco_model::spec::{Command, ComponentKind, ComponentSpec, Protocol};
use arco_store::images::{Image, ImageError};
use std::collections::BTreeMap;

/// A built image with what was found out about running it.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) image: ImageRef,
    pub(crate) defaults: RunDefaults,
}

/// A source that was read, and the key of what it would build.
pub(crate) enum Subject {
    /// Files.
    Files(Box<Prepared>),
    /// An image.
    Image(ImageRef, Box<Image>),
}

/// Reads the source of a component. The key is equal for equal sources and build settings.
pub(crate) async fn prepare(runner: &Runner<'_>, component: &Component) -> Result<(Subject, String), Problem> {
    let settings = serde_json::to_string(&component.spec.build).unwrap_or_default();
    let key = |kind: &str, content: &str| Key::new("build").with(kind).with(content).with(&settings).text();
    match &component.spec.source {
        Source::Upload { digest, dir, commit, .. } => {
            let file =
                layer::open_blob(&runner.inner.images, digest, &runner.inner.work).await.map_err(|it| match it {
                    arco_store::blob::BlobError::NotFound(_) => Problem::invalid(
                        "upload_missing",
                        "the uploaded source is not there any more",
                        "deploy the folder again",
                    ),
                    other => storage("read the uploaded source")(&other),
                })?;
            let mut prepared = clean(runner, file, "gzip", "", dir).await?;
            prepared.commit.clone_from(commit);
            let key = key("files", prepared.layer.diff_id.as_str());
            Ok((Subject::Files(Box::new(prepared)), key))
        }
        Source::Git { url, reference, dir } => {
            let (fetched, commit) = source::fetch(runner, component, url, reference).await?;
            let file = layer::open_blob(&runner.inner.images, &fetched.blob.digest, &runner.inner.work)
                .await
                .map_err(|it| storage("read the fetched source")(&it))?;
            let mut prepared = clean(runner, file, &fetched.blob.media_type, "source", dir).await?;
            prepared.commit = commit;
            let key = key("files", prepared.layer.diff_id.as_str());
            Ok((Subject::Files(Box::new(prepared)), key))
        }
        Source::Image { reference } => {
            let (image, content) = resolve(runner, reference, &component.tenant).await?;
            let key = key("image", image.digest.as_str());
            Ok((Subject::Image(image, Box::new(content)), key))
        }
    }
}

/// Cleans an archive into a layer in the blob store.
async fn clean(
    runner: &Runner<'_>,
    file: std::fs::File,
    media_type: &str,
    strip: &'static str,
    dir: &str,
) -> Result<Prepared, Problem> {
    let limits = Limits { total_bytes: u64::from(runner.inner.config.disk_mb) << 20 };
    let (work, dir, media_type) = (runner.inner.work.clone(), dir.trim_matches('/').to_owned(), media_type.to_owned());
    let cleaned = blocking("read the source", move || {
        let tar = layer::read_tar(file, &media_type).map_err(|it| {
            Problem::invalid("source_unreadable", format!("the source archive cannot be read: {it}"), "upload it again")
        })?;
        source::clean(tar, strip, &dir, limits, &work)
    })
    .await??;
    for warning in &cleaned.warnings {
        runner.say(format!("note: {warning}")).await;
    }
    let layer =
        layer::store(&runner.inner.images, cleaned.layer).await.map_err(|it| storage("keep the source")(&it))?;
    Ok(Prepared { layer, tree: cleaned.tree, commit: None })
}

/// The image that a name means.
pub(crate) async fn resolve(
    runner: &Runner<'_>,
    name: &str,
    tenant: &arco_model::name::TenantName,
) -> Result<(ImageRef, Image), Problem> {
    let (meaning, note) = names::meaning(name, tenant, &runner.inner.config)?;
    if let Some(note) = note {
        runner.say(note).await;
    }
    let images = &runner.inner.images;
    match meaning {
        Meaning::Scratch => {
            let image = images
                .write("stack/scratch", &Image::default())
                .await
                .map_err(|it| storage("write an empty image")(&it))?;
            Ok((image, Image::default()))
        }
        Meaning::Stack(stack) => runner.stack(&stack).await.map(|it| (it.reference, it.image)),
        Meaning::Repository(repository, reference) => {
            let read = async {
                let image = images.resolve(&repository, &reference).await?;
                let content = images.read(&image).await?;
                Ok::<_, ImageError>((image, content))
            };
            read.await.map_err(|error| match error {
                ImageError::NotFound(_) => names::unknown(name),
                ImageError::Invalid { why, .. } => Problem::invalid(
                    "image_invalid",
                    format!("the image `{name}` cannot be used: {why}"),
                    "push it again, for linux and this machine's architecture",
                ),
                other => storage("read an image")(&other),
            })
        }
    }
}

/// Builds what was prepared.
pub(crate) async fn build(
    runner: &Runner<'_>,
    component: &Component,
    subject: Subject,
    no_cache: bool,
) -> Result<Built, Problem> {
    match subject {
        Subject::Image(image, content) => Ok(Built { image, defaults: image_defaults("image", &content.config) }),
        Subject::Files(prepared) => {
            let wishes = Wishes {
                strategy: component.spec.build.strategy.clone(),
                dockerfile: component.spec.build.dockerfile.clone(),
            };
            let found = detect::detect(&prepared.tree, &wishes)?;
            runner.say(describe(&found, &component.spec)).await;
            for hint in &found.hints {
                runner.say(format!("hint: {hint}")).await;
            }
            let repository = format!("{}/{}/{}", component.tenant, component.application, component.name);
            let (image, defaults) = match found.recipe.clone() {
                Recipe::Steps(steps) => {
                    let image = run_steps(runner, component, &prepared, &steps, &found, no_cache).await?;
                    (image, defaults(&found, &steps))
                }
                Recipe::Dockerfile { path } => {
                    let image = dockerfile::build(runner, component, &prepared, &path, no_cache).await?;
                    let mut defaults = image_defaults("dockerfile", &image.config);
                    if found.command.is_some() {
                        defaults.command.clone_from(&found.command);
                    }
                    if !found.ports.is_empty() {
                        defaults.ports.clone_from(&found.ports);
                    }
                    defaults.commands = found.commands.clone();
                    defaults.env.extend(found.env.clone());
                    (image, defaults)
                }
            };
            let image =
                runner.inner.images.write(&repository, &image).await.map_err(|it| storage("write the image")(&it))?;
            Ok(Built { image, defaults })
        }
    }
}

/// What was found; what the spec says instead is not told as if it counted.
fn describe(found: &Detection, spec: &ComponentSpec) -> String {
    let mut text = format!("detected {}", found.language);
    for more in [&found.version, &found.framework, &found.package_manager].into_iter().flatten() {
        text.push_str(&format!(", {more}"));
    }
    if let Some(command) = spec.command.as_ref().or(found.command.as_ref()) {
        let line = match command {
            Command::Shell(line) => line.clone(),
            Command::Exec(argv) => argv.join(" "),
        };
        text.push_str(&format!("; runs `{line}`"));
    }
    if matches!(spec.kind, ComponentKind::Job | ComponentKind::Cron) {
        return text;
    }
    match spec.ports.first().or(found.ports.first()) {
        Some(port) => text.push_str(&format!("; listens on {}", port.port)),
        None if found.language != "dockerfile" => text.push_str("; listens on no port"),
        None => {}
    }
    text
}

fn defaults(found: &Detection, steps: &Steps) -> RunDefaults {
    let web = steps.run_stack == Stack::Web;
    RunDefaults {
        language: found.language.clone(),
        command: found.command.clone(),
        commands: found.commands.clone(),
        ports: found.ports.clone(),
        env: found.env.clone(),
        working_dir: if web { "/srv/site".to_owned() } else { "/app".to_owned() },
        user: String::new(),
        stop_signal: if web { "SIGQUIT".to_owned() } else { String::new() },
    }
}

/// What an image's own configuration says about running it.
pub(crate) fn image_defaults(language: &str, config: &ImageConfig) -> RunDefaults {
    let argv: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    RunDefaults {
        language: language.to_owned(),
        command: (!argv.is_empty()).then_some(Command::Exec(argv)),
        commands: BTreeMap::new(),
        ports: ports::of_image(config),
        env: env_map(&config.env),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
    }
}

/// `K=V` texts as a map.
pub(crate) fn env_map(env: &[String]) -> BTreeMap<String, String> {
    env.iter().filter_map(|it| it.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Words in the output of an installation that failed only because something had to be compiled.
const NEEDS_COMPILER: [&str; 12] = [
    "gyp ERR!",
    "node-gyp",
    "command 'gcc'",
    "gcc: not found",
    "g++: not found",
    "cc: not found",
    "make: not found",
    "not found: make",
    "No such file or directory: 'gcc'",
    "pg_config",
    "mysql_config",
    "unable to execute",
];

async fn run_steps(
    runner: &Runner<'_>,
    component: &Component,
    prepared: &Prepared,
    steps: &Steps,
    found: &Detection,
    no_cache: bool,
) -> Result<Image, Problem> {
    let run = runner.stack(&steps.run_stack).await?;
    let mut layers = run.image.layers.clone();
    if let Serve::Folder { folder } = &steps.serve {
        let site = move_to_site(runner, &prepared.layer, folder).await?;
        layers.push(site);
        return Ok(image(layers, &run, found));
    }
    let build_stack = runner.stack(&steps.build_stack).await?;
    let context = Context { runner, component, prepared, no_cache };
    let mut dependencies = None;
    if let Some(step) = &steps.dependencies {
        let made = match context.step(step, &build_stack, &[]).await {
            Err(fault) if fault.last_lines.iter().any(|line| NEEDS_COMPILER.iter().any(|it| line.contains(it))) => {
                runner.say("a package must be compiled; trying again with compilers").await;
                let stack = runner.stack(&Stack::Compilers(Box::new(steps.build_stack.clone()))).await?;
                context.step(step, &stack, &[]).await
            }
            // npm leaves packages for other systems out of some lock files, and then refuses them itself.
            Err(fault) if fault.last_lines.iter().any(|it| it.contains("`npm ci` can only install")) => {
                runner.say("warning: package-lock.json does not fit package.json, and versions are chosen without it; run `npm install` and commit the file").await;
                let mut step = step.clone();
                if let Some(locked) = step.arguments.get_mut(1) {
                    *locked = "no".to_owned();
                }
                context.step(&step, &build_stack, &[]).await
            }
            other => other,
        };
        dependencies = Some((made?, step.inputs == Inputs::All));
    }
    // What was made of all files lies above them, what was made of lock files alone below.
    let mut own = match dependencies {
        Some((layer, false)) => vec![layer, prepared.layer.clone()],
        Some((layer, true)) => vec![prepared.layer.clone(), layer],
        None => vec![prepared.layer.clone()],
    };
    if let Some(step) = &steps.build {
        let made = context.step(step, &build_stack, &own).await?;
        if steps.serve == Serve::Site {
            own.clear();
        }
        own.push(made);
    }
    layers.extend(own);
    Ok(image(layers, &run, found))
}

fn image(layers: Vec<Layer>, run: &StackImage, found: &Detection) -> Image {
    let mut env = env_map(&run.image.config.env);
    env.extend(found.env.clone());
    let config = ImageConfig {
        env: env.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        entrypoint: Vec::new(),
        cmd: found.command.as_ref().map(Command::argv).unwrap_or_default(),
        working_dir: if run.reference.repository == "stack/web" { "/srv/site".to_owned() } else { "/app".to_owned() },
        user: String::new(),
        exposed_ports: found
            .ports
            .iter()
            .map(|it| format!("{}/{}", it.port, if it.protocol == Protocol::Udp { "udp" } else { "tcp" }))
            .collect(),
        stop_signal: run.image.config.stop_signal.clone(),
    };
    Image { layers, config }
}

/// The part of a source below a folder, at `/srv/site`.
async fn move_to_site(runner: &Runner<'_>, layer: &Layer, folder: &str) -> Result<Layer, Problem> {
    let from = if folder.is_empty() { "app".to_owned() } else { format!("app/{folder}") };
    place(runner, layer, move |path| {
        let rest = path.strip_prefix(&from)?;
        match rest.strip_prefix('/') {
            // what describes the build is not a part of the site
            Some("Procfile" | "arco.yaml" | "rainbondfile" | "expect.json") => None,
            Some(rest) => Some(format!("srv/site/{rest}")),
            None => rest.is_empty().then(|| "srv/site".to_owned()),
        }
    })
    .await
}

/// A stored layer made of another one.
async fn place(
    runner: &Runner<'_>,
    layer: &Layer,
    place: impl Fn(&str) -> Option<String> + Send + 'static,
) -> Result<Layer, Problem> {
    let file = layer::open_blob(&runner.inner.images, &layer.blob.digest, &runner.inner.work)
        .await
        .map_err(|it| storage("read the source")(&it))?;
    let (work, layer) = (runner.inner.work.clone(), layer.clone());
    let finished = blocking("rewrite the source", move || rewrite(&layer, file, &work, &place))
        .await?
        .map_err(|it| storage("rewrite the source")(&it))?;
    layer::store(&runner.inner.images, finished).await.map_err(|it| storage("keep the source")(&it))
}

struct Context<'a> {
    runner: &'a Runner<'a>,
    component: &'a Component,
    prepared: &'a Prepared,
    no_cache: bool,
}

impl Context<'_> {
    /// Runs a step, or finds what it made before. `own` are the layers on the stack; without any, the step's inputs.
    async fn step(&self, step: &Step, stack: &StackImage, own: &[Layer]) -> Result<Layer, StepFault> {
        let runner = self.runner;
        let bare = |problem| StepFault { problem, last_lines: Vec::new() };
        let inputs = match &step.inputs {
            _ if !own.is_empty() => own.to_vec(),
            Inputs::All => vec![self.prepared.layer.clone()],
            Inputs::Files(files) => {
                let files: std::collections::BTreeSet<String> = files.iter().map(|it| format!("app/{it}")).collect();
                let keep = move |path: &str| (path == "app" || files.contains(path)).then(|| path.to_owned());
                vec![place(runner, &self.prepared.layer, keep).await.map_err(bare)?]
            }
        };
        let mut env = env_map(&stack.image.config.env);
        let unprivileged = runner.no_root();
        env.insert("HOME".to_owned(), if unprivileged { "/tmp" } else { "/root" }.to_owned());
        env.extend(step.env.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        // Headers for what node-gyp compiles; npm warns about the setting, so only where it can be needed.
        if stack.reference.repository.starts_with("stack/node-") && stack.reference.repository.ends_with("-compilers") {
            env.insert("npm_config_nodedir".to_owned(), "/usr/local".to_owned());
        }
        env.extend(self.component.spec.build.env.clone());
        let key = Key::new("step")
            .with(stack.reference.digest.as_str())
            .with(step.script)
            .all(step.arguments.iter().map(String::as_str))
            .all(inputs.iter().map(|it| it.diff_id.as_str()))
            .all(env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
        if !self.no_cache
            && let Some(layer) = runner.cache.get(&key, &runner.inner.images).await
        {
            runner.say(format!("{}: unchanged, from the cache", step.title)).await;
            return Ok(layer);
        }
        runner.say(format!("{} …", step.title)).await;
        let began = std::time::Instant::now();
        let mut argv: Vec<String> = ["/bin/sh", "-euc", step.script, "build"].map(str::to_owned).to_vec();
        argv.extend(step.arguments.iter().cloned());
        let mut run = StepRun::new(step.title, stack.reference.clone(), argv);
        run.extra_layers = inputs;
        run.env = env;
        run.working_dir = "/app".to_owned();
        run.unprivileged = unprivileged;
        run.network = OneShotNetwork::Build;
        for cache in &step.caches {
            let folder = runner.cache.folder(cache.name, cache.path);
            run.caches.push(folder.map_err(|it| bare(storage("make a cache folder")(&it)))?);
        }
        run.export = Some(LayerExport {
            include: step.exports.iter().map(|it| (*it).to_owned()).collect(),
            exclude: vec!["/app/node_modules/.cache".to_owned()],
        });
        let done = runner.run(run).await?;
        let layer = done.layer.ok_or_else(|| bare(Problem::internal("keep what a step made")))?;
        runner.cache.put(&key, &layer, &runner.inner.images).await;
        runner.say(format!("{}: done in {:.1} s", step.title, began.elapsed().as_secs_f64())).await;
        Ok(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn what_the_spec_says_is_told_instead_of_what_was_found() {
        let tree = Tree::of(&[("main.py", "from http.server import HTTPServer\n")]);
        let found = detect::detect(&tree, &Wishes::default()).unwrap();
        let mut spec = ComponentSpec::new(Source::Image { reference: "x".to_owned() });
        let text = describe(&found, &spec);
        assert!(text.contains("runs `python main.py`; listens on 8080"), "{text}");
        spec.command = Some(Command::Shell("python other.py".to_owned()));
        spec.kind = ComponentKind::Cron;
        let text = describe(&found, &spec);
        assert!(text.ends_with("runs `python other.py`"), "{text}");
    }
}
