//! Node.js: npm, yarn and pnpm; servers and static front ends.

use super::hints::Hints;
use super::{Cache, Detection, Inputs, Recipe, Serve, Stack, Step, Steps, http_port, node_version, ports, static_site};
use crate::tree::Tree;
use arco_model::error::Problem;
use arco_model::spec::Command;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Package {
    main: Option<String>,
    scripts: BTreeMap<String, String>,
    dependencies: BTreeMap<String, serde_json::Value>,
    dev_dependencies: BTreeMap<String, serde_json::Value>,
    optional_dependencies: BTreeMap<String, serde_json::Value>,
    engines: BTreeMap<String, serde_json::Value>,
    package_manager: Option<String>,
    workspaces: Option<serde_json::Value>,
}

impl Package {
    fn depends_on(&self, name: &str) -> bool {
        self.dependencies.contains_key(name) || self.dev_dependencies.contains_key(name)
    }

    fn has_dependencies(&self) -> bool {
        !(self.dependencies.is_empty() && self.dev_dependencies.is_empty() && self.optional_dependencies.is_empty())
    }
}

/// Frameworks that listen themselves, the more telling first.
const SERVERS: [(&str, &str); 22] = [
    ("next", "next"),
    ("nuxt", "nuxt"),
    ("@nestjs/core", "nest"),
    ("@remix-run/node", "remix"),
    ("@sveltejs/adapter-node", "sveltekit"),
    ("@astrojs/node", "astro"),
    ("express", "express"),
    ("fastify", "fastify"),
    ("koa", "koa"),
    ("@hapi/hapi", "hapi"),
    ("hono", "hono"),
    ("@hono/node-server", "hono"),
    ("polka", "polka"),
    ("restify", "restify"),
    ("connect", "connect"),
    ("micro", "micro"),
    ("h3", "h3"),
    ("@feathersjs/express", "feathers"),
    ("@adonisjs/core", "adonis"),
    ("apollo-server", "apollo"),
    ("ws", "ws"),
    ("socket.io", "socket.io"),
];

/// Tools that make files for browsers.
const BUNDLERS: [(&str, &str); 11] = [
    ("react-scripts", "create-react-app"),
    ("@vue/cli-service", "vue-cli"),
    ("@angular/cli", "angular"),
    ("gatsby", "gatsby"),
    ("astro", "astro"),
    ("@docusaurus/core", "docusaurus"),
    ("@11ty/eleventy", "eleventy"),
    ("vitepress", "vitepress"),
    ("parcel", "parcel"),
    ("vite", "vite"),
    ("webpack", "webpack"),
];

/// Words of a `start` script that only serve a developer.
const DEV_SERVERS: [&str; 13] = [
    "vite",
    "react-scripts start",
    "vue-cli-service serve",
    "ng serve",
    "parcel",
    "gatsby develop",
    "webpack serve",
    "webpack-dev-server",
    "astro dev",
    "astro preview",
    "http-server",
    "live-server",
    "docusaurus start",
];

pub(super) fn score(tree: &Tree) -> u32 {
    let Some(text) = tree.text("package.json") else { return if entry(tree, None).is_some() { 15 } else { 0 } };
    // A package.json that only holds tools (no way to start or build) leaves other languages their turn.
    let package: Package = serde_json::from_str(text).unwrap_or_default();
    let runs = package.scripts.contains_key("start")
        || package.scripts.contains_key("build")
        || entry(tree, package.main.as_deref()).is_some();
    if runs { 40 } else { 12 }
}

