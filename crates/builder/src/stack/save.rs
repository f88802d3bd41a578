//! Stacks of this machine for another platform: `arco stack save`. Making them needs root, taking them none.

use super::{Stack, Stacks, config, edition};
use crate::access::Access;
use arco_config::BuilderConfig;
use arco_model::artifact::Digest;
use arco_model::error::{ErrorKind, Problem};
use arco_store::images::Image;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What most sources need: all languages in the version that is taken when a source asks for none.
pub const USUAL_STACKS: [&str; 6] = ["base", "fetch", "web", "node-22", "python-3.11", "go-1.26"];

/// A stack in the cache of this machine.
#[derive(Clone, Debug)]
pub struct MachineStack {
    /// Its name, as `node-22`.
    pub name: String,
    /// Which edition this program makes.
    pub edition: u32,
    /// Its layers and configuration.
    pub image: Image,
    /// Where its layers lie, by digest.
    pub files: BTreeMap<Digest, PathBuf>,
}

/// The named stacks, made if this machine does not have them. `say` hears how it goes.
///
/// # Errors
/// `stack_unknown` for a name that means none, `denied` for who is not root, `stack_failed` when one cannot be made.
pub async fn make_stacks(
    cache_dir: &Path,
    settings: &BuilderConfig,
    names: &[String],
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Vec<MachineStack>, Problem> {
    let stacks =
        names.iter().map(|it| Stack::from_name(it).ok_or_else(|| unknown(it))).collect::<Result<Vec<_>, _>>()?;
    if !rustix::process::geteuid().is_root() {
        let message = "stacks are made with debootstrap and chroot, which need root";
        return Err(Problem::new(ErrorKind::Denied, "root_needed", message, "run it as root on a Debian machine"));
    }
    let io = |it: std::io::Error| {
        let message = format!("failed to make a temporary folder: {it}");
        Problem::new(ErrorKind::Failed, "stack_failed", message, "check the folder for temporary files")
    };
    let folder = tempfile::Builder::new().prefix("arco-access-").tempdir().map_err(io)?;
    let access = Access::prepare(folder.path(), settings).await.map_err(io)?;
    let machine = Stacks::new(cache_dir, settings.clone(), true);
    let mut made = Vec::new();
    for stack in &stacks {
        let stored = Box::pin(machine.stored(stack, &access, say)).await?;
        let files = stored.layers.iter().map(|it| (it.blob.digest.clone(), machine.blob(it))).collect();
        let image = Image { layers: stored.layers, config: config(stack) };
        made.push(MachineStack { name: stack.name(), edition: edition(stack), image, files });
    }
    Ok(made)
}

/// The edition of a stack that this program makes and takes; none when the name means no stack.
pub fn stack_edition(name: &str) -> Option<u32> {
    Stack::from_name(name).as_ref().map(edition)
}

fn unknown(name: &str) -> Problem {
    let message = format!("there is no stack `{name}`");
    let advice = format!("use {}; `-compilers` behind a name adds compilers", USUAL_STACKS.join(", "));
    Problem::invalid("stack_unknown", message, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_stacks_are_those_that_sources_get() {
        for name in USUAL_STACKS {
            assert_eq!(Stack::from_name(name).map(|it| it.name()), Some(name.to_owned()));
        }
        assert!(unknown("x").advice.contains("node-22"));
    }
}
