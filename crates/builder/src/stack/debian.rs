//! The base stack from the distribution's packages (`debootstrap`), and layers of packages on it (`apt-get` in a chroot
//! with its own mount and process namespaces, so that nothing stays mounted or running, whatever happens).

use super::{Say, failed};
use crate::access::Access;
use crate::detect::Stack;
use crate::layer::{FinishedLayer, from_folder, read_tar};
use arco_config::BuilderConfig;
use arco_model::artifact::Layer;
use arco_model::error::{ErrorKind, Problem};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Release that stacks are made of.
const RELEASE: &str = "bookworm";

/// `$1` lower, `$2` upper, `$3` work, `$4` merged, `$5` apt settings, `$6` what to do in the tree afterwards, `$7…` packages.
const INSTALL: &str = "\
lower=$1 upper=$2 work=$3 root=$4 settings=$5 then=$6; shift 6; \
mount -t overlay overlay -o \"lowerdir=$lower,upperdir=$upper,workdir=$work\" \"$root\"; \
mount -t proc proc \"$root/proc\"; mount -t tmpfs tmpfs \"$root/tmp\"; mount -t tmpfs -o mode=755 tmpfs \"$root/dev\"; \
for device in null zero full random urandom; do : > \"$root/dev/$device\"; mount --bind \"/dev/$device\" \"$root/dev/$device\"; done; \
ln -s /proc/self/fd \"$root/dev/fd\"; \
cp \"$settings\" \"$root/tmp/apt.conf\"; cat /etc/resolv.conf > \"$root/etc/resolv.conf\"; \
printf '#!/bin/sh\\nexit 101\\n' > \"$root/usr/sbin/policy-rc.d\"; chmod 755 \"$root/usr/sbin/policy-rc.d\"; \
export APT_CONFIG=/tmp/apt.conf DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin; \
chroot \"$root\" apt-get -q update; \
chroot \"$root\" apt-get -q -y --no-install-recommends install \"$@\"; \
chroot \"$root\" /bin/sh -euc \"$then\"; \
rm -f \"$root/usr/sbin/policy-rc.d\" \"$root/etc/resolv.conf\" \"$root\"/usr/lib/python3*/EXTERNALLY-MANAGED";

/// What of a Debian tree is worth keeping in an image.
fn keep(path: &str) -> bool {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|it| it.starts_with('/'));
    if below("usr/share/doc") {
        // licences stay (Debian policy §12.5)
        return path.matches('/').count() == 3 || path.ends_with("/copyright");
    }
    let emptied = [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
        "usr/share/info",
        "usr/share/locale",
        "usr/share/lintian",
        "usr/share/groff",
        "usr/share/linda",
        "var/cache/ldconfig",
        "debootstrap",
    ];
    let dropped = ["etc/resolv.conf", "etc/hostname", "etc/machine-id", "debootstrap", "usr/sbin/policy-rc.d"];
    // some packages expect the folder for manual pages, none needs the pages
    let manual = below("usr/share/man") && path != "usr/share/man/man1";
    !(emptied.iter().any(|it| below(it))
        || dropped.contains(&path)
        || manual
        || path.ends_with("-old") && below("var/cache/debconf"))
}

/// Runs a program of this machine, its output said line by line; the error holds its last lines.
async fn run(mut command: Command, say: Say<'_>, quiet: bool) -> io::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let missing = || io::Error::other("its output cannot be read");
    let mut out = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
    let mut err = BufReader::new(child.stderr.take().ok_or_else(missing)?).lines();
    let mut last: Vec<String> = Vec::new();
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let line = tokio::select! {
            line = out.next_line(), if out_open => line.inspect(|it| out_open = it.is_some()),
            line = err.next_line(), if err_open => line.inspect(|it| err_open = it.is_some()),
        };
        let Ok(Some(line)) = line else {
            if line.is_err() {
                break;
            }
            continue;
        };
        if !quiet || line.starts_with("E:") {
            say(format!("  {line}"));
        }
        last.push(line);
        if last.len() > 6 {
            last.remove(0);
        }
    }
    let status = child.wait().await?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("it ended with {status}: {}", last.join(" | "))))
    }
}

/// The mirror that the machine's own apt uses for this release.
fn machine_mirror() -> Option<String> {
    let mut texts = vec![std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "list" || it == "sources") {
            texts.push(std::fs::read_to_string(path).unwrap_or_default());
        }
    }
    texts.iter().find_map(|it| mirror(it))
}

/// The first mirror of a text in one of apt's two forms that serves our release.
fn mirror(text: &str) -> Option<String> {
    for line in text.lines().filter_map(|it| it.trim().strip_prefix("deb ")) {
        let words: Vec<&str> =
            line.split_whitespace().filter(|it| !it.starts_with('[') && !it.ends_with(']')).collect();
        if words.get(1) == Some(&RELEASE) && words[0].starts_with("http") {
            return Some(words[0].trim_end_matches('/').to_owned());
        }
    }
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(':').map(|it| it.trim().to_owned()))
        };
        if field("Suites").is_some_and(|it| it.split_whitespace().any(|it| it == RELEASE)) {
            let uri =
                field("URIs").and_then(|it| it.split_whitespace().find(|it| it.starts_with("http")).map(str::to_owned));
            if let Some(uri) = uri {
                return Some(uri.trim_end_matches('/').to_owned());
            }
        }
    }
    None
}

