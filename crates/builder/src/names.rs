//! Which image a name means: an alias, a stack that we make, or an image of our own registry.

use crate::detect::Stack;
use arco_config::BuilderConfig;
use arco_model::error::Problem;
use arco_model::name::TenantName;

/// What a name means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Meaning {
    /// No layers at all.
    Scratch,
    /// One of our stacks.
    Stack(Stack),
    /// An image of our registry: repository, and tag or digest.
    Repository(String, String),
}

/// Looks a name up for a tenant; the second of the result is a line for the log where it is not exactly what was asked:
/// `note: …`, or `warning: …` where a program may fail for it, which people are told again at the end.
pub(crate) fn meaning(
    name: &str,
    tenant: &TenantName,
    config: &BuilderConfig,
) -> Result<(Meaning, Option<String>), Problem> {
    if name == "scratch" {
        return Ok((Meaning::Scratch, None));
    }
    let short =
        ["docker.io/library/", "docker.io/", "library/"].iter().find_map(|it| name.strip_prefix(it)).unwrap_or(name);
    let aliased = [name, short]
        .into_iter()
        .find_map(|it| config.image_aliases.get(it).or_else(|| config.image_aliases.get(&format!("{it}:latest"))));
    let wanted = aliased.map_or(short, String::as_str);
    let (path, reference) = match wanted.split_once('@') {
        Some((path, digest)) => (path.split_once(':').filter(|it| !it.1.contains('/')).map_or(path, |it| it.0), digest),
        None => match wanted.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (wanted, "latest"),
        },
    };
    if let Some(stack) = path.strip_prefix("stack/") {
        let unknown = || {
            Problem::invalid(
                "stack_unknown",
                format!("there is no stack `{stack}`"),
                "use stack/base, stack/node-22, stack/python-3.11, stack/go-1.26 or stack/web",
            )
        };
        return if reference == "latest" {
            Ok((Meaning::Stack(Stack::from_name(stack).ok_or_else(unknown)?), None))
        } else {
            Ok((Meaning::Repository(path.to_owned(), reference.to_owned()), None))
        };
    }
    if aliased.is_none()
        && let Some(found) = toolchain(path, reference)
    {
        return Ok(found);
    }
    // `127.0.0.1:5000/tenant/application/component` as clients of our registry write it
    let words: Vec<&str> = path.split('/').collect();
    let words = match words.as_slice() {
        [host, rest @ ..] if rest.len() == 3 && (host.contains(':') || host.contains('.') || *host == "localhost") => {
            rest.to_vec()
        }
        other => other.to_vec(),
    };
    match words.as_slice() {
        [application, component] => {
            Ok((Meaning::Repository(format!("{tenant}/{application}/{component}"), reference.to_owned()), None))
        }
        [owner, _, _] if *owner == tenant.as_str() => {
            Ok((Meaning::Repository(words.join("/"), reference.to_owned()), None))
        }
        [owner, _, _] => {
            let message = format!("the image `{name}` belongs to the tenant `{owner}`");
            Err(Problem::new(
                arco_model::error::ErrorKind::Denied,
                "image_denied",
                message,
                "use an image of your own tenant",
            ))
        }
        _ => Err(unknown(name)),
    }
}

/// The error for a name that nothing answers to.
pub(crate) fn unknown(name: &str) -> Problem {
    let message = format!("the image `{name}` is not known here");
    let advice = "begin from debian:12, node, python, golang or nginx (docs/guides/images.md), push it to this platform's registry \
                  as TENANT/APP/COMPONENT:TAG, or say what it means with `builder.image_aliases` in the server's file";
    Problem::invalid("image_unknown", message, advice)
}

