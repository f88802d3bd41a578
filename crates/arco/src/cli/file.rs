//! `arco file`: configuration files that instances find at paths of their own.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::text;
use super::wait::{self, Show};
use arco_api::wire::SpecPatch;
use arco_model::spec::files::{CONTENT_MAX_BYTES, FileMode, FileSpec};
use clap::Subcommand;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What to do with configuration files.
#[derive(Debug, Subcommand)]
pub(crate) enum FileCommand {
    /// Put a file into the instances, and roll it out
    #[command(
        after_help = "Examples:\n  arco file set demo/web /etc/app/app.conf --from app.conf\n  sed s/LEVEL/info/ app.conf | arco file set demo/web /etc/app/app.conf --from -\n  arco file set demo/web /etc/app/key.pem --secret KEY --mode 0400\n\nInstances cannot write it. A file that is there keeps its mode when none is given."
    )]
    Set {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Absolute path inside the instances
        path: String,
        /// File with the content, at most 1 MiB of text; `-` is standard input
        #[arg(long, value_name = "FILE|-", required_unless_present = "secret", conflicts_with = "secret")]
        from: Option<PathBuf>,
        /// Secret whose value is the content (`arco secret set`)
        #[arg(long, value_name = "NAME")]
        secret: Option<String>,
        /// Who may read and execute it; the user of the instance owns it [default: 0444]
        #[arg(long, value_name = "OCTAL")]
        mode: Option<FileMode>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take files out and roll that out
    #[command(after_help = "Example:\n  arco file unset demo/web /etc/app/app.conf")]
    Unset {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Paths
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List files; with `-o json` also what is in them, but values of secrets
    #[command(after_help = "Example:\n  arco file list demo/web")]
    List {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
}

/// Runs.
pub(crate) async fn run(command: &FileCommand, session: &Session<'_>) -> Result<(), Failure> {
    let (reference, files, wait) = match command {
        FileCommand::List { reference } => return list(reference, session).await,
        FileCommand::Set { reference, path, from, secret, mode, wait } => {
            let content = from.as_deref().map(|it| content(path, it)).transpose()?;
            let file = FileSpec { path: path.clone(), content, secret: secret.clone(), mode: *mode };
            (reference, BTreeMap::from([(path.clone(), Some(file))]), wait)
        }
        FileCommand::Unset { reference, paths, wait } => {
            (reference, paths.iter().map(|it| (it.clone(), None)).collect(), wait)
        }
    };
    let named = session.component(reference).await?;
    if let FileCommand::Unset { paths, .. } = command {
        let there = session.client.component(&session.tenant, named.pair()).await?.spec.files;
        if let Some(missing) = paths.iter().find(|path| !there.iter().any(|it| it.path == **path)) {
            let message = format!("{named} has no file `{}`; nothing was changed", text::clean(missing));
            return Err(Failure::new(exit::NOT_FOUND, "not_found", message, format!("see `arco file list {named}`")));
        }
    }
    let patch = SpecPatch { files, ..SpecPatch::default() };
    let started = session.client.patch(&session.tenant, named.pair(), &patch).await?;
    let ended = wait::operation(started, wait, Show::Progress, session).await?;
    operations::done(&ended, "changed", session);
    Ok(())
}

/// Files of `PATH=@FILE`, as flags of `deploy` name them.
pub(crate) fn read(texts: &[String]) -> Result<BTreeMap<String, Option<FileSpec>>, Failure> {
    let mut files = BTreeMap::new();
    for text in texts {
        let Some((path, from)) = text.split_once("=@").filter(|it| !it.0.is_empty()) else {
            let message = format!("`{}` names no file", text::clean(text));
            return Err(Failure::usage("file_unreadable", message, "give `/PATH=@FILE`, as `/etc/app.conf=@app.conf`"));
        };
        let content = Some(content(path, Path::new(from))?);
        let file = FileSpec { path: path.to_owned(), content, secret: None, mode: None };
        files.insert(path.to_owned(), Some(file));
    }
    Ok(files)
}

/// What the file at `path` is to hold.
fn content(path: &str, from: &Path) -> Result<String, Failure> {
    let wrong = |why: String, advice: &str| {
        let message = format!("`{}` for the file `{}` {why}", from.display(), text::clean(path));
        Failure::usage("file_unreadable", message, advice)
    };
    let mut bytes = Vec::new();
    let most = CONTENT_MAX_BYTES as u64 + 1;
    let read = if from == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(from).and_then(|it| it.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|it| wrong(format!("cannot be read: {it}"), "check its path"))?;
    if bytes.len() > CONTENT_MAX_BYTES {
        return Err(wrong("is larger than 1 MiB".to_owned(), "bring it with the image or a volume"));
    }
    String::from_utf8(bytes)
        .map_err(|_| wrong("is not text (UTF-8)".to_owned(), "bring binary files with the image or a volume"))
}

async fn list(reference: &Reference, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let files = session.client.component(&session.tenant, named.pair()).await?.spec.files;
    session.ui.list(&files, |ui| ui.table(&["PATH", "MODE", "CONTENT"], files.iter().map(row)));
    Ok(())
}

fn row(file: &FileSpec) -> Vec<String> {
    let content = match (&file.secret, &file.content) {
        (Some(secret), _) => format!("secret {secret}"),
        (None, content) => format!("{} bytes", content.as_ref().map_or(0, String::len)),
    };
    vec![file.path.clone(), file.mode.unwrap_or_default().to_string(), content]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_texts_of_bounded_length() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a=b");
        let flag = format!("/etc/a=@{}", file.display());
        let ask = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            read(std::slice::from_ref(&flag)).map_err(|it| it.body.message)
        };
        let read_back = ask(b"a=1\n\n").unwrap()["/etc/a"].clone().unwrap();
        assert_eq!((read_back.path.as_str(), read_back.content.as_deref()), ("/etc/a", Some("a=1\n\n")), "to the byte");
        assert!(ask(&[0xff]).unwrap_err().contains("not text"));
        assert!(ask(&vec![b'x'; CONTENT_MAX_BYTES]).is_ok());
        assert!(ask(&vec![b'x'; CONTENT_MAX_BYTES + 1]).unwrap_err().contains("1 MiB"));
        for wrong in ["/etc/a", "=@x", "/etc/a=x", "/etc/a=@/no/such/file"] {
            assert_eq!(read(&[wrong.to_owned()]).unwrap_err().body.code, "file_unreadable", "{wrong}");
        }
    }
}
