//! What the API asks the running data plane: this server's over its control socket, another server's through that server.

use super::data_plane::Running;
use super::peers::{Peers, answer, guarded};
use arco_api::server::AskGateway;
use arco_config::Role;
use arco_model::error::{ErrorKind, Problem};
use arco_model::traffic::{HostRates, RouteQuestion, StreamProtocol};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

#[async_trait::async_trait]
impl AskGateway for Running {
    async fn rates(&self, hosts: &[String]) -> Result<BTreeMap<String, HostRates>, Problem> {
        self.handle().rates(hosts).await.map_err(|it| problem(&it))
    }

    async fn stream_problems(&self) -> Result<Vec<(StreamProtocol, u16, String)>, Problem> {
        self.handle().stream_problems().await.map_err(|it| problem(&it))
    }

    async fn explain(&self, question: &RouteQuestion) -> Result<Vec<String>, Problem> {
        self.handle().explain(question).await.map_err(|it| problem(&it))
    }
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

/// Where other servers ask.
const ASK: &str = "/gateway";
/// Largest answer.
const ANSWER_MAX: usize = 16 << 20;

/// A question, as it travels.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Rates(Vec<String>),
    StreamProblems,
    Explain(RouteQuestion),
}

/// What other servers may ask the gateway of this one.
pub(super) fn for_peers(here: Running) -> Router {
    guarded(Router::new().route(ASK, post(asked)).with_state(here))
}

async fn asked(State(here): State<Running>, Json(question): Json<Question>) -> Response {
    let said = match question {
        Question::Rates(hosts) => here.rates(&hosts).await.map(serde_json::to_value),
        Question::StreamProblems => here.stream_problems().await.map(serde_json::to_value),
        Question::Explain(question) => here.explain(&question).await.map(serde_json::to_value),
    };
    match said {
        Ok(Ok(said)) => Json(said).into_response(),
        Ok(Err(_)) => answer(Problem::internal("tell of the gateway")),
        Err(problem) => answer(problem),
    }
}

/// The gateway of another server.
pub(super) struct PeerGateway(Peers);

impl PeerGateway {
    pub(super) fn new(peers: Peers) -> Self {
        Self(peers)
    }

    async fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<T, Problem> {
        let lost = || Problem::internal("ask the gateway of another server");
        let to = self.0.find(Role::Gateway, "")?;
        let body = serde_json::to_vec(question).map_err(|_| lost())?;
        let request = Request::post(ASK).header(header::CONTENT_TYPE, "application/json").body(Body::from(body));
        let response = self.0.send(&to, request.map_err(|_| lost())?).await;
        let good = response.status().is_success();
        let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await.map_err(|_| lost())?;
        match good {
            true => serde_json::from_slice(&bytes).map_err(|_| lost()),
            false => Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| lost())),
        }
    }
}

#[async_trait::async_trait]
impl AskGateway for PeerGateway {
    async fn rates(&self, hosts: &[String]) -> Result<BTreeMap<String, HostRates>, Problem> {
        self.ask(&Question::Rates(hosts.to_vec())).await
    }

    async fn stream_problems(&self) -> Result<Vec<(StreamProtocol, u16, String)>, Problem> {
        self.ask(&Question::StreamProblems).await
    }

    async fn explain(&self, question: &RouteQuestion) -> Result<Vec<String>, Problem> {
        self.ask(&Question::Explain(question.clone())).await
    }
}
