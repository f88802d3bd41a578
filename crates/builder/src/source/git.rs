//! Fetches a repository with `git` in a one-shot workload of the build network.
//!
//! The script is a constant; URL and reference are arguments. Only http, https, ssh and git transports are allowed,
//! hooks are off, submodules are not fetched, and nothing of the machine's git configuration is read. What must hold: a
//! credential is in the memory and on the tmpfs of this one step, goes to the host of its scope only, and appears in no
//! argument, log or layer.

use crate::access::PROXY;
use crate::detect::Stack;
use crate::runner::{Runner, StepFault, StepRun};
use arco_model::artifact::Layer;
use arco_model::component::Component;
use arco_model::credential::{self, CredentialKind, GitCredential, Scope, without_user};
use arco_model::error::{ErrorKind, Problem};
use arco_model::plan::{LayerExport, OneShotNetwork};
use arco_model::source::git_url;
use arco_store::secrets::Sealed;
use arco_store::sql::Query;
use std::collections::BTreeMap;

/// What git says when it did not reach a repository, or was not let in: then there is no history to look through.
macro_rules! away {
    () => {
        "unable to access|Could not read from remote|unable to (look up|connect)|Authentication failed|could not read (Username|Password)"
    };
}

/// `$1`: URL, `$2`: branch, tag or commit, or empty. Prints `commit <hash>` last, before it `host key <type> <base64>`
/// for each key that the ssh host showed. `/dev/shm` is memory.
const SCRIPT: &str = concat!(
    "umask 077; ssh=/dev/shm/ssh; mkdir -p $ssh; \
    printf '%s\\n' 'Host *' 'BatchMode yes' 'ForwardAgent no' 'HashKnownHosts no' \
      'GlobalKnownHostsFile /dev/null' \"UserKnownHostsFile $ssh/known\" > $ssh/config; \
    if [ -n \"${ARCO_GIT_HOST_KEYS-}\" ]; then printf '%s\\n' \"$ARCO_GIT_HOST_KEYS\" > $ssh/known; \
      echo 'StrictHostKeyChecking yes' >> $ssh/config; \
    else echo 'StrictHostKeyChecking accept-new' >> $ssh/config; fi; \
    if [ -n \"${ARCO_GIT_SSH_KEY-}\" ]; then printf '%s\\n' \"$ARCO_GIT_SSH_KEY\" > $ssh/key; \
      printf '%s\\n' \"User $ARCO_GIT_USER\" \"IdentityFile $ssh/key\" 'IdentitiesOnly yes' >> $ssh/config; fi; \
    if [ -n \"${ARCO_PROXY-}\" ]; then \
      printf '%s\\n' \"$ARCO_PROXY_COMMAND\" > $ssh/proxy; echo \"ProxyCommand perl $ssh/proxy %h %p\" >> $ssh/config; fi; \
    unset ARCO_GIT_SSH_KEY ARCO_GIT_HOST_KEYS; umask 022; \
    mkdir -p /source; cd /source; git init -q; \
    if [ -n \"$2\" ]; then \
      git fetch -q --depth 1 --no-tags --no-recurse-submodules -- \"$1\" \"$2\" 2> /tmp/said && cat /tmp/said >&2 \
      || { cat /tmp/said >&2; ! grep -qE '",
    away!(),
    "' /tmp/said || exit 1; \
           echo 'not found as a branch, tag or advertised commit; looking through the history'; \
           git fetch -q --no-recurse-submodules -- \"$1\" '+refs/*:refs/remotes/all/*'; \
           git rev-parse -q --verify \"$2^{commit}\" > .git/FETCH_HEAD; }; \
    else git fetch -q --depth 1 --no-tags --no-recurse-submodules -- \"$1\" HEAD; fi; \
    unset ARCO_GIT_TOKEN; rm -f $ssh/key; \
    git checkout -q --detach \"$(cut -c1-40 .git/FETCH_HEAD | head -n 1)\" --; \
    commit=$(git rev-parse HEAD); rm -rf .git; \
    if [ -s $ssh/known ]; then sed -n 's/^[^ #]* \\([^ ]* [^ ]*\\).*/host key \\1/p' $ssh/known; fi; echo \"commit $commit\""
);

