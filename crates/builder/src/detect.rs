//! What a source is, and how it is built and run: a pure table over a listing and the text of small files.
//!
//! One file per language; adding one is a file and a line in [`LANGUAGES`]. Order of precedence for what runs: the
//! component's own settings (elsewhere), `arco.yaml`, `Procfile`, `rainbondfile`, then what the language finds.

mod dockerfile;
mod go;
mod hints;
mod node;
mod node_version;
pub(crate) mod ports;
mod python;
mod recipe;
mod static_site;

pub use recipe::{Cache, Inputs, Recipe, Serve, Stack, Step, Steps};

use crate::tree::Tree;
use arco_model::artifact::ImageConfig;
use arco_model::error::Problem;
use arco_model::spec::{Command, Port, Protocol};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The port that an application gets when the language lets us choose.
pub const DEFAULT_PORT: u16 = 8080;

/// What a source is, and how it would be built and run.
#[derive(Clone, Debug, Serialize)]
pub struct Detection {
    /// `node`, `python`, `go`, `static`, `dockerfile`.
    pub language: String,
    /// Framework, as `express` or `django`.
    pub framework: Option<String>,
    /// Version of the language that it is built with.
    pub version: Option<String>,
    /// Package manager, as `pnpm`.
    pub package_manager: Option<String>,
    /// What the build does, in words.
    pub build_steps: Vec<String>,
    /// What runs.
    pub command: Option<Command>,
    /// Further commands by name.
    pub commands: BTreeMap<String, Command>,
    /// Ports that it listens on.
    pub ports: Vec<Port>,
    /// Variables of the running instances.
    pub env: BTreeMap<String, String>,
    /// What a person may want to know or change.
    pub hints: Vec<String>,
    /// How it is built.
    #[serde(skip)]
    pub recipe: Recipe,
}

/// What a person asked instead of detection.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Language by name.
    pub strategy: Option<String>,
    /// Path of the Dockerfile.
    pub dockerfile: Option<String>,
}

/// A language: whether a source is one of it, and how.
struct Language {
    name: &'static str,
    /// How surely the source is one of this language: 0 is not at all; the highest wins, the earlier one if equal.
    score: fn(&Tree) -> u32,
    detect: fn(&Tree, &hints::Hints) -> Result<Detection, Problem>,
}

const LANGUAGES: [Language; 4] = [
    Language { name: "node", score: node::score, detect: node::detect },
    Language { name: "python", score: python::score, detect: python::detect },
    Language { name: "go", score: go::score, detect: go::detect },
    Language { name: "static", score: static_site::score, detect: static_site::detect },
];

/// Files that say which other language a source is written in, for the error text.
const OTHERS: [(&str, &str); 12] = [
    ("pom.xml", "Java (Maven)"),
    ("build.gradle", "Java (Gradle)"),
    ("build.gradle.kts", "Kotlin (Gradle)"),
    ("composer.json", "PHP"),
    ("index.php", "PHP"),
    ("Gemfile", "Ruby"),
    ("Cargo.toml", "Rust"),
    ("mix.exs", "Elixir"),
    ("deno.json", "Deno"),
    ("build.sbt", "Scala"),
    ("CMakeLists.txt", "C or C++"),
    ("Package.swift", "Swift"),
];

/// What can be built, for error texts.
const SUPPORTED: &str = "static sites, Node.js, Python, Go and Dockerfile";

/// Detects a folder of this machine; `dir` is the sub-directory to look at, empty for the folder itself.
pub fn detect_folder(path: &Path, dir: &str) -> Result<Detection, Problem> {
    let refuse = |why: String| {
        Problem::invalid(
            "source_unreadable",
            format!("`{}` cannot be read: {why}", path.display()),
            "give a folder that exists",
        )
    };
    if !path.is_dir() {
        return Err(refuse("it is not a folder".to_owned()));
    }
    let tree = Tree::read_folder(path).map_err(|it| refuse(it.to_string()))?;
    if !dir.is_empty() && !tree.has_folder(dir.trim_matches('/')) {
        return Err(missing_dir(dir, &tree));
    }
    let tree = tree.below(dir);
    let mut found = detect(&tree, &Wishes::default())?;
    if let Recipe::Dockerfile { path } = &found.recipe
        && let Some(text) = tree.text(path)
    {
        let seen = crate::dockerfile::outline(text)?;
        show_outline(&mut found, &seen.from, &seen.config);
    }
    Ok(found)
}