/// The file that a program without a `start` script begins with.
fn entry(tree: &Tree, main: Option<&str>) -> Option<String> {
    let main = main.map(|it| it.trim_start_matches("./").to_owned());
    let candidates = main.into_iter().chain(
        ["server", "index", "app", "main", "src/server", "src/index", "src/app", "src/main"]
            .into_iter()
            .flat_map(|it| ["js", "mjs", "cjs"].map(|extension| format!("{it}.{extension}"))),
    );
    candidates
        .into_iter()
        .find_map(|it| [it.clone(), format!("{it}.js"), format!("{it}/index.js")].into_iter().find(|it| tree.has(it)))
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manager {
    Npm,
    Yarn,
    YarnBerry,
    Pnpm,
}

impl Manager {
    fn name(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Yarn | Self::YarnBerry => "yarn",
            Self::Pnpm => "pnpm",
        }
    }

    fn locks(self) -> &'static [&'static str] {
        match self {
            Self::Npm => &["package-lock.json", "npm-shrinkwrap.json"],
            Self::Yarn | Self::YarnBerry => &["yarn.lock"],
            Self::Pnpm => &["pnpm-lock.yaml"],
        }
    }

    fn cache(self) -> Cache {
        match self {
            Self::Npm => Cache { name: "npm", path: "/cache/npm" },
            Self::Yarn | Self::YarnBerry => Cache { name: "yarn", path: "/cache/yarn" },
            Self::Pnpm => Cache { name: "pnpm", path: "/cache/pnpm" },
        }
    }

    /// `$1`: whether development packages are wanted; `$2`: whether there is a lock file.
    ///
    /// npm tells a lock file that does not fit in seventy lines of usage; of those, the few that name packages are shown.
    fn install(self) -> &'static str {
        match self {
            Self::Npm => {
                "cd /app; omit=--include=dev; [ \"$1\" = yes ] || omit=--omit=dev; action=ci; [ \"$2\" = yes ] || action=install; \
                 if npm $action $omit --no-audit --no-fund --no-progress --cache /cache/npm 2> /tmp/npm; then cat /tmp/npm >&2; \
                 elif grep -q '`npm ci` can only install' /tmp/npm; then grep -E -m 8 'can only install|Missing: |Invalid: ' /tmp/npm >&2; exit 1; \
                 else cat /tmp/npm >&2; exit 1; fi; mkdir -p node_modules"
            }
            Self::Yarn => {
                "cd /app; production=false; [ \"$1\" = yes ] || production=true; frozen=--frozen-lockfile; [ \"$2\" = yes ] || frozen=--no-lockfile; \
                 yarn install $frozen --production=$production --non-interactive --no-progress --cache-folder /cache/yarn; mkdir -p node_modules"
            }
            Self::YarnBerry => {
                "cd /app; immutable=--immutable; [ \"$2\" = yes ] || immutable=--no-immutable; \
                 yarn-berry install $immutable; mkdir -p node_modules"
            }
            Self::Pnpm => {
                "cd /app; production=; [ \"$1\" = yes ] || production=--prod; frozen=--frozen-lockfile; [ \"$2\" = yes ] || frozen=--no-frozen-lockfile; \
                 pnpm --config.manage-package-manager-versions=false install $frozen $production --store-dir /cache/pnpm --reporter append-only; mkdir -p node_modules"
            }
        }
    }

    fn run(self) -> &'static str {
        match self {
            Self::Npm => "cd /app; npm run build",
            Self::Yarn => "cd /app; yarn run build",
            Self::YarnBerry => "cd /app; yarn-berry run build",
            Self::Pnpm => "cd /app; pnpm --config.manage-package-manager-versions=false run build",
        }
    }

    /// Builds, then looks where the start page was written: `$1` and the following are candidates.
    fn run_site(self) -> String {
        format!("{}; {COLLECT}", self.run())
    }
}

/// Copies the first folder that holds a start page to `/srv/site`.
const COLLECT: &str = "for folder in \"$@\" dist/*/browser dist/* build/client; do if [ -f \"$folder/index.html\" ]; then \
     mkdir -p /srv/site; cp -a \"$folder/.\" /srv/site/; echo \"serving $folder\"; exit 0; fi; done; \
     echo 'the build wrote no index.html to dist, build, out, public or _site' >&2; exit 1";

fn manager(tree: &Tree, package: &Package, hints: &mut Vec<String>) -> Result<Manager, Problem> {
    let berry = tree.has(".yarnrc.yml") || tree.text("yarn.lock").is_some_and(|it| it.contains("__metadata:"));
    if let Some(asked) = &package.package_manager {
        let (name, version) = asked.split_once('@').unwrap_or((asked, ""));
        return match name {
            "npm" => Ok(Manager::Npm),
            "pnpm" => Ok(Manager::Pnpm),
            "yarn" if berry || !(version.starts_with("1.") || version.is_empty()) => Ok(Manager::YarnBerry),
            "yarn" => Ok(Manager::Yarn),
            other => {
                let message = format!("package.json asks for the package manager `{other}`, which is not supported");
                Err(Problem::invalid("package_manager_unsupported", message, "use npm, yarn or pnpm"))
            }
        };
    }
    let found: Vec<Manager> = [Manager::Pnpm, if berry { Manager::YarnBerry } else { Manager::Yarn }, Manager::Npm]
        .into_iter()
        .filter(|it| it.locks().iter().any(|lock| tree.has(lock)))
        .collect();
    if found.len() > 1 {
        let names: Vec<_> = found.iter().map(|it| it.name()).collect();
        hints.push(format!(
            "lock files of {} found, {} is used; remove the others or set `packageManager`",
            names.join(" and "),
            names[0]
        ));
    }
    Ok(found.first().copied().unwrap_or(Manager::Npm))
}

