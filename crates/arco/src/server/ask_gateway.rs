//! What the API asks the running gateways: this server's over its control socket, the others' through their servers.
//!
//! What must hold: all of them are asked together; one that does not answer takes nothing from what the others say, and a
//! question fails only when none answers it.

use super::data_plane::Running;
use super::peers::{Peers, answer, guarded, missing, silent};
use arco_api::server::{AskGateway, ClosedStream};
use arco_config::Role;
use arco_daemon::discovery::Server;
use arco_gateway::rates::HostSeen;
use arco_model::error::{ErrorKind, Problem};
use arco_model::traffic::{HostRates, RouteQuestion, StreamProtocol};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// Where other servers ask.
const ASK: &str = "/gateway";
/// Largest answer.
const ANSWER_MAX: usize = 16 << 20;
/// How long another server's gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question, as it travels.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Rates(Vec<String>),
    StreamProblems,
    Explain(RouteQuestion),
}

/// Ports for components that one gateway cannot open, and why.
type StreamProblems = Vec<(StreamProtocol, u16, String)>;

/// What other servers may ask the gateway of this one.
pub(super) fn for_peers(here: Running) -> Router {
    guarded(Router::new().route(ASK, post(asked)).with_state(here))
}

async fn asked(State(here): State<Running>, Json(question): Json<Question>) -> Response {
    match ask_here(&here, &question).await {
        Ok(said) => Json(said).into_response(),
        Err(problem) => answer(problem),
    }
}

async fn ask_here(here: &Running, question: &Question) -> Result<Value, Problem> {
    let gateway = here.handle();
    let said = match question {
        Question::Rates(hosts) => gateway.rates(hosts).await.map(serde_json::to_value),
        Question::StreamProblems => gateway.stream_problems().await.map(serde_json::to_value),
        Question::Explain(question) => gateway.explain(question).await.map(serde_json::to_value),
    };
    said.map_err(|it| problem(&it))?.map_err(|_| Problem::internal("tell of the gateway"))
}

fn problem(error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::InvalidInput {
        return Problem::invalid("question_invalid", error.to_string(), "give a URL as `http://HOST/PATH`");
    }
    let message = format!("the gateway does not answer: {error}");
    Problem::new(
        ErrorKind::Unavailable,
        "gateway_silent",
        message,
        "try again; `data-plane.log` in the data dir says more",
    )
}

