//! Output of instances that nodes read from their files: whose it is, how far it is kept, and its way to its keeper.
//!
//! What must hold: only certificates of nodes are let in, and they reach nothing else; a node hears that lines are kept
//! when their keeper has them on disk. Whose a pod is, a node carries sealed ([`Seals`]): a server that began after the pod
//! went takes its last lines by that. Not here: reading files, and keeping lines.

use super::instances::Instances;
use super::kept::Kept;
use super::peers::answer;
use arco_daemon::listener::Peer;
use arco_daemon::pki::Subject;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use arco_node::wire::{self, Cursor, Output, PODS_MAX, Pod, REQUEST_MAX};
use arco_orchestrator_kubernetes::KeptLines as _;
use arco_store::clock;
use arco_store::logs::LogSink;
use arco_store::secrets::{Sealed, SecretBox};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use std::sync::Arc;

/// How far back output is fetched of which no line is kept: longer than the platform is away. What is older was kept, and
/// went because of its age, so it is not fetched again.
const REACH_MS: u64 = 7 * 24 * 3_600_000;
/// Kept lines that are looked at to find where reading goes on: more than a program writes in one millisecond.
const OVERLAP: usize = 256;
/// What is said where the node's files went before they were read.
const MISSING: &str = "lines may be missing here: the node removed them before they were read";
/// Pods whose kept lines are asked for at the same time.
const ASKING: usize = 8;
/// What the key of seals is derived for.
const SEALS: &str = "pods of nodes";

#[derive(Clone)]
struct Intake {
    instances: Instances,
    kept: Kept,
    sink: LogSink,
    seals: Seals,
}

impl Intake {
    fn whose(&self, pod: &Pod) -> Option<Whose> {
        self.instances.of_pod(&pod.namespace, &pod.uid).or_else(|| self.seals.open(pod))
    }
}

/// The component and the instance that a pod is, or was.
type Whose = (ComponentId, InstanceId);

/// Says whose a pod is so that every server of the platform can read it and no node can change it.
#[derive(Clone)]
struct Seals(Arc<SecretBox>);

impl Seals {
    fn new(secrets: &SecretBox) -> anyhow::Result<Self> {
        let keys = SecretBox::parse(&secrets.derive(SEALS));
        let keys = keys.map_err(|it| anyhow::anyhow!("failed to derive the key of what nodes carry: {it}"))?;
        Ok(Self(Arc::new(keys)))
    }

    /// A seal is good for its pod alone.
    fn context(pod: &Pod) -> String {
        format!("{}/{}", pod.namespace, pod.uid)
    }

    fn seal(&self, pod: &Pod, whose: &Whose) -> Option<String> {
        let text = serde_json::to_vec(whose).ok()?;
        let sealed = self.0.seal(&Self::context(pod), &text).ok()?;
        Some(format!("{}:{}", sealed.key_id, sealed.text))
    }

