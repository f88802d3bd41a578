//! What a Dockerfile says about running its last stage, without building anything: for `arco detect`.
//!
//! What must hold: a file that cannot be read is refused with the same error as a build gives. Not here: what base
//! images add, and the variables of a component's build.

use super::parse::{self, Form};
use super::{expand, platform, stage, stage_name};
use arco_model::artifact::ImageConfig;
use arco_model::error::Problem;
use std::collections::BTreeMap;

/// What is seen of the last stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    /// The image that it begins from, over all stages of the file.
    pub(crate) from: String,
    /// Command and exposed ports, as far as the file says them; its variables.
    pub(crate) config: ImageConfig,
}

/// Reads a file.
pub(crate) fn outline(text: &str) -> Result<Outline, Problem> {
    let file = parse::parse(text)?;
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut stages: Vec<(Option<String>, Outline)> = Vec::new();
    for instruction in &file.instructions {
        let expand =
            |word: &str| expand::value(word, file.escape, &|name| values.get(name).cloned().or_else(|| platform(name)));
        let rest = instruction.rest.as_str();
        if instruction.word == "FROM" {
            let image = expand(rest.split_whitespace().next().unwrap_or(""));
            let earlier =
                stages.iter().rev().find(|it| it.0.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(&image)));
            let below = earlier.map(|it| it.1.clone());
            let begun = below.unwrap_or_else(|| Outline { from: image, ..Outline::default() });
            stages.push((stage_name(instruction).map(str::to_owned), begun));
            continue;
        }
        let words = expand::words(rest, file.escape);
        let pairs: Vec<(String, String)> = match instruction.word.as_str() {
            // The old form: one name, the rest is the value.
            "ENV" if words.first().is_some_and(|it| !it.contains('=')) => rest
                .split_once(char::is_whitespace)
                .map(|(k, v)| (k.to_owned(), expand(v.trim())))
                .into_iter()
                .collect(),
            "ENV" | "ARG" => {
                words.iter().filter_map(|it| it.split_once('=')).map(|(k, v)| (k.to_owned(), expand(v))).collect()
            }
            _ => Vec::new(),
        };
        let ports: Vec<String> =
            if instruction.word == "EXPOSE" { words.iter().map(|it| expand(it)).collect() } else { Vec::new() };
        if let Some((_, Outline { config, .. })) = stages.last_mut() {
            match instruction.word.as_str() {
                "CMD" => config.cmd = argv(instruction.form()),
                "ENTRYPOINT" => {
                    config.entrypoint = argv(instruction.form());
                    config.cmd.clear();
                }
                "ENV" => config.env.extend(pairs.iter().map(|(k, v)| format!("{k}={v}"))),
                "EXPOSE" => {
                    for word in ports {
                        let number = word.split_once('/').map_or(word.as_str(), |it| it.0);
                        if number.parse::<u16>().ok().filter(|it| *it != 0).is_none() {
                            return Err(instruction.error(format!("`{word}` is not a port")));
                        }
                        config.exposed_ports.push(word);
                    }
                }
                _ => {}
            }
        }
        values.extend(pairs);
    }
    Ok(stages.pop().map(|it| it.1).unwrap_or_default())
}

fn argv(form: Form) -> Vec<String> {
    match form {
        Form::Exec(argv) => argv,
        Form::Shell(line) => stage::default_shell().into_iter().chain([line]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_says_what_runs_and_where_it_listens() {
        let text = "ARG BASE=debian:12\nFROM golang:1.26 AS build\nCMD no\nFROM $BASE AS run\nENV PORT=9000\nEXPOSE $PORT 53/udp\nENTRYPOINT [\"server\"]\nFROM run\nCMD [\"--all\"]\n";
        let found = outline(text).unwrap();
        assert_eq!(found.from, "debian:12");
        assert_eq!(
            (&found.config.entrypoint[..], &found.config.cmd[..]),
            (&["server".to_owned()][..], &["--all".to_owned()][..])
        );
        assert_eq!(found.config.exposed_ports, ["9000", "53/udp"]);
        assert_eq!(outline("FROM x\nCMD run it\n").unwrap().config.cmd, ["/bin/sh", "-c", "run it"]);
    }

    #[test]
    fn what_a_build_would_refuse_is_refused() {
        for (text, part) in
            [("FORM debian:12\n", "line 1: `FORM`"), ("FROM x\nEXPOSE http\n", "line 2: EXPOSE: `http`")]
        {
            assert!(outline(text).unwrap_err().message.contains(part), "{text}");
        }
    }
}
