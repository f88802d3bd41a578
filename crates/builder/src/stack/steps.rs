//! Stacks made by steps of a build, on a base that is there: for servers that are not root of their machine, as in a pod.
//!
//! A step installs packages or compiles; what it wrote becomes the layer. What is only downloaded and packed needs no step
//! and is made by this process. Scripts are constants of ours.

use super::{Say, StackImage, after_packages, failed, golang, node, packages, web};
use crate::detect::Stack;
use crate::layer::{self, FinishedLayer};
use crate::runner::{Runner, StepFault, StepRun};
use arco_config::BuilderConfig;
use arco_model::artifact::Layer;
use arco_model::error::Problem;
use arco_model::plan::{LayerExport, OneShotNetwork};
use std::path::Path;

/// `$1` what to do afterwards, `$2…` packages; nothing of them is started.
const INSTALL: &str = "then=$1; shift; printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; \
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin; \
apt-get -q update; apt-get -q -y --no-install-recommends install \"$@\"; /bin/sh -euc \"$then\"; \
rm -f /usr/sbin/policy-rc.d /usr/lib/python3*/EXTERNALLY-MANAGED";

/// What an installation leaves behind that no image needs; the base says the rest to dpkg.
const LEFT: [&str; 12] = [
    "/run",
    "/tmp",
    "/root",
    "/usr/share/info",
    "/usr/share/linda",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
    "/var/cache/apt",
    "/var/cache/ldconfig",
    "/var/lib/apt/lists",
    "/var/log",
];

/// The layers that make `stack` of the one below it; they are in the store.
pub(super) async fn make(
    stack: &Stack,
    below: &StackImage,
    config: &BuilderConfig,
    runner: &Runner<'_>,
    work: &Path,
    say: Say<'_>,
) -> Result<Vec<Layer>, Problem> {
    let failed = |it: std::io::Error| failed("make", stack, it);
    Ok(match stack {
        Stack::Base => Vec::new(),
        Stack::Node(major) => {
            vec![keep(stack, node::layer(*major, config, work, say).await.map_err(failed)?, runner).await?]
        }
        Stack::Go(minor) => {
            let access = runner.inner.access().await?;
            let made =
                golang::layer(*minor, golang::Library::Source, config, access, work, say).await.map_err(failed)?;
            let sources = keep(stack, made, runner).await?;
            let mut run = step("compile the standard library", below, golang::COMPILE, &[]);
            run.extra_layers = vec![sources.clone()];
            run.working_dir = "/usr/local/go".to_owned();
            run.env = golang::SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            for (name, value) in [("GOCACHE", golang::CACHE), ("GOPATH", "/tmp/go"), ("HOME", "/tmp")] {
                run.env.insert(name.to_owned(), value.to_owned());
            }
            run.export = Some(LayerExport { include: vec![golang::CACHE.to_owned()], exclude: Vec::new() });
            vec![sources, layer_of(stack, run, runner).await?]
        }
        Stack::Fetch | Stack::Web | Stack::Python | Stack::Compilers(_) => {
            say(format!("installing {}", packages(stack).join(", ")));
            let words = [&[after_packages(stack)], packages(stack)].concat();
            let mut run = step("install packages", below, INSTALL, &words);
            run.network = OneShotNetwork::Build;
            run.export = Some(LayerExport { include: Vec::new(), exclude: LEFT.map(str::to_owned).to_vec() });
            let mut layers = vec![layer_of(stack, run, runner).await?];
            if *stack == Stack::Web {
                layers.push(keep(stack, web::layer(work).map_err(failed)?, runner).await?);
            }
            layers
        }
    })
}

fn step(title: &'static str, below: &StackImage, script: &str, arguments: &[&str]) -> StepRun {
    let words = ["/bin/sh", "-euc", script, "make-stack"].into_iter().chain(arguments.iter().copied());
    StepRun::new(title, below.reference.clone(), words.map(str::to_owned).collect())
}

/// Puts a layer of this process into the platform's store.
async fn keep(stack: &Stack, made: FinishedLayer, runner: &Runner<'_>) -> Result<Layer, Problem> {
    layer::store(&runner.inner.images, made).await.map_err(|it| failed("keep", stack, it))
}

async fn layer_of(stack: &Stack, run: StepRun, runner: &Runner<'_>) -> Result<Layer, Problem> {
    let done = runner.run(run).await.map_err(|StepFault { problem, .. }| match problem.code.as_str() {
        "step_failed" => failed("make", stack, &problem.message),
        _ => problem,
    })?;
    done.layer.ok_or_else(|| failed("make", stack, "its step wrote nothing"))
}
