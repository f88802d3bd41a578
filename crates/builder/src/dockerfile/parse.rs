//! Reads a Dockerfile into instructions, each with its line. Variables are expanded later, when their values are known.

use arco_model::error::Problem;

/// A command in one of its two forms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// For the shell.
    Shell(String),
    /// Program and arguments.
    Exec(Vec<String>),
}

/// An inline file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Heredoc {
    /// The word behind `<<`.
    pub(super) name: String,
    pub(super) content: String,
    /// Whether variables in it are expanded.
    pub(super) expand: bool,
}

/// One instruction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Instruction {
    /// Line where it begins, from 1.
    pub(super) line: usize,
    /// Upper case.
    pub(super) word: String,
    /// `--name=value`
    pub(super) flags: Vec<(String, String)>,
    /// What follows the flags, continuations joined.
    pub(super) rest: String,
    pub(super) heredocs: Vec<Heredoc>,
}

impl Instruction {
    /// The value of a flag.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    /// The rest as a command.
    pub(super) fn form(&self) -> Form {
        if self.rest.starts_with('[')
            && let Ok(argv) = serde_json::from_str::<Vec<String>>(&self.rest)
        {
            return Form::Exec(argv);
        }
        Form::Shell(self.rest.clone())
    }

    /// An error at this line.
    pub(super) fn error(&self, why: impl std::fmt::Display) -> Problem {
        error(self.line, format!("{}: {why}", self.word))
    }
}

/// A parsed file.
#[derive(Clone, Debug)]
pub(super) struct Dockerfile {
    pub(super) instructions: Vec<Instruction>,
    /// The character that escapes: `\` or `` ` ``.
    pub(super) escape: char,
}

/// An error at a line.
pub(super) fn error(line: usize, why: impl std::fmt::Display) -> Problem {
    Problem::invalid(
        "dockerfile_invalid",
        format!("Dockerfile line {line}: {why}"),
        "correct the Dockerfile, then deploy again",
    )
}

const KNOWN: [&str; 18] = [
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "WORKDIR",
    "USER",
    "EXPOSE",
    "CMD",
    "ENTRYPOINT",
    "LABEL",
    "VOLUME",
    "SHELL",
    "HEALTHCHECK",
    "STOPSIGNAL",
    "ONBUILD",
    "MAINTAINER",
];

/// Parses a file.
pub(super) fn parse(text: &str) -> Result<Dockerfile, Problem> {
    let lines: Vec<&str> = text.lines().collect();
    let escape = directive(&lines);
    let mut instructions = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at].trim();
        if first.is_empty() || first.starts_with('#') {
            at += 1;
            continue;
        }
        let line = at + 1;
        let mut joined = String::new();
        loop {
            let part = lines[at];
            at += 1;
            let trimmed = part.trim_end();
            if let Some(open) = trimmed.strip_suffix(escape) {
                joined.push_str(if joined.is_empty() { open.trim_start() } else { open });
                // comments and empty lines inside of a continuation do not end it
                while at < lines.len() && (lines[at].trim().is_empty() || lines[at].trim_start().starts_with('#')) {
                    at += 1;
                }
                if at < lines.len() {
                    continue;
                }
            } else {
                joined.push_str(if joined.is_empty() { trimmed.trim_start() } else { trimmed });
            }
            break;
        }
        let (word, rest) = joined.split_once(char::is_whitespace).unwrap_or((&joined, ""));
        let word = word.to_ascii_uppercase();
        if !KNOWN.contains(&word.as_str()) {
            return Err(error(line, format!("`{}` is not an instruction", word.chars().take(40).collect::<String>())));
        }
        let (flags, rest) = flags(rest.trim());
        let mut heredocs = Vec::new();
        if matches!(word.as_str(), "RUN" | "COPY" | "ADD") {
            for (name, strip, expand) in heredoc_words(&rest) {
                let mut content = String::new();
                loop {
                    let Some(next) = lines.get(at) else {
                        return Err(error(line, format!("the inline file `<<{name}` has no end")));
                    };
                    at += 1;
                    let next = if strip { next.trim_start_matches('\t') } else { next };
                    if next == name {
                        break;
                    }
                    content.push_str(next);
                    content.push('\n');
                }
                heredocs.push(Heredoc { name, content, expand });
            }
        }
        if rest.is_empty() && word != "SHELL" {
            return Err(error(line, format!("{word} needs an argument")));
        }
        instructions.push(Instruction { line, word, flags, rest, heredocs });
    }
    match instructions.iter().find(|it| it.word != "ARG") {
        None => Err(error(1, "there is no FROM")),
        Some(first) if first.word != "FROM" => Err(error(first.line, format!("{} stands before FROM", first.word))),
        Some(_) => Ok(Dockerfile { instructions, escape }),
    }
}