/// The base stack.
pub(super) async fn base(
    config: &BuilderConfig,
    access: &Access,
    work: &Path,
    say: Say<'_>,
) -> Result<FinishedLayer, Problem> {
    let stack = Stack::Base;
    let mirror = Some(config.debian_mirror.clone())
        .filter(|it| !it.is_empty())
        .or_else(machine_mirror)
        .unwrap_or_else(|| config.debian_default_mirror.trim_end_matches('/').to_owned());
    let root = work.join("root");
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", "--include=ca-certificates,tzdata,netbase", RELEASE])
        .arg(&root)
        .arg(&mirror)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
    for (name, value) in access.env.iter().filter(|(name, _)| name.to_lowercase().ends_with("_proxy")) {
        command.env(name, value);
    }
    say(format!("installing a minimal Debian {RELEASE} with debootstrap"));
    let mut count = 0;
    let counted = std::sync::Mutex::new(&mut count);
    let progress = |line: String| {
        let Ok(mut count) = counted.lock() else { return };
        **count += 1;
        if **count % 60 == 0 || line.contains("W:") || line.contains("E:") {
            say(line);
        }
    };
    run(command, &progress, false).await.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            let advice = "install it: `apt-get install debootstrap`";
            return Problem::new(
                ErrorKind::Unavailable,
                "debootstrap_missing",
                "the program `debootstrap` is not installed on this machine",
                advice,
            );
        }
        failed("install Debian for", &stack, error)
    })?;
    let security = if mirror.ends_with("/debian") {
        format!("{}/debian-security", mirror.trim_end_matches("/debian"))
    } else {
        format!("{}-security", config.debian_default_mirror.trim_end_matches('/'))
    };
    let lists = format!(
        "deb {mirror} {RELEASE} main\ndeb {mirror} {RELEASE}-updates main\ndeb {security} {RELEASE}-security main\n"
    );
    let slim = "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*/*\npath-exclude /usr/share/info/*\npath-exclude /usr/share/locale/*\n";
    let clean = "Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\nAcquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\n";
    let work = work.to_owned();
    crate::blocking("write the base stack", move || {
        std::fs::write(root.join("etc/apt/sources.list"), lists)?;
        std::fs::write(root.join("etc/dpkg/dpkg.cfg.d/slim"), slim)?;
        std::fs::write(root.join("etc/apt/apt.conf.d/90slim"), clean)?;
        from_folder(&root, &work, &keep)
    })
    .await?
    .map_err(|it| failed("write", &stack, it))
}

/// Packages that make a layer.
pub(super) struct Packages<'a> {
    pub(super) packages: &'static [&'static str],
    /// A line of shell, run in the tree once they are there.
    pub(super) then: &'static str,
    pub(super) access: &'a Access,
    pub(super) blobs: PathBuf,
}

impl Packages<'_> {
    /// Installs them on top of the layers below.
    pub(super) async fn layer(
        &self,
        stack: &Stack,
        below: &[Layer],
        work: &Path,
        say: Say<'_>,
    ) -> Result<FinishedLayer, Problem> {
        let folders = ["lower", "upper", "overlay", "merged"].map(|it| work.join(it));
        for folder in &folders {
            std::fs::create_dir(folder).map_err(|it| failed("make a folder for", stack, it))?;
        }
        let [lower, upper, overlay, merged] = folders;
        let (blobs, layers, target) = (self.blobs.clone(), below.to_vec(), lower.clone());
        crate::blocking("unpack a stack", move || unpack(&blobs, &layers, &target))
            .await?
            .map_err(|it| failed("unpack what is below", stack, it))?;
        say(format!("installing {}", self.packages.join(", ")));
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "/bin/sh",
            "-euc",
            INSTALL,
            "install",
        ]);
        command.args([&lower, &upper, &overlay, &merged]).arg(self.access.folder.join("apt.conf"));
        command.arg(self.then).args(self.packages);
        for (name, value) in self.access.env.iter().filter(|(name, _)| name.to_lowercase().ends_with("_proxy")) {
            command.env(name, value);
        }
        run(command, say, true).await.map_err(|it| failed("install the packages of", stack, it))?;
        let work = work.to_owned();
        crate::blocking("write a stack", move || from_folder(&upper, &work, &keep))
            .await?
            .map_err(|it| failed("write", stack, it))
    }
}

/// Unpacks layers that we made ourselves.
fn unpack(blobs: &Path, layers: &[Layer], target: &Path) -> io::Result<()> {
    for layer in layers {
        let file = std::fs::File::open(blobs.join(layer.blob.digest.hex()))?;
        let mut archive = tar::Archive::new(read_tar(file, &layer.blob.media_type)?);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_unpack_xattrs(false);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let name = path.file_name().and_then(|it| it.to_str()).unwrap_or("");
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => {}
                Some(gone) => {
                    let gone = target.join(path.with_file_name(gone));
                    let _ = std::fs::remove_file(&gone).or_else(|_| std::fs::remove_dir_all(&gone));
                }
                None => {
                    entry.unpack_in(target)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_forms() {
        let old = "# c\ndeb-src http://a/debian bookworm main\ndeb [arch=amd64 signed-by=/x] http://m.example/debian/ bookworm main\n";
        let new = "Types: deb\nURIs: http://n.example/debian\nSuites: bookworm bookworm-updates\n\nTypes: deb\nURIs: http://s/\nSuites: bookworm-security\n";
        assert_eq!(mirror(old).as_deref(), Some("http://m.example/debian"));
        assert_eq!(mirror(new).as_deref(), Some("http://n.example/debian"));
        assert_eq!(mirror("deb http://u/ubuntu noble main"), None);
    }

    #[test]
    fn documentation_is_left_out_but_licences_stay() {
        assert!(keep("usr/share/doc/libc6/copyright") && keep("usr/share/doc/libc6") && keep("usr/share/man/man1"));
        assert!(!keep("usr/share/doc/libc6/changelog.gz") && !keep("usr/share/man/man1/ls.1.gz") && !keep("dev/null"));
    }
}