async fn ask_peer(peers: &Peers, server: &Server, question: &Question) -> Result<Value, Problem> {
    let lost = || Problem::internal("ask the gateway of another server");
    let body = serde_json::to_vec(question).map_err(|_| lost())?;
    let request = Request::post(ASK).header(header::CONTENT_TYPE, "application/json").body(Body::from(body));
    let request = request.map_err(|_| lost())?;
    let exchange = async {
        let response = peers.send(server, request).await;
        let good = response.status().is_success();
        let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await.map_err(|_| lost())?;
        match good {
            true => serde_json::from_slice(&bytes).map_err(|_| lost()),
            false => Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| lost())),
        }
    };
    let late = || silent(server, &format!("no answer of its gateway within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(late()))
}

fn read<T: DeserializeOwned>(said: Value) -> Result<T, Problem> {
    serde_json::from_value(said).map_err(|_| Problem::internal("understand what a gateway said"))
}

/// The gateways of a platform, as the API asks them.
pub(super) struct Gateways {
    here: Option<Running>,
    peers: Option<Peers>,
}

impl Gateways {
    /// This server's gateway and those of other servers; `None` where nobody can be asked.
    pub(super) fn new(here: Option<Running>, peers: Option<Peers>) -> Option<Self> {
        (here.is_some() || peers.is_some()).then_some(Self { here, peers })
    }

    /// What each gateway says, by its server's name.
    async fn ask_all<T: DeserializeOwned>(&self, question: &Question) -> Result<Vec<(String, T)>, Problem> {
        let here = async {
            let said = ask_here(self.here.as_ref()?, question).await;
            let name = self.peers.as_ref().map_or("here", |it| it.directory().me());
            Some((name.to_owned(), said))
        };
        let there = async {
            let Some(peers) = &self.peers else { return Vec::new() };
            let servers = peers.directory().others(Role::Gateway);
            let asked = servers.into_iter().map(|server| async move {
                let said = ask_peer(peers, &server, question).await;
                (server.name, said)
            });
            join_all(asked).await
        };
        let (here, there) = tokio::join!(here, there);
        let said = here.into_iter().chain(there).map(|(server, said)| (server, said.and_then(read)));
        those_that_answer(said.collect())
    }
}

/// The answers that came; when none did, why.
fn those_that_answer<T>(said: Vec<(String, Result<T, Problem>)>) -> Result<Vec<(String, T)>, Problem> {
    let (mut answers, mut lost) = (Vec::new(), missing(Role::Gateway));
    for (server, said) in said {
        match said {
            Ok(it) => answers.push((server, it)),
            Err(problem) => {
                tracing::debug!(server, %problem, "a gateway does not answer");
                lost = problem;
            }
        }
    }
    if answers.is_empty() { Err(lost) } else { Ok(answers) }
}

/// The rates of each host at all gateways together.
fn rates_of_all(said: Vec<(String, BTreeMap<String, HostSeen>)>) -> BTreeMap<String, HostRates> {
    let mut seen = BTreeMap::<String, HostSeen>::new();
    for (host, at_one) in said.into_iter().flat_map(|it| it.1) {
        seen.entry(host).or_default().add(&at_one);
    }
    seen.into_iter().map(|(host, it)| (host, it.rates())).collect()
}

/// Each port that a gateway cannot open, once.
fn closed_at_any(said: Vec<(String, StreamProblems)>) -> Vec<ClosedStream> {
    let gateways = said.len();
    let mut found = BTreeMap::<(StreamProtocol, u16), Vec<String>>::new();
    for (server, problems) in said {
        for (protocol, port, why) in problems {
            let why = if gateways > 1 { format!("{server}: {why}") } else { why };
            found.entry((protocol, port)).or_default().push(why);
        }
    }
    let closed = found.into_iter().map(|((protocol, port), why)| ClosedStream {
        protocol,
        port,
        open_elsewhere: why.len() < gateways,
        why: why.join("; "),
    });
    closed.collect()
}

#[async_trait::async_trait]
impl AskGateway for Gateways {
    fn is_here(&self) -> bool {
        self.here.is_some()
    }

    async fn rates(&self, hosts: &[String]) -> Result<BTreeMap<String, HostRates>, Problem> {
        Ok(rates_of_all(self.ask_all(&Question::Rates(hosts.to_vec())).await?))
    }

    async fn closed_streams(&self) -> Result<Vec<ClosedStream>, Problem> {
        Ok(closed_at_any(self.ask_all(&Question::StreamProblems).await?))
    }

    /// All gateways route alike: the nearest one says it.
    async fn explain(&self, question: &RouteQuestion) -> Result<Vec<String>, Problem> {
        let question = Question::Explain(question.clone());
        let said = match (&self.here, &self.peers) {
            (Some(here), _) => ask_here(here, &question).await,
            (None, Some(peers)) => ask_peer(peers, &peers.find(Role::Gateway, "")?, &question).await,
            (None, None) => Err(missing(Role::Gateway)),
        };
        read(said?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_a_host_are_those_of_all_its_gateways() {
        let seen = |requests_per_s: f64, times: &[u64]| HostSeen {
            requests_per_s,
            errors_per_s: requests_per_s / 2.0,
            times: times.to_vec(),
        };
        let hosts = |of: &[(&str, HostSeen)]| {
            of.iter().map(|(host, it)| ((*host).to_owned(), it.clone())).collect::<BTreeMap<_, _>>()
        };
        // One gateway is fast, the other one slow, and has a host of its own; an older one says no times.
        let fast = hosts(&[("a.test", seen(10.0, &[98]))]);
        let slow = hosts(&[("a.test", seen(4.0, &[0, 0, 0, 0, 2])), ("b.test", seen(1.0, &[1]))]);
        let older = hosts(&[("a.test", seen(2.0, &[]))]);
        let said = vec![("one".to_owned(), fast), ("two".to_owned(), slow), ("three".to_owned(), older)];
        let rates = rates_of_all(said);
        let a = rates["a.test"];
        assert_eq!((a.requests_per_s, a.errors_per_s), (16.0, 8.0));
        assert!(a.p50_ms.unwrap() <= 0.125 && a.p99_ms.unwrap() > 0.3, "{a:?}");
        assert_eq!((rates["b.test"].requests_per_s, rates.len()), (1.0, 2));
    }

    #[test]
    fn a_port_is_closed_at_some_gateways_or_at_all() {
        type Problems<'a> = (&'a str, Vec<(StreamProtocol, u16, String)>);
        let problem = |port: u16, why: &str| (StreamProtocol::Tcp, port, why.to_owned());
        let said =
            |of: &[Problems<'_>]| of.iter().map(|(server, it)| ((*server).to_owned(), it.clone())).collect::<Vec<_>>();
        let closed = |port: u16, why: &str, open_elsewhere: bool| {
            let (protocol, why) = (StreamProtocol::Tcp, why.to_owned());
            ClosedStream { protocol, port, why, open_elsewhere }
        };
        let busy = || vec![problem(1, "busy")];
        for (gateways, wanted) in [
            (said(&[("a", Vec::new())]), Vec::new()),
            (said(&[("a", busy())]), vec![closed(1, "busy", false)]),
            (said(&[("a", busy()), ("b", Vec::new())]), vec![closed(1, "a: busy", true)]),
            (
                said(&[("a", busy()), ("b", vec![problem(1, "not here"), problem(2, "busy")])]),
                vec![closed(1, "a: busy; b: not here", false), closed(2, "b: busy", true)],
            ),
        ] {
            assert_eq!(closed_at_any(gateways), wanted);
        }
    }

    #[test]
    fn a_gateway_that_is_silent_takes_nothing_from_the_others() {
        let lost = || Problem::new(ErrorKind::Unavailable, "server_silent", "b does not answer", "try again");
        let said = vec![("a".to_owned(), Ok(1)), ("b".to_owned(), Err(lost()))];
        assert_eq!(those_that_answer(said).unwrap(), [("a".to_owned(), 1)]);
        let said = vec![("b".to_owned(), Err(lost()))];
        assert_eq!(those_that_answer::<u8>(said).unwrap_err().code, "server_silent");
        assert_eq!(those_that_answer::<u8>(Vec::new()).unwrap_err().code, "role_missing");
    }
}
