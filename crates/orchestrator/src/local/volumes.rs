//! Volumes on one machine: a sparse ext4 image per volume, loop-mounted while an instance uses it; memory ones as tmpfs.
//!
//! What must hold: a volume never holds more than its size; it is mounted at most once and by the first user, unmounted
//! by the last; its content survives everything but [`Volumes::remove`]. Paths are made of ids and of checked names.

use crate::Error;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::VolumeName;
use arco_model::plan::HostMount;
use arco_model::spec::{VolumeKind, VolumeSpec};
use arco_model::storage::{AccessMode, VolumeClass, VolumeFacts};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::sync::Mutex;

/// The only class of this machine.
const CLASS: &str = "local";

/// Ending of the file that stands beside an image while its file system grows.
const GROWING: &str = "growing";

/// The volumes of one server.
pub struct Volumes {
    dir: PathBuf,
    /// Mounted folder → instances that use it.
    users: Mutex<BTreeMap<PathBuf, BTreeSet<InstanceId>>>,
}

impl Volumes {
    /// Volumes below `dir`, which is made when missing. Mounts that no instance in `users` has are undone.
    pub async fn open(dir: PathBuf, users: BTreeMap<InstanceId, Vec<PathBuf>>) -> Result<Self, Error> {
        std::fs::create_dir_all(&dir).map_err(|it| Error::failed("make the folder of the volumes", it))?;
        let mut by_path: BTreeMap<PathBuf, BTreeSet<InstanceId>> = BTreeMap::new();
        for (instance, paths) in users {
            paths.into_iter().for_each(|it| {
                by_path.entry(it).or_default().insert(instance.clone());
            });
        }
        for stale in mounts_below(&dir).into_iter().filter(|it| !by_path.contains_key(it)) {
            unmount(&stale)?;
        }
        Ok(Self { dir, users: Mutex::new(by_path) })
    }

    /// Where a volume of a component is mounted; memory volumes belong to an instance.
    fn path(&self, component: &ComponentId, volume: &VolumeSpec, place: u32, instance: &InstanceId) -> PathBuf {
        let below = self.dir.join(component.as_str());
        match volume.kind {
            VolumeKind::Shared => below.join(volume.name.as_str()),
            VolumeKind::Local => below.join(format!("{}.{place}", volume.name)),
            VolumeKind::Memory => below.join(format!("{}.{instance}", volume.name)),
        }
    }

    /// Makes, grows and mounts what an instance needs. The instance is a user from now on, also when this fails.
    pub async fn provide(
        &self,
        component: &ComponentId,
        volumes: &[VolumeSpec],
        place: u32,
        instance: &InstanceId,
    ) -> Result<Vec<HostMount>, Error> {
        let mut found = Vec::new();
        let mut users = self.users.lock().await;
        for volume in volumes {
            let path = self.path(component, volume, place, instance);
            users.entry(path.clone()).or_default().insert(instance.clone());
            let step = format!("provide the volume `{}`", volume.name);
            let (size, memory) = (u64::from(volume.size_mb) << 20, volume.kind == VolumeKind::Memory);
            provide_one(&path, size, memory).await.map_err(|it| Error::failed(step, it))?;
            found.push(HostMount { host_path: path, path: volume.path.clone(), writable: true });
        }
        Ok(found)
    }

    /// The instance is gone: unmounts what nobody else uses.
    pub async fn release(&self, instance: &InstanceId) -> Result<(), Error> {
        let mut users = self.users.lock().await;
        let used: Vec<_> =
            users.iter().filter(|(_, who)| who.contains(instance)).map(|(path, _)| path.clone()).collect();
        for path in used {
            let Some(who) = users.get_mut(&path) else { continue };
            if who.len() == 1 {
                unmount(&path)?;
                if path.extension() == Some(OsStr::new(instance.as_str())) {
                    let _ = std::fs::remove_dir(&path); // the folder of a memory volume; an empty one harms nobody
                }
                users.remove(&path);
            } else {
                who.remove(instance);
            }
        }
        Ok(())
    }

