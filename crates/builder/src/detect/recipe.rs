//! How something is built: plain steps that every language describes in the same words.
//!
//! Scripts are constants of ours; whatever comes from a source is an argument (`"$1"`), never a part of a script.

/// A stack: base or toolchain image, kept per machine.
#[derive(Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Stack {
    /// Minimal Debian.
    #[default]
    Base,
    /// Base with `git` and `ssh`, to fetch sources.
    Fetch,
    /// Base with nginx, to serve files.
    Web,
    /// Base with Node.js of a major version, npm, yarn and pnpm.
    Node(u32),
    /// Base with Debian's Python.
    Python,
    /// Base with Go 1.N.
    Go(u32),
    /// Another stack with compilers and headers, for packages that are compiled when they are installed.
    Compilers(Box<Stack>),
}

impl Stack {
    /// Its name below `stack/`.
    pub fn name(&self) -> String {
        match self {
            Self::Base => "base".to_owned(),
            Self::Fetch => "fetch".to_owned(),
            Self::Web => "web".to_owned(),
            Self::Node(major) => format!("node-{major}"),
            Self::Python => "python-3.11".to_owned(),
            Self::Go(minor) => format!("go-1.{minor}"),
            Self::Compilers(inner) => format!("{}-compilers", inner.name()),
        }
    }

    /// The stack of this name (`node-22`).
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some(inner) = name.strip_suffix("-compilers") {
            return Self::from_name(inner).map(|it| Self::Compilers(Box::new(it)));
        }
        Some(match name {
            "base" => Self::Base,
            "fetch" => Self::Fetch,
            "web" => Self::Web,
            "python-3.11" => Self::Python,
            _ => match (name.strip_prefix("node-"), name.strip_prefix("go-1.")) {
                (Some(major), _) => Self::Node(major.parse().ok()?),
                (_, Some(minor)) => Self::Go(minor.parse().ok()?),
                _ => return None,
            },
        })
    }
}

/// What a step sees of the source below `/app`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Inputs {
    /// Everything.
    All,
    /// Only these files, so that a change of others needs no new run.
    Files(Vec<String>),
}

/// A folder that outlives builds of one component.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cache {
    /// Its name.
    pub name: &'static str,
    /// Where the step sees it.
    pub path: &'static str,
}

/// One run in a container of the build stack.
#[derive(Clone, Debug)]
pub struct Step {
    /// For people: `install dependencies`.
    pub title: &'static str,
    /// For `/bin/sh -eu`; `"$@"` are the arguments.
    pub script: &'static str,
    /// Arguments, from the source or from us.
    pub arguments: Vec<String>,
    /// What it sees.
    pub inputs: Inputs,
    /// Folders that become a layer.
    pub exports: Vec<&'static str>,
    /// Kept folders.
    pub caches: Vec<Cache>,
    /// Variables.
    pub env: Vec<(&'static str, String)>,
}

/// What of it all runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Serve {
    /// The source with what the steps made.
    Application,
    /// Files of this folder of the source, by the web server.
    Folder {
        /// Relative folder; empty means all of the source.
        folder: String,
    },
    /// What the build step wrote to `/srv/site`, by the web server.
    Site,
}

/// Steps of a language.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Where the steps run.
    pub build_stack: Stack,
    /// What the instances run on.
    pub run_stack: Stack,
    /// Makes what depends on lock files only.
    pub dependencies: Option<Step>,
    /// Makes what depends on the source.
    pub build: Option<Step>,
    /// What runs.
    pub serve: Serve,
}

/// How something is built.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// By steps.
    Steps(Box<Steps>),
    /// By a Dockerfile at this path.
    Dockerfile {
        /// Relative path.
        path: String,
    },
}
