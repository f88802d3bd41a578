//! Tables of detection: a source, and what comes out.

use super::*;

/// Paths and texts.
type Files<'a> = &'a [(&'a str, &'a str)];
/// Files, language, framework, command, first port.
type Row<'a> = (Files<'a>, &'a str, Option<&'a str>, &'a str, Option<u16>);

fn found(files: &[(&str, &str)]) -> Detection {
    detect(&Tree::of(files), &Wishes::default()).unwrap_or_else(|it| panic!("{files:?}: {it:?}"))
}

/// Command as one line, and the first port.
fn runs(found: &Detection) -> (String, Option<u16>) {
    let line = match found.command.as_ref() {
        Some(Command::Shell(line)) => line.clone(),
        Some(Command::Exec(argv)) => argv.join(" "),
        None => String::new(),
    };
    (line, found.ports.first().map(|it| it.port))
}

#[test]
fn languages_frameworks_commands_and_ports() {
    const EXPRESS: &str = r#"{"scripts":{"start":"node server.js"},"dependencies":{"express":"^4"}}"#;
    const VITE: &str = r#"{"scripts":{"dev":"vite","build":"vite build"},"devDependencies":{"vite":"^6"}}"#;
    const NEXT: &str = r#"{"scripts":{"build":"next build","start":"next start"},"dependencies":{"next":"15"}}"#;
    const FLASK: &str = "from flask import Flask\napp = Flask(__name__)\n";
    const MAIN: &str = "package main\n\nfunc main() { http.ListenAndServe(\":9000\", nil) }\n";
    let table: &[Row<'_>] = &[
        (&[("package.json", EXPRESS)], "node", Some("express"), "node server.js", Some(8080)),
        (&[("package.json", "{}"), ("server.js", "x.listen(3000)")], "node", None, "node server.js", Some(3000)),
        (
            &[("package.json", r#"{"main":"lib/run"}"#), ("lib/run.js", "setInterval(x)")],
            "node",
            None,
            "node lib/run.js",
            None,
        ),
        (
            &[("package.json", VITE), ("index.html", "")],
            "node",
            Some("vite"),
            "/usr/local/bin/arco-web spa",
            Some(8080),
        ),
        (&[("package.json", NEXT)], "node", Some("next"), "next start", Some(8080)),
        (
            &[("package.json", EXPRESS), ("Procfile", "web: node other.js\njob: node job.js")],
            "node",
            Some("express"),
            "node other.js",
            Some(8080),
        ),
        (
            &[("requirements.txt", "Flask==3\n"), ("app.py", FLASK)],
            "python",
            Some("flask"),
            "gunicorn --bind 0.0.0.0:$PORT --threads 8 --access-logfile - app:app",
            Some(8080),
        ),
        (
            &[("app.py", FLASK)],
            "python",
            Some("flask"),
            "gunicorn --bind 0.0.0.0:$PORT --threads 8 --access-logfile - app:app",
            Some(8080),
        ),
        (
            &[
                ("pyproject.toml", "[project]\nname='x'\ndependencies=['fastapi>=0.1']\n"),
                ("src/main.py", "from fastapi import FastAPI\napi: FastAPI = FastAPI()\n"),
            ],
            "python",
            Some("fastapi"),
            "uvicorn src.main:api --host 0.0.0.0 --port $PORT --proxy-headers --forwarded-allow-ips '*'",
            Some(8080),
        ),
        (
            &[
                ("requirements.txt", "Django"),
                ("manage.py", ""),
                ("site/wsgi.py", ""),
                ("site/settings.py", "STATIC_ROOT = 1"),
                ("package.json", r#"{"devDependencies":{"x":"1"}}"#),
            ],
            "python",
            Some("django"),
            "gunicorn --bind 0.0.0.0:$PORT --threads 8 --access-logfile - site.wsgi:application",
            Some(8080),
        ),
        (&[("main.py", "print(1)")], "python", None, "python main.py", None),
        (&[("job.py", "HTTPServer(('', 8000), H).serve_forever()")], "python", None, "python job.py", Some(8000)),
        (&[("requirements.txt", ""), ("Procfile", "worker: python w.py")], "python", None, "python w.py", None),
        (
            &[("go.mod", "module example.com/shop/v2\n\ngo 1.22\n"), ("main.go", MAIN)],
            "go",
            None,
            "/app/bin/shop",
            Some(9000),
        ),
        (
            &[("go.mod", "module x\n"), ("cmd/server/main.go", MAIN), ("cmd/tool/main.go", MAIN)],
            "go",
            None,
            "/app/bin/server",
            Some(9000),
        ),
        (&[("index.html", "")], "static", None, "/usr/local/bin/arco-web site", Some(8080)),
        (&[("public/index.html", ""), ("README.md", "")], "static", None, "/usr/local/bin/arco-web site", Some(8080)),
        (&[("Dockerfile", "FROM x"), ("package.json", EXPRESS)], "dockerfile", None, "", None),
        (
            &[
                ("package.json", EXPRESS),
                ("arco.yaml", "components:\n  web:\n    command: node x.js\n    ports: [{port: 7000}]\n"),
            ],
            "node",
            Some("express"),
            "node x.js",
            Some(7000),
        ),
        (
            &[
                ("package.json", EXPRESS),
                (
                    "rainbondfile",
                    "language: Node.js\nports:\n  - port: 5000\n    protocol: http\nenvs:\n  A: 1\ncmd: node y.js\n",
                ),
            ],
            "node",
            Some("express"),
            "node y.js",
            Some(5000),
        ),
    ];
    for (files, language, framework, command, port) in table {
        let it = found(files);
        assert_eq!((it.language.as_str(), it.framework.as_deref()), (*language, *framework), "{files:?}");
        assert_eq!(runs(&it), ((*command).to_owned(), *port), "{files:?}");
    }
}

#[test]
fn package_managers_follow_lock_files_and_package_json() {
    let package = r#"{"scripts":{"start":"x"},"dependencies":{"a":"1"},"engines":{"node":"20.x"}}"#;
    let named = r#"{"packageManager":"pnpm@9.1.0","scripts":{"start":"x"},"dependencies":{"a":"1"}}"#;
    for (files, manager, version) in [
        (vec![("package.json", package)], "npm", "20"),
        (vec![("package.json", package), ("yarn.lock", "")], "yarn", "20"),
        (vec![("package.json", package), ("pnpm-lock.yaml", "")], "pnpm", "20"),
        (vec![("package.json", named), ("package-lock.json", "")], "pnpm", "22"),
    ] {
        let it = found(&files);
        assert_eq!((it.package_manager.as_deref(), it.version.as_deref()), (Some(manager), Some(version)), "{files:?}");
    }
    for (files, manager) in [
        (vec![("Pipfile", "[packages]\nflask = '*'"), ("app.py", "x")], "pipenv"),
        (vec![("pyproject.toml", "[tool.poetry.dependencies]\npython='^3.11'\n"), ("app.py", "x")], "poetry"),
        (vec![("pyproject.toml", "[project]\nname='x'\n"), ("uv.lock", ""), ("app.py", "x")], "uv"),
    ] {
        assert_eq!(found(&files).package_manager.as_deref(), Some(manager), "{files:?}");
    }
}

#[test]
fn dependencies_depend_on_lock_files_only_where_that_is_safe() {
    let inputs = |package: &str| {
        let it = found(&[("package.json", package), ("package-lock.json", ""), ("server.js", "")]);
        let Recipe::Steps(steps) = it.recipe else { panic!("steps") };
        steps.dependencies.map(|it| it.inputs)
    };
    assert_eq!(
        inputs(r#"{"dependencies":{"a":"1"}}"#),
        Some(Inputs::Files(vec!["package.json".into(), "package-lock.json".into()]))
    );
    assert_eq!(inputs(r#"{"dependencies":{"a":"file:./a"}}"#), Some(Inputs::All));
    assert_eq!(inputs(r#"{"dependencies":{"a":"1"},"scripts":{"postinstall":"x"}}"#), Some(Inputs::All));
    assert_eq!(inputs("{}"), None);
}

#[test]
fn what_cannot_be_built_says_why_and_what_to_do() {
    let table: &[(Files<'_>, &str, &str)] = &[
        (&[], "source_empty", "empty"),
        (&[("README.md", "")], "nothing_recognised", "found README.md"),
        (&[("pom.xml", "")], "language_unsupported", "Java"),
        (&[("shop/package.json", "{}")], "nothing_recognised", "nothing recognised"),
        (&[("a/package.json", "{}"), ("b/go.mod", "")], "several_candidates", "`a`, `b`"),
        (&[("package.json", "{")], "package_json_invalid", "package.json"),
        (&[("package.json", r#"{"dependencies":{"a":"1"}}"#)], "start_missing", "start"),
        (&[("package.json", r#"{"scripts":{"start":"x"},"engines":{"node":"4"}}"#)], "node_version", "`4`"),
        (&[("go.mod", "module x"), ("lib.go", "package lib")], "go_main_missing", "library"),
        (
            &[
                ("go.mod", "module x"),
                ("a/m.go", "package main\nfunc main() {}"),
                ("b/m.go", "package main\nfunc main() {}"),
            ],
            "several_candidates",
            "a, b",
        ),
        (&[("requirements.txt", "numpy"), ("tool.txt", "")], "start_missing", "app.py"),
        (
            &[("pyproject.toml", "[project]\nname='x'\nrequires-python='>=3.12'\n"), ("app.py", "")],
            "python_version",
            "3.12",
        ),
        (&[("Procfile", "web node"), ("app.py", "")], "file_invalid", "line 1"),
        (&[("arco.yaml", "components: 3"), ("app.py", "")], "file_invalid", "arco.yaml"),
    ];
    for (files, code, part) in table {
        let problem = detect(&Tree::of(files), &Wishes::default()).map(|it| panic!("{files:?}: {it:?}")).unwrap_err();
        assert!(
            problem.code == *code && problem.message.contains(part) && !problem.advice.is_empty(),
            "{files:?}: {problem:?}"
        );
    }
}

#[test]
fn nothing_to_install_makes_an_environment_without_pip() {
    let dependencies = |files: &[(&str, &str)]| match found(files).recipe {
        Recipe::Steps(steps) => steps.dependencies.unwrap(),
        Recipe::Dockerfile { .. } => panic!("no Dockerfile: {files:?}"),
    };
    let step = dependencies(&[("main.py", "print(1)")]);
    assert!(step.arguments.is_empty() && step.script.contains("--without-pip"), "{}", step.script);
    let step = dependencies(&[("app.py", "from flask import Flask\napp = Flask(__name__)\n")]);
    assert_eq!(step.arguments, ["flask", "gunicorn"]);
}

#[test]
fn a_node_version_that_nobody_asked_for_says_how_to_choose() {
    let hints = found(&[("package.json", "{}"), ("server.js", "x.listen(3000)")]).hints;
    assert!(hints.iter().any(|it| it.contains("to choose another, set `engines.node`")), "{hints:?}");
}

#[test]
fn a_folder_with_a_dockerfile_shows_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Dockerfile");
    std::fs::write(&path, "FROM debian:12\nEXPOSE 9000\nCMD [\"server\", \"-v\"]\n").unwrap();
    assert_eq!(runs(&detect_folder(folder.path(), "").unwrap()), ("server -v".to_owned(), Some(9000)));
    std::fs::write(&path, "FROM shop/web:1\n").unwrap();
    let found = detect_folder(folder.path(), "").unwrap();
    assert!(found.command.is_none() && found.hints[0].contains("`shop/web:1`"), "{found:?}");
    std::fs::write(&path, "FORM debian:12\n").unwrap();
    assert_eq!(detect_folder(folder.path(), "").unwrap_err().code, "dockerfile_invalid");
}

#[test]
fn folders_are_read_without_following_links() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.py"), "print(1)").unwrap();
    std::fs::write(folder.path().join(".gitignore"), "ignored/\n").unwrap();
    std::fs::create_dir(folder.path().join("ignored")).unwrap();
    std::fs::write(folder.path().join("ignored/Dockerfile"), "FROM x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("Procfile")).unwrap();
    assert_eq!(detect_folder(folder.path(), "").unwrap().language, "python");
    assert_eq!(detect_folder(folder.path(), "no").unwrap_err().code, "dir_missing");
}
