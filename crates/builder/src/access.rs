//! How package clients inside of builds reach their registries: what the machine itself is configured with.
//!
//! Certificates and apt settings are files of one folder that steps see read-only at [`INSIDE`]; the rest are
//! variables of the step. Neither becomes a part of an image, and values are never logged.

use arco_config::{BuilderConfig, Egress};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Where steps see the folder.
pub(crate) const INSIDE: &str = "/run/arco-access";

/// How what our proxy says about a refused host begins.
pub(crate) const PROXY: &str = "refused by builder.allowed_hosts";

/// Variables of the platform's own environment that package clients know.
const PASSED: [&str; 26] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
    "YARN_REGISTRY",
    "YARN_NPM_REGISTRY_SERVER",
    "GOPROXY",
    "GONOPROXY",
    "GOPRIVATE",
    "GOSUMDB",
    "GONOSUMDB",
    "GOINSECURE",
    "CARGO_HTTP_PROXY",
    "MAVEN_MIRROR_URL",
];

/// Variables that name a bundle of certificates.
const CERTIFICATES: [&str; 8] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH",
];

/// Where distributions keep their bundle.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What steps are given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Folder of the host that is mounted at [`INSIDE`].
    pub(crate) folder: PathBuf,
    /// Variables.
    pub(crate) env: BTreeMap<String, String>,
}

impl Access {
    /// Reads what this machine is configured with and writes the folder.
    pub(crate) async fn prepare(folder: &Path, config: &BuilderConfig) -> io::Result<Self> {
        tokio::fs::create_dir_all(folder).await?;
        let mut env = BTreeMap::new();
        for name in PASSED {
            // With an allow-list there is one way out, and each build has its own pass for it.
            let way_out = name.to_ascii_lowercase().ends_with("_proxy");
            if let Ok(value) = std::env::var(name)
                && !(way_out && config.egress == Egress::Allowlist)
            {
                env.insert(name.to_owned(), value);
            }
        }
        let own = std::env::var("SSL_CERT_FILE").ok();
        let bundle = own.iter().map(String::as_str).chain(BUNDLES).find(|it| Path::new(it).is_file());
        if let Some(bundle) = bundle {
            tokio::fs::copy(bundle, folder.join("ca.crt")).await?;
            env.extend(CERTIFICATES.iter().map(|it| ((*it).to_owned(), format!("{INSIDE}/ca.crt"))));
        }
        tokio::fs::write(folder.join("apt.conf"), apt_settings(config.egress).await).await?;
        env.insert("APT_CONFIG".to_owned(), format!("{INSIDE}/apt.conf"));
        env.insert("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned());
        env.insert("PIP_DISABLE_PIP_VERSION_CHECK".to_owned(), "1".to_owned());
        env.insert("PIP_ROOT_USER_ACTION".to_owned(), "ignore".to_owned());
        env.insert("npm_config_update_notifier".to_owned(), "false".to_owned());
        // Where the checksum database cannot be reached, Go would fail for a module that go.sum does not list yet.
        if !env.contains_key("GOSUMDB") && config.egress == Egress::Public && !resolves("sum.golang.org:443").await {
            env.insert("GOSUMDB".to_owned(), "off".to_owned());
        }
        env.extend(config.env.clone());
        Ok(Self { folder: folder.to_owned(), env })
    }
}

async fn resolves(host: &str) -> bool {
    let asked = tokio::time::timeout(std::time::Duration::from_secs(3), tokio::net::lookup_host(host)).await;
    asked.is_ok_and(|it| it.is_ok_and(|mut it| it.next().is_some()))
}

/// The machine's apt settings that say how archives are reached.
async fn apt_settings(egress: Egress) -> String {
    // apt's own sandbox user cannot be used in every user namespace; the step is the sandbox.
    let mut settings = "APT::Sandbox::User \"root\";\n".to_owned();
    let dump = tokio::process::Command::new("apt-config")
        .args(["dump", "Acquire"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let text = dump.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::ForceIPv", "Acquire::Retries"];
    let only = egress == Egress::Allowlist;
    if only {
        settings.push_str("Acquire::http::Pipeline-Depth \"0\";\n");
    }
    let is_proxy = |line: &str| line.to_ascii_lowercase().contains("proxy");
    let lines = text.lines().filter(|line| wanted.iter().any(|it| line.starts_with(it)));
    for line in lines.filter(|it| !(only && is_proxy(it))) {
        settings.push_str(line);
        settings.push('\n');
    }
    settings
}
