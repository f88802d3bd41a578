//! Runs steps as one-shot workloads, streams what they say to the operation's log, and says why one failed.

use crate::access::INSIDE;
use crate::cache::Cache;
use crate::detect::Stack;
use crate::egress::{self, Pass};
use crate::role::Inner;
use crate::stack::StackImage;
use arco_config::WithoutUserNamespace;
use arco_model::artifact::{ImageRef, Layer};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::{ComponentId, OperationId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::name::TenantName;
use arco_model::plan::{CacheFolder, HostMount, LayerExport, OneShot, OneShotNetwork};
use arco_model::spec::Resources;
use arco_model::spec::scheduling::Scheduling;
use arco_orchestrator::OutputLine;
use arco_store::clock;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Lines that are kept to explain a failure.
const LAST_LINES: usize = 200;
/// Lines that go into the text of an error.
const TOLD_LINES: usize = 5;

/// One step.
pub(crate) struct StepRun {
    pub(crate) title: &'static str,
    pub(crate) image: ImageRef,
    pub(crate) extra_layers: Vec<Layer>,
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    /// Whether its program is a user without rights.
    pub(crate) unprivileged: bool,
    pub(crate) network: OneShotNetwork,
    pub(crate) caches: Vec<CacheFolder>,
    pub(crate) export: Option<LayerExport>,
}

impl StepRun {
    /// A step without network, as root, that keeps nothing.
    pub(crate) fn new(title: &'static str, image: ImageRef, argv: Vec<String>) -> Self {
        Self {
            title,
            image,
            extra_layers: Vec::new(),
            argv,
            env: BTreeMap::new(),
            working_dir: "/".to_owned(),
            user: String::new(),
            unprivileged: false,
            network: OneShotNetwork::None,
            caches: Vec::new(),
            export: None,
        }
    }
}

/// A step that ended well.
pub(crate) struct StepDone {
    pub(crate) layer: Option<Layer>,
    pub(crate) last_lines: Vec<String>,
}

/// A step that did not.
#[derive(Debug)]
pub(crate) struct StepFault {
    pub(crate) problem: Problem,
    pub(crate) last_lines: Vec<String>,
}

impl From<StepFault> for Problem {
    fn from(fault: StepFault) -> Self {
        fault.problem
    }
}

/// Runs the steps of one operation.
pub(crate) struct Runner<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) tenant: TenantName,
    pub(crate) component: ComponentId,
    pub(crate) operation: OperationId,
    /// Fires when the build is to end.
    pub(crate) stop: CancellationToken,
    pub(crate) ends: tokio::time::Instant,
    pub(crate) cache: Cache,
    /// The way out, with an allow-list.
    pub(crate) pass: Option<Pass>,
}