/// Major version, and the hint where it was not as asked.
fn version(tree: &Tree, package: &Package, hints: &mut Vec<String>) -> Result<u32, Problem> {
    let asked = package.engines.get("node").and_then(|it| it.as_str()).map(str::to_owned);
    let from_file =
        || [".nvmrc", ".node-version"].into_iter().find_map(|it| tree.text(it)).map(|it| it.trim().to_owned());
    let Some(range) = asked.or_else(from_file) else {
        hints.push(format!(
            "Node.js {} is used; to choose another, set `engines.node` in package.json",
            node_version::DEFAULT
        ));
        return Ok(node_version::DEFAULT);
    };
    node_version::choose(&range).ok_or_else(|| {
        let message = format!("the source asks for Node.js `{range}`, and no version from 14 to 26 fits");
        Problem::invalid("node_version", message, "ask for another one in `engines.node`, as \"22.x\"")
    })
}

fn dependencies(tree: &Tree, package: &Package, manager: Manager, development: bool) -> Option<Step> {
    if !package.has_dependencies() && package.workspaces.is_none() {
        return None;
    }
    let locked = manager.locks().iter().any(|it| tree.has(it));
    let local = |it: &serde_json::Value| {
        it.as_str().is_some_and(|it| ["file:", "link:", "workspace:", "portal:", "."].iter().any(|p| it.starts_with(p)))
    };
    let needs_source = package.workspaces.is_some()
        || tree.has("pnpm-workspace.yaml")
        || ["preinstall", "install", "postinstall", "prepare"].iter().any(|it| package.scripts.contains_key(*it))
        || package.dependencies.values().chain(package.dev_dependencies.values()).any(local);
    let mut files: Vec<String> =
        ["package.json", ".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs"].map(str::to_owned).to_vec();
    files.extend(manager.locks().iter().map(|it| (*it).to_owned()));
    files.extend(tree.files().filter(|it| it.starts_with("patches/") || it.starts_with(".yarn/")).map(str::to_owned));
    files.retain(|it| tree.has(it));
    let answer = |it| if it { "yes".to_owned() } else { "no".to_owned() };
    Some(Step {
        title: "install dependencies",
        script: manager.install(),
        arguments: vec![answer(development), answer(locked)],
        inputs: if needs_source { Inputs::All } else { Inputs::Files(files) },
        exports: vec![if needs_source { "/app" } else { "/app/node_modules" }],
        caches: vec![manager.cache()],
        env: if manager == Manager::YarnBerry {
            vec![("YARN_NODE_LINKER", "node-modules".to_owned()), ("YARN_GLOBAL_FOLDER", "/cache/yarn".to_owned())]
        } else {
            Vec::new()
        },
    })
}

/// Where a static front end is written, by its tool and its configuration.
fn output_folders(tree: &Tree) -> Vec<String> {
    let mut folders = Vec::new();
    for name in
        ["vite.config.js", "vite.config.ts", "vite.config.mjs", "vite.config.mts", "astro.config.mjs", "vue.config.js"]
    {
        let Some(text) = tree.text(name) else { continue };
        for key in ["outDir", "outputDir"] {
            let after = text.split_once(key).map(|it| it.1.trim_start().trim_start_matches([':', '=']).trim_start());
            let quoted =
                after.and_then(|it| it.strip_prefix(['"', '\'', '`']).and_then(|it| it.split(['"', '\'', '`']).next()));
            if let Some(folder) = quoted.filter(|it| !it.starts_with(['/', '-']) && !it.contains("..")) {
                folders.push(folder.trim_start_matches("./").to_owned());
            }
        }
    }
    folders.extend(
        ["dist", "build", "out", "public", "_site", ".vitepress/dist", "docs/.vitepress/dist", "www"]
            .map(str::to_owned),
    );
    folders
}

