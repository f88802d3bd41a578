//! Go, from the Go module proxy (`golang.org/toolchain`, as the go command itself downloads it).

use super::{Say, download};
use crate::access::Access;
use crate::layer::{FinishedLayer, LayerWriter, Meta};
use std::io;
use std::path::Path;

const PROXY: &str = "https://proxy.golang.org";

/// The layer of Go 1.`minor`.
pub(super) async fn layer(minor: u32, access: &Access, work: &Path, say: Say<'_>) -> io::Result<FinishedLayer> {
    let asked =
        access.env.get("GOPROXY").into_iter().flat_map(|it| it.split([',', '|'])).find(|it| it.starts_with("http"));
    let proxy = asked.unwrap_or(PROXY).trim_end_matches('/').to_owned();
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
    let work = work.to_owned();
    tokio::task::spawn_blocking(move || write(file, &work)).await.map_err(io::Error::other)?
}

fn write(file: std::fs::File, work: &Path) -> io::Result<FinishedLayer> {
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
        let size = entry.size();
        writer.file(&format!("usr/local/go/{inner}"), Meta::root(mode), size, &mut entry)?;
    }
    writer.finish()
}
