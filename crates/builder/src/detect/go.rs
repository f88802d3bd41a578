//! Go modules: which package is the program, and which Go builds it.

use super::hints::Hints;
use super::{Cache, Detection, Inputs, Recipe, Serve, Stack, Step, Steps, ports};
use crate::tree::Tree;
use arco_model::error::Problem;
use arco_model::spec::Command;
use std::collections::{BTreeMap, BTreeSet};

/// The oldest Go that we build with; older modules build with it as well.
const OLDEST: u32 = 26;

/// Builds the packages `"$@"` into `/app/bin`. The component's cache begins with links to the compiled standard library
/// of the stack, which is read only and the same for all; links that an older stack left go first.
const BUILD: &str = "if [ -d \"$ARCO_GO_CACHE\" ]; then find \"$GOCACHE\" -xtype l -delete; \
    cp -rsn \"$ARCO_GO_CACHE/.\" \"$GOCACHE/\" || :; fi; \
    cd /app; mkdir -p /app/bin; go build -trimpath -ldflags='-s -w' -o /app/bin/ \"$@\"; ls /app/bin";

pub(super) fn score(tree: &Tree) -> u32 {
    u32::from(tree.has("go.mod")) * 38
}

/// Folders (relative, empty for the root) that hold a program.
fn programs(tree: &Tree) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (path, text) in tree.texts(&["go"]) {
        let ignored = path.ends_with("_test.go")
            || path.split('/').any(|it| matches!(it, "testdata" | "examples" | "example" | "tools" | "_examples"));
        let is_main = text.lines().any(|it| it.trim_end() == "package main" || it.starts_with("package main "))
            && text.contains("func main()");
        let built = !text.contains("//go:build ignore") && !text.contains("// +build ignore");
        if is_main && built && !ignored {
            found.insert(path.rsplit_once('/').map_or(String::new(), |it| it.0.to_owned()));
        }
    }
    found.into_iter().collect()
}

/// The one that serves, when there are several.
fn choose<'a>(programs: &'a [String], module: &str) -> Option<&'a String> {
    let last = |it: &str| it.rsplit('/').next().unwrap_or(it).to_owned();
    let own = last(module);
    programs.iter().find(|it| it.is_empty()).or_else(|| match programs {
        [one] => Some(one),
        many => [own.as_str(), "server", "web", "api", "app", "main"]
            .iter()
            .find_map(|name| many.iter().find(|it| last(it) == *name)),
    })
}

pub(super) fn detect(tree: &Tree, asked: &Hints) -> Result<Detection, Problem> {
    let text = tree.text("go.mod").ok_or_else(|| {
        Problem::invalid("go_mod_missing", "there is no readable go.mod", "run `go mod init` and commit go.mod")
    })?;
    let word = |key: &str| {
        text.lines().find_map(|it| {
            it.trim().strip_prefix(key)?.strip_prefix(' ').map(|it| it.trim().trim_matches('"').to_owned())
        })
    };
    let module = word("module").unwrap_or_default();
    let minor = |it: &str| {
        it.trim_start_matches("go")
            .strip_prefix("1.")
            .and_then(|it| it.split(['.', '-', 'r', 'b']).next()?.parse::<u32>().ok())
    };
    let version = word("go")
        .as_deref()
        .and_then(minor)
        .unwrap_or(0)
        .max(word("toolchain").as_deref().and_then(minor).unwrap_or(0))
        .max(OLDEST);
    let programs = programs(tree);
    if programs.is_empty() {
        let message = "no package main with a func main was found; this is a library";
        return Err(Problem::invalid(
            "go_main_missing",
            message,
            "add a program, as main.go at the root or cmd/NAME/main.go",
        ));
    }
    let chosen = choose(&programs, &module);
    if chosen.is_none() && asked.command.is_none() {
        let message = format!("several programs were found: {}", programs.join(", "));
        return Err(Problem::invalid(
            "several_candidates",
            message,
            "say which one serves in a Procfile: `web: bin/NAME`",
        ));
    }
    let name = |folder: &str| {
        let own = module
            .trim_end_matches('/')
            .rsplit('/')
            .find(|it| !(it.len() > 1 && it.starts_with('v') && it[1..].bytes().all(|it| it.is_ascii_digit())));
        folder.rsplit('/').next().filter(|it| !it.is_empty()).or(own).unwrap_or("app").to_owned()
    };
    let built: Vec<String> = match chosen {
        Some(one) if asked.command.is_none() => vec![one.clone()],
        _ => programs.clone(),
    };
    let arguments: Vec<String> =
        built.iter().map(|it| if it.is_empty() { ".".to_owned() } else { format!("./{it}") }).collect();
    let mut env = vec![
        ("CGO_ENABLED", "0".to_owned()),
        ("GOTOOLCHAIN", "local".to_owned()),
        ("GOMODCACHE", "/cache/go-mod".to_owned()),
        ("GOCACHE", "/cache/go-build".to_owned()),
        ("ARCO_GO_CACHE", crate::stack::golang::CACHE.to_owned()),
        ("GOFLAGS", "-buildvcs=false".to_owned()),
    ];
    let mut hints = Vec::new();
    if !tree.has("go.sum") && text.contains("require") {
        env.pop();
        env.push(("GOFLAGS", "-buildvcs=false -mod=mod".to_owned()));
        hints.push("there is no go.sum; run `go mod tidy` and commit it".to_owned());
    }
    let framework = ["gin-gonic/gin", "labstack/echo", "gofiber/fiber", "go-chi/chi", "gorilla/mux"]
        .into_iter()
        .find(|it| text.contains(it));
    Ok(Detection {
        language: "go".to_owned(),
        framework: framework.and_then(|it| it.rsplit('/').next()).map(str::to_owned),
        version: Some(format!("1.{version}")),
        package_manager: Some("go".to_owned()),
        build_steps: vec![format!("go build {}", arguments.join(" "))],
        command: chosen.map(|it| Command::Exec(vec![format!("/app/bin/{}", name(it))])),
        commands: BTreeMap::new(),
        ports: ports::guess(tree, &["go"], framework.is_some()),
        env: BTreeMap::new(),
        hints,
        recipe: Recipe::Steps(Box::new(Steps {
            build_stack: Stack::Go(version),
            run_stack: Stack::Base,
            dependencies: None,
            build: Some(Step {
                title: "go build",
                script: BUILD,
                arguments,
                inputs: Inputs::All,
                exports: vec!["/app/bin"],
                caches: vec![
                    Cache { name: "go-mod", path: "/cache/go-mod" },
                    Cache { name: "go-build", path: "/cache/go-build" },
                ],
                env,
            }),
            serve: Serve::Application,
        })),
    })
}