    fn open(&self, pod: &Pod) -> Option<Whose> {
        let (key_id, text) = pod.seal.as_deref()?.rsplit_once(':')?;
        let sealed = Sealed { key_id: key_id.to_owned(), text: text.to_owned() };
        let text = self.0.unseal(&Self::context(pod), &sealed).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// What nodes ask of a server that sees the cluster: `kept` knows what is kept, `sink` takes lines.
pub(super) fn for_nodes(
    instances: Instances,
    kept: Kept,
    sink: LogSink,
    secrets: &SecretBox,
) -> anyhow::Result<Router> {
    let intake = Intake { instances, kept, sink, seals: Seals::new(secrets)? };
    let router = Router::new().route(wire::CURSORS, post(cursors)).route(wire::OUTPUT, post(output)).with_state(intake);
    Ok(router.layer(axum::extract::DefaultBodyLimit::max(REQUEST_MAX)).layer(from_fn(nodes_only)))
}

async fn nodes_only(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let subject = peer.and_then(|it| it.certificate.as_ref()).and_then(|it| Subject::of(it).ok());
    if subject.is_some_and(|it| it.role == wire::ROLE) {
        return next.run(request).await;
    }
    let advice = "output is handed over by the platform's own DaemonSet";
    answer(Problem::new(ErrorKind::Denied, "not_a_node", "only nodes of the platform may hand over output", advice))
}

async fn cursors(State(intake): State<Intake>, Json(pods): Json<Vec<Pod>>) -> Json<Vec<Cursor>> {
    let cursors = stream::iter(pods.into_iter().take(PODS_MAX)).map(|it| cursor(&intake, it)).buffered(ASKING);
    Json(cursors.collect().await)
}

async fn cursor(intake: &Intake, pod: Pod) -> Cursor {
    let Some(whose) = intake.whose(&pod) else { return Cursor::Unknown };
    let (component, instance) = &whose;
    match intake.kept.last(component, instance, OVERLAP).await {
        Ok(lines) => {
            let (at, texts) = after(&lines, instance, clock::now());
            Cursor::After { at, texts, seal: intake.seals.seal(&pod, &whose) }
        }
        Err(why) => {
            tracing::warn!(pod = pod.uid, why, "which of its lines are kept is not known yet");
            Cursor::Later
        }
    }
}

/// Where reading goes on after these lines, and those of that millisecond.
fn after(lines: &[LogLine], instance: &InstanceId, now: Timestamp) -> (Timestamp, Vec<String>) {
    let own = |it: &&LogLine| it.instance.as_ref() == Some(instance) && it.origin != LogOrigin::Platform;
    // By the order in which they were written: that of their keeper, where there were several, is by time, too.
    match lines.iter().rev().find(own).map(|it| it.at) {
        None => (Timestamp(now.0.saturating_sub(REACH_MS)), Vec::new()),
        Some(at) => {
            let texts = lines.iter().filter(own).filter(|it| it.at == at).map(|it| it.text.clone()).collect();
            (at, texts)
        }
    }
}

async fn output(State(intake): State<Intake>, Json(output): Json<Vec<Output>>) -> Json<Vec<wire::Kept>> {
    // It ends when the node is gone: lines that did not leave yet must not be kept then, because they come again.
    Json(join_all(output.into_iter().map(|it| keep(&intake, it))).await)
}

async fn keep(intake: &Intake, output: Output) -> wire::Kept {
    let Some((id, instance)) = intake.whose(&output.pod) else { return wire::Kept::Unknown };
    let lines = lines_of(output, &instance);
    match intake.sink.append_once(LogStream::Component { id }, lines).await {
        true => wire::Kept::Yes,
        false => wire::Kept::No,
    }
}

fn lines_of(output: Output, instance: &InstanceId) -> Vec<LogLine> {
    let line = |it: wire::Line| LogLine {
        at: it.at,
        instance: Some(instance.clone()),
        origin: it.origin,
        // A node does not speak as the platform.
        text: if it.origin == LogOrigin::Platform { MISSING.to_owned() } else { it.text },
    };
    output.lines.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_goes_on_after_the_newest_line_of_the_instance() {
        let (one, two) = (InstanceId::from_parts(1, 1), InstanceId::from_parts(1, 2));
        let line = |at, instance: &InstanceId, origin, text: &str| LogLine {
            at: Timestamp(at),
            instance: Some(instance.clone()),
            origin,
            text: text.to_owned(),
        };
        let lines = [
            line(1, &one, LogOrigin::Stdout, "a"),
            line(2, &one, LogOrigin::Stdout, "b"),
            line(2, &two, LogOrigin::Stdout, "c"),
            line(2, &one, LogOrigin::Stderr, "d"),
            line(3, &two, LogOrigin::Stdout, "e"),
            line(4, &one, LogOrigin::Platform, "f"),
        ];
        let now = Timestamp(REACH_MS + 7);
        let told = |instance| {
            let (at, texts) = after(&lines, instance, now);
            (at.0, texts.join(","))
        };
        assert_eq!(told(&one), (2, "b,d".to_owned()));
        assert_eq!(told(&two), (3, "e".to_owned()));
        assert_eq!(
            told(&InstanceId::from_parts(1, 3)),
            (7, String::new()),
            "a pod that began while the platform was away"
        );
    }

    #[test]
    fn a_seal_is_read_by_every_server_and_good_for_its_pod_alone() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("secret.key");
        let servers = [0, 1].map(|_| Seals::new(&SecretBox::open(&key).unwrap()).unwrap());
        let foreign = Seals::new(&SecretBox::open(&folder.path().join("other.key")).unwrap()).unwrap();
        let whose = (ComponentId::from_parts(1, 1), InstanceId::from_parts(1, 2));
        let pod = |uid: &str, seal| Pod { namespace: "a".to_owned(), uid: uid.to_owned(), seal };
        let seal = servers[0].seal(&pod("u", None), &whose);
        assert!(seal.is_some());
        assert_eq!(servers[1].open(&pod("u", seal.clone())), Some(whose));
        assert_eq!(foreign.open(&pod("u", seal.clone())), None, "another platform");
        assert_eq!(servers[1].open(&pod("v", seal)), None, "another pod");
        for wrong in [None, Some(String::new()), Some("a:b".to_owned())] {
            assert_eq!(servers[1].open(&pod("u", wrong)), None);
        }
    }

    #[test]
    fn a_node_does_not_speak_as_the_platform() {
        let pod = Pod { namespace: "a".to_owned(), uid: "u".to_owned(), seal: None };
        let origins = [LogOrigin::Stdout, LogOrigin::Stderr, LogOrigin::Platform];
        let line = |origin| wire::Line { at: Timestamp(1), origin, text: "x".to_owned() };
        let lines = lines_of(Output { pod, lines: origins.map(line).to_vec() }, &InstanceId::from_parts(1, 1));
        let found: Vec<_> = lines.iter().map(|it| it.text.as_str()).collect();
        assert_eq!(found, ["x", "x", MISSING]);
    }
}
