//! A source with a Dockerfile: only that it is there; the instructions are read when it is built.

use super::{Detection, Recipe};
use crate::tree::Tree;
use arco_model::error::Problem;
use std::collections::BTreeMap;

pub(super) fn detect(tree: &Tree, path: &str) -> Result<Detection, Problem> {
    let clean = path.trim_start_matches("./");
    if clean.starts_with('/') || clean.split('/').any(|it| it == "..") {
        return Err(Problem::invalid(
            "dockerfile_path",
            format!("the Dockerfile path `{path}` leaves the source"),
            "give a path inside of the source",
        ));
    }
    if !tree.has(clean) {
        let message = format!("there is no `{clean}`; found {}", tree.root_names(12));
        return Err(Problem::invalid("dockerfile_missing", message, "add the Dockerfile, or give its path"));
    }
    Ok(Detection {
        language: "dockerfile".to_owned(),
        framework: None,
        version: None,
        package_manager: None,
        build_steps: vec![format!("build {clean}")],
        command: None,
        commands: BTreeMap::new(),
        ports: Vec::new(),
        env: BTreeMap::new(),
        hints: Vec::new(),
        recipe: Recipe::Dockerfile { path: clean.to_owned() },
    })
}
