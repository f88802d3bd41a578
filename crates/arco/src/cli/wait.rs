//! Waiting for an operation: its log on standard error, its end as the command's end.
//!
//! Ctrl-C only lets go; the operation goes on. While the platform restarts we keep asking for a while.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::session::Session;
use super::text;
use arco_api::client::{ClientError, LogEvent, LogFollower, LogOf};
use arco_api::wire::{LogQuery, OperationDocument};
use arco_model::log::LogOrigin;
use arco_model::operation::{OperationKind, OperationStatus};
use std::time::Duration;
use tokio::time::Instant;

/// How long the platform may be away while we wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the last lines of a log may take to arrive after the end of its operation.
const LAST_LINES: Duration = Duration::from_millis(400);

/// What to show meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Show {
    /// Only what is being waited for.
    Progress,
    /// The operation's log as well.
    Log,
}

/// Waits until an operation ends; fails when it fails. `--detach` returns it as it is.
pub(crate) async fn operation(
    started: OperationDocument,
    args: &WaitArgs,
    show: Show,
    session: &Session<'_>,
) -> Result<OperationDocument, Failure> {
    if args.detach {
        session.ui.note(&format!(
            "operation {} goes on; follow it with `arco logs --operation {} -f`",
            started.id, started.id
        ));
        return Ok(started);
    }
    let (id, hint) = (started.id.clone(), how_to_end(&started));
    let limit = args.timeout.map(Duration::from_secs);
    let ended = {
        let waiting = until_end(started, show, session);
        tokio::select! {
            ended = waiting => ended,
            () = after(limit) => Err(timed_out(&id, &hint, limit)),
            _ = tokio::signal::ctrl_c() => Err(interrupted(&id, &hint)),
        }
    };
    session.ui.progress_done();
    let ended = ended?;
    judge(&ended).map(|()| ended)
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Only a build can be called off; what is being rolled out is taken back by going to the revision before.
fn how_to_end(operation: &OperationDocument) -> String {
    let OperationDocument { id, application, component, kind, .. } = operation;
    match kind {
        OperationKind::Deploy => format!(
            "; `arco operation cancel {id}` ends it while it is built, `arco rollback {application}/{component}` when it is rolled out"
        ),
        OperationKind::Configure | OperationKind::Rollback => {
            format!("; `arco rollback {application}/{component}` takes it back")
        }
        _ => String::new(),
    }
}

fn timed_out(id: &str, hint: &str, limit: Option<Duration>) -> Failure {
    let seconds = limit.unwrap_or_default().as_secs();
    let advice = format!("it goes on: follow it with `arco logs --operation {id} -f`{hint}");
    Failure::new(exit::FAILED, "timeout", format!("the operation did not end within {seconds} s"), advice)
        .of_operation(id)
}

fn interrupted(id: &str, hint: &str) -> Failure {
    let advice = format!("follow it with `arco logs --operation {id} -f`{hint}");
    Failure::new(exit::INTERRUPTED, "detached", "let go; the operation goes on", advice).of_operation(id)
}

/// A failure, unless the operation ended well.
pub(crate) fn judge(operation: &OperationDocument) -> Result<(), Failure> {
    match operation.status {
        OperationStatus::Failed => {
            let mut failure = Failure::new(exit::FAILED, "failed", "the operation failed", "read its log");
            if let Some(problem) = &operation.problem {
                failure.body.clone_from(problem);
            }
            Err(failure.of_operation(&operation.id))
        }
        OperationStatus::Cancelled => {
            let (message, advice) = match &operation.problem {
                Some(problem) => (problem.message.clone(), problem.advice.clone()),
                None => ("the operation was cancelled".to_owned(), "start it again if that was not meant".to_owned()),
            };
            Err(Failure::new(exit::FAILED, "cancelled", message, advice).of_operation(&operation.id))
        }
        _ => Ok(()),
    }
}

/// Asks and follows until the end. Its log is followed beside, so that a slow log does not delay the end.
async fn until_end(
    started: OperationDocument,
    show: Show,
    session: &Session<'_>,
) -> Result<OperationDocument, Failure> {
    let mut log = (show == Show::Log).then(|| {
        let of = LogOf::Operation(&started.id);
        session.client.follow(&of, &LogQuery::default(), 30)
    });
    let mut warnings = Vec::new();
    let asking = ask_until_end(&started, session);
    tokio::pin!(asking);
    let ended = loop {
        tokio::select! {
            ended = &mut asking => break ended?,
            event = next_line(&mut log) => print(event, &mut log, &mut warnings, session),
        }
    };
    let deadline = Instant::now() + LAST_LINES;
    while log.is_some() {
        match tokio::time::timeout_at(deadline.min(Instant::now() + LAST_LINES / 2), next_line(&mut log)).await {
            Ok(event) => print(event, &mut log, &mut warnings, session),
            Err(_) => break,
        }
    }
    // A build writes hundreds of lines after them.
    warnings.iter().for_each(|it| session.ui.warn(it));
    Ok(ended)
}

async fn next_line(log: &mut Option<LogFollower>) -> Result<LogEvent, ClientError> {
    match log {
        Some(log) => log.next().await,
        None => std::future::pending().await,
    }
}

/// Shows a line of the log; `warnings` takes what the platform itself warns of, to be told again at the end.
fn print(
    event: Result<LogEvent, ClientError>,
    log: &mut Option<LogFollower>,
    warnings: &mut Vec<String>,
    session: &Session<'_>,
) {
    match event {
        Ok(LogEvent::Line(line)) => {
            let line_text = text::clean(&line.text);
            if let Some(told) = warning(&line.text, line.origin).map(text::clean)
                && !warnings.contains(&told)
            {
                warnings.push(told);
            }
            let shown = if line.origin == LogOrigin::Platform { session.ui.paint("1", &line_text) } else { line_text };
            session.ui.note(&shown);
        }
        Ok(LogEvent::Missed(lines)) => session.ui.warn(&format!("{lines} lines of the log were left out")),
        // The log is a help, not the truth: without it we still learn how the operation ends.
        Ok(LogEvent::End) | Err(_) => *log = None,
    }
}

async fn ask_until_end(started: &OperationDocument, session: &Session<'_>) -> Result<OperationDocument, Failure> {
    let began = Instant::now();
    let mut heard = Instant::now();
    let mut last = started.clone();
    while !last.status.is_final() {
        session.ui.progress(describe(&last));
        tokio::time::sleep(pause(began.elapsed())).await;
        match session.client.operation(&started.id).await {
            Ok(operation) => {
                heard = Instant::now();
                last = operation;
            }
            // Its rows go with what it deleted.
            Err(error) if error.is_not_found() && started.kind == OperationKind::Delete => {
                last.status = OperationStatus::Succeeded;
            }
            Err(error) if error.is_transient() && heard.elapsed() < PATIENCE => {}
            Err(error) => return Err(Failure::from(error).of_operation(&started.id)),
        }
    }
    Ok(last)
}

/// What a line of the platform warns of; programs of a build write such lines, too.
fn warning(line: &str, origin: LogOrigin) -> Option<&str> {
    line.strip_prefix("warning: ").filter(|_| origin == LogOrigin::Platform)
}

/// Quick at first, for what ends at once; then gentle.
fn pause(waited: Duration) -> Duration {
    Duration::from_millis(match waited.as_millis() {
        0..1_000 => 40,
        1_000..10_000 => 150,
        _ => 500,
    })
}

fn describe(operation: &OperationDocument) -> String {
    let what = format!("{}/{}", operation.application, operation.component);
    match operation.status {
        OperationStatus::Pending => format!("{what}: waiting"),
        OperationStatus::Building => format!("{what}: building"),
        OperationStatus::RollingOut => format!("{what}: rolling out"),
        OperationStatus::Succeeded | OperationStatus::Failed | OperationStatus::Cancelled => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_platform_warns_again() {
        assert_eq!(warning("warning: it is Python 3.11", LogOrigin::Platform), Some("it is Python 3.11"));
        assert_eq!(warning("warning: npm", LogOrigin::Stderr), None);
        assert_eq!(warning("note: small", LogOrigin::Platform), None);
    }
}
