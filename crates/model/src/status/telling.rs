//! Which lines of a program's last output say what went wrong: pure, by how languages write their errors.
//!
//! The end of an output is often what matters least: stack frames, an empty line, the version of the interpreter. Not
//! here: how the program ended.

/// Most lines that are told.
const MOST: usize = 3;

/// The lines that say what went wrong, after the place where it did; the last ones when none says so.
pub(super) fn telling(output: &str) -> Vec<&str> {
    let lines: Vec<&str> =
        output.lines().map(str::trim_end).filter(|it| !it.trim().is_empty() && !is_marker(it)).collect();
    let mut found: Vec<usize> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        // What a panic says stands on the line after it.
        let said_before = at > 0 && lines[at - 1].contains("panicked at") && lines[at - 1].ends_with(':');
        if !is_frame(line) && (is_error(line) || said_before) {
            found.push(at);
        }
    }
    let Some((last, earlier)) = found.split_last() else {
        let last: Vec<&str> = lines.iter().copied().filter(|it| !is_frame(it)).collect();
        let last = if last.is_empty() { lines } else { last };
        return last[last.len().saturating_sub(MOST)..].to_vec();
    };
    let after = earlier.last().map_or(0, |it| it + 1);
    let place = lines[after..*last].iter().rposition(|it| is_place(it)).map(|it| after + it);
    let room = MOST - 1 - usize::from(place.is_some());
    let earlier = &earlier[earlier.len().saturating_sub(room)..];
    earlier.iter().chain(&place).chain([last]).map(|it| lines[*it].trim_start()).collect()
}

fn is_error(line: &str) -> bool {
    ["Error", "Exception", "error:", "panicked", "panic:", "fatal", "FATAL"].iter().any(|it| line.contains(it))
}

/// `at f (file.js:1:2)`, `at a.b.C.d(C.java:3)`, `File "app.py", line 4, in <module>`, `goroutine 1 [running]:`.
fn is_frame(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with("at ")
        || text.starts_with("File \"")
        || text.starts_with("goroutine ")
        || text.starts_with("Node.js v")
}

/// A file with a line: `/app/server.js:3`, `File "/app/app.py", line 4`.
fn is_place(line: &str) -> bool {
    let text = line.trim_start();
    let numbered = text.rsplit_once(':').is_some_and(|(file, number)| {
        !file.contains(' ') && number.bytes().all(|it| it.is_ascii_digit()) && !number.is_empty()
    });
    text.starts_with("File \"") || text.starts_with('/') && numbered
}

/// `^^^^` below a line of source.
fn is_marker(line: &str) -> bool {
    line.trim().bytes().all(|it| matches!(it, b'^' | b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_that_say_what_went_wrong_are_told() {
        let node = "/app/server.js:3\nfunction broken( {\n                 ^\n\nSyntaxError: Unexpected token '{'\n    at wrapSafe (node:internal/modules/cjs/loader:1670:18)\n    at node:internal/main/run_main_module:36:49\n\nNode.js v22.23.3\n";
        let gunicorn = "[7] [ERROR] Exception in worker process\nTraceback (most recent call last):\n  File \"/usr/lib/python3.11/arbiter.py\", line 609, in spawn_worker\n    worker.init_process()\n  File \"/app/app.py\", line 4\n    def broken(:\n               ^\nSyntaxError: invalid syntax\n[7] [INFO] Worker exiting (pid: 7)\n[1] [INFO] Shutting down: Master\n[1] [INFO] Reason: Worker failed to boot.\n";
        let rust =
            "starting\nthread 'main' panicked at src/main.rs:2:5:\nno database\nnote: run with `RUST_BACKTRACE=1`\n";
        let go = "panic: no database\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:5 +0x1d\nexit status 2\n";
        for (output, expected) in [
            (node, &["/app/server.js:3", "SyntaxError: Unexpected token '{'"][..]),
            (
                gunicorn,
                &[
                    "[7] [ERROR] Exception in worker process",
                    "File \"/app/app.py\", line 4",
                    "SyntaxError: invalid syntax",
                ],
            ),
            (rust, &["thread 'main' panicked at src/main.rs:2:5:", "no database"]),
            (go, &["panic: no database"]),
            ("File \"/app/a.py\", line 4\nNameError: x\n", &["File \"/app/a.py\", line 4", "NameError: x"]),
            ("one\n\ntwo\nthree\nfour\n", &["two", "three", "four"]),
            ("    at f (a.js:1:2)\n", &["    at f (a.js:1:2)"]),
            ("", &[]),
        ] {
            assert_eq!(telling(output), expected, "{output}");
        }
    }
}
