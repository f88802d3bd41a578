//! Configuration files of a component: texts that its instances find at paths of their own, written for them and read-only.
//!
//! What must hold: a path means one thing: no file is another one's folder, a volume's own path, or the platform's. A file
//! names a secret, never its value. How drivers put files into instances is theirs.

use super::{VolumeSpec, is_volume_path};
use crate::error::Problem;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Most files of a component.
pub const FILES_MAX: usize = 100;
/// Most bytes that the files of a component have together, without values of secrets: what a ConfigMap can hold.
pub const CONTENT_MAX_BYTES: usize = 1 << 20;
/// Longest path in bytes.
const PATH_MAX_BYTES: usize = 1024;
/// Written by the platform in every instance.
const OURS: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// A configuration file: `content`, or the value of a secret of the component.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path inside the instance.
    pub path: String,
    /// What is in it (UTF-8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Name of the secret whose value is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Who may read and execute it inside the instance, whose user owns it; `0444` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
}

/// Permission bits of a file, written as octal digits in quotes: `"0444"`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileMode(u32);

impl FileMode {
    /// The bits; at most 0777, and the owner may read.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for FileMode {
    /// Everybody in the instance may read.
    fn default() -> Self {
        Self(0o444)
    }
}

impl FromStr for FileMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|it| (b'0'..=b'7').contains(&it));
        let bits = u32::from_str_radix(text, 8).ok().filter(|it| octal && *it <= 0o777 && it & 0o400 != 0);
        let shown: String = text.chars().take(20).collect();
        bits.map(Self)
            .ok_or_else(|| format!("`{shown}` is no mode: give octal digits that let the owner read, as 0400"))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Octal;
        impl de::Visitor<'_> for Octal {
            type Value = FileMode;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mode in quotes, as \"0400\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FileMode, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_str(Octal)
    }
}

/// Whether a configuration file can lie there: an absolute path below `/` that the platform does not use itself.
pub fn is_file_path(path: &str) -> bool {
    let odd = path.len() > PATH_MAX_BYTES || path.chars().any(|it| it.is_control() || it == ':');
    !odd && is_volume_path(path) && !OURS.contains(&path) && path != "/.arco" && !path.starts_with("/.arco/")
}

/// Checks the files of a component beside its volumes and secrets.
pub fn validate(files: &[FileSpec], volumes: &[VolumeSpec], secrets: &BTreeMap<String, u64>) -> Result<(), Problem> {
    let bad = |code: &str, message: String, advice: &str| Err(Problem::invalid(code, message, advice));
    if files.len() > FILES_MAX {
        let message = format!("{} configuration files are too many", files.len());
        return bad("files_too_many", message, "a component has 100 at most; put more into its image or a volume");
    }
    for (at, file) in files.iter().enumerate() {
        let path = &file.path;
        if !is_file_path(path) {
            let message =
                format!("`{}` is no path for a configuration file", path.chars().take(80).collect::<String>());
            let advice = "give an absolute path as `/etc/app/app.conf`, without `:`, `.` and `..`, outside /proc, /sys and \
                          /dev; /etc/hosts, /etc/hostname and /etc/resolv.conf are the platform's";
            return bad("file_path_invalid", message, advice);
        }
        let others = files.iter().enumerate().filter(|it| it.0 != at).map(|(_, it)| &it.path);
        let mut taken = others.chain(volumes.iter().map(|it| &it.path));
        if let Some(other) = taken.find(|it| it.strip_prefix(path.as_str()).is_some_and(is_at_or_below)) {
            let message = format!("`{path}` is to be a configuration file, and `{other}` something else or below it");
            return bad("file_path_taken", message, "give each file and volume a path of its own");
        }
        match (&file.content, &file.secret) {
            (Some(_), Some(_)) | (None, None) => {
                let message = format!("the file `{path}` needs either `content` or `secret`");
                return bad("file_content_invalid", message, "give the text as `content`, or the name of a secret");
            }
            (Some(content), None) if content.contains('\0') => {
                let message = format!("the content of the file `{path}` is not text: it has a NUL");
                return bad("file_content_invalid", message, "bring binary files with the image or a volume");
            }
            (None, Some(secret)) if !secrets.contains_key(secret) => {
                let message = format!("the file `{path}` is to hold the secret `{secret}`, which is not set");
                let advice = "`arco secret set APP/COMPONENT NAME=@FILE` sets it; `arco file unset` takes the file out";
                return bad("file_secret_missing", message, advice);
            }
            _ => {}
        }
    }
    let bytes: usize = files.iter().filter_map(|it| it.content.as_ref()).map(String::len).sum();
    if bytes > CONTENT_MAX_BYTES {
        let message = format!("configuration files with {bytes} bytes together are too large");
        return bad("files_too_large", message, "they may have 1 MiB; bring larger ones with the image or a volume");
    }
    Ok(())
}

