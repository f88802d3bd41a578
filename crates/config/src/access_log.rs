//! The gateway's access log: `[gateway.access_log]`, and the same in the gateway's own file.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Word for standard output in [`AccessLogConfig::destination`].
const STDOUT: &str = "stdout";

/// Which requests have a line, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogConfig {
    /// `stdout`, or the path of a file. Empty: there is no access log.
    pub destination: String,
    /// Form of a line.
    pub format: AccessLogFormat,
    /// Share of the requests that have a line, 0 to 1.
    pub sample: f64,
    /// Which requests that are answered with 500 and above have one.
    pub errors: AccessLogErrors,
    /// Whether queries of addresses are shown: they may hold what is secret.
    pub query: bool,
}

/// Form of a line of the access log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// The "combined" form of Apache and nginx.
    Combined,
}

/// Which server errors the access log has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogErrors {
    /// All of them.
    #[default]
    Always,
    /// The same share as of other requests.
    Sampled,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self {
            destination: String::new(),
            format: AccessLogFormat::default(),
            sample: 1.0,
            errors: AccessLogErrors::default(),
            query: false,
        }
    }
}

impl AccessLogConfig {
    /// Whether there is an access log.
    pub fn is_on(&self) -> bool {
        !self.destination.is_empty()
    }

    /// The file that it goes to, if it goes to one.
    pub fn file(&self) -> Option<&Path> {
        (self.is_on() && self.destination != STDOUT).then(|| Path::new(&self.destination))
    }

    /// Whether it can be kept; the reason why not.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(format!("`access_log.sample` is a share of the requests, 0 to 1, not {}", self.sample));
        }
        if self.destination.ends_with('/') {
            return Err(format!("`access_log.destination`: `{}` is a folder; name a file in it", self.destination));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let with = |destination: &str, sample| AccessLogConfig {
            destination: destination.to_owned(),
            sample,
            ..AccessLogConfig::default()
        };
        for (destination, sample, problem) in [
            ("", 1.0, None),
            ("stdout", 0.0, None),
            ("/var/log/arco/access.log", 0.01, None),
            ("/var/log/", 1.0, Some("destination")),
            ("stdout", 1.5, Some("sample")),
            ("stdout", -0.1, Some("sample")),
            ("stdout", f64::NAN, Some("sample")),
        ] {
            let found = with(destination, sample).check().err();
            assert_eq!(found.is_some(), problem.is_some(), "{destination} {sample}: {found:?}");
            assert!(problem.is_none_or(|it| found.unwrap().contains(it)), "{destination} {sample}");
        }
    }

    #[test]
    fn only_a_path_is_a_file() {
        for (destination, is_on, file) in [("", false, None), ("stdout", true, None), ("a.log", true, Some("a.log"))] {
            let config = AccessLogConfig { destination: destination.to_owned(), ..AccessLogConfig::default() };
            assert_eq!((config.is_on(), config.file()), (is_on, file.map(Path::new)));
        }
    }
}