/// Connects ssh through the proxy of an allow-list (perl comes with git).
const PROXY_COMMAND: &str = r#"use strict; use IO::Socket::INET; use IO::Select; use MIME::Base64;
my ($user, $at) = $ENV{ARCO_PROXY} =~ m{^http://(?:([^@]*)@)?([^/]+)} or die "bad proxy";
my $s = IO::Socket::INET->new(PeerAddr => $at) or die "proxy: $!";
my $auth = defined $user ? "Proxy-Authorization: Basic " . encode_base64($user, "") . "\r\n" : "";
syswrite $s, "CONNECT $ARGV[0]:$ARGV[1] HTTP/1.1\r\nHost: $ARGV[0]:$ARGV[1]\r\n$auth\r\n";
my $head = ""; while ($head !~ /\r\n\r\n$/) { sysread($s, my $c, 1) or die "proxy closed"; $head .= $c }
$head =~ m{^HTTP/1.1 200} or do { my ($l) = split /\r\n/, $head; print STDERR "$l\n"; exit 1 };
my $r = IO::Select->new($s, \*STDIN);
while (my @h = $r->can_read) { for my $h (@h) {
  my $n = sysread($h, my $b, 65536);
  if (!$n) { exit 0 if $h == $s; $r->remove($h); shutdown($s, 1); next }
  my $o = $h == $s ? \*STDOUT : $s; my $p = 0;
  while ($p < $n) { my $w = syswrite($o, $b, $n - $p, $p); exit 1 if !$w; $p += $w } } }
"#;

/// Answers git's question for its one host; everything of a person's choosing comes from variables.
const HELPER: &str =
    "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \"$ARCO_GIT_USER\" \"$ARCO_GIT_TOKEN\"; }; f";

/// Fetches into a layer that holds `/source`; returns it with the commit.
pub(crate) async fn fetch(
    runner: &Runner<'_>,
    component: &Component,
    url: &str,
    reference: &str,
) -> Result<(Layer, Option<String>), Problem> {
    git_url(url)
        .map_err(|it| Problem::invalid("git_url_refused", it.to_string(), "use an https, http, ssh or git URL"))?;
    if reference.starts_with('-') {
        return Err(Problem::invalid(
            "ref_invalid",
            format!("`{reference}` is not a branch, tag or commit"),
            "give an existing one",
        ));
    }
    let shown = without_user(url);
    let credential = credential(runner, component, url).await?;
    let at = if reference.is_empty() { String::new() } else { format!(" at {reference}") };
    let with = credential.as_ref().map(|it| format!(" with the credential for {}", it.0.scope)).unwrap_or_default();
    runner.say(format!("fetching {shown}{at}{with}")).await;
    let image = runner.stack(&Stack::Fetch).await?;
    let argv = ["/bin/sh", "-euc", SCRIPT, "fetch", url, reference].map(str::to_owned).to_vec();
    let mut step = StepRun::new("fetch the source", image.reference, argv);
    step.env = environment(url, credential.as_ref());
    step.network = OneShotNetwork::Build;
    step.export = Some(LayerExport { include: vec!["/source".to_owned()], exclude: vec!["/source/.git".to_owned()] });
    let known = credential.as_ref().map(|it| &it.0);
    let done = runner.run(step).await.map_err(|fault| explain(fault, &shown, known))?;
    if let Some(found) = known.filter(|it| it.kind == CredentialKind::SshKey && it.host_keys.is_empty()) {
        let shown: Vec<String> =
            done.last_lines.iter().filter_map(|it| it.strip_prefix("host key ")).map(str::to_owned).collect();
        pin(runner, found, shown).await;
    }
    let commit = done.last_lines.iter().rev().find_map(|it| it.strip_prefix("commit ")).map(str::to_owned);
    let layer = done.layer.ok_or_else(|| Problem::internal("keep the fetched source"))?;
    Ok((layer, commit))
}

/// The credential for a URL with its value, when the tenant or the application keeps one.
async fn credential(
    runner: &Runner<'_>,
    component: &Component,
    url: &str,
) -> Result<Option<(GitCredential, String)>, Problem> {
    let failed = crate::storage("look for a Git credential");
    let rows = runner.inner.metadata.list::<GitCredential>(&Query::parent(component.tenant.as_str())).await;
    let rows: Vec<_> = rows.map_err(|it| failed(&it))?.items.into_iter().map(|it| it.value).collect();
    let Some(found) = credential::choose(&rows, &component.application, url) else { return Ok(None) };
    let sealed = Sealed { key_id: found.key_id.clone(), text: found.sealed.clone() };
    let value = runner.inner.secrets.unseal(&found.context(), &sealed).map_err(|error| {
        let message = format!("the credential for {} cannot be opened: {error}", found.scope);
        Problem::new(ErrorKind::Unavailable, "credential_unreadable", message, "set it again: `arco credential set`")
    })?;
    let value = String::from_utf8(value).map_err(|_| Problem::internal("open a Git credential"))?;
    Ok(Some((found.clone(), value)))
}

/// Variables of the step.
fn environment(url: &str, credential: Option<&(GitCredential, String)>) -> BTreeMap<String, String> {
    let mut settings = vec![
        ("core.hooksPath".to_owned(), "/dev/null"),
        ("protocol.file.allow".to_owned(), "never"),
        ("http.lowSpeedLimit".to_owned(), "1"),
        ("http.lowSpeedTime".to_owned(), "120"),
    ];
    let fixed = [
        ("GIT_ALLOW_PROTOCOL", "http:https:ssh:git"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_LFS_SKIP_SMUDGE", "1"),
        ("GIT_SSH_COMMAND", "ssh -F /dev/shm/ssh/config"),
        ("GIT_SSH_VARIANT", "ssh"),
        ("ARCO_PROXY_COMMAND", PROXY_COMMAND),
        ("HOME", "/tmp"),
    ];
    let mut env: BTreeMap<String, String> = fixed.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    if let (Some((row, value)), Ok(scope)) = (credential, Scope::parse(url)) {
        env.insert("ARCO_GIT_USER".to_owned(), row.user.clone());
        match row.kind {
            CredentialKind::Token => {
                // Git matches the key against transport, host and port of whatever it talks to, also after a redirect.
                settings.push((format!("credential.https://{}.helper", scope.authority()), HELPER));
                env.insert("ARCO_GIT_TOKEN".to_owned(), value.clone());
            }
            CredentialKind::SshKey => {
                let host = scope.port.map_or_else(|| scope.host.clone(), |port| format!("[{}]:{port}", scope.host));
                let keys: Vec<String> = row.host_keys.iter().map(|it| format!("{host} {it}")).collect();
                env.insert("ARCO_GIT_SSH_KEY".to_owned(), value.clone());
                env.insert("ARCO_GIT_HOST_KEYS".to_owned(), keys.join("\n"));
            }
        }
    }
    env.insert("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string());
    for (at, (key, value)) in settings.into_iter().enumerate() {
        env.insert(format!("GIT_CONFIG_KEY_{at}"), key);
        env.insert(format!("GIT_CONFIG_VALUE_{at}"), value.to_owned());
    }
    env
}

/// Keeps the keys that a host showed at the first time. Failing costs nothing but the pin, which the next fetch sets.
async fn pin(runner: &Runner<'_>, credential: &GitCredential, shown: Vec<String>) {
    let Ok(keys) = credential::host_keys(&shown.join("\n")) else { return };
    if keys.is_empty() {
        return;
    }
    runner.say(format!("the host key of {} is kept: from now on no other is accepted", credential.scope)).await;
    let kept = runner.inner.metadata.modify::<GitCredential>(credential.id.as_str(), |it| {
        let first = it.host_keys.is_empty() && it.sealed == credential.sealed;
        if first {
            it.host_keys.clone_from(&keys);
        }
        first
    });
    if let Err(error) = kept.await {
        tracing::warn!(scope = credential.scope, %error, "the host key of a Git server is not kept");
    }
}

/// What a failed fetch means for the person who asked for it.
fn explain(fault: StepFault, shown: &str, credential: Option<&GitCredential>) -> Problem {
    let problem = fault.problem;
    if problem.code == "build_disk_full" {
        let message = format!("the repository {shown} is too large: {}", problem.message);
        let advice = "deploy a smaller one (all of it is fetched, also with `--dir`), or raise `builder.disk_mb`";
        return Problem::new(ErrorKind::LimitReached, "source_too_large", message, advice);
    }
    if problem.code != "step_failed" {
        return problem;
    }
    let said = |words: &[&str]| fault.last_lines.iter().any(|line| words.iter().any(|it| line.contains(it)));
    let scope = Scope::parse(shown).map(|it| it.authority()).unwrap_or_else(|_| shown.to_owned());
    if said(&["REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key verification failed", "host key is known for"]) {
        let message = format!("the Git server {scope} shows another host key than the one that is kept for it");
        let advice = "if its owner says that the key changed, set the credential again with `--host-key @FILE`; otherwise somebody is between you";
        return Problem::new(ErrorKind::Denied, "host_key_changed", message, advice);
    }
    let denied = [
        "Authentication failed",
        "could not read Username",
        "Permission denied",
        "HTTP Basic: Access denied",
        "Repository not found",
        "requested URL returned error: 401",
        "requested URL returned error: 403",
    ];
    if said(&denied) && !said(&[PROXY]) {
        let (message, advice) = match credential {
            Some(it) => (
                format!("the Git server {scope} does not let the credential for {} read {shown}", it.scope),
                "check that it is not expired and may read this repository, then set it again: `arco credential set`",
            ),
            None => (
                format!("the Git server {scope} lets nobody read {shown} without a credential"),
                "check the URL; for a private repository: `arco credential set URL --token @FILE` (https) or `--ssh-key @FILE` (ssh)",
            ),
        };
        return Problem::new(ErrorKind::Denied, "git_denied", message, advice);
    }
    let advice = "check that the URL and the reference exist and may be read; private addresses are reached only when `builder.allowed_networks` names them";
    Problem::new(ErrorKind::Failed, "fetch_failed", problem.message, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::name::TenantName;
    use arco_model::time::Timestamp;

    fn row(kind: CredentialKind, scope: &str, host_keys: &[&str]) -> GitCredential {
        GitCredential {
            id: "00000000000000000000".parse().unwrap(),
            tenant: TenantName::default_tenant(),
            application: None,
            scope: scope.to_owned(),
            kind,
            user: "me".to_owned(),
            host_keys: host_keys.iter().map(|it| (*it).to_owned()).collect(),
            key_id: String::new(),
            sealed: String::new(),
            created_at: Timestamp(0),
        }
    }

    #[test]
    fn a_token_is_bound_to_its_host_and_a_key_to_the_keys_of_its_host() {
        let token = row(CredentialKind::Token, "https://h:8443", &[]);
        let env = environment("https://h:8443/a.git", Some(&(token, "hunter2".to_owned())));
        let keys: Vec<&String> = env.iter().filter(|it| it.0.starts_with("GIT_CONFIG_KEY")).map(|it| it.1).collect();
        assert!(keys.iter().any(|it| *it == "credential.https://h:8443.helper"), "{keys:?}");
        let holding: Vec<&String> = env.iter().filter(|it| it.1.contains("hunter2")).map(|it| it.0).collect();
        assert_eq!(holding, ["ARCO_GIT_TOKEN"]);

        let key = row(CredentialKind::SshKey, "ssh://h:2222", &["ssh-rsa A", "ssh-ed25519 B"]);
        let env = environment("ssh://git@h:2222/a.git", Some(&(key, "key".to_owned())));
        assert_eq!(env["ARCO_GIT_HOST_KEYS"], "[h]:2222 ssh-rsa A\n[h]:2222 ssh-ed25519 B");
        assert!(!environment("https://h/a", None).keys().any(|it| it.starts_with("ARCO_GIT_")));
    }

    #[test]
    fn the_history_is_looked_through_only_where_a_repository_answered() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        for (line, away) in [
            ("fatal: unable to access 'https://h/a.git/': Could not resolve host: h", true),
            ("ssh: Could not resolve hostname h\nfatal: Could not read from remote repository.", true),
            ("fatal: could not read Username for 'https://h': terminal prompts disabled", true),
            ("fatal: couldn't find remote ref v9", false),
            ("error: Server does not allow request for unadvertised object 0123", false),
            ("fatal: remote error: upload-pack: not our ref 0123", false),
        ] {
            std::fs::write(&said, line).unwrap();
            let found = std::process::Command::new("grep").args(["-qE", away!()]).arg(&said).status().unwrap();
            assert_eq!(found.success(), away, "{line}");
        }
        let checked = std::process::Command::new("sh").args(["-nc", SCRIPT]).status().unwrap();
        assert!(checked.success(), "the script can be read");
    }

    #[test]
    fn faults_are_told_apart() {
        let fault = |line: &str| StepFault {
            problem: Problem::new(ErrorKind::Failed, "step_failed", "x", "y"),
            last_lines: vec![line.to_owned()],
        };
        let token = row(CredentialKind::Token, "https://h", &[]);
        for (line, credential, code) in [
            ("fatal: could not read Username for 'https://h': terminal prompts disabled", None, "git_denied"),
            ("fatal: Authentication failed for 'https://h/a.git/'", Some(&token), "git_denied"),
            ("git@h: Permission denied (publickey).", None, "git_denied"),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", Some(&token), "host_key_changed"),
            ("fatal: couldn't find remote ref x", None, "fetch_failed"),
            ("proxy: h is refused by builder.allowed_hosts; requested URL returned error: 403", None, "fetch_failed"),
        ] {
            assert_eq!(explain(fault(line), "https://h/a.git", credential).code, code, "{line}");
        }
    }
}
