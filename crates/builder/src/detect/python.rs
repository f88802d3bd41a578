//! Python: requirements.txt, pyproject.toml (PEP 621, Poetry, uv), Pipfile; Flask, FastAPI, Django, plain scripts.

use super::hints::Hints;
use super::{Cache, Detection, Inputs, Recipe, Serve, Stack, Step, Steps, http_port, ports};
use crate::tree::Tree;
use arco_model::error::Problem;
use arco_model::spec::Command;
use std::collections::BTreeMap;

/// Makes the environment that everything is installed into.
macro_rules! with_venv {
    ($rest:literal) => {
        concat!("cd /app; python3 -m venv /opt/venv; export VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_CACHE_DIR=/cache/pip; ", $rest)
    };
}

/// `"$@"`: what is installed beside the files.
const REQUIREMENTS: &str = with_venv!("pip install --no-input --progress-bar off -r requirements.txt \"$@\"");
/// Without arguments there is nothing to install, and an environment without pip is made in a tenth of the time.
const PLAIN: &str = "cd /app; \
    if [ $# -eq 0 ]; then exec python3 -m venv --without-pip /opt/venv; fi; \
    python3 -m venv /opt/venv; export VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_CACHE_DIR=/cache/pip; \
    pip install --no-input --progress-bar off \"$@\"";
/// Poetry asks PyPI for JSON, which mirrors rarely have; where it is not answered, its plugin reads the pages that pip reads.
const POETRY: &str = with_venv!(
    "python3 -m venv /tmp/poetry; /tmp/poetry/bin/pip install --no-input --progress-bar off -q poetry; \
     speaks=$(/tmp/poetry/bin/python -c 'from urllib.request import Request as R, urlopen; print(urlopen(R(\"https://pypi.org/simple/pip/\", headers={\"Accept\": \"application/vnd.pypi.simple.v1+json\"}), timeout=20).headers.get_content_type())' 2>/dev/null || true); \
     case \"${PIP_INDEX_URL-} $speaks\" in ' application/vnd.pypi.simple.v1+json') ;; \
       *) /tmp/poetry/bin/pip install --no-input --progress-bar off -q poetry-plugin-pypi-mirror; export POETRY_PYPI_MIRROR_URL=${PIP_INDEX_URL:-https://pypi.org/simple/} ;; esac; \
     /tmp/poetry/bin/poetry install --no-root --no-interaction --no-ansi --only main; \
     [ $# -eq 0 ] || pip install --no-input --progress-bar off \"$@\"; rm -rf /tmp/poetry"
);
const UV: &str = with_venv!(
    "python3 -m venv /tmp/uv; /tmp/uv/bin/pip install --no-input --progress-bar off -q uv; \
     UV_CACHE_DIR=/cache/uv UV_PROJECT_ENVIRONMENT=/opt/venv UV_LINK_MODE=copy /tmp/uv/bin/uv sync --frozen --no-dev --no-install-project --no-progress; \
     [ $# -eq 0 ] || pip install --no-input --progress-bar off \"$@\"; rm -rf /tmp/uv"
);
const PIPENV: &str = with_venv!(
    "python3 -m venv /tmp/pipenv; /tmp/pipenv/bin/pip install --no-input --progress-bar off -q pipenv; \
     if [ -f Pipfile.lock ]; then PIPENV_VERBOSITY=-1 /tmp/pipenv/bin/pipenv sync; else PIPENV_VERBOSITY=-1 /tmp/pipenv/bin/pipenv install --skip-lock; fi; \
     [ $# -eq 0 ] || pip install --no-input --progress-bar off \"$@\"; rm -rf /tmp/pipenv"
);
/// Django's files for browsers.
const COLLECT_STATIC: &str = "cd /app; export PATH=/opt/venv/bin:$PATH; SECRET_KEY=${SECRET_KEY:-build} python manage.py collectstatic --noinput";

/// Files that a script or a server object is looked for in, the likely ones first.
const ENTRIES: [&str; 14] = [
    "app.py",
    "main.py",
    "wsgi.py",
    "asgi.py",
    "server.py",
    "application.py",
    "api.py",
    "run.py",
    "web.py",
    "index.py",
    "app/__init__.py",
    "app/main.py",
    "src/main.py",
    "src/app.py",
];

