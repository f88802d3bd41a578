//! `arco gateway explain`: the way that a request would take.

use super::failure::Failure;
use super::session::Session;
use super::ui::Ui;
use arco_api::wire::Explanation;
use arco_gateway::Question;
use arco_model::traffic::RouteQuestion;
use clap::Args;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A request that nobody sends.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  arco gateway explain http://shop.example.com/api/items\n  arco gateway explain https://shop.example.com/ --method POST --header 'Cookie: beta=yes'\n  arco gateway explain http://a.example.com/ --file gateway.yaml"
)]
pub(crate) struct ExplainArgs {
    /// `http://HOST/PATH` or `https://HOST/PATH`
    #[arg(value_name = "URL")]
    url: String,
    /// Its method [default: GET]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// A header of it, as `K: V` or `K=V` (repeatable)
    #[arg(long, value_name = "K: V")]
    header: Vec<String>,
    /// Address of the client [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// By a gateway's own file instead of the platform's running gateway
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

impl ExplainArgs {
    fn question(&self) -> RouteQuestion {
        let header = |it: &String| match (it.find(':'), it.split_once('=')) {
            (None, Some((name, value))) => format!("{name}: {value}"),
            _ => it.clone(),
        };
        RouteQuestion {
            url: self.url.clone(),
            method: self.method.clone(),
            headers: self.header.iter().map(header).collect(),
            client: self.client,
        }
    }
}

/// Asks the running gateway.
pub(crate) async fn explain(args: &ExplainArgs, session: &Session<'_>) -> Result<(), Failure> {
    let explanation = session.client.explain(&args.question()).await?;
    print(&explanation, session.ui);
    Ok(())
}

/// Answers by a file.
pub(crate) fn explain_file(args: &ExplainArgs, file: &Path, ui: &Ui) -> Result<(), Failure> {
    let wrong = |why: String| Failure::usage("question_invalid", why, "`arco gateway explain --help` has examples");
    let question = Question::parse(&args.question()).map_err(wrong)?;
    let text = arco_gateway::explain(file, &question)
        .map_err(|it| Failure::local(it.to_string(), "`arco gateway --config FILE --check` checks the file"))?;
    let steps = text.lines().map(str::to_owned).collect();
    print(&Explanation { url: args.url.clone(), steps }, ui);
    Ok(())
}

fn print(explanation: &Explanation, ui: &Ui) {
    ui.document(explanation, |ui| explanation.steps.iter().for_each(|it| ui.line(it)));
}
