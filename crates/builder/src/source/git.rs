//! Fetches a repository with `git` in a one-shot workload of the build network.
//!
//! The script is a constant; URL and reference are arguments. Only http, https, ssh and git transports are allowed,
//! hooks are off, submodules are not fetched, and nothing of the machine's git configuration is read.

use crate::detect::Stack;
use crate::runner::{Runner, StepRun};
use arco_model::artifact::Layer;
use arco_model::error::{ErrorKind, Problem};
use arco_model::plan::{LayerExport, OneShotNetwork};
use arco_model::source::git_url;
use std::collections::BTreeMap;

/// `$1`: URL, `$2`: branch, tag or commit, or empty. Prints `commit <hash>` last.
const SCRIPT: &str = "mkdir -p /source; cd /source; git init -q; \
    if [ -n \"$2\" ]; then \
      git fetch -q --depth 1 --no-tags --no-recurse-submodules -- \"$1\" \"$2\" \
      || { echo 'not found as a branch, tag or advertised commit; looking through the history'; \
           git fetch -q --no-recurse-submodules -- \"$1\" '+refs/*:refs/remotes/all/*'; \
           git rev-parse -q --verify \"$2^{commit}\" > .git/FETCH_HEAD; }; \
    else git fetch -q --depth 1 --no-tags --no-recurse-submodules -- \"$1\" HEAD; fi; \
    git checkout -q --detach \"$(cut -c1-40 .git/FETCH_HEAD | head -n 1)\" --; \
    commit=$(git rev-parse HEAD); rm -rf .git; echo \"commit $commit\"";

/// Fetches into a layer that holds `/source`; returns it with the commit.
pub(crate) async fn fetch(runner: &Runner<'_>, url: &str, reference: &str) -> Result<(Layer, Option<String>), Problem> {
    git_url(url)
        .map_err(|it| Problem::invalid("git_url_refused", it.to_string(), "use an https, http, ssh or git URL"))?;
    if reference.starts_with('-') {
        return Err(Problem::invalid(
            "ref_invalid",
            format!("`{reference}` is not a branch, tag or commit"),
            "give an existing one",
        ));
    }
    runner
        .say(format!(
            "fetching {}{}",
            without_credentials(url),
            if reference.is_empty() { String::new() } else { format!(" at {reference}") }
        ))
        .await;
    let image = runner.stack(&Stack::Fetch).await?;
    let env: BTreeMap<String, String> = [
        ("GIT_ALLOW_PROTOCOL", "http:https:ssh:git"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_LFS_SKIP_SMUDGE", "1"),
        ("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new"),
        ("GIT_CONFIG_COUNT", "2"),
        ("GIT_CONFIG_KEY_0", "core.hooksPath"),
        ("GIT_CONFIG_VALUE_0", "/dev/null"),
        ("GIT_CONFIG_KEY_1", "protocol.file.allow"),
        ("GIT_CONFIG_VALUE_1", "never"),
        ("HOME", "/tmp"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect();
    let argv = ["/bin/sh", "-euc", SCRIPT, "fetch", url, reference].map(str::to_owned).to_vec();
    let mut step = StepRun::new("fetch the source", image.reference, argv);
    step.env = env;
    step.network = OneShotNetwork::Build;
    step.export = Some(LayerExport { include: vec!["/source".to_owned()], exclude: vec!["/source/.git".to_owned()] });
    let done = runner.run(step).await.map_err(|fault| {
        let problem = fault.problem;
        let advice = "check that the URL and the reference exist and may be read; private addresses are reached only when `builder.allowed_networks` names them";
        if problem.code == "step_failed" {
            Problem::new(ErrorKind::Failed, "fetch_failed", problem.message, advice)
        } else {
            problem
        }
    })?;
    let commit = done.last_lines.iter().rev().find_map(|it| it.strip_prefix("commit ")).map(str::to_owned);
    let layer = done.layer.ok_or_else(|| Problem::internal("keep the fetched source"))?;
    Ok((layer, commit))
}

/// A URL without user and password, for logs.
pub(crate) fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
            let host = host.rsplit('@').next().unwrap_or(host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        None => url.rsplit_once('@').map_or(url, |it| it.1).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_show_no_credentials() {
        for (url, shown) in [
            ("https://user:secret@example.com/a/b.git", "https://example.com/a/b.git"),
            ("https://example.com/a@b", "https://example.com/a@b"),
            ("git@example.com:a/b", "example.com:a/b"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