pub(super) fn score(tree: &Tree) -> u32 {
    if tree.has("manage.py") {
        return 35;
    }
    let listed = ["requirements.txt", "pyproject.toml", "Pipfile", "setup.py"].iter().any(|it| tree.has(it));
    let entry = ENTRIES.iter().any(|it| tree.has(it));
    match (listed, entry) {
        (true, _) => 30,
        (false, true) => 20,
        // one script alone is what runs
        (false, false) => u32::from(only_script(tree).is_some()) * 14,
    }
}

fn only_script(tree: &Tree) -> Option<&str> {
    let mut scripts = tree.files().filter(|it| it.ends_with(".py") && !it.contains('/'));
    let first = scripts.next()?;
    scripts.next().is_none().then_some(first)
}

/// How dependencies are declared.
struct Declared {
    manager: &'static str,
    script: &'static str,
    files: Vec<String>,
    /// Requirements that we hand over as arguments.
    arguments: Vec<String>,
    /// Everything that names a package, lower case, for recognising frameworks.
    text: String,
    python: Option<String>,
}

fn declared(tree: &Tree, hints: &mut Vec<String>) -> Result<Declared, Problem> {
    let present =
        |files: &[&str]| files.iter().filter(|it| tree.has(it)).map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let new = |manager, script, files: &[&str], text: &str| Declared {
        manager,
        script,
        files: present(files),
        arguments: Vec::new(),
        text: text.to_lowercase().replace('_', "-"),
        python: None,
    };
    if let Some(text) = tree.text("requirements.txt") {
        let mut found = new("pip", REQUIREMENTS, &["requirements.txt"], text);
        // `-r other.txt` and `-c constraints.txt` need their files
        let other = |it: &&str| it.ends_with(".txt") && (it.contains("require") || it.contains("constraint"));
        found.files = tree.files().filter(other).map(str::to_owned).collect();
        return Ok(found);
    }
    if let Some(text) = tree.text("pyproject.toml") {
        let file: toml::Table = text.parse().map_err(|it: toml::de::Error| {
            Problem::invalid(
                "pyproject_invalid",
                format!("pyproject.toml cannot be read: {}", it.message()),
                "correct pyproject.toml",
            )
        })?;
        let poetry = file.get("tool").and_then(|it| it.get("poetry"));
        if tree.has("poetry.lock") || poetry.is_some_and(|it| it.get("dependencies").is_some()) {
            return Ok(new("poetry", POETRY, &["pyproject.toml", "poetry.lock", "README.md"], text));
        }
        if tree.has("uv.lock") {
            return Ok(new("uv", UV, &["pyproject.toml", "uv.lock", "README.md"], text));
        }
        let project = file.get("project");
        let mut found = new("pip", PLAIN, &["pyproject.toml"], text);
        let listed = project.and_then(|it| it.get("dependencies")).and_then(|it| it.as_array());
        found.arguments = listed
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_str())
            .filter(|it| !it.starts_with('-'))
            .map(str::to_owned)
            .collect();
        found.python = project.and_then(|it| it.get("requires-python")).and_then(|it| it.as_str()).map(str::to_owned);
        return Ok(found);
    }
    if let Some(text) = tree.text("Pipfile") {
        return Ok(new("pipenv", PIPENV, &["Pipfile", "Pipfile.lock"], text));
    }
    if tree.has("setup.py") {
        hints.push("setup.py alone is not installed; list what is needed in requirements.txt".to_owned());
    }
    Ok(new("pip", PLAIN, &[], ""))
}

/// A server object in the code: `module:name`.
fn object(tree: &Tree, makes: &str) -> Option<String> {
    let texts = tree.texts(&["py"]);
    let place = |path: &str| ENTRIES.iter().position(|it| *it == path).unwrap_or(ENTRIES.len());
    let mut texts: Vec<_> = texts.into_iter().filter(|(path, _)| !path.contains("test")).collect();
    texts.sort_by_key(|(path, _)| place(path));
    for (path, text) in texts {
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let name = name.split(':').next().unwrap_or(name).trim_end();
            let top_level = !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
            let value = value.trim_start();
            let made =
                value.strip_prefix(makes).or_else(|| value.split_once('.').and_then(|it| it.1.strip_prefix(makes)));
            let factory = value.starts_with("create_app(") || value.starts_with("make_app(");
            if top_level && (made.is_some_and(|it| it.starts_with('(')) || factory) {
                return Some(format!("{}:{name}", module(path)));
            }
        }
        if text.contains("def create_app(") && text.contains(makes) {
            return Some(format!("{}:create_app()", module(path)));
        }
    }
    None
}

