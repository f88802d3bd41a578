//! Words, quotes and variables of a Dockerfile: `$name`, `${name}`, `${name:-word}`, `${name:+word}`.

/// Splits at white space outside of quotes; quotes and escapes stay in the words.
pub(super) fn words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    let mut characters = text.chars().peekable();
    while let Some(it) = characters.next() {
        if it == escape && quote != Some('\'') {
            word.push(it);
            word.extend(characters.next());
            any = true;
        } else if quote == Some(it) {
            quote = None;
            word.push(it);
        } else if quote.is_none() && (it == '"' || it == '\'') {
            quote = Some(it);
            word.push(it);
            any = true;
        } else if quote.is_none() && it.is_whitespace() {
            if any {
                words.push(std::mem::take(&mut word));
                any = false;
            }
        } else {
            word.push(it);
            any = true;
        }
    }
    if any {
        words.push(word);
    }
    words
}

/// A word without its quotes and escapes, its variables replaced.
pub(super) fn value(word: &str, escape: char, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let (mut out, mut quote) = (String::new(), None);
    let mut characters = word.chars().peekable();
    while let Some(it) = characters.next() {
        if quote == Some('\'') {
            if it == '\'' {
                quote = None;
            } else {
                out.push(it);
            }
        } else if it == escape {
            match characters.next() {
                // inside of double quotes a backslash only escapes what means something there
                Some(next) if quote == Some('"') && !matches!(next, '"' | '$') && next != escape => {
                    out.extend([it, next])
                }
                Some(next) => out.push(next),
                None => out.push(it),
            }
        } else if quote == Some(it) {
            quote = None;
        } else if quote.is_none() && (it == '"' || it == '\'') {
            quote = Some(it);
        } else if it == '$' {
            out.push_str(&variable(&mut characters, escape, lookup));
        } else {
            out.push(it);
        }
    }
    out
}

/// A text in which only variables are replaced: an inline file.
pub(super) fn text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut characters = text.chars().peekable();
    while let Some(it) = characters.next() {
        match it {
            '\\' if characters.peek() == Some(&'$') => out.extend(characters.next()),
            '$' => out.push_str(&variable(&mut characters, '\\', lookup)),
            _ => out.push(it),
        }
    }
    out
}

fn variable(
    characters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> String {
    let is_name = |it: &char| it.is_ascii_alphanumeric() || *it == '_';
    if characters.next_if_eq(&'{').is_none() {
        let mut name = String::new();
        while let Some(it) = characters.next_if(is_name) {
            name.push(it);
        }
        return if name.is_empty() { "$".to_owned() } else { lookup(&name).unwrap_or_default() };
    }
    let (mut inner, mut depth) = (String::new(), 1);
    for it in characters.by_ref() {
        depth += i32::from(it == '{') - i32::from(it == '}');
        if depth == 0 {
            break;
        }
        inner.push(it);
    }
    let end = inner.find(|it| !is_name(&it)).unwrap_or(inner.len());
    let (name, modifier) = inner.split_at(end);
    let found = lookup(name);
    let filled = found.as_ref().is_some_and(|it| !it.is_empty());
    let word = |it: &str| value(it, escape, lookup);
    match modifier {
        it if it.starts_with(":-") => {
            if filled {
                found.unwrap_or_default()
            } else {
                word(&it[2..])
            }
        }
        it if it.starts_with(":+") => {
            if filled {
                word(&it[2..])
            } else {
                String::new()
            }
        }
        it if it.starts_with('-') => found.unwrap_or_else(|| word(&it[1..])),
        it if it.starts_with('+') => {
            if found.is_some() {
                word(&it[1..])
            } else {
                String::new()
            }
        }
        _ => found.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_expanded() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("a  b", vec!["a", "b"]),
            ("\"a b\" 'c $A' d\\ e", vec!["a b", "c $A", "d e"]),
            ("$A-${A}x ${B:-2} ${B} ${A:+y} \\$A \"${A}\"", vec!["1-1x", "2", "", "y", "$A", "1"]),
            ("x=\"a b\" y=c", vec!["x=a b", "y=c"]),
            ("${B:-${A}} $", vec!["1", "$"]),
        ] {
            let found: Vec<_> = words(text, '\\').iter().map(|it| value(it, '\\', &lookup)).collect();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(super::text("a $A 'b' \\$A", &lookup), "a 1 'b' $A");
    }
}
