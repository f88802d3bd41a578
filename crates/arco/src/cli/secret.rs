//! `arco secret`: variables whose values come from files, standard input or a prompt, and are never shown again.

use super::args::WaitArgs;
use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use super::text;
use super::ui::Ui;
use super::wait::{self, Show};
use arco_api::wire::{SecretText, SpecPatch};
use clap::Subcommand;
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _};

/// Most bytes of a value.
const MAX_BYTES: u64 = 131_072;

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set secrets and roll them out
    #[command(
        after_help = "Examples:\n  arco secret set demo/web TOKEN=@token.txt KEY=@key.pem\n  arco secret set demo/web PASSWORD          asks for it\n\nThe line end of a value of one line is dropped."
    )]
    Set {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// NAME=@FILE, NAME=- (standard input), or NAME (asks)
        #[arg(required = true, value_name = "K=@FILE|K=-|K")]
        secrets: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove secrets and roll that out
    #[command(after_help = "Example:\n  arco secret unset demo/web TOKEN")]
    Unset {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Names
        #[arg(required = true, value_name = "K")]
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List names and versions
    #[command(after_help = "Example:\n  arco secret list demo/web")]
    List {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
}

/// Runs.
pub(crate) async fn run(command: &SecretCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        SecretCommand::Set { reference, secrets, wait } => {
            let patch = SpecPatch { secrets: read(secrets, session.ui)?, ..SpecPatch::default() };
            change(reference, &patch, wait, session).await
        }
        SecretCommand::Unset { reference, names, wait } => {
            let secrets = names.iter().map(|it| (it.clone(), None)).collect();
            change(reference, &SpecPatch { secrets, ..SpecPatch::default() }, wait, session).await
        }
        SecretCommand::List { reference } => {
            let named = session.component(reference).await?;
            let secrets = session.client.secrets(&session.tenant, named.pair()).await?;
            session.ui.list(&secrets, |ui| {
                let rows = secrets
                    .iter()
                    .map(|it| vec![it.name.clone(), it.version.to_string(), text::age(Some(&it.created_at))]);
                ui.table(&["NAME", "VERSION", "AGE"], rows);
            });
            Ok(())
        }
    }
}

async fn change(
    reference: &Reference,
    patch: &SpecPatch,
    wait: &WaitArgs,
    session: &Session<'_>,
) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let started = session.client.patch(&session.tenant, named.pair(), patch).await?;
    let ended = wait::operation(started, wait, Show::Progress, session).await?;
    super::operations::done(&ended, "changed", session);
    Ok(())
}

/// Values of `K=@FILE`, `K=-`, `K` (a prompt) and `K=V` (with a warning).
pub(crate) fn read(texts: &[String], ui: &Ui) -> Result<BTreeMap<String, Option<SecretText>>, Failure> {
    let mut secrets = BTreeMap::new();
    let mut stdin_used = false;
    for text in texts {
        let (name, value) = match text.split_once('=') {
            None => (text.as_str(), prompt(text, ui)?),
            Some((name, "-")) => {
                if std::mem::replace(&mut stdin_used, true) {
                    return Err(Failure::usage(
                        "secret_invalid",
                        "only one secret can come from standard input",
                        "give the others as NAME=@FILE",
                    ));
                }
                (name, bounded(&mut std::io::stdin().lock(), name)?)
            }
            Some((name, value)) => match value.strip_prefix('@') {
                Some(path) => {
                    let failed = |it| {
                        Failure::usage(
                            "secret_invalid",
                            format!("the file `{path}` for `{name}` cannot be read: {it}"),
                            "check its path",
                        )
                    };
                    (name, bounded(&mut std::fs::File::open(path).map_err(failed)?, name)?)
                }
                None => {
                    ui.warn(&format!("the value of `{name}` shows in process lists and shell history; give `{name}=@FILE` or `{name}=-`"));
                    (name, value.to_owned())
                }
            },
        };
        secrets.insert(name.to_owned(), Some(SecretText(value)));
    }
    Ok(secrets)
}

fn bounded(from: &mut impl std::io::Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let wrong = |why: &str| {
        Failure::usage("secret_invalid", format!("the value of `{name}` {why}"), "give a text of at most 128 KiB")
    };
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|_| wrong("cannot be read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong("is too long"));
    }
    let value = String::from_utf8(bytes).map_err(|_| wrong("is not text (UTF-8)"))?;
    Ok(without_line_end(value))
}

/// A value of one line without its line end; a value of several lines (a key in PEM) as it is.
fn without_line_end(mut value: String) -> String {
    if let Some(line) = value.strip_suffix('\n').map(|it| it.strip_suffix('\r').unwrap_or(it))
        && !line.contains('\n')
    {
        value.truncate(line.len());
    }
    value
}

fn prompt(name: &str, ui: &Ui) -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let message = format!("`{name}` has no value, and there is no terminal to ask at");
        return Err(Failure::usage("secret_invalid", message, format!("give `{name}=@FILE` or `{name}=-`")));
    }
    ui.error_bytes(format!("value of {name}: ").as_bytes());
    let hidden = super::exec::NoEcho::begin();
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    drop(hidden);
    ui.error_bytes(b"\n");
    match read {
        Ok(count) if count > 0 => Ok(without_line_end(line)),
        _ => Err(Failure::usage("secret_invalid", format!("no value for `{name}`"), "type it, or give a file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ui::Format;

    #[test]
    fn values_come_from_files_and_lose_the_end_of_a_single_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v");
        let ui = Ui::new(Format::Json);
        for (content, value) in [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("a\nb\n", "a\nb\n"), ("\n", "")] {
            std::fs::write(&file, content).unwrap();
            let secrets = read(&[format!("K=@{}", file.display())], &ui).unwrap();
            assert_eq!(secrets["K"], Some(SecretText(value.to_owned())), "{content:?}");
        }
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(read(&[format!("K=@{}", file.display())], &ui).unwrap_err().body.code, "secret_invalid");
        assert!(read(&["K=@/no/such/file".to_owned()], &ui).is_err());
    }
}
