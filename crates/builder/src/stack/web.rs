//! How the web server serves a folder: settings for nginx, and the program that puts the port in.
//!
//! The same stack stands for the image `nginx`: what Dockerfiles written for the official one rely on is where they look
//! for it. Not here: its entry point, which fills in templates.

use crate::layer::{FinishedLayer, LayerWriter, Meta};
use std::io;
use std::path::Path;

/// What of Debian's packages differs from the official image: its user, and no site of theirs that takes port 80.
pub(super) const AS_OFFICIAL: &str = "rm -f /etc/nginx/sites-enabled/default; \
getent passwd nginx > /dev/null || \
useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin nginx";

/// The site of the official image; nearly every Dockerfile copies into its folder, or replaces this file.
const DEFAULT_SITE: &str = "server {
    listen 80;
    server_name localhost;
    location / {
        root /usr/share/nginx/html;
        index index.html index.htm;
    }
}
";

/// `arco-web site|spa`: `PORT` decides where it listens.
const PROGRAM: &str = "#!/bin/sh
set -eu
mkdir -p /tmp/web
sed \"s/@PORT@/${PORT:-8080}/\" \"/etc/arco-web/$1.conf\" > /tmp/web/nginx.conf
exec nginx -c /tmp/web/nginx.conf -g 'daemon off;'
";

/// Beginning of both configurations. `no-cache`: browsers ask whether a file is still the same, and get 304. Without it
/// they guess by the age of its time, which says nothing here, and would show an old site for months after a deploy
/// (RFC 9111 §4.2.2).
const BEGINNING: &str = "user root;
worker_processes 1;
pid /tmp/web/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  include /etc/nginx/mime.types;
  types { text/javascript mjs; application/manifest+json webmanifest; application/wasm wasm; }
  default_type application/octet-stream;
  charset utf-8;
  charset_types text/html text/css text/plain text/xml text/javascript application/javascript application/json image/svg+xml;
  access_log off;
  sendfile on;
  tcp_nopush on;
  server_tokens off;
  keepalive_timeout 75s;
  gzip on;
  gzip_vary on;
  gzip_min_length 1024;
  gzip_types text/css text/plain text/xml text/javascript application/javascript application/json application/manifest+json image/svg+xml application/wasm;
  server {
    listen @PORT@ default_server;
    root /srv/site;
    index index.html index.htm;
    absolute_redirect off;
    add_header Cache-Control no-cache;
    location ~ /\\.(?!well-known/) { return 404; }
";

const SITE: &str = "    error_page 404 /404.html;
    location = /404.html { internal; try_files /404.html @plain; }
    location @plain { return 404; }
    location / { try_files $uri $uri/ $uri.html =404; }
  }
}
";

const SPA: &str = "    location ~ \\.[A-Za-z0-9]+$ { try_files $uri =404; }
    location / { try_files $uri $uri/index.html $uri.html /index.html; }
  }
}
";

/// The layer with these files.
pub(super) fn layer(work: &Path) -> io::Result<FinishedLayer> {
    let mut writer = LayerWriter::new(work)?;
    for folder in [
        "etc",
        "etc/arco-web",
        "etc/nginx",
        "etc/nginx/conf.d",
        "srv",
        "srv/site",
        "usr",
        "usr/local",
        "usr/local/bin",
        "var",
        "var/cache",
        "var/cache/nginx",
        "var/log",
        "var/log/nginx",
    ] {
        writer.folder(folder, Meta::root(0o755))?;
    }
    // A layer keeps nothing of `/var/log`, and without the folder nginx does not start; its lines belong into the log.
    writer.link("var/log/nginx/access.log", Meta::root(0o777), Path::new("/dev/stdout"))?;
    writer.link("var/log/nginx/error.log", Meta::root(0o777), Path::new("/dev/stderr"))?;
    writer.text("etc/nginx/conf.d/default.conf", 0o644, DEFAULT_SITE)?;
    writer.text("etc/arco-web/site.conf", 0o644, &format!("{BEGINNING}{SITE}"))?;
    writer.text("etc/arco-web/spa.conf", 0o644, &format!("{BEGINNING}{SPA}"))?;
    writer.text("usr/local/bin/arco-web", 0o755, PROGRAM)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::read_tar;

    #[test]
    fn what_the_official_image_has_is_where_dockerfiles_look_for_it() {
        let work = tempfile::tempdir().unwrap();
        let made = layer(work.path()).unwrap();
        let mut archive =
            tar::Archive::new(read_tar(made.file.reopen().unwrap(), &made.layer.blob.media_type).unwrap());
        let mut found = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let target = entry.link_name().unwrap().map(|it| it.display().to_string()).unwrap_or_default();
            found.insert(entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned(), target);
        }
        assert_eq!(found["var/log/nginx/access.log"], "/dev/stdout");
        assert_eq!(found["var/log/nginx/error.log"], "/dev/stderr");
        assert!(
            found.contains_key("etc/nginx/conf.d/default.conf") && found.contains_key("var/cache/nginx"),
            "{found:?}"
        );
        assert!(DEFAULT_SITE.contains("listen 80;") && DEFAULT_SITE.contains("/usr/share/nginx/html"));
    }
}
