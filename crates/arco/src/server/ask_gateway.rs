//! What the API asks the running data plane, over its control socket.

use super::data_plane::Running;
use arco_api::server::AskGateway;
use arco_model::error::{ErrorKind, Problem};
use arco_model::traffic::{HostRates, RouteQuestion, StreamProtocol};
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