/// `src/app.py` → `src.app`, `app/__init__.py` → `app`.
fn module(path: &str) -> String {
    path.trim_end_matches(".py").trim_end_matches("/__init__").replace('/', ".")
}

struct Found {
    framework: Option<&'static str>,
    command: Option<Command>,
    /// Packages that the command needs.
    needs: Vec<&'static str>,
    collect_static: bool,
}

fn framework(tree: &Tree, text: &str) -> Option<Found> {
    let imports = |name: &str| {
        tree.texts(&["py"])
            .iter()
            .any(|(_, code)| code.contains(&format!("import {name}")) || code.contains(&format!("from {name} ")))
    };
    let names = |it: &str| text.contains(it) || (text.is_empty() && imports(it));
    if tree.has("manage.py") {
        let settings = |name: &str| {
            tree.files().find(|it| it.ends_with(&format!("/{name}")) && it.matches('/').count() <= 2).map(module)
        };
        let collect =
            tree.texts(&["py"]).iter().any(|(path, text)| path.contains("settings") && text.contains("STATIC_ROOT"));
        let wsgi = settings("wsgi.py");
        let command = match (&wsgi, settings("asgi.py")) {
            (Some(wsgi), _) => Some(gunicorn(&format!("{wsgi}:application"), "")),
            (None, Some(asgi)) => Some(uvicorn(&format!("{asgi}:application"))),
            (None, None) => Some(Command::Shell("python manage.py runserver 0.0.0.0:$PORT".to_owned())),
        };
        return Some(Found {
            framework: Some("django"),
            command,
            needs: vec![if wsgi.is_some() { "gunicorn" } else { "uvicorn" }],
            collect_static: collect,
        });
    }
    for (name, makes) in [("fastapi", "FastAPI"), ("starlette", "Starlette"), ("litestar", "Litestar")] {
        if names(name)
            && let Some(object) = object(tree, makes)
        {
            let object = object.trim_end_matches("()").to_owned();
            return Some(Found {
                framework: Some(name),
                command: Some(uvicorn(&object)),
                needs: vec!["uvicorn"],
                collect_static: false,
            });
        }
    }
    for (name, makes) in [("flask", "Flask"), ("bottle", "Bottle"), ("falcon", "App"), ("dash", "Dash")] {
        if names(name)
            && let Some(object) = object(tree, makes)
        {
            return Some(Found {
                framework: Some(name),
                command: Some(gunicorn(&object, "")),
                needs: vec!["gunicorn"],
                collect_static: false,
            });
        }
    }
    if names("streamlit") {
        let entry = ENTRIES.iter().find(|it| tree.has(it))?;
        let line = format!("streamlit run {entry} --server.port $PORT --server.address 0.0.0.0 --server.headless true");
        return Some(Found {
            framework: Some("streamlit"),
            command: Some(Command::Shell(line)),
            needs: vec![],
            collect_static: false,
        });
    }
    None
}

fn gunicorn(object: &str, more: &str) -> Command {
    // One process with threads fits the default memory; `WEB_CONCURRENCY` asks gunicorn for more of them.
    let quoted = if object.ends_with(')') { format!("'{object}'") } else { object.to_owned() };
    Command::Shell(format!("gunicorn --bind 0.0.0.0:$PORT --threads 8 --access-logfile - {more}{quoted}"))
}

fn uvicorn(object: &str) -> Command {
    Command::Shell(format!("uvicorn {object} --host 0.0.0.0 --port $PORT --proxy-headers --forwarded-allow-ips '*'"))
}

/// Whether a `requires-python` or a version file allows 3.11.
fn allows_3_11(range: &str) -> bool {
    range.split(',').map(str::trim).all(|it| {
        let minor = |it: &str| {
            it.trim()
                .trim_start_matches("python-")
                .strip_prefix("3.")
                .and_then(|it| it.split('.').next()?.parse::<u32>().ok())
        };
        match it.trim_start_matches(|it: char| !it.is_ascii_digit()) {
            version if it.starts_with(">=") => minor(version).is_none_or(|it| it <= 11),
            version if it.starts_with("<=") => minor(version).is_none_or(|it| it >= 11),
            version if it.starts_with('>') => minor(version).is_none_or(|it| it < 11),
            version if it.starts_with('<') => minor(version).is_none_or(|it| it > 11),
            _ => true,
        }
    })
}