/// What is left of a path behind another one: nothing, or a way down.
fn is_at_or_below(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VolumeKind;

    fn text(path: &str, content: &str) -> FileSpec {
        FileSpec { path: path.into(), content: Some(content.into()), secret: None, mode: None }
    }

    fn secret(path: &str) -> FileSpec {
        FileSpec { content: None, secret: Some("KEY".into()), ..text(path, "") }
    }

    #[test]
    fn each_broken_rule_has_its_code() {
        let whole = "x".repeat(CONTENT_MAX_BYTES);
        let many = |count: usize| (0..count).map(|it| text(&format!("/etc/{it}"), "")).collect::<Vec<_>>();
        let one = |it: FileSpec| vec![it];
        let rows: Vec<(&str, Vec<FileSpec>)> = vec![
            ("", vec![]),
            ("", vec![text("/etc/app/a.conf", "a"), text("/etc/app/a", "b"), secret("/data/key.pem")]),
            ("", one(text("/a", &whole))),
            ("", many(FILES_MAX)),
            ("files_too_many", many(FILES_MAX + 1)),
            ("files_too_large", vec![text("/a", &whole), text("/b", "x")]),
            ("file_path_taken", vec![text("/a", "x"), text("/a", "y")]),
            ("file_path_taken", vec![text("/a/b", "x"), text("/a", "y")]),
            ("file_path_taken", one(text("/data", "x"))),
            ("file_path_taken", one(text("/var", "x"))),
            ("file_content_invalid", one(FileSpec { secret: Some("KEY".into()), ..text("/a", "x") })),
            ("file_content_invalid", one(FileSpec { content: None, ..text("/a", "x") })),
            ("file_content_invalid", one(text("/a", "a\0b"))),
            ("file_secret_missing", one(FileSpec { secret: Some("NONE".into()), ..secret("/a") })),
        ];
        let volume = |path: &str| VolumeSpec {
            name: "v".parse().unwrap(),
            path: path.into(),
            size_mb: 10,
            kind: VolumeKind::Shared,
            class: None,
        };
        let volumes = [volume("/data"), volume("/var/data")];
        let secrets = [("KEY".to_owned(), 3)].into();
        for (code, files) in rows {
            let found = validate(&files, &volumes, &secrets).err().map(|it| it.code).unwrap_or_default();
            assert_eq!(found, code, "{:?}", files.iter().map(|it| &it.path).take(3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn paths_are_absolute_plain_and_not_the_platforms() {
        for path in ["/a", "/etc/app/app.conf", "/etc/hosts.d/a", "/.arcorc", "/srv/ä b"] {
            assert!(is_file_path(path), "{path}");
        }
        let long = format!("/{}", "a".repeat(PATH_MAX_BYTES));
        for path in [
            "",
            "/",
            "a",
            "/a/",
            "//a",
            "/a/../b",
            "/./a",
            "/proc/a",
            "/sys/a",
            "/dev/a",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/.arco/init",
            "/.arco",
            "/a:b",
            "/a\nb",
            long.as_str(),
        ] {
            assert!(!is_file_path(path), "{path}");
        }
    }

    #[test]
    fn modes_are_octal_and_let_the_owner_read() {
        for (written, mode, shown) in [("0400", 0o400, "0400"), ("644", 0o644, "0644"), ("0777", 0o777, "0777")] {
            let read: FileMode = written.parse().unwrap();
            assert_eq!((read.bits(), read.to_string().as_str()), (mode, shown));
        }
        for wrong in ["", "4", "0", "0200", "1777", "4755", "0888", "+644", "00444", "r--r--r--"] {
            assert!(wrong.parse::<FileMode>().is_err(), "{wrong}");
        }
        let file: FileSpec = serde_json::from_str(r#"{"path": "/a", "content": "x", "mode": "400"}"#).unwrap();
        let back = serde_json::to_string(&file).unwrap();
        assert_eq!(back, r#"{"path":"/a","content":"x","mode":"0400"}"#);
        let wrong = serde_json::from_str::<FileSpec>(r#"{"path": "/a", "content": "x", "mode": 400}"#).unwrap_err();
        assert!(wrong.to_string().contains("in quotes"), "{wrong}");
    }
}