    /// Removes every volume of a component with its content. No instance may use one.
    pub async fn remove(&self, component: &ComponentId) -> Result<(), Error> {
        let dir = self.dir.join(component.as_str());
        let users = self.users.lock().await;
        if users.keys().any(|it| it.starts_with(&dir)) {
            return Err(Error::Refused(format!("volumes of {component} are in use; end its instances first")));
        }
        for mounted in mounts_below(&dir) {
            unmount(&mounted)?;
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::failed("remove volumes", error)),
            _ => Ok(()),
        }
    }

    /// Removes one volume of a component with its content, at every place. No instance may use it.
    pub async fn remove_one(&self, component: &ComponentId, volume: &VolumeName) -> Result<(), Error> {
        let dir = self.dir.join(component.as_str());
        let users = self.users.lock().await;
        // `<name>`, `<name>.<place>` and their images; names hold no dot.
        let is_it = |path: &Path| {
            let name = path.strip_prefix(&dir).ok().and_then(|it| it.iter().next()).and_then(OsStr::to_str);
            name.is_some_and(|it| it.split('.').next() == Some(volume.as_str()))
        };
        if users.keys().any(|it| is_it(it)) {
            return Err(Error::Refused(format!("the volume `{volume}` is in use; end the instances first")));
        }
        for mounted in mounts_below(&dir).into_iter().filter(|it| is_it(it)) {
            unmount(&mounted)?;
        }
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten().filter(|it| is_it(&it.path())) {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|it| Error::failed(format!("remove the volume `{volume}`"), it))?;
        }
        let _ = std::fs::remove_dir(&dir); // not empty while there are others
        Ok(())
    }

    /// What volumes are made of here.
    pub fn class() -> VolumeClass {
        VolumeClass {
            name: CLASS.to_owned(),
            provisioner: "arco".to_owned(),
            default: true,
            access: vec![AccessMode::ReadWriteOnce],
            grows: true,
            snapshots: Some(false),
            retains: false,
            limits: Some(true),
        }
    }

    /// Every volume, or those of one component, with size and how much is used: of one that no instance uses, what it takes
    /// on disk.
    pub async fn facts(&self, of: Option<&ComponentId>) -> Vec<VolumeFacts> {
        let (dir, of) = (self.dir.clone(), of.cloned());
        tokio::task::spawn_blocking(move || facts_below(&dir, of.as_ref())).await.unwrap_or_default()
    }

    /// Components that have a volume.
    pub fn components(&self) -> Vec<ComponentId> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
    }
}

fn facts_below(dir: &Path, of: Option<&ComponentId>) -> Vec<VolumeFacts> {
    let mounted: BTreeSet<PathBuf> = mounts_below(dir).into_iter().collect();
    let entries =
        |of: &Path| std::fs::read_dir(of).into_iter().flatten().flatten().map(|it| it.path()).collect::<Vec<_>>();
    let mut found = Vec::new();
    for folder in entries(dir) {
        let Some(Ok(component)) = folder.file_name().and_then(OsStr::to_str).map(str::parse::<ComponentId>) else {
            continue;
        };
        if of.is_some_and(|it| *it != component) {
            continue;
        }
        for image in entries(&folder).into_iter().filter(|it| it.extension() == Some(OsStr::new("img"))) {
            let (point, Ok(file)) = (image.with_extension(""), std::fs::metadata(&image)) else { continue };
            let Some(name) = point.file_name().and_then(OsStr::to_str) else { continue };
            let (name, place) = name.split_once('.').map_or((name, None), |(name, place)| (name, place.parse().ok()));
            let Ok(volume) = VolumeName::new(name) else { continue };
            let held = mounted.contains(&point).then(|| nix::sys::statvfs::statvfs(&point).ok()).flatten();
            let in_use = held.map(|it| it.blocks().saturating_sub(it.blocks_free()) * it.fragment_size());
            // While it has not grown, it has what its file system has.
            let smaller = held.filter(|_| image.with_extension(GROWING).exists());
            let on_disk = std::os::unix::fs::MetadataExt::blocks(&file) * 512; // as stat(2) counts them
            found.push(VolumeFacts {
                component: component.clone(),
                volume,
                place,
                class: CLASS.to_owned(),
                access: vec![AccessMode::ReadWriteOnce],
                size_bytes: smaller.map_or(file.len(), |it| it.blocks() * it.fragment_size()),
                used_bytes: Some(in_use.unwrap_or(on_disk)),
            });
        }
    }
    found
}

async fn provide_one(path: &Path, size: u64, memory: bool) -> Result<(), String> {
    let say = |it: std::io::Error| it.to_string();
    std::fs::create_dir_all(path).map_err(say)?;
    let mounted = mounts_below(path).iter().any(|it| it == path);
    if memory {
        if !mounted {
            let options = format!("size={size},mode=1777,nr_inodes=100k");
            let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|it| it.to_string())?;
        }
        return Ok(());
    }
    let image = path.with_extension(match path.extension() {
        Some(place) => format!("{}.img", place.to_string_lossy()),
        None => "img".to_owned(),
    });
    let had = std::fs::metadata(&image).map(|it| it.len()).unwrap_or(0);
    // Stands there until the file system in the image has grown, too: the image's own size says nothing of that.
    let growing = image.with_extension(GROWING);
    let grows = had > 0 && (had < size || growing.exists());
    if had == 0 {
        make_image(&image, size).await?;
    } else if grows {
        std::fs::File::create(&growing).map_err(say)?;
        // The image is sparse: a longer file takes no space until it is written.
        let longer = size.max(had);
        std::fs::OpenOptions::new().write(true).open(&image).and_then(|it| it.set_len(longer)).map_err(say)?;
    }
    if !mounted {
        if grows {
            run("e2fsck", &[OsStr::new("-f"), OsStr::new("-p"), image.as_os_str()]).await?;
            run("resize2fs", &[image.as_os_str()]).await?;
        }
        let options = OsStr::new("loop,nosuid,nodev,noatime");
        run(
            "mount",
            &[OsStr::new("-t"), OsStr::new("ext4"), OsStr::new("-o"), options, image.as_os_str(), path.as_os_str()],
        )
        .await?;
        if had == 0 {
            // Databases refuse a folder that is not empty; the user of the image is not known, so all may write.
            let _ = std::fs::remove_dir(path.join("lost+found"));
            let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, all).map_err(say)?;
        }
    } else if grows {
        let device = loop_device(path).ok_or("its loop device is not known")?;
        run("losetup", &[OsStr::new("-c"), OsStr::new(&device)]).await?;
        run("resize2fs", &[OsStr::new(&device)]).await.map_err(|it| {
            format!(
                "it cannot grow while an instance uses it: {it}; stop the component and start it again, it grows then"
            )
        })?;
    }
    if grows {
        std::fs::remove_file(&growing).map_err(say)?;
    }
    Ok(())
}

