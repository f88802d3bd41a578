//! Guesses from the code whether a program listens, and where.

use super::{DEFAULT_PORT, http_port};
use crate::tree::Tree;
use arco_model::spec::Port;

/// Words of code that open a server, by file extension.
const SERVERS: [&str; 17] = [
    ".listen(",
    "createServer",
    "Deno.serve",
    "Bun.serve",
    "serve(",
    "ListenAndServe",
    "net.Listen(",
    "http.server",
    "HTTPServer",
    "socketserver",
    "serve_forever",
    "run_app(",
    "app.run(",
    ".run(host",
    "make_server(",
    "asyncio.start_server",
    "create_server(",
];

/// The ports that the code of these files listens on: 8080 when it obeys `PORT`, a number that stands there, or none.
pub(super) fn guess(tree: &Tree, extensions: &[&str], framework: bool) -> Vec<Port> {
    let texts = tree.texts(extensions);
    let is_test = |path: &str| path.contains("test") || path.contains("spec");
    let code = || texts.iter().filter(|(path, _)| !is_test(path)).map(|it| it.1);
    let serves = framework || code().any(|text| SERVERS.iter().any(|it| text.contains(it)));
    if !serves {
        return Vec::new();
    }
    let obeys = code().any(|text| {
        ["env.PORT", "env[\"PORT\"]", "env['PORT']", "\"PORT\"", "'PORT'"].iter().any(|it| text.contains(it))
    });
    if obeys {
        return http_port(DEFAULT_PORT);
    }
    let literal = code().find_map(literal_port);
    http_port(literal.unwrap_or(DEFAULT_PORT))
}

/// A port number in a call that listens: `listen(3000`, `":9000"`, `port=5000`, `('', 8000)`.
fn literal_port(text: &str) -> Option<u16> {
    for line in text.lines().map(str::trim).filter(|it| !it.starts_with("//") && !it.starts_with('#')) {
        let listens = SERVERS.iter().any(|it| line.contains(it));
        let named =
            ["port", "PORT", "Port", "addr", "Addr"].iter().any(|it| line.contains(it)) && line.contains(['=', ':']);
        if !listens && !named {
            continue;
        }
        let numbers = line.split(|it: char| !it.is_ascii_alphanumeric() && it != '_' && it != '.');
        let port = numbers
            .filter_map(|it| it.parse::<u16>().ok())
            .find(|it| (80..=65_535).contains(it) && !matches!(it, 127 | 200 | 404 | 500));
        if port.is_some() {
            return port;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_guessed_from_calls() {
        for (text, port) in [
            ("app.listen(3000, () => {})", Some(3000)),
            ("app.listen(process.env.PORT || 3000)", Some(8080)),
            ("http.createServer(handler).listen(port)\nconst port = 4000", Some(4000)),
            ("console.log('once')", None),
        ] {
            let tree = Tree::of(&[("index.js", text)]);
            assert_eq!(guess(&tree, &["js"], false).first().map(|it| it.port), port, "{text}");
        }
    }
}