impl Runner<'_> {
    fn stream(&self) -> LogStream {
        LogStream::Operation { id: self.operation.clone() }
    }

    /// Writes a line of ours into the operation's log.
    pub(crate) async fn say(&self, text: impl Into<String>) {
        let line = LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text: text.into() };
        self.inner.logs.append(self.stream(), vec![line]).await;
    }

    /// The error when the build is to end.
    pub(crate) fn stopped(&self) -> Problem {
        Problem::new(
            ErrorKind::Failed,
            "cancelled",
            "the build was ended before it was done",
            "deploy again to build it",
        )
    }

    /// Whether root of a step would be root of its node, and nobody allowed that.
    pub(crate) fn no_root(&self) -> bool {
        !self.inner.confined && self.inner.config.without_user_namespace == WithoutUserNamespace::Refuse
    }

    /// Refuses code that people bring and that must be root of its container; asked before the first step of a build.
    /// `what`: the first step that would.
    pub(crate) fn may_be_root(&self, what: &str) -> Result<(), Problem> {
        if self.no_root() { Err(unconfined(what)) } else { Ok(()) }
    }

    /// A stack, with the progress of making it in the log.
    pub(crate) async fn stack(&self, stack: &Stack) -> Result<StackImage, Problem> {
        let (sender, mut lines) = mpsc::unbounded_channel();
        let say = move |line: String| {
            let _ = sender.send(line);
        };
        // Boxed: making a stack can itself run steps.
        let mut work = Box::pin(self.inner.stacks.ensure(stack, self, &say));
        loop {
            tokio::select! {
                biased;
                Some(line) = lines.recv() => self.say(line).await,
                result = &mut work => {
                    while let Ok(line) = lines.try_recv() {
                        self.say(line).await;
                    }
                    return result;
                }
                () = self.stop.cancelled() => return Err(self.stopped()),
            }
        }
    }

    /// Runs a step to its end.
    pub(crate) async fn run(&self, step: StepRun) -> Result<StepDone, StepFault> {
        let bare = |problem| StepFault { problem, last_lines: Vec::new() };
        if self.stop.is_cancelled() {
            return Err(bare(self.stopped()));
        }
        let left = self.ends.saturating_duration_since(tokio::time::Instant::now());
        let config = &self.inner.config;
        let mut env = step.env;
        let mut mounts = Vec::new();
        if step.network == OneShotNetwork::Build {
            if let Some(pass) = &self.pass {
                env.extend(egress::variables(pass));
            }
            let access = self.inner.access().await.map_err(bare)?;
            for (name, value) in &access.env {
                env.entry(name.clone()).or_insert_with(|| value.clone());
            }
            mounts.push(HostMount { host_path: access.folder.clone(), path: INSIDE.to_owned(), writable: false });
        }
        let export = step.export.map(|mut it| {
            it.exclude.extend(
                [
                    INSIDE,
                    "/cache",
                    "/etc/resolv.conf",
                    "/etc/hosts",
                    "/etc/hostname",
                    "/.arco",
                    "/dev",
                    "/proc",
                    "/sys",
                ]
                .map(str::to_owned),
            );
            it
        });
        let workload = OneShot {
            id: clock::fresh(),
            tenant: self.tenant.clone(),
            component: self.component.clone(),
            image: step.image,
            extra_layers: step.extra_layers,
            argv: step.argv,
            env,
            working_dir: step.working_dir,
            user: step.user,
            unprivileged: step.unprivileged,
            resources: Resources {
                cpu_milli: 0,
                memory_mb: config.memory_mb,
                disk_mb: config.disk_mb,
                pids: config.pids,
            },
            timeout_ms: left.as_millis() as u64,
            network: step.network,
            mounts,
            caches: step.caches,
            cache_mb: config.cache_mb,
            volumes: Vec::new(),
            place: 0,
            files: Vec::new(),
            export,
            scheduling: Scheduling::default(),
            overlay: None,
        };
        let (sender, mut output) = mpsc::channel::<OutputLine>(512);
        let (cancel, cancelled) = oneshot::channel();
        let mut cancel = Some(cancel);
        let mut last = VecDeque::new();
        let work = self.inner.orchestrator.run(&workload, sender, cancelled);
        tokio::pin!(work);
        let mut batch = Vec::with_capacity(128);
        let mut open = true;
        // A driver that does not end what it was told to end must not hold this worker for ever.
        let mut hard_end = None;
        let result = loop {
            tokio::select! {
                biased;
                count = output.recv_many(&mut batch, 128), if open => {
                    open = count > 0;
                    self.forward(&mut batch, &mut last).await;
                }
                result = &mut work => break result,
                () = self.stop.cancelled(), if cancel.is_some() => {
                    drop(cancel.take());
                    hard_end = Some(tokio::time::Instant::now() + Duration::from_secs(30));
                }
                () = tokio::time::sleep_until(hard_end.unwrap_or_else(tokio::time::Instant::now)), if hard_end.is_some() => {
                    return Err(bare(self.stopped()));
                }
            }
        };
        while let Ok(line) = output.try_recv() {
            batch.push(line);
        }
        self.forward(&mut batch, &mut last).await;
        let last_lines: Vec<String> = last.into();
        if self.stop.is_cancelled() {
            return Err(StepFault { problem: self.stopped(), last_lines });
        }
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                let message = format!("the step \"{}\" could not be run: {error}", step.title);
                let advice = "try again; `arco doctor` says whether this machine can run builds";
                return Err(StepFault {
                    problem: Problem::new(ErrorKind::Unavailable, "step_not_run", message, advice),
                    last_lines,
                });
            }
        };
        if result.exit.status == 0 && !result.timed_out {
            return Ok(StepDone { layer: result.layer, last_lines });
        }
        Err(StepFault { problem: self.explain(step.title, &result, &last_lines), last_lines })
    }

    async fn forward(&self, batch: &mut Vec<OutputLine>, last: &mut VecDeque<String>) {
        if batch.is_empty() {
            return;
        }
        let at = clock::now();
        let lines = batch.drain(..).map(|line| {
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.text.clone());
            let origin = if line.stderr { LogOrigin::Stderr } else { LogOrigin::Stdout };
            LogLine { at, instance: None, origin, text: line.text }
        });
        let lines = lines.collect();
        self.inner.logs.append(self.stream(), lines).await;
    }

    fn explain(&self, title: &str, result: &arco_orchestrator::OneShotResult, last: &[String]) -> Problem {
        let config = &self.inner.config;
        let exit = &result.exit;
        let refused = self.pass.as_ref().map(Pass::refused).unwrap_or_default();
        let shows = what_shows(&self.operation, last.iter().any(|it| !it.trim().is_empty()));
        let (code, why, advice) = if !refused.is_empty() && exit.signal.is_none() && !result.timed_out {
            let hosts: Vec<&str> = refused.iter().map(String::as_str).collect();
            (
                "egress_refused",
                format!("ended with status {}, and builds may not reach {}", exit.status, hosts.join(", ")),
                "if they may, add the host to the setting `builder.allowed_hosts` and start the server again",
            )
        } else if result.timed_out {
            let why = format!("took longer than the {} s that a build may take", config.timeout_ms / 1000);
            ("build_timeout", why, "make the build shorter, or raise `builder.timeout_ms`")
        } else if exit.out_of_memory {
            (
                "build_out_of_memory",
                format!("ran out of memory at {} MB", config.memory_mb),
                "make the build smaller, or raise `builder.memory_mb`",
            )
        } else if exit.disk_full {
            (
                "build_disk_full",
                format!("filled its disk of {} MB", config.disk_mb),
                "make the build smaller, or raise `builder.disk_mb`",
            )
        } else if let Some(signal) = exit.signal {
            ("step_failed", format!("was ended by signal {signal}"), shows.as_str())
        } else {
            ("step_failed", format!("ended with status {}", exit.status), shows.as_str())
        };
        let lines: Vec<&str> = last.iter().map(|it| it.trim_end()).filter(|it| !it.trim().is_empty()).collect();
        // Package managers end with advice about themselves; lines that speak of an error say more.
        let speaks = |it: &&&str| {
            ["error", "Error", "ERROR", "fatal", "not found", "denied"].iter().any(|word| it.contains(word))
                && it.len() > 12
        };
        let errors: Vec<&str> = lines.iter().rev().take(40).filter(speaks).copied().collect();
        let chosen: Vec<&str> = if errors.is_empty() {
            lines.iter().rev().take(TOLD_LINES).copied().collect()
        } else {
            errors.into_iter().rev().take(TOLD_LINES).rev().collect()
        };
        let mut told: Vec<String> = chosen.into_iter().map(|it| it.chars().take(200).collect()).collect();
        told.reverse();
        let tail = if told.is_empty() { String::new() } else { format!("; last lines: {}", told.join(" | ")) };
        Problem::new(ErrorKind::Failed, code, format!("the step \"{title}\" {why}{tail}"), advice)
    }
}

