//! `arco logs`: what instances print, and the logs of builds and operations.

use super::failure::{Failure, exit};
use super::reference::{Named, Reference};
use super::session::Session;
use super::text;
use arco_api::client::{LogEvent, LogOf};
use arco_api::wire::LogQuery;
use arco_model::log::{LogLine, LogOrigin};
use arco_model::operation::OperationKind;
use clap::Args;
use serde::Serialize;

/// Lines of one request.
const PAGE: u64 = 5_000;
/// How often in a row a lost connection is tried again while following.
const PATIENCE: u32 = 30;

/// Flags of `logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT", required_unless_present = "operation")]
    reference: Option<Reference>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only lines younger than this, as 10m
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration_ms)]
    since: Option<u64>,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u64>,
    /// Only lines of this instance
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Only lines that hold this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Time in front of each line
    #[arg(short = 't', long)]
    timestamps: bool,
    /// Instance in front of each line
    #[arg(long)]
    prefix: bool,
    /// The log of an operation
    #[arg(long, value_name = "ID", conflicts_with_all = ["reference", "instance", "build"])]
    operation: Option<String>,
    /// The log of the build of a revision [default: the newest deploy]
    #[arg(long, value_name = "REVISION", num_args = 0..=1, conflicts_with = "instance")]
    build: Option<Option<u64>>,
}

/// A line as JSON.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    instance: Option<&'a str>,
    origin: LogOrigin,
    text: &'a str,
}

#[derive(Serialize)]
struct Lines<'a> {
    lines: Vec<Line<'a>>,
}

/// Shows a log.
pub(crate) async fn run(args: &LogsArgs, session: &Session<'_>) -> Result<(), Failure> {
    let query = LogQuery {
        since_ms: args.since.map(|it| text::now_ms().saturating_sub(it)),
        tail: args.tail,
        instance: args.instance.clone(),
        grep: args.grep.clone(),
        ..LogQuery::default()
    };
    if let Some(id) = &args.operation {
        return show(&LogOf::Operation(id), query, args, session).await;
    }
    let Some(reference) = &args.reference else {
        return Err(Failure::usage("usage", "no component is named", "give APP/COMPONENT or --operation ID"));
    };
    let named = session.component(reference).await?;
    match args.build {
        Some(revision) => {
            let id = build(&named, revision, session).await?;
            show(&LogOf::Operation(&id), query, args, session).await
        }
        None => show(&LogOf::Component { tenant: &session.tenant, name: named.pair() }, query, args, session).await,
    }
}

/// The operation that built a revision, or the newest deploy.
async fn build(named: &Named, revision: Option<u64>, session: &Session<'_>) -> Result<String, Failure> {
    let found = match revision {
        Some(number) => {
            let revisions = session.client.revisions(&session.tenant, named.pair()).await?;
            revisions.into_iter().find(|it| it.number == number).map(|it| it.operation)
        }
        None => {
            let (application, component) = named.pair();
            let operations =
                session.client.operations(&session.tenant, Some(application), Some(component), false, 200).await?;
            operations.into_iter().find(|it| it.kind == OperationKind::Deploy).map(|it| it.id)
        }
    };
    found.ok_or_else(|| {
        let message = match revision {
            Some(number) => format!("{named} has no revision {number}"),
            None => format!("{named} was never deployed"),
        };
        Failure::new(exit::NOT_FOUND, "not_found", message, format!("see `arco revisions {named}`"))
    })
}

async fn show(of: &LogOf<'_>, query: LogQuery, args: &LogsArgs, session: &Session<'_>) -> Result<(), Failure> {
    if args.follow {
        return follow(of, &query, args, session).await;
    }
    if session.ui.json() {
        let mut all = Vec::new();
        read(of, query, session, |lines| all.extend(lines)).await?;
        session.ui.json_line(&Lines { lines: all.iter().map(as_json).collect() });
        return Ok(());
    }
    read(of, query, session, |lines| {
        let mut page = String::new();
        for line in &lines {
            page.push_str(&as_text(line, args));
            page.push('\n');
        }
        session.ui.bytes(page.as_bytes());
    })
    .await
}

/// All lines, page by page.
async fn read(
    of: &LogOf<'_>,
    mut query: LogQuery,
    session: &Session<'_>,
    mut tell: impl FnMut(Vec<LogLine>),
) -> Result<(), Failure> {
    if query.tail.is_none() {
        query.limit = Some(PAGE);
    }
    loop {
        let answer = session.client.log(of, &query).await?;
        tell(answer.lines);
        // Each page must bring us further, or we would ask for ever.
        if !answer.more || query.tail.is_some() || query.from.is_some_and(|it| it >= answer.next) {
            return Ok(());
        }
        query.from = Some(answer.next);
    }
}

async fn follow(of: &LogOf<'_>, query: &LogQuery, args: &LogsArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut follower = session.client.follow(of, query, PATIENCE);
    loop {
        let event = tokio::select! {
            event = follower.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match event {
            LogEvent::Line(line) if session.ui.json() => session.ui.json_line(&as_json(&line)),
            LogEvent::Line(line) => session.ui.line(&as_text(&line, args)),
            LogEvent::Missed(lines) => {
                session.ui.warn(&format!("{lines} lines were left out because this end was too slow"))
            }
            LogEvent::End => return Ok(()),
        }
    }
}

fn as_json(line: &LogLine) -> Line<'_> {
    Line {
        at: line.at.rfc3339(),
        instance: line.instance.as_ref().map(arco_model::id::InstanceId::as_str),
        origin: line.origin,
        text: &line.text,
    }
}

fn as_text(line: &LogLine, args: &LogsArgs) -> String {
    let mut out = String::new();
    if args.timestamps {
        out.push_str(&line.at.rfc3339());
        out.push(' ');
    }
    if let Some(instance) = line.instance.as_ref().filter(|_| args.prefix) {
        out.push_str(&format!("[{instance}] "));
    }
    if line.origin == LogOrigin::Platform && args.operation.is_none() && args.build.is_none() {
        out.push_str("arco: ");
    }
    out.push_str(&line.text);
    out
}
