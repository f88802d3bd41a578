//! Following a log by server-sent events, with reconnect: the platform may restart meanwhile.
//!
//! Each line has a number, which travels as the id of its event; after a reconnect we say which one we saw last.

use super::{Client, ClientError, LogOf};
use crate::wire::LogQuery;
use arco_model::log::LogLine;
use std::collections::VecDeque;
use std::time::Duration;

/// What a followed log tells.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEvent {
    /// A line.
    Line(LogLine),
    /// So many lines were dropped because we were too slow.
    Missed(u64),
    /// The log ends here (its operation is over).
    End,
}

/// A log that is being followed.
pub struct LogFollower {
    client: Client,
    path: String,
    query: LogQuery,
    response: Option<reqwest::Response>,
    parser: EventParser,
    ready: VecDeque<LogEvent>,
    last: Option<String>,
    failures: u32,
    patience: u32,
}

impl Client {
    /// Follows a log: lines that are there, then new ones. `patience` is how often in a row it is tried again when the
    /// platform is away, at growing distances of at most 2 s.
    pub fn follow(&self, of: &LogOf<'_>, query: &LogQuery, patience: u32) -> LogFollower {
        LogFollower {
            client: self.clone(),
            path: of.path(),
            query: LogQuery { follow: true, ..query.clone() },
            response: None,
            parser: EventParser::default(),
            ready: VecDeque::new(),
            last: None,
            failures: 0,
            patience,
        }
    }
}

impl LogFollower {
    /// The next event. Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<LogEvent, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if self.response.is_none() {
                self.connect().await?;
            }
            let Some(response) = &mut self.response else { continue };
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    self.failures = 0;
                    let (ready, last) = (&mut self.ready, &mut self.last);
                    self.parser.feed(&bytes, |event, id, body| {
                        if !id.is_empty() {
                            *last = Some(id.to_owned());
                        }
                        ready.extend(read_event(event, body));
                    });
                }
                // The platform went away in the middle: go on where we were.
                Ok(None) | Err(_) => {
                    self.response = None;
                    self.parser = EventParser::default();
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        if self.failures > 0 {
            tokio::time::sleep(Duration::from_millis((100 << self.failures.min(5)).min(2_000))).await;
        }
        // Counted before the attempt: a connection that ends at once is a failure as well.
        self.failures += 1;
        let mut request =
            self.client.request(http::Method::GET, &self.path).query(&self.query).header("accept", "text/event-stream");
        if let Some(last) = &self.last {
            request = request.header("last-event-id", last);
        }
        match self.client.send(request).await {
            Ok(response) => self.response = Some(response),
            Err(error) if error.is_transient() && self.failures <= self.patience => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn read_event(event: &str, body: &str) -> Option<LogEvent> {
    match event {
        "line" | "message" | "" => serde_json::from_str(body).ok().map(LogEvent::Line),
        "missed" => Some(LogEvent::Missed(missed(body))),
        "end" => Some(LogEvent::End),
        _ => None,
    }
}

/// A number, or the first number in an object.
fn missed(body: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    value.as_u64().or_else(|| value.as_object()?.values().find_map(serde_json::Value::as_u64)).unwrap_or(0)
}

/// Reads `text/event-stream` (WHATWG HTML §9.2.6) from pieces of any size.
#[derive(Default)]
struct EventParser {
    line: Vec<u8>,
    event: String,
    id: String,
    body: String,
    after_return: bool,
}

impl EventParser {
    fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(&str, &str, &str)) {
        for byte in bytes {
            let lone_feed = *byte == b'\n' && std::mem::take(&mut self.after_return);
            self.after_return = *byte == b'\r';
            match byte {
                b'\n' if lone_feed => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    self.line(&String::from_utf8_lossy(&line), &mut emit);
                }
                byte => self.line.push(*byte),
            }
        }
    }

    fn line(&mut self, line: &str, emit: &mut impl FnMut(&str, &str, &str)) {
        if line.is_empty() {
            let [event, id, body] = [&mut self.event, &mut self.id, &mut self.body].map(std::mem::take);
            if !event.is_empty() || !body.is_empty() {
                emit(&event, &id, body.strip_suffix('\n').unwrap_or(&body));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.to_owned(),
            "id" => self.id = value.to_owned(),
            "data" => {
                self.body.push_str(value);
                self.body.push('\n');
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_pieces_of_any_size() {
        let text = ": hi\nevent: line\ndata: {\"a\":\ndata: 1}\n\r\nid: 4\r\ndata:x\r\n\r\nevent: end\rdata\r\r";
        for size in [1, 2, 3, 7, text.len()] {
            let (mut parser, mut seen) = (EventParser::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                parser.feed(piece, |event, id, body| seen.push([event, id, body].map(str::to_owned)));
            }
            let wanted = [["line", "", "{\"a\":\n1}"], ["", "4", "x"], ["end", "", ""]];
            assert_eq!(seen, wanted, "pieces of {size}");
        }
        assert_eq!((missed("7"), missed("{\"lines\":3}"), missed("x")), (7, 3, 0));
    }
}