/// The `escape` directive in the comments at the top.
fn directive(lines: &[&str]) -> char {
    for line in lines {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|it| it.split_once('=')) else { break };
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

/// Leading `--name=value` words, and the rest.
fn flags(mut rest: &str) -> (Vec<(String, String)>, String) {
    let mut flags = Vec::new();
    while let Some(after) = rest.strip_prefix("--") {
        let (word, remaining) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
        let (name, value) = word.split_once('=').unwrap_or((word, "true"));
        flags.push((name.to_owned(), value.to_owned()));
        rest = remaining.trim_start();
    }
    (flags, rest.to_owned())
}

/// `<<WORD`, `<<-WORD`, `<<"WORD"` outside of quotes: name, whether tabs are stripped, whether variables are expanded.
fn heredoc_words(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    if rest.starts_with('[') {
        return found;
    }
    for word in rest.split_whitespace() {
        let Some(after) = word
            .strip_prefix("<<")
            .or_else(|| word.split_once("<<").filter(|it| it.0.parse::<u8>().is_ok()).map(|it| it.1))
        else {
            continue;
        };
        let (strip, after) = after.strip_prefix('-').map_or((false, after), |it| (true, it));
        let quoted = after.len() > 2
            && (after.starts_with('"') && after.ends_with('"') || after.starts_with('\'') && after.ends_with('\''));
        let name = if quoted { &after[1..after.len() - 1] } else { after };
        if !name.is_empty()
            && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_')
            && !name.as_bytes()[0].is_ascii_digit()
        {
            found.push((name.to_owned(), strip, !quoted));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_with_lines_continuations_and_inline_files() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1\nFROM debian:12 AS x\n\nRUN a \\\n  # comment\n\n  && b\nCOPY --from=x --chown=1:2 <<EOF /a\n$HI\nEOF\ncmd [\"a\", \"b\"]\n";
        let file = parse(text).unwrap();
        let shown: Vec<_> = file.instructions.iter().map(|it| (it.line, it.word.as_str(), it.rest.as_str())).collect();
        assert_eq!(
            shown,
            [
                (2, "ARG", "V=1"),
                (3, "FROM", "debian:12 AS x"),
                (5, "RUN", "a   && b"),
                (9, "COPY", "<<EOF /a"),
                (12, "CMD", "[\"a\", \"b\"]")
            ]
        );
        assert_eq!(file.instructions[3].flags, [("from".into(), "x".into()), ("chown".into(), "1:2".into())]);
        assert_eq!(file.instructions[3].heredocs[0].content, "$HI\n");
        assert_eq!(file.instructions[4].form(), Form::Exec(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn errors_name_the_line() {
        for (text, part) in [
            ("FROM x\nFOO y", "line 2: `FOO`"),
            ("RUN x", "line 1: RUN stands before"),
            ("", "no FROM"),
            ("FROM a\nCOPY <<E /x\n", "line 2: the inline"),
            ("FROM a\n\nRUN", "line 3: RUN needs"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.message.contains(part), "{}", problem.message);
        }
    }
}