/// Tells what a Dockerfile says; a build takes it from the image instead, where what its base says counts as well.
fn show_outline(found: &mut Detection, from: &str, config: &ImageConfig) {
    let argv: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    if found.command.is_none() && argv.is_empty() {
        found.hints.push(format!("what runs is what the image `{from}` says"));
    } else if found.command.is_none() {
        found.command = Some(Command::Exec(argv));
    }
    if found.ports.is_empty() {
        found.ports = ports::of_image(config);
    }
}

/// The error for a sub-directory that is not there.
pub(crate) fn missing_dir(dir: &str, tree: &Tree) -> Problem {
    let message = format!("the source has no folder `{dir}`; it holds: {}", tree.root_names(12));
    Problem::invalid("dir_missing", message, "give a folder inside of the source with `--dir`")
}

/// Detects a source.
pub fn detect(tree: &Tree, wishes: &Wishes) -> Result<Detection, Problem> {
    if tree.file_count() == 0 {
        let advice = "commit or add files; what `.gitignore` and `.arcoignore` name is not uploaded";
        return Err(Problem::invalid("source_empty", "the source is empty: it holds no files", advice));
    }
    let hints = hints::read(tree)?;
    let mut found = choose(tree, wishes, &hints)?;
    hints.apply(&mut found);
    Ok(found)
}

fn choose(tree: &Tree, wishes: &Wishes, hints: &hints::Hints) -> Result<Detection, Problem> {
    if wishes.strategy.as_deref() == Some("dockerfile") || wishes.dockerfile.is_some() {
        return dockerfile::detect(tree, wishes.dockerfile.as_deref().unwrap_or("Dockerfile"));
    }
    if let Some(name) = &wishes.strategy {
        let Some(language) = LANGUAGES.iter().find(|it| it.name == name) else {
            let message = format!("the build strategy `{name}` is not known");
            return Err(Problem::invalid("strategy_unknown", message, "use node, python, go, static or dockerfile"));
        };
        return (language.detect)(tree, hints);
    }
    if tree.has("Dockerfile") {
        return dockerfile::detect(tree, "Dockerfile");
    }
    let mut scores: Vec<_> = LANGUAGES.iter().map(|it| ((it.score)(tree), it)).filter(|it| it.0 > 0).collect();
    scores.sort_by_key(|it| std::cmp::Reverse(it.0));
    let Some((_, best)) = scores.first() else { return Err(nothing(tree)) };
    let mut found = (best.detect)(tree, hints)?;
    let others: Vec<_> = scores[1..].iter().map(|it| it.1.name).filter(|it| *it != "static").collect();
    if !others.is_empty() {
        let text = format!("it could also be built as {}; {} was chosen", others.join(" or "), best.name);
        found.hints.push(format!("{text}; a Dockerfile or `build.strategy` decides otherwise"));
    }
    Ok(found)
}

/// Why nothing fits, with the nearest way out.
fn nothing(tree: &Tree) -> Problem {
    if let Some((file, language)) = OTHERS.iter().find(|(file, _)| tree.has(file)) {
        let message =
            format!("`{file}` says that this is {language}, which cannot be built yet; supported are {SUPPORTED}");
        return Problem::invalid("language_unsupported", message, "add a Dockerfile that builds it");
    }
    let marks = ["package.json", "requirements.txt", "pyproject.toml", "Pipfile", "go.mod", "Dockerfile", "index.html"];
    let inner: Vec<&str> = tree
        .files()
        .filter_map(|path| path.rsplit_once('/'))
        .filter(|(folder, name)| {
            marks.contains(name) && folder.matches('/').count() < 2 && !folder.contains("node_modules")
        })
        .map(|it| it.0)
        .collect();
    let message = format!("nothing recognised: found {}; supported are {SUPPORTED}", tree.root_names(12));
    let mut folders = inner;
    folders.dedup();
    match folders.as_slice() {
        [] => Problem::invalid(
            "nothing_recognised",
            message,
            "add a Dockerfile or a Procfile beside a package.json, requirements.txt or go.mod",
        ),
        [one] => Problem::invalid(
            "nothing_recognised",
            message,
            format!("`{one}` looks like an application: add `--dir {one}`"),
        ),
        many => {
            let list = many[..many.len().min(6)].join("`, `");
            Problem::invalid(
                "several_candidates",
                format!("{message}; several folders look like applications: `{list}`"),
                "choose one with `--dir FOLDER`",
            )
        }
    }
}

/// One outer HTTP port.
fn http_port(port: u16) -> Vec<Port> {
    vec![Port { port, protocol: Protocol::Http, outer: true }]
}

#[cfg(test)]
mod tests;
