//! The output of a one-shot's pod, across cuts of the connection to the API server.
//!
//! What must hold: each line is handed on once; who waits for the end hears of it after the last line; output that cannot be
//! had, although the API server answers, holds up no end.

use crate::cluster::{Verdict, verdict};
use crate::driver::Inner;
use crate::logs::cursor::{Cursor, Line};
use crate::logs::stream::{self, Listener, Source};
use crate::render::Kind;
use crate::seen::Program;
use arco_model::id::ComponentId;
use arco_orchestrator::{Error, OutputLine};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// A stream without a line for so long is opened anew.
const IDLE: Duration = Duration::from_secs(30);
/// How long the output of a program that has ended is waited for while the API server answers, before it is asked whether it
/// still does: longer than a connection that is dead is taken for one that lives.
const LAST_WORDS: Duration = Duration::from_secs(45);
/// So often in a row, and no longer, the rest is waited for when it answers.
const ROUNDS: u32 = 2;

/// What is read, and to whom it goes.
pub(super) struct Output<'a> {
    pub(super) inner: &'a Inner,
    pub(super) namespace: &'a str,
    pub(super) component: &'a ComponentId,
    /// Name of the pod.
    pub(super) pod: &'a str,
    pub(super) to: &'a mpsc::Sender<OutputLine>,
    /// What the pod writes to both of its outputs when the program has ended, where it goes on itself.
    pub(super) mark: Option<&'a str>,
}

/// Hands on the output while `end` is waited for; returns that when all of it is handed on.
pub(super) async fn told<T>(of: &Output<'_>, end: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let (again, mut cursor) = (Notify::new(), Cursor::default());
    let pods = of.inner.cluster().typed::<Pod>(of.namespace);
    let source = Source { pods, pod: of.pod, idle: IDLE, opening: None, again: Some(&again) };
    let mut handing = Handing { of, open: 2 };
    let mut reading = Box::pin(stream::read(&source, &mut cursor, &mut handing));
    let mut end = pin!(end);
    let ended = tokio::select! {
        ended = &mut end => ended?,
        whole = &mut reading => {
            incomplete(of, whole);
            return end.await;
        }
    };
    again.notify_one();
    let mut answered = 0;
    while answered < ROUNDS {
        if let Ok(whole) = tokio::time::timeout(LAST_WORDS, &mut reading).await {
            incomplete(of, whole);
            return Ok(ended);
        }
        let there = of.inner.cluster().get(Kind::Pod, of.namespace, of.pod).await;
        answered = if there.is_err_and(|it| verdict(&it) == Verdict::Later) { 0 } else { answered + 1 };
        again.notify_one();
    }
    incomplete(of, false);
    Ok(ended)
}

fn incomplete(of: &Output<'_>, whole: bool) {
    if !whole {
        tracing::warn!(pod = of.pod, "the output of a one-shot is not whole: the API server does not have the rest");
    }
}

struct Handing<'a> {
    of: &'a Output<'a>,
    /// Outputs that may still bring something, where there is a mark.
    open: u32,
}

#[async_trait]
impl Listener for Handing<'_> {
    async fn take(&mut self, lines: Vec<Line>, _: &Cursor) -> bool {
        for Line { mut text, .. } in lines {
            if let Some(mark) = self.of.mark
                && text.ends_with(mark)
            {
                self.open = self.open.saturating_sub(1);
                text.truncate(text.len() - mark.len());
                if text.is_empty() {
                    continue; // else the last line had no end
                }
            }
            // The API server mixes both outputs, so all of it counts as standard output.
            let _ = self.of.to.send(OutputLine { stderr: false, text }).await; // nobody listens: read on to the end
        }
        self.open > 0
    }

    fn runs(&self) -> Option<bool> {
        self.of.inner.seen().with(self.of.component, |it| {
            let (_, pod) = it.pods.get(self.of.pod)?;
            Some(pod.over.is_none() && !matches!(pod.program, Program::Ended(..)))
        })
    }
}
