//! Mounted ConfigMaps as configuration files. What is not text, or has a path that no file can have, is named.

use super::Objects;
use arco_model::manifest::ComponentManifest;
use arco_model::spec::files::{FileMode, FileSpec, validate};
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, KeyToPath, VolumeMount};
use std::collections::BTreeMap;

/// Mode of a file that says none, and of none that the platform gives: nobody can write either.
const DEFAULT_MODE: i32 = 0o644;

/// The files of a ConfigMap where it is mounted; `None` when it is not there.
pub(super) fn mounted(
    mount: &VolumeMount,
    source: &ConfigMapVolumeSource,
    objects: &Objects,
    lost: &mut Vec<String>,
) -> Option<Vec<FileSpec>> {
    let map = objects.config_maps.iter().find(|it| it.metadata.name.as_ref() == Some(&source.name))?;
    let at = mount.mount_path.trim_end_matches('/');
    if mount.sub_path_expr.is_some() {
        return None;
    }
    let texts = map.data.clone().unwrap_or_default();
    let item = |key: &String| KeyToPath { key: key.clone(), path: key.clone(), mode: None };
    let items = match &source.items {
        Some(items) => items.clone(),
        None => texts.keys().chain(map.binary_data.iter().flat_map(|it| it.keys())).map(item).collect(),
    };
    let mut files = Vec::new();
    for KeyToPath { key, path: inside, mode } in items {
        let path = match mount.sub_path.as_deref().filter(|it| !it.is_empty()) {
            None => format!("{at}/{inside}"),
            Some(part) => match inside.strip_prefix(part.trim_end_matches('/')) {
                Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{at}{rest}"),
                _ => continue, // another file of the map
            },
        };
        let Some(content) = texts.get(&key) else {
            lost.push(format!("the file {path}: it is not text; bring it with the image or a volume"));
            continue;
        };
        let mode = mode.or(source.default_mode).filter(|it| *it != DEFAULT_MODE);
        let mode: Option<FileMode> = mode.and_then(|it| format!("{:04o}", it & 0o777).parse().ok());
        files.push(FileSpec { path, content: Some(content.clone()), secret: None, mode });
    }
    Some(files)
}

/// Takes over files, each of which the platform takes beside the others.
pub(super) fn take_over(files: Vec<FileSpec>, manifest: &mut ComponentManifest, lost: &mut Vec<String>) {
    for file in files {
        let path = file.path.clone();
        manifest.files.push(file);
        if let Err(problem) = validate(&manifest.files, &manifest.volumes, &BTreeMap::new()) {
            manifest.files.pop();
            lost.push(format!("the file {path}: {problem}; bring it with the image or a volume"));
        }
    }
}
