//! Go, from the Go module proxy (`golang.org/toolchain`, as the go command itself downloads it), with its standard library
//! compiled.

use super::{Say, download};
use crate::access::Access;
use crate::layer::{FinishedLayer, LayerWriter, Meta};
use arco_config::BuilderConfig;
use std::io;
use std::path::{Path, PathBuf};

/// Where the layer keeps the compiled standard library, in the form of the go command's cache.
pub(crate) const CACHE: &str = "/usr/local/go-cache";
/// The go command touches entries that it uses and removes those that it has not touched for days, by their time: these
/// are from 2100, so it does neither, and the shared layer is only ever read.
const NEVER_OLD: u64 = 4_102_444_800;

/// How a layer has the standard library.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Library {
    /// Compiled, by this machine; when it cannot do that, as source.
    Compiled,
    /// As source; [`COMPILE`] makes the rest, in a step.
    Source,
}

/// The layer of Go 1.`minor`.
pub(super) async fn layer(
    minor: u32,
    library: Library,
    config: &BuilderConfig,
    access: &Access,
    work: &Path,
    say: Say<'_>,
) -> io::Result<FinishedLayer> {
    let (writer, root) = fetch(minor, config, access, work, say).await?;
    let cache = work.join("cache");
    if library == Library::Compiled {
        say("compiling the standard library once for all builds".to_owned());
        if let Err(error) = compile(&root, &cache, work).await {
            say(format!("note: it was not compiled, so the first build of each component does it: {error}"));
            let _ = std::fs::remove_dir_all(&cache);
        }
    }
    let done = tokio::task::spawn_blocking(move || finish(writer, &cache)).await;
    done.map_err(io::Error::other)?
}

/// Downloads the distribution, unpacks it into a folder of `work`, and begins the layer with it.
async fn fetch(
    minor: u32,
    config: &BuilderConfig,
    access: &Access,
    work: &Path,
    say: Say<'_>,
) -> io::Result<(LayerWriter, PathBuf)> {
    let asked =
        access.env.get("GOPROXY").into_iter().flat_map(|it| it.split([',', '|'])).find(|it| it.starts_with("http"));
    let proxy = asked.unwrap_or(&config.go_default_proxy).trim_end_matches('/').to_owned();
    let machine = if cfg!(target_arch = "aarch64") { "linux-arm64" } else { "linux-amd64" };
    let client = download::client()?;
    let list = download::text(&client, &format!("{proxy}/golang.org/toolchain/@v/list"), "*/*").await?;
    let prefix = format!("v0.0.1-go1.{minor}.");
    let patch = |it: &str| it.strip_prefix(&prefix)?.strip_suffix(machine)?.strip_suffix('.')?.parse::<u32>().ok();
    let Some(newest) = list.lines().filter_map(|it| Some((patch(it)?, it))).max() else {
        return Err(io::Error::other(format!("the Go module proxy has no Go 1.{minor}")));
    };
    let file =
        download::file(&client, &format!("{proxy}/golang.org/toolchain/@v/{}.zip", newest.1), None, work, say).await?;
    let root = work.join("go");
    let (target, folder) = (root.clone(), work.to_owned());
    let unpacked = tokio::task::spawn_blocking(move || unpack(file, &target, &folder)).await;
    Ok((unpacked.map_err(io::Error::other)??, root))
}

/// Variables of the go command when it compiles the standard library: as builds have them (see `detect::go`), so that what
/// the cache holds is what they ask for. It finds entries by content, settings and its own version, wherever folders lie.
pub(super) const SETTINGS: [(&str, &str); 6] = [
    ("GOENV", "off"),
    ("GOTELEMETRY", "off"),
    ("GOPROXY", "off"),
    ("GOTOOLCHAIN", "local"),
    ("GOFLAGS", "-buildvcs=false"),
    ("CGO_ENABLED", "0"),
];

/// Compiles the standard library into `$GOCACHE`, in a step: without what the go command keeps there about itself, and with
/// times that are never old ([`NEVER_OLD`]).
pub(super) const COMPILE: &str = "mkdir -p \"$GOCACHE\"; \
/usr/local/go/bin/go build -trimpath std; \
find \"$GOCACHE\" -mindepth 1 -maxdepth 1 ! -name '??' -exec rm -rf {} +; \
find \"$GOCACHE\" -type f -exec touch -d @4102444800 {} +";

/// Compiles the standard library on this machine.
async fn compile(root: &Path, cache: &Path, work: &Path) -> io::Result<()> {
    let mut command = tokio::process::Command::new(root.join("bin/go"));
    command.args(["build", "-trimpath", "std"]).env_clear().current_dir(root).kill_on_drop(true);
    command.env("PATH", "/usr/bin:/bin").env("HOME", work).env("TMPDIR", work).env("GOCACHE", cache);
    command.env("GOROOT", root).env("GOPATH", work.join("gopath")).envs(SETTINGS);
    let output = command.stdin(std::process::Stdio::null()).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("go ended with {}: {}", output.status, said.lines().last().unwrap_or_default())))
}

/// Unpacks the distribution into `root` and begins the layer with it.
fn unpack(file: std::fs::File, root: &Path, work: &Path) -> io::Result<LayerWriter> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(io::Error::other)?;
    let mut writer = LayerWriter::new(work)?;
    for folder in ["usr", "usr/local", "usr/local/go", "go"] {
        writer.folder(folder, Meta::root(0o755))?;
    }
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(io::Error::other)?;
        let name = entry.name().map_err(io::Error::other)?.into_owned();
        // golang.org/toolchain@<version>/<path>
        let Some(inner) = name.splitn(3, '/').nth(2).filter(|it| !it.is_empty() && !it.ends_with('/')) else {
            continue;
        };
        let unneeded = ["test/", "api/", "doc/", "misc/"].iter().any(|it| inner.starts_with(it))
            || inner.split('/').any(|it| it == ".." || it == "testdata");
        if unneeded {
            continue;
        }
        let mode = if inner.starts_with("bin/") || inner.starts_with("pkg/tool/") { 0o755 } else { 0o644 };
        let path = root.join(inner);
        std::fs::create_dir_all(path.parent().unwrap_or(root))?;
        let mut target = std::fs::File::create_new(&path)?;
        io::copy(&mut entry, &mut target)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let source = std::fs::File::open(&path)?;
        writer.file(&format!("usr/local/go/{inner}"), Meta::root(mode), source.metadata()?.len(), source)?;
    }
    Ok(writer)
}

/// Puts the compiled packages, if there are any, behind the distribution.
fn finish(mut writer: LayerWriter, cache: &Path) -> io::Result<FinishedLayer> {
    let names = |folder: &Path| -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(folder)?;
        let mut names: Vec<String> = entries.filter_map(|it| it.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    };
    if !cache.exists() {
        return writer.finish();
    }
    let inside = CACHE.trim_start_matches('/');
    writer.folder(inside, Meta::root(0o755))?;
    for folder in names(cache)?.into_iter().filter(|it| it.len() == 2 && cache.join(it).is_dir()) {
        writer.folder(&format!("{inside}/{folder}"), Meta::root(0o755))?;
        for name in names(&cache.join(&folder))? {
            let file = std::fs::File::open(cache.join(&folder).join(&name))?;
            let size = file.metadata()?.len();
            let meta = Meta { mtime: NEVER_OLD, ..Meta::root(0o644) };
            writer.file(&format!("{inside}/{folder}/{name}"), meta, size, file)?;
        }
    }
    writer.finish()
}
