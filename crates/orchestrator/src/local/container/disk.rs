//! The writable layer's disk image: a sparse ext4 file of fixed size, copied from a prepared one.
//!
//! Without loop devices or `mkfs.ext4` there is none, and the limit is soft: the writable layer lies in a plain folder
//! and nothing bounds it. A journal is not needed: after a crash the layer is thrown away.

use super::state::Inner;
use crate::Error;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Smallest image that ext4 makes sense on, in MiB.
const SMALLEST_MB: u32 = 16;

/// Makes an image of `size_mb` MiB at `image`. Returns false when this machine cannot.
pub(super) async fn prepare(inner: &Inner, size_mb: u32, image: &Path) -> Result<bool, Error> {
    if !Path::new("/dev/loop-control").exists() {
        tracing::warn!("no loop devices on this machine: the size of writable layers is not enforced");
        return Ok(false);
    }
    let size_mb = size_mb.max(SMALLEST_MB);
    let template = inner.config.cache_dir.join("disks").join(format!("ext4-1-{size_mb}.img"));
    let image = image.to_owned();
    let result = tokio::task::spawn_blocking(move || {
        make_template(&template, size_mb).and_then(|()| copy_sparse(&template, &image))
    });
    match result.await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!("mkfs.ext4 is missing (package e2fsprogs): the size of writable layers is not enforced");
            Ok(false)
        }
        Ok(Err(error)) => Err(Error::failed("make a disk image", error)),
        Err(error) => Err(Error::failed("make a disk image", error)),
    }
}

fn make_template(template: &Path, size_mb: u32) -> std::io::Result<()> {
    if template.exists() {
        return Ok(());
    }
    let fresh =
        PathBuf::from(format!("{}.{}.{:x}", template.display(), std::process::id(), arco_store::clock::random()));
    File::create(&fresh)?.set_len(u64::from(size_mb) << 20)?;
    let done = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-i", "8192", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .arg(&fresh)
        .stdin(std::process::Stdio::null())
        .output();
    let outcome = match done {
        Ok(output) if output.status.success() => std::fs::rename(&fresh, template),
        Ok(output) => {
            Err(std::io::Error::other(format!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim())))
        }
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    outcome
}

/// Copies only what was written.
fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = File::open(from)?;
    let length = source.metadata()?.len();
    let mut target = File::create_new(to)?;
    target.set_len(length)?;
    let mut position = 0;
    loop {
        let begin = match nix::unistd::lseek(&source, position, nix::unistd::Whence::SeekData) {
            Ok(begin) => begin,
            Err(nix::errno::Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = nix::unistd::lseek(&source, begin, nix::unistd::Whence::SeekHole)?;
        source.seek(SeekFrom::Start(begin as u64))?;
        target.seek(SeekFrom::Start(begin as u64))?;
        let mut left = (end - begin) as u64;
        let mut piece = vec![0; 256 << 10];
        while left > 0 {
            let wanted = piece.len().min(left as usize);
            let count = source.read(&mut piece[..wanted])?;
            if count == 0 {
                return Ok(());
            }
            target.write_all(&piece[..count])?;
            left -= count as u64;
        }
        position = end;
    }
}
