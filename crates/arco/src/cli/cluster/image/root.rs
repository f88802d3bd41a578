//! What the image holds: this program, the loader and libraries that this process has mapped, the certificate authorities
//! of this machine, and the few files that the C library looks for. Nothing else: no shell, no package.

use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// User and group that the platform runs as in its image.
pub(super) const USER: u64 = 65532;
/// Where the program lies in the image.
pub(super) const PROGRAM: &str = "usr/bin/arco";

/// A file of the image.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum File {
    /// A folder with its mode and owner.
    Folder { mode: u32, owner: u64 },
    /// A link and where it points.
    Link(String),
    /// Content with its mode.
    Content { bytes: Vec<u8>, mode: u32 },
}

/// Path without a leading slash → what is there, in the order of paths: folders come before what they hold.
pub(super) type Files = BTreeMap<String, File>;

/// Everything.
pub(super) fn files() -> anyhow::Result<Files> {
    let program = std::fs::read("/proc/self/exe").context("reading /proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    let own = std::fs::read_link("/proc/self/exe").context("reading the link /proc/self/exe")?;
    let mut files = frame();
    if let Some(loader) = interpreter(&program) {
        let bytes = std::fs::read(&loader).with_context(|| format!("reading the loader {loader}"))?;
        put(&mut files, &beneath_usr(&loader), File::Content { bytes, mode: 0o755 });
        for library in libraries(&maps, &own) {
            add_library(&mut files, &library).with_context(|| format!("reading {}", library.display()))?;
        }
    }
    put(&mut files, PROGRAM, File::Content { bytes: program, mode: 0o755 });
    if let Ok(bytes) = std::fs::read("/etc/ssl/certs/ca-certificates.crt") {
        put(&mut files, "etc/ssl/certs/ca-certificates.crt", File::Content { bytes, mode: 0o644 });
    }
    Ok(files)
}

/// What every image has.
fn frame() -> Files {
    let mut files = Files::new();
    for name in ["bin", "lib", "lib64", "sbin"] {
        put(&mut files, &format!("usr/{name}"), File::Folder { mode: 0o755, owner: 0 });
        files.insert(name.to_owned(), File::Link(format!("usr/{name}")));
    }
    files.insert("tmp".to_owned(), File::Folder { mode: 0o1777, owner: 0 });
    put(&mut files, "var/lib/arco", File::Folder { mode: 0o700, owner: USER });
    put(&mut files, "var/cache/arco", File::Folder { mode: 0o755, owner: USER });
    let texts = [
        (
            "etc/passwd",
            format!("root:x:0:0:root:/:/sbin/nologin\narco:x:{USER}:{USER}:arco:/var/lib/arco:/sbin/nologin\n"),
        ),
        ("etc/group", format!("root:x:0:\narco:x:{USER}:\n")),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ];
    for (path, text) in texts {
        put(&mut files, path, File::Content { bytes: text.into_bytes(), mode: 0o644 });
    }
    files
}

/// Puts a file, and the folders above it.
fn put(files: &mut Files, path: &str, file: File) {
    let mut above = String::new();
    for part in path.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
        above = if above.is_empty() { part.to_owned() } else { format!("{above}/{part}") };
        files.entry(above.clone()).or_insert(File::Folder { mode: 0o755, owner: 0 });
    }
    files.insert(path.to_owned(), file);
}

/// `/lib/x` lies in `usr/lib/x`, as on every merged system; the image has the links.
fn beneath_usr(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") }
}

/// The program's `PT_INTERP`: the loader that the kernel starts; none for a static program. ELF, 64 bits, little endian.
fn interpreter(elf: &[u8]) -> Option<String> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let slice = elf.get(at..at.checked_add(bytes)?)?;
        usize::try_from(slice.iter().rev().fold(0_u64, |sum, it| sum << 8 | u64::from(*it))).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    (0..count).find_map(|index| {
        let at = table.checked_add(index * size)?;
        if number(at, 4)? != 3 {
            return None;
        }
        let (offset, length) = (number(at + 8, 8)?, number(at + 32, 8)?);
        let text = elf.get(offset..offset.checked_add(length)?)?;
        Some(std::str::from_utf8(text).ok()?.trim_end_matches('\0').to_owned())
    })
}

/// Files that are mapped executable into a process, but the program itself.
fn libraries(maps: &str, program: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let rights = fields.nth(1)?;
            let path = &line[line.find('/')?..];
            (rights.contains('x') && Path::new(path) != program).then(|| PathBuf::from(path))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// A library, and the links beside it by which programs name it (`libx.so.2` → `libx.so.2.5.4`).
fn add_library(files: &mut Files, library: &Path) -> anyhow::Result<()> {
    let folder = library.parent().context("no folder")?;
    let name = library.file_name().context("no name")?;
    let target = beneath_usr(&folder.to_string_lossy());
    let bytes = std::fs::read(library)?;
    put(files, &format!("{target}/{}", name.to_string_lossy()), File::Content { bytes, mode: 0o644 });
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|it| it.is_symlink())
            && entry.path().canonicalize().is_ok_and(|it| it == library)
        {
            let link = format!("{target}/{}", entry.file_name().to_string_lossy());
            put(files, &link, File::Link(name.to_string_lossy().into_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_libraries_are_found_and_nothing_else() {
        let maps = "\
55d0-55d1 r-xp 00001000 fe:00 1 /usr/bin/arco
7f00-7f01 r--p 00000000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f01-7f02 r-xp 00001000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f03-7f04 r-xp 00000000 fe:00 3 /opt/a b/libd.so
7f05-7f06 r--p 00000000 fe:00 4 /usr/share/locale/C.utf8
7ffd-7ffe r-xp 00000000 00:00 0 [vdso]";
        let found = libraries(maps, Path::new("/usr/bin/arco"));
        assert_eq!(found, [PathBuf::from("/opt/a b/libd.so"), PathBuf::from("/usr/lib/x86_64-linux-gnu/libc.so.6")]);
    }

    #[test]
    fn the_loader_is_read_from_the_program() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let loader = interpreter(&own).expect("tests are linked dynamically");
        assert!(Path::new(&loader).is_absolute() && Path::new(&loader).exists(), "{loader}");
        for broken in [&b""[..], b"#!/bin/sh", &own[..70], b"\x7fELF\x02\x01"] {
            assert_eq!(interpreter(broken), None);
        }
    }

    #[test]
    fn folders_come_before_what_they_hold() {
        let files = files().unwrap();
        for path in files.keys() {
            if let Some((above, _)) = path.rsplit_once('/') {
                assert!(matches!(files[above], File::Folder { .. }), "{above} of {path}");
            }
        }
        let sane = |path: &str| !path.starts_with('/') && !path.split('/').any(|it| it.is_empty() || it == "..");
        assert!(files.keys().all(|it| sane(it)), "{:?}", files.keys());
        assert!(files.keys().any(|it| it.ends_with("/libc.so.6")), "{:?}", files.keys());
    }
}
