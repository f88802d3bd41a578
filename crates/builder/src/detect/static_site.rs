//! Files that are served as they are.

use super::{Detection, Recipe, Serve, Stack, Steps, hints::Hints, http_port};
use crate::tree::Tree;
use arco_model::error::Problem;
use arco_model::spec::Command;
use std::collections::BTreeMap;

/// Where the start page may lie, in order.
const ROOTS: [&str; 8] = ["", "public", "www", "html", "site", "dist", "build", "docs"];

fn root(tree: &Tree) -> Option<&'static str> {
    ROOTS
        .into_iter()
        .find(|it| tree.has(&if it.is_empty() { "index.html".to_owned() } else { format!("{it}/index.html") }))
}

pub(super) fn score(tree: &Tree) -> u32 {
    u32::from(root(tree).is_some()) * 10
}

/// What starts the web server of the `web` stack: `site` answers 404 for what is not there, `spa` the start page.
pub(super) fn command(mode: &str) -> Command {
    Command::Exec(vec!["/usr/local/bin/arco-web".to_owned(), mode.to_owned()])
}

pub(super) fn detect(tree: &Tree, _: &Hints) -> Result<Detection, Problem> {
    let Some(folder) = root(tree) else {
        let message = format!("a static site needs an index.html; found {}", tree.root_names(12));
        return Err(Problem::invalid(
            "index_missing",
            message,
            "add index.html at the root, or choose its folder with `--dir`",
        ));
    };
    Ok(Detection {
        language: "static".to_owned(),
        framework: None,
        version: None,
        package_manager: None,
        build_steps: vec![format!("serve {}", if folder.is_empty() { "all files" } else { folder })],
        command: Some(command("site")),
        commands: BTreeMap::new(),
        ports: http_port(super::DEFAULT_PORT),
        env: BTreeMap::new(),
        hints: Vec::new(),
        recipe: Recipe::Steps(Box::new(Steps {
            build_stack: Stack::Web,
            run_stack: Stack::Web,
            dependencies: None,
            build: None,
            serve: Serve::Folder { folder: folder.to_owned() },
        })),
    })
}
