//! How the web server serves a folder: settings for nginx, and the program that puts the port in.

use crate::layer::{FinishedLayer, LayerWriter, Meta};
use std::io;
use std::path::Path;

/// `arco-web site|spa`: `PORT` decides where it listens.
const PROGRAM: &str = "#!/bin/sh
set -eu
mkdir -p /tmp/web
sed \"s/@PORT@/${PORT:-8080}/\" \"/etc/arco-web/$1.conf\" > /tmp/web/nginx.conf
exec nginx -c /tmp/web/nginx.conf -g 'daemon off;'
";

/// `no-cache`: browsers ask whether a file is still the same, and get 304. Without it they guess by the age of its time, which
/// says nothing here, and would show an old site for months after a deploy (RFC 9111 §4.2.2).
const COMMON: &str = "user root;
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
    for folder in ["etc", "etc/arco-web", "srv", "srv/site", "usr", "usr/local", "usr/local/bin"] {
        writer.folder(folder, Meta::root(0o755))?;
    }
    writer.text("etc/arco-web/site.conf", 0o644, &format!("{COMMON}{SITE}"))?;
    writer.text("etc/arco-web/spa.conf", 0o644, &format!("{COMMON}{SPA}"))?;
    writer.text("usr/local/bin/arco-web", 0o755, PROGRAM)?;
    writer.finish()
}
