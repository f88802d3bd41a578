//! Dead letters of builds: the operation of a job that nobody tries again ends with the reason.
//!
//! What must hold: a letter goes only after its operation has ended, or is the controller's; so a crash or a store that
//! does not answer leaves a letter that is read again. Not here: how often a job is tried (`mq`).

use super::Inner;
use arco_model::error::{ErrorKind, Problem};
use arco_model::job::Topic;
use arco_model::operation::{Operation, OperationStatus};
use arco_mq::DeadJob;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the letters are read without a bell: the queue buries jobs whose workers died too often by itself.
const READ: Duration = Duration::from_secs(60);
/// After a store did not answer.
const AGAIN: Duration = Duration::from_secs(5);

impl Inner {
    /// Reads letters until `token` fires.
    pub(super) async fn read_letters(&self, token: &CancellationToken) {
        loop {
            let pause = match self.read_all().await {
                Ok(()) => READ,
                Err(error) => {
                    tracing::warn!(error, "builds that were given up cannot be ended yet");
                    AGAIN
                }
            };
            tokio::select! {
                () = token.cancelled() => return,
                () = self.given_up.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn read_all(&self) -> Result<(), String> {
        for letter in self.queue.dead(Topic::Builder).await.map_err(|it| it.to_string())? {
            let id = &letter.job.request.dedup_id;
            let found = self.metadata.get::<Operation>(id).await.map_err(|it| it.to_string())?;
            if let Some(operation) = found.map(|it| it.value).filter(|it| !it.status.is_final()) {
                let ended = if operation.status == OperationStatus::RollingOut {
                    self.ring(&operation).await
                } else {
                    self.fail(&operation, problem(&letter)).await
                };
                if let Err(super::Outcome::Again(error)) = ended {
                    return Err(error);
                }
            }
            self.queue.discard(Topic::Builder, &letter.job.id).await.map_err(|it| it.to_string())?;
        }
        Ok(())
    }
}

fn problem(letter: &DeadJob) -> Problem {
    let DeadJob { reason, .. } = letter;
    if arco_store::says_full(reason) {
        let message = "the build was given up: the platform's disk is full";
        let advice = "free space below the data dir, then deploy again";
        return Problem::new(ErrorKind::LimitReached, "disk_full", message, advice);
    }
    let message = format!("the build was given up after several attempts: {reason}");
    let advice = "the server's log has the causes; mend them, then deploy again";
    Problem::new(ErrorKind::Failed, "build_given_up", message, advice)
}