/// Well-known images that our toolchains stand for; `docs/guides/images.md` lists them.
fn toolchain(path: &str, tag: &str) -> Option<(Meaning, Option<String>)> {
    let mut words = tag.split('-');
    let version = words.next().unwrap_or("latest");
    let alpine = tag
        .contains("alpine")
        .then(|| format!("note: `{path}:{tag}` is built on Debian here: packages come from apt-get, not apk"));
    let other = |is: &str| Some(format!("warning: `{path}:{tag}` is {is} here; no other version is built in"));
    let latest =
        matches!(version, "latest" | "lts" | "current" | "slim" | "alpine" | "bookworm" | "stable" | "mainline");
    let number = |at: usize| version.split('.').nth(at).and_then(|it| it.parse::<u32>().ok());
    Some(match path {
        "node" => (Meaning::Stack(Stack::Node(if latest { 22 } else { number(0)? })), alpine),
        "python" => {
            let exact = latest || matches!((number(0), number(1)), (Some(3), None | Some(11)));
            (Meaning::Stack(Stack::Python), if exact { alpine } else { other("Python 3.11") })
        }
        "golang" => {
            let minor = number(1).unwrap_or(26).max(26);
            // What is written for an older Go is built by a newer one (https://go.dev/doc/go1compat).
            let newer =
                number(1).filter(|it| *it < minor).map(|_| format!("note: `{path}:{tag}` is Go 1.{minor} here"));
            (Meaning::Stack(Stack::Go(minor)), newer.or(alpine))
        }
        "nginx" => {
            let exact = latest || matches!((number(0), number(1)), (Some(1), None | Some(22)));
            (Meaning::Stack(Stack::Web), if exact { alpine } else { other("nginx 1.22") })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_aliases_stacks_or_images_of_ours() {
        let (tenant, config) = (TenantName::default_tenant(), BuilderConfig::default());
        let digest = format!("sha256:{}", "a".repeat(64));
        let ours = |it: &str, tag: &str| Meaning::Repository(it.to_owned(), tag.to_owned());
        for (name, expected) in [
            ("scratch", Meaning::Scratch),
            ("debian:12", Meaning::Stack(Stack::Base)),
            ("debian", Meaning::Stack(Stack::Base)),
            ("docker.io/library/debian:bookworm-slim", Meaning::Stack(Stack::Base)),
            ("stack/node-22", Meaning::Stack(Stack::Node(22))),
            ("node:20-alpine", Meaning::Stack(Stack::Node(20))),
            ("golang:1.22", Meaning::Stack(Stack::Go(26))),
            ("python:3.12-slim", Meaning::Stack(Stack::Python)),
            ("shop/web:r3", ours("default/shop/web", "r3")),
            ("default/shop/web", ours("default/shop/web", "latest")),
            ("127.0.0.1:5000/default/shop/web:1", ours("default/shop/web", "1")),
            (&format!("shop/web@{digest}"), ours("default/shop/web", &digest)),
        ] {
            assert_eq!(meaning(name, &tenant, &config).unwrap().0, expected, "{name}");
        }
        for (name, part) in [
            ("python:3.12-slim", Some("warning: `python:3.12-slim` is Python 3.11 here")),
            ("python:3.11-alpine", Some("note: `python:3.11-alpine` is built on Debian")),
            ("python:3", None),
            ("golang:1.22", Some("note: `golang:1.22` is Go 1.26 here")),
            ("golang:1.26", None),
            ("nginx:1.27-alpine", Some("warning: `nginx:1.27-alpine` is nginx 1.22 here")),
            ("nginx", None),
            ("node:20", None),
        ] {
            let told = meaning(name, &tenant, &config).unwrap().1;
            assert_eq!(
                told.as_ref().map(|it| it.starts_with(part.unwrap_or("?"))),
                part.map(|_| true),
                "{name}: {told:?}"
            );
        }
        for (name, code) in [
            ("other/shop/web:1", "image_denied"),
            ("redis:7", "image_unknown"),
            ("stack/none", "stack_unknown"),
            ("ghcr.io/a/b/c/d:1", "image_unknown"),
        ] {
            assert_eq!(meaning(name, &tenant, &config).unwrap_err().code, code, "{name}");
        }
    }
}