/// A new image under another name first, so that a half-made one is never taken for a volume.
async fn make_image(image: &Path, size: u64) -> Result<(), String> {
    let fresh = image.with_extension("new");
    let made = std::fs::File::create(&fresh).and_then(|it| it.set_len(size));
    made.map_err(|it| it.to_string())?;
    let words = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-t", "ext4"];
    let mut arguments: Vec<_> = words.iter().map(OsStr::new).collect();
    arguments.push(fresh.as_os_str());
    run("mke2fs", &arguments).await?;
    std::fs::rename(&fresh, image).map_err(|it| it.to_string())
}

async fn run(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output =
        command.output().await.map_err(|it| format!("`{program}` cannot be run: {it}; install e2fsprogs and mount"))?;
    // e2fsck answers 1 when it mended something.
    if output.status.success() || (program == "e2fsck" && output.status.code() == Some(1)) {
        return Ok(());
    }
    Err(format!(
        "`{program}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect::<String>()
    ))
}

fn unmount(path: &Path) -> Result<(), Error> {
    use nix::errno::Errno;
    use nix::mount::{MntFlags, umount2};
    match umount2(path, MntFlags::empty()) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        // Somebody still looks into it; it goes with the last of them.
        Err(Errno::EBUSY) => umount2(path, MntFlags::MNT_DETACH).map_err(|it| Error::failed("unmount a volume", it)),
        Err(error) => Err(Error::failed("unmount a volume", error)),
    }
}

/// Mount points at or below a folder, deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|it| it.split(' ').nth(4)).map(|it| PathBuf::from(unescape(it)));
    let mut found: Vec<_> = points.filter(|it| it.starts_with(dir)).collect();
    found.sort_by_key(|it| std::cmp::Reverse(it.components().count()));
    found
}

fn loop_device(point: &Path) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = text.lines().find(|it| it.split(' ').nth(4).is_some_and(|it| Path::new(&unescape(it)) == point))?;
    let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
    source.starts_with("/dev/loop").then(|| source.to_owned())
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::clock;

    /// A kernel may refuse to let a mounted file system grow (without CAP_SYS_RESOURCE): it is then made up for.
    #[tokio::test]
    async fn a_volume_that_could_not_grow_while_it_was_used_grows_afterwards() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(folder.path().join("volumes"), BTreeMap::new()).await.unwrap();
        let component: ComponentId = clock::fresh();
        let [first, second, third]: [InstanceId; 3] = [clock::fresh(), clock::fresh(), clock::fresh()];
        let asked = |size_mb| VolumeSpec {
            name: "data".parse().unwrap(),
            path: "/data".to_owned(),
            size_mb,
            kind: VolumeKind::Shared,
            class: None,
        };
        volumes.provide(&component, &[asked(16)], 0, &first).await.unwrap();
        let online = volumes.provide(&component, &[asked(64)], 0, &second).await;
        let held = volumes.facts(Some(&component)).await.remove(0).size_bytes;
        match online {
            Ok(_) => assert_eq!(held, 64 << 20),
            Err(error) => assert!(error.to_string().contains("start it again") && held < 17 << 20, "{error} {held}"),
        }
        for instance in [&first, &second] {
            volumes.release(instance).await.unwrap();
        }
        let mounts = volumes.provide(&component, &[asked(64)], 0, &third).await.unwrap();
        let has = nix::sys::statvfs::statvfs(&mounts[0].host_path).unwrap();
        let files: Vec<_> = std::fs::read_dir(volumes.dir.join(component.as_str())).unwrap().flatten().collect();
        let found = (volumes.facts(Some(&component)).await.remove(0).size_bytes, files.len());
        volumes.release(&third).await.unwrap();
        volumes.remove(&component).await.unwrap();
        assert!(has.blocks() * has.fragment_size() > 48 << 20, "{has:?}");
        assert_eq!(found, (64 << 20, 2), "the folder and the image are left");
    }
}