/// What to do about a step that failed by itself; `said`: it wrote something before.
fn what_shows(operation: &OperationId, said: bool) -> String {
    let log = format!("`arco logs --operation {operation}` shows the whole build");
    match said {
        true => format!("mend what the last lines say, then deploy again; {log}"),
        false => format!("it said nothing: look at its command in the source, or let it say what it does; {log}"),
    }
}

/// The error of a step that would be root of its node.
fn unconfined(what: &str) -> Problem {
    let message = format!(
        "{what} would run as root of a node: pods of this platform have no user namespace (`kubernetes.user_namespaces = false`)"
    );
    let advice = "build it without a Dockerfile, deploy an image that was built elsewhere, or build it on a platform of one machine and \
                  move it (`arco export`); whoever operates the platform can give nodes containerd 2.0 and Linux 6.3 and set \
                  `kubernetes.user_namespaces = true`, or allow it: `builder.without_user_namespace = \"allow\"`";
    Problem::new(ErrorKind::Failed, "build_unconfined", message, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_the_build_and_lines_only_where_some_are() {
        let operation = OperationId::from_parts(1, 1);
        for said in [true, false] {
            let advice = what_shows(&operation, said);
            assert!(advice.contains(&format!("`arco logs --operation {operation}`")), "{advice}");
            assert_eq!(advice.contains("last lines"), said, "{advice}");
        }
    }
}
