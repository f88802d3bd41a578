//! Guesses from the code whether a program listens, and where.

use super::{DEFAULT_PORT, http_port};
use crate::tree::Tree;
use arco_model::artifact::ImageConfig;
use arco_model::spec::{Port, Protocol};

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

/// The ports that an image says it listens on: what it exposes, else its own `PORT`, else 8080 (or the number that stands as
/// the default) when its command obeys `PORT`.
pub(crate) fn of_image(config: &ImageConfig) -> Vec<Port> {
    let exposed = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Http };
        Some(Port { port: number.parse().ok().filter(|it| *it != 0)?, protocol, outer: true })
    };
    let found: Vec<Port> = config.exposed_ports.iter().filter_map(exposed).collect();
    if !found.is_empty() {
        return found;
    }
    let own = config.env.iter().find_map(|it| it.strip_prefix("PORT=")?.parse().ok());
    let in_command = || {
        let line =
            config.entrypoint.iter().chain(&config.cmd).find(|it| it.contains("$PORT") || it.contains("${PORT"))?;
        let default = line.split_once("${PORT").and_then(|(_, rest)| rest.split_once('}'));
        Some(default.and_then(|(it, _)| it.trim_start_matches([':', '-']).parse().ok()).unwrap_or(DEFAULT_PORT))
    };
    own.or_else(in_command).filter(|it| *it != 0).map(http_port).unwrap_or_default()
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
    fn images_name_their_ports() {
        let shell = |line: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()];
        for (exposed, env, cmd, port) in [
            (vec!["5000/tcp"], vec!["PORT=1"], shell("serve $PORT"), Some(5000)),
            (vec![], vec!["PORT=7000"], shell("serve"), Some(7000)),
            (vec![], vec![], shell("serve --port $PORT"), Some(8080)),
            (vec![], vec![], shell("serve ${PORT:-8000}"), Some(8000)),
            (vec![], vec![], shell("serve ${PORT}"), Some(8080)),
            (vec![], vec!["PORTS=1"], shell("work"), None),
        ] {
            let owned = |it: &[&str]| it.iter().map(|it| (*it).to_owned()).collect();
            let config =
                ImageConfig { exposed_ports: owned(&exposed), env: owned(&env), cmd, ..ImageConfig::default() };
            assert_eq!(of_image(&config).first().map(|it| it.port), port, "{config:?}");
        }
    }

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