pub(super) fn detect(tree: &Tree, asked: &Hints) -> Result<Detection, Problem> {
    let mut hints = Vec::new();
    let mut declared = declared(tree, &mut hints)?;
    if let Some(range) = declared.python.as_deref().filter(|it| !allows_3_11(it)) {
        let message = format!("pyproject.toml asks for Python `{range}`; this platform builds with Python 3.11");
        return Err(Problem::invalid(
            "python_version",
            message,
            "allow 3.11 in `requires-python`, or bring another Python in a Dockerfile",
        ));
    }
    for file in [".python-version", "runtime.txt"] {
        if let Some(version) = tree.text(file).map(str::trim).filter(|it| !it.contains("3.11") && !it.is_empty()) {
            hints.push(format!("`{file}` names {version}; Python 3.11 is used"));
        }
    }
    let found = framework(tree, &declared.text).unwrap_or_else(|| {
        let script = ENTRIES
            .iter()
            .copied()
            .find(|it| tree.has(it))
            .or_else(|| only_script(tree))
            .or(tree.has("__main__.py").then_some("__main__.py"));
        let command = script.map(|it| Command::Exec(vec!["python".to_owned(), it.to_owned()]));
        Found { framework: None, command, needs: Vec::new(), collect_static: false }
    });
    if found.command.is_none() && asked.command.is_none() {
        let message = format!(
            "it is not clear what to start: no Flask, FastAPI or Django application and no app.py or main.py; found {}",
            tree.root_names(12)
        );
        return Err(Problem::invalid(
            "start_missing",
            message,
            "add a Procfile with `web: …`, as `web: python serve.py`",
        ));
    }
    let mut needs = found.needs.clone();
    if let Some(name) = found.framework.filter(|_| declared.text.is_empty()) {
        hints.push(format!(
            "nothing lists what is needed; {name} is installed. Write a requirements.txt to choose versions"
        ));
        declared.arguments.push(name.to_owned());
    }
    if let Some(Command::Shell(line)) = &asked.command {
        needs = ["gunicorn", "uvicorn", "hypercorn", "waitress-serve"]
            .into_iter()
            .filter(|it| line.split_whitespace().any(|word| word == *it))
            .collect();
    }
    for need in needs {
        let package = if need == "waitress-serve" { "waitress" } else { need };
        if !declared.text.contains(package) {
            declared.arguments.push(package.to_owned());
        }
    }
    let ports = match &found.framework {
        Some(_) => http_port(super::DEFAULT_PORT),
        None => ports::guess(
            tree,
            &["py"],
            ["tornado", "aiohttp", "sanic", "cherrypy", "twisted"].iter().any(|it| declared.text.contains(it)),
        ),
    };
    let mut steps = vec![format!("{} install", declared.manager)];
    let build = found.collect_static.then(|| Step {
        title: "collect static files",
        script: COLLECT_STATIC,
        arguments: Vec::new(),
        inputs: Inputs::All,
        exports: vec!["/app"],
        caches: Vec::new(),
        env: Vec::new(),
    });
    steps.extend(build.as_ref().map(|_| "manage.py collectstatic".to_owned()));
    let path = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = [("PATH", path), ("VIRTUAL_ENV", "/opt/venv"), ("PYTHONUNBUFFERED", "1")];
    // Requirements such as `.` or `-e ./lib` need the source itself.
    let local = tree.text("requirements.txt").is_some_and(|it| {
        it.lines().map(str::trim).any(|it| it.starts_with('.') || it.starts_with("-e ") || it.starts_with("file:"))
    });
    Ok(Detection {
        language: "python".to_owned(),
        framework: found.framework.map(str::to_owned),
        version: Some("3.11".to_owned()),
        package_manager: Some(declared.manager.to_owned()),
        build_steps: steps,
        command: found.command,
        commands: BTreeMap::new(),
        ports,
        env: env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        hints,
        recipe: Recipe::Steps(Box::new(Steps {
            build_stack: Stack::Python,
            run_stack: Stack::Python,
            dependencies: Some(Step {
                title: "install dependencies",
                script: declared.script,
                arguments: declared.arguments,
                inputs: if local { Inputs::All } else { Inputs::Files(declared.files) },
                exports: vec!["/opt/venv"],
                caches: vec![Cache { name: "pip", path: "/cache/pip" }, Cache { name: "uv", path: "/cache/uv" }],
                env: Vec::new(),
            }),
            build,
            serve: Serve::Application,
        })),
    })
}