/// The `start` script as a command: its own line, so that no package manager stays in memory between us and it.
fn start_command(package: &Package, manager: Manager) -> Option<Command> {
    let line = package.scripts.get("start")?;
    let plain = !package.scripts.contains_key("prestart")
        && !package.scripts.contains_key("poststart")
        && !line.contains("npm_");
    Some(if plain { Command::Shell(line.clone()) } else { Command::Shell(format!("{} start", manager.name())) })
}

pub(super) fn detect(tree: &Tree, asked: &Hints) -> Result<Detection, Problem> {
    let mut hints = Vec::new();
    let package: Package = match tree.text("package.json") {
        Some(text) => serde_json::from_str(text).map_err(|it| {
            Problem::invalid(
                "package_json_invalid",
                format!("package.json cannot be read: {it}"),
                "correct package.json",
            )
        })?,
        None => Package::default(),
    };
    let manager = manager(tree, &package, &mut hints)?;
    let major = version(tree, &package, &mut hints)?;
    let server = SERVERS.iter().find(|it| package.depends_on(it.0)).map(|it| it.1);
    let bundler = BUNDLERS.iter().find(|it| package.depends_on(it.0)).map(|it| it.1);
    let builds = package.scripts.contains_key("build");
    let start = package.scripts.get("start");
    let dev_start = start
        .is_some_and(|line| DEV_SERVERS.iter().any(|it| line.contains(it)) || line.trim_start().starts_with("serve "));
    let front_end =
        builds && bundler.is_some() && asked.command.is_none() && (dev_start || (start.is_none() && server.is_none()));
    let install = dependencies(tree, &package, manager, builds);
    let mut steps = Vec::new();
    steps.extend(install.as_ref().map(|_| format!("{} install", manager.name())));
    steps.extend(builds.then(|| format!("{} run build", manager.name())));
    let (command, ports) = if front_end {
        (Some(static_site::command("spa")), http_port(super::DEFAULT_PORT))
    } else {
        let from_entry = || entry(tree, package.main.as_deref()).map(|it| Command::Exec(vec!["node".to_owned(), it]));
        let command = start_command(&package, manager).or_else(from_entry);
        if command.is_none() && asked.command.is_none() {
            let message = "package.json says nothing about how to start: there is no `start` script, no `main`, and no server.js or index.js";
            return Err(Problem::invalid(
                "start_missing",
                message,
                "add a `start` script to package.json, or a Procfile with `web: …`",
            ));
        }
        (command, ports::guess(tree, &["js", "mjs", "cjs", "ts", "mts"], server.is_some()))
    };
    let build = builds.then(|| Step {
        title: "build",
        script: match (front_end, manager) {
            (false, it) => it.run(),
            (true, it) => site_script(it),
        },
        arguments: if front_end { output_folders(tree) } else { Vec::new() },
        inputs: Inputs::All,
        exports: vec![if front_end { "/srv/site" } else { "/app" }],
        caches: vec![manager.cache()],
        env: Vec::new(),
    });
    let stack = Stack::Node(major);
    let path = "/app/node_modules/.bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = if front_end {
        BTreeMap::new()
    } else {
        [("NODE_ENV", "production"), ("PATH", path)].into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    Ok(Detection {
        language: "node".to_owned(),
        framework: if front_end { bundler } else { server.or(bundler) }.map(str::to_owned),
        version: Some(major.to_string()),
        package_manager: Some(manager.name().to_owned()),
        build_steps: steps,
        command,
        commands: BTreeMap::new(),
        ports,
        env,
        hints,
        recipe: Recipe::Steps(Box::new(Steps {
            build_stack: stack.clone(),
            run_stack: if front_end { Stack::Web } else { stack },
            dependencies: install,
            build,
            serve: if front_end { Serve::Site } else { Serve::Application },
        })),
    })
}

/// Scripts are constants: each is put together once.
fn site_script(manager: Manager) -> &'static str {
    use std::sync::OnceLock;
    static SCRIPTS: [OnceLock<String>; 4] = [const { OnceLock::new() }; 4];
    SCRIPTS[manager as usize].get_or_init(|| manager.run_site())
}
