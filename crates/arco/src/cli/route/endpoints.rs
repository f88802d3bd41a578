//! Flags of a route about the instances behind it: tried again, left out, checked.

use super::flags::milliseconds;
use arco_api::wire::RouteRequest;
use arco_model::route::{Circuit, HealthCheck, Retry, RetryOn};
use clap::Args;

/// What a route says about instances that fail.
#[derive(Args, Debug, Default)]
pub(super) struct EndpointFlags {
    /// Most instances that one request is sent to, 1 to 4; 1 is never again
    #[arg(long, value_name = "N", help_heading = "Instances that fail")]
    retry: Option<u32>,
    /// Send a request to another instance after this: connect, broken, timeout, or a status from 500
    /// [default: connect,broken]
    #[arg(long, value_name = "WHAT,…", value_delimiter = ',', value_parser = retry_on, help_heading = "Instances that fail")]
    retry_on: Vec<After>,
    /// Longest wait for the answer of one instance
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Instances that fail")]
    retry_timeout: Option<u64>,
    /// Of a hundred requests so many may be sent again [default: 20]
    #[arg(long, value_name = "PERCENT", help_heading = "Instances that fail")]
    retry_budget: Option<u32>,
    /// Most open requests of one instance; when all are full the answer is 503
    #[arg(long, value_name = "N", help_heading = "Instances that fail")]
    max_open: Option<u32>,
    /// So many failures in a row leave an instance out, at first for SECONDS [default: 10]; 0 never does
    #[arg(long, value_name = "FAILURES[=SECONDS]", value_parser = eject, help_heading = "Instances that fail")]
    eject: Option<(u32, Option<u64>)>,
    /// Ask instances for this path and leave out those that do not answer with 200 to 399; without it, connect to them
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "", help_heading = "Instances that fail")]
    health_check: Option<String>,
    /// How often [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Instances that fail")]
    health_check_interval: Option<u64>,
}

/// What a request is sent again after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum After {
    Outcome(RetryOn),
    Status(u16),
}

impl EndpointFlags {
    /// Makes `route` say what is given.
    pub(super) fn apply(&self, route: &mut RouteRequest) {
        let asked = self.retry.is_some()
            || !self.retry_on.is_empty()
            || self.retry_timeout.is_some()
            || self.retry_budget.is_some();
        if asked {
            let retry: &mut Retry = route.retry.get_or_insert_default();
            retry.attempts = self.retry.unwrap_or(retry.attempts);
            if !self.retry_on.is_empty() {
                let outcomes = self.retry_on.iter().filter_map(|it| match it {
                    After::Outcome(it) => Some(*it),
                    After::Status(_) => None,
                });
                retry.on = outcomes.collect();
                let statuses = self.retry_on.iter().filter_map(|it| match it {
                    After::Status(it) => Some(*it),
                    After::Outcome(_) => None,
                });
                retry.statuses = statuses.collect();
            }
            retry.attempt_ms = self.retry_timeout.or(retry.attempt_ms);
            retry.budget_percent = self.retry_budget.unwrap_or(retry.budget_percent);
        }
        if self.max_open.is_some() || self.eject.is_some() {
            // Limits alone leave nobody out.
            let fresh = Circuit { failures: 0, ..Circuit::default() };
            let circuit: &mut Circuit = route.circuit.get_or_insert(fresh);
            circuit.max_open = self.max_open.or(circuit.max_open);
            if let Some((failures, base_ms)) = self.eject {
                circuit.failures = failures;
                circuit.base_ms = base_ms.unwrap_or(circuit.base_ms);
            }
        }
        if self.health_check.is_some() || self.health_check_interval.is_some() {
            let check: &mut HealthCheck = route.health_check.get_or_insert_default();
            if let Some(path) = &self.health_check {
                check.path = Some(path.clone()).filter(|it| !it.is_empty());
            }
            check.interval_ms = self.health_check_interval.unwrap_or(check.interval_ms);
        }
    }
}

fn retry_on(text: &str) -> Result<After, String> {
    match text {
        "connect" => Ok(After::Outcome(RetryOn::Connect)),
        "broken" => Ok(After::Outcome(RetryOn::Broken)),
        "timeout" => Ok(After::Outcome(RetryOn::Timeout)),
        status => status
            .parse()
            .map(After::Status)
            .map_err(|_| format!("`{status}` is none of connect, broken, timeout, and no status")),
    }
}

fn eject(text: &str) -> Result<(u32, Option<u64>), String> {
    let (failures, time) = text.split_once('=').map_or((text, None), |it| (it.0, Some(it.1)));
    let failures = failures.parse().map_err(|_| format!("`{failures}` is not a number of failures"))?;
    Ok((failures, time.map(milliseconds).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read() {
        assert_eq!(retry_on("503"), Ok(After::Status(503)));
        assert_eq!(retry_on("timeout"), Ok(After::Outcome(RetryOn::Timeout)));
        assert!(retry_on("never").is_err());
        assert_eq!(eject("5=0.5"), Ok((5, Some(500))));
        assert!(eject("x").is_err() && eject("5=x").is_err());
        let mut route = RouteRequest::default();
        EndpointFlags { max_open: Some(3), ..EndpointFlags::default() }.apply(&mut route);
        let flags = EndpointFlags {
            retry_on: vec![After::Outcome(RetryOn::Connect), After::Status(503)],
            eject: Some((2, None)),
            health_check: Some(String::new()),
            ..EndpointFlags::default()
        };
        flags.apply(&mut route);
        let (retry, circuit) = (route.retry.unwrap(), route.circuit.unwrap());
        assert_eq!((retry.on, retry.statuses, retry.attempts), (vec![RetryOn::Connect], vec![503], 3));
        assert_eq!((circuit.max_open, circuit.failures), (Some(3), 2), "what is not given stays");
        assert_eq!(route.health_check.unwrap().path, None);
    }
}
