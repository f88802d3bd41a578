//! Every error code of the source stands on a page of `docs/errors/`. A code is a literal that is given to one of the functions
//! which make errors; a literal that is built at run time is not seen.

use anyhow::Context as _;
use std::path::Path;

/// What makes errors: the code is their first argument, or the second after a kind or an exit status.
const MAKERS: [&str; 17] = [
    "Problem::new",
    "Problem::invalid",
    "Failure::new",
    "Failure::usage",
    "unavailable",
    "bad",
    "refuse",
    "refused",
    "invalid",
    "conflict",
    "denied",
    "problem",
    "failed",
    "failure",
    "limit",
    "reject",
    "error",
];

/// Codes that name nothing anybody can mend, or are explained in the text of the index.
const PLAIN: [&str; 4] = ["timeout", "detached", "failed", "cancelled"];

/// Codes in the sources that no page explains.
pub(crate) fn unexplained(root: &Path, sources: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let mut pages = String::new();
    let folder = root.join("docs/errors");
    for page in std::fs::read_dir(&folder).context("docs/errors is not there")? {
        pages.push_str(&std::fs::read_to_string(page?.path())?);
    }
    let mut findings = Vec::new();
    for (file, text) in sources {
        for code in codes(text) {
            if !PLAIN.contains(&code) && !pages.contains(&format!("`{code}`")) {
                findings.push(format!("{file}: no page of docs/errors explains `{code}`"));
            }
        }
    }
    findings.sort();
    findings.dedup();
    Ok(findings)
}

/// The codes in a source text, without its tests.
fn codes(text: &str) -> Vec<&str> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].find('"').map(|it| at + it) {
        let Some(length) = text[open + 1..].find(['"', '\n']) else { break };
        let literal = &text[open + 1..open + 1 + length];
        if is_code(literal) && makes_errors(&text[..open]) {
            found.push(literal);
        }
        // The closing quote may open the next one where this was not a literal at all; codes are short and on one line.
        at = open + 1 + if is_code(literal) { length + 1 } else { 0 };
    }
    found
}

fn is_code(text: &str) -> bool {
    text.contains('_')
        && text.starts_with(|it: char| it.is_ascii_lowercase())
        && text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_')
}

/// Whether the text before a literal makes it the code of an error.
fn makes_errors(before: &str) -> bool {
    let before = before.trim_end();
    if before.ends_with("code:") {
        return true;
    }
    let before = match before.strip_suffix(',') {
        Some(rest) => {
            rest.trim_end_matches(|it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | ':' | '&' | '.'))
        }
        None => before,
    };
    let Some(call) = before.trim_end().strip_suffix('(') else { return false };
    MAKERS.iter().any(|maker| {
        call.strip_suffix(maker).is_some_and(|it| !it.ends_with(|it: char| it.is_ascii_alphanumeric() || it == '_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_errors_are_made_with() {
        let rows = [
            (r#"Problem::invalid("port_invalid", "a_b")"#, vec!["port_invalid"]),
            ("Problem::new(\n    ErrorKind::Conflict,\n    \"host_taken\",", vec!["host_taken"]),
            (r#"Failure::new(exit::DENIED, "passphrase_wrong", why)"#, vec!["passphrase_wrong"]),
            (r#"return bad("env_duplicate", format!("`{name}`"))"#, vec!["env_duplicate"]),
            (r#"Page { code: "unknown_host" }"#, vec!["unknown_host"]),
            (r#"'"' + x("not_one") + "other_one""#, vec![]),
            ("fn f() {}\n#[cfg(test)]\nmod tests { bad(\"in_tests\") }", vec![]),
        ];
        for (text, wanted) in rows {
            assert_eq!(codes(text), wanted, "{text}");
        }
    }
}
