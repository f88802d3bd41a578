//! What acts: looks at what is known after each change, fetches certificates that are named, tells the table, writes
//! statuses back.
//!
//! What must hold: nothing is told before everything was listed that can be, and every certificate asked for; a step that fails is
//! tried again and holds nothing else back.

use super::follow::Followed;
use super::kind::Kind;
use super::status::Status;
use super::table::check;
use super::translate::{Terms, secrets, translate};
use super::world::Name;
use super::{RouteTable, ServedCertificate};
use crate::cluster::{Cluster, Verdict, verdict, words};
use arco_store::clock;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(50);
/// When something failed, another look comes after this.
const AGAIN: Duration = Duration::from_secs(2);
/// How often kinds that the cluster does not have are looked for.
const DISCOVER: Duration = Duration::from_secs(60);

/// Works until `stop`.
pub(super) async fn run(
    cluster: Cluster,
    terms: Terms,
    tell: watch::Sender<Option<Arc<RouteTable>>>,
    stop: CancellationToken,
) {
    let mut followed = Followed::start(&cluster.client, &cluster.manager, &stop);
    let mut discovered = false;
    let mut problems = BTreeSet::new();
    let mut discover_at = tokio::time::Instant::now();
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = followed.bell.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        wait = DISCOVER;
        if tokio::time::Instant::now() >= discover_at {
            match followed.discover().await {
                Ok(()) => {
                    if !discovered {
                        name_missing(&followed);
                    }
                    discovered = true;
                    discover_at = tokio::time::Instant::now() + DISCOVER;
                }
                Err(error) => {
                    tracing::warn!(error = words(&error), "the cluster does not say which kinds of routes it has");
                    wait = AGAIN;
                }
            }
        }
        let Some(withheld) = followed.withheld().filter(|_| discovered) else {
            wait = wait.min(AGAIN);
            continue;
        };
        name_withheld(&followed, withheld);
        if !fetch(&cluster, &terms, &followed).await {
            wait = AGAIN;
            if tell.borrow().is_none() {
                continue;
            }
        }
        let (translation, versions) = {
            let world = followed.world();
            let translation = translate(&world, &terms, clock::now());
            let version = |it: &Status| world.version(it.kind, &it.name).unwrap_or_default().to_owned();
            let versions: Vec<String> = translation.statuses.iter().map(version).collect();
            (translation, versions)
        };
        for it in translation.problems.difference(&problems) {
            tracing::warn!(problem = it, "an object of the cluster is not served as it is written");
        }
        problems = translation.problems;
        tell.send_if_modified(|it| {
            let same = it.as_deref() == Some(&translation.table);
            if !same {
                *it = Some(Arc::new(translation.table));
            }
            !same
        });
        for (status, version) in translation.statuses.iter().zip(&versions) {
            if !write(&cluster, &followed, status, version).await {
                wait = AGAIN;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TOGETHER) => {}
        }
    }
}

fn name_missing(followed: &Followed) {
    let missing: Vec<&str> = followed.missing().into_iter().map(Kind::word).collect();
    if !missing.is_empty() {
        let kinds = missing.join(", ");
        tracing::info!(
            kinds,
            "kinds of the Gateway API that the cluster does not have; they are looked for each minute"
        );
    }
}

/// Takes down which kinds cannot be listed, and says once that they are done without.
fn name_withheld(followed: &Followed, withheld: BTreeSet<Kind>) {
    let mut world = followed.world();
    if world.withheld == withheld {
        return;
    }
    if !withheld.is_empty() {
        let kinds = withheld.iter().map(|it| it.word()).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            kinds,
            "kinds that cannot be listed: what needs them stays as it was last, and nothing is taken away until they can"
        );
    }
    world.withheld = withheld;
}

/// Fetches certificates that are named and new; false when one has to be asked for again.
async fn fetch(cluster: &Cluster, terms: &Terms, followed: &Followed) -> bool {
    let wanted: Vec<(Name, String)> = {
        let mut world = followed.world();
        let named = secrets(&world, terms);
        world.certificates.retain(|name, _| named.contains(name));
        let version = |it: Name| world.secrets.get(&it).cloned().map(|version| (it, version));
        let new = named.into_iter().filter_map(version);
        new.filter(|(name, version)| world.certificates.get(name).is_none_or(|it| it.0 != *version)).collect()
    };
    let mut whole = true;
    for (name, version) in wanted {
        let secrets: Api<Secret> = cluster.typed(&name.namespace);
        let served = match secrets.get(&name.name).await {
            Ok(secret) => {
                let part = |key: &str| {
                    let data = secret.data.as_ref().and_then(|it| it.get(key));
                    let text = data.and_then(|it| String::from_utf8(it.0.clone()).ok());
                    text.ok_or_else(|| format!("has no text `{key}`"))
                };
                let both = part("tls.crt")
                    .and_then(|chain_pem| part("tls.key").map(|key_pem| ServedCertificate { chain_pem, key_pem }));
                both.and_then(|it| check(&it).map(|()| it))
            }
            Err(error) if verdict(&error) == Verdict::Refused => Err(format!("may not be read: {}", words(&error))),
            Err(error) => {
                tracing::warn!(secret = %name, error = words(&error), "a certificate is asked for again");
                whole = false;
                continue;
            }
        };
        followed.world().certificates.insert(name, (version, served));
    }
    whole
}

/// Writes a status of an object as it was looked at (`version`), because others write to the same lists; false when it has to
/// be tried again.
async fn write(cluster: &Cluster, followed: &Followed, status: &Status, version: &str) -> bool {
    let Some(resource) = followed.resource(status.kind) else { return true };
    let (name, only) = (&status.name, Some(version).filter(|it| !it.is_empty()));
    match cluster.say(&resource, &name.namespace, &name.name, &status.body, only).await {
        Ok(object) => {
            followed.answered(status.kind, name, version, object);
            true
        }
        Err(kube::Error::Api(it)) if it.code == 409 => true, // the watch brings what changed
        Err(error) => {
            let (kind, object) = (status.kind.word(), status.name.to_string());
            match verdict(&error) {
                Verdict::Missing => true,
                Verdict::Refused => {
                    tracing::error!(kind, object, error = words(&error), "a status cannot be written");
                    true
                }
                Verdict::Later => {
                    tracing::warn!(kind, object, error = words(&error), "a status is written later");
                    false
                }
            }
        }
    }
}
