//! Repositories of this machine, read with the `git` binary. Names go as arguments, never through a shell.

use crate::cli::failure::Failure;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A commit, checked out into a folder that goes away with this value.
pub(crate) struct Checkout {
    folder: tempfile::TempDir,
    commit: String,
}

impl Checkout {
    /// Where the files are.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// The commit.
    pub(crate) fn commit(&self) -> &str {
        &self.commit
    }
}

fn git(repository: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
    // Variables of a surrounding hook would point into another repository.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"] {
        command.env_remove(name);
    }
    command
}

/// The commit that a folder stands at, when it is part of a repository.
pub(crate) fn head(folder: &Path) -> Option<String> {
    let output = git(folder).args(["rev-parse", "--verify", "--quiet", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Checks out `reference` (empty: `HEAD`) of a repository, which itself stays as it is.
pub(crate) fn check_out(repository: &Path, reference: &str) -> Result<Checkout, Failure> {
    let reference = if reference.is_empty() { "HEAD" } else { reference };
    if reference.starts_with('-') {
        let message = format!("`{reference}` is not a branch, tag or commit");
        return Err(Failure::usage("ref_invalid", message, "give an existing one, as `--ref main`"));
    }
    let advice = format!("see `git -C {} branch -a` and `git tag` for what there is", repository.display());
    let commit = run(
        git(repository).args(["rev-parse", "--verify", "--end-of-options"]).arg(format!("{reference}^{{commit}}")),
        "ref_not_found",
        &format!("find `{reference}` in `{}`", repository.display()),
        &advice,
    )?;
    let commit = commit.trim().to_owned();
    let folder = tempfile::Builder::new().prefix("arco-source-").tempdir().map_err(|it| {
        Failure::local(format!("failed to make a folder for the checkout: {it}"), "check the disk and TMPDIR")
    })?;
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree)
        .map_err(|it| Failure::local(format!("failed to make a folder: {it}"), "check the disk and TMPDIR"))?;
    let step = format!("check out {commit} of `{}`", repository.display());
    let advice = "see whether `git checkout` works there";
    let index = folder.path().join("index");
    let with = |command: &mut Command, words: &[&OsStr]| {
        command.env("GIT_INDEX_FILE", &index).env("GIT_WORK_TREE", &tree).args(words);
    };
    for words in [["read-tree", commit.as_str()], ["checkout-index", "--all"]] {
        let mut command = git(repository);
        // The work tree is elsewhere, so the repository's own folder must be named as such.
        command.env("GIT_DIR", git_dir(repository)?);
        with(&mut command, &words.map(OsStr::new));
        command.current_dir(&tree);
        run(&mut command, "checkout_failed", &step, advice)?;
    }
    Ok(Checkout { folder, commit })
}

fn git_dir(repository: &Path) -> Result<PathBuf, Failure> {
    let step = format!("open the repository `{}`", repository.display());
    let advice = "give the folder of a Git repository, or deploy the folder itself without `file:`";
    let text = run(git(repository).args(["rev-parse", "--absolute-git-dir"]), "repository_invalid", &step, advice)?;
    Ok(PathBuf::from(text.trim_end_matches('\n')))
}

fn run(command: &mut Command, code: &str, step: &str, advice: &str) -> Result<String, Failure> {
    let output = command.output().map_err(|it| Failure::local(format!("failed to run git: {it}"), "install git"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said
        .lines()
        .find(|it| !it.trim().is_empty())
        .unwrap_or("git said nothing")
        .trim_start_matches("fatal: ")
        .to_owned();
    Err(Failure::usage(code, format!("failed to {step}: {said}"), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(repository: &Path, words: &[&str]) {
        let status = git(repository)
            .args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"])
            .args(words)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "git {words:?}");
    }

    #[test]
    fn a_commit_is_checked_out_and_the_repository_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path();
        command(repository, &["init", "-q", "-b", "main"]);
        std::fs::write(repository.join("a"), "one").unwrap();
        std::fs::write(repository.join(".gitignore"), "b\n").unwrap();
        command(repository, &["add", "-A"]);
        command(repository, &["commit", "-q", "-m", "first"]);
        command(repository, &["tag", "v1"]);
        std::fs::write(repository.join("a"), "two").unwrap();
        command(repository, &["commit", "-q", "-a", "-m", "second"]);
        std::fs::write(repository.join("a"), "three, not committed").unwrap();

        let old = check_out(repository, "v1").unwrap();
        assert_eq!(std::fs::read_to_string(old.path().join("a")).unwrap(), "one");
        let new = check_out(repository, "").unwrap();
        assert_eq!(std::fs::read_to_string(new.path().join("a")).unwrap(), "two");
        assert_eq!(Some(new.commit()), head(repository).as_deref());
        assert_ne!(old.commit(), new.commit());
        assert!(!new.path().join(".git").exists());
        assert_eq!(std::fs::read_to_string(repository.join("a")).unwrap(), "three, not committed");
        assert_eq!(check_out(repository, "nope").err().unwrap().body.code, "ref_not_found");
        assert_eq!(check_out(repository, "--output=x").err().unwrap().body.code, "ref_invalid");

        let bare = tempfile::tempdir().unwrap();
        command(repository, &["clone", "-q", "--bare", ".", bare.path().to_str().unwrap()]);
        let bare = check_out(bare.path(), "main").unwrap();
        assert_eq!(std::fs::read_to_string(bare.path().join("a")).unwrap(), "two");
    }
}
