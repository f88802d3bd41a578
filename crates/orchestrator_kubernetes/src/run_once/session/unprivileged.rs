//! The program of a one-shot as a user without rights, in a pod whose root is the node's.
//!
//! What must hold: the program is that user before it reads a variable, holds no capability and gains none (the pod's
//! `allowPrivilegeEscalation` is false); variables and folders reach it, and none of them a program of ours, which is root.
//! Not here: which steps are run so (the builder says it).

use super::Pod;
use arco_model::plan::OneShot;
use arco_orchestrator::Error;
use std::collections::BTreeMap;

/// The user, as is its group: Debian's `nobody`, so that programs that ask who they are get an answer.
const USER: &str = "65534";
const OWNER: &str = "65534:65534";
/// Where the variables are: memory of the pod.
const VARIABLES: &str = "/dev/shm/arco-variables";
/// `$0`: that file; the program and its arguments follow.
const TAKE: &str = ". \"$0\"; exec \"$@\"";
/// `$0`: that file, `$1`: whose it becomes.
const WRITE: &str = "umask 077; cat > \"$0\"; chown \"$1\" \"$0\"";

/// What stands before the program and its arguments.
pub(super) fn program() -> Vec<String> {
    let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
    let take = ["--clear-groups", "--", "/bin/sh", "-c", TAKE, VARIABLES].map(str::to_owned);
    ["setpriv".to_owned()].into_iter().chain(user).chain(take).collect()
}

impl Pod<'_> {
    /// Gives the user what the program may write, and its variables, which stand in no argument.
    pub(super) async fn hand_over(&self, work: &OneShot) -> Result<(), Error> {
        let exported = work.export.as_ref().map(|it| it.include.as_slice()).unwrap_or_default();
        let (made, mut owned) = folders(&work.working_dir, exported);
        owned.extend(work.mounts.iter().map(|it| it.path.as_str()));
        owned.extend(work.caches.iter().map(|it| it.path.as_str()));
        if !made.is_empty() {
            let make: Vec<&str> = ["mkdir", "-p", "--"].into_iter().chain(made).collect();
            self.done("make the folders of an export", &make, Vec::new()).await?;
        }
        if !owned.is_empty() {
            // Links are changed themselves, and not followed.
            let own: Vec<&str> = ["chown", "-R", "-h", "-P", OWNER, "--"].into_iter().chain(owned).collect();
            self.done("hand over folders", &own, Vec::new()).await?;
        }
        let write = ["/bin/sh", "-euc", WRITE, VARIABLES, OWNER];
        self.done("hand over variables", &write, exports(&work.env)).await.map(drop)
    }
}

/// Folders that must be made, and those that become the user's. What is below the working folder the program makes itself.
fn folders<'a>(working_dir: &'a str, exported: &'a [String]) -> (Vec<&'a str>, Vec<&'a str>) {
    let own = working_dir.trim_end_matches('/');
    let below =
        |it: &str| !own.is_empty() && it.strip_prefix(own).is_some_and(|it| it.is_empty() || it.starts_with('/'));
    let exported = exported.iter().map(String::as_str);
    let made: Vec<&str> = exported.filter(|it| !it.trim_matches('/').is_empty() && !below(it)).collect();
    let owned = Some(own).filter(|it| !it.is_empty()).into_iter().chain(made.iter().copied()).collect();
    (made, owned)
}

/// Lines of shell that set the variables; what is no name in a shell is left out.
fn exports(variables: &BTreeMap<String, String>) -> Vec<u8> {
    let is_name = |it: &str| {
        !it.starts_with(|it: char| it.is_ascii_digit())
            && !it.is_empty()
            && it.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
    };
    let known = variables.iter().filter(|(name, _)| is_name(name));
    let lines = known.map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
    lines.collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_owns_what_the_program_writes_and_nothing_above() {
        for (working_dir, exported, made, owned) in [
            ("/app", &["/opt/venv"][..], &["/opt/venv"][..], &["/app", "/opt/venv"][..]),
            ("/app", &["/app"][..], &[][..], &["/app"][..]),
            ("/app/", &["/app/node_modules"][..], &[][..], &["/app"][..]),
            ("/app", &["/application"][..], &["/application"][..], &["/app", "/application"][..]),
            ("/", &["/srv/site", "/"][..], &["/srv/site"][..], &["/srv/site"][..]),
            ("", &[][..], &[][..], &[][..]),
        ] {
            let exported: Vec<String> = exported.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(folders(working_dir, &exported), (made.to_vec(), owned.to_vec()), "{working_dir} {exported:?}");
        }
    }

    #[test]
    fn a_shell_reads_the_variables_as_they_are() {
        let odd = "it's $HOME `id` \"\\ \nsecond line";
        let variables =
            [("A_1", odd), ("1B", "no"), ("C.D", "no"), ("E", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), exports(&variables.into())).unwrap();
        let said = std::process::Command::new("/bin/sh")
            .args(["-c", TAKE])
            .arg(file.path())
            .args(["printenv", "A_1"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{odd}\n"), "{:?}", said.stderr);
        let text = String::from_utf8(exports(&BTreeMap::from([("1B".to_owned(), "no".to_owned())]))).unwrap();
        assert!(text.is_empty(), "{text}");
    }

    #[test]
    fn it_is_that_user_before_anything_of_its_own_runs() {
        let words = program();
        assert_eq!(words[..3], ["setpriv", "--reuid=65534", "--regid=65534"]);
        assert!(words.iter().position(|it| it == "--clear-groups") < words.iter().position(|it| it == "/bin/sh"));
    }
}
