//! Each row is a connection's bytes; they are fed whole and byte by byte, and both must give the same answer.

use super::*;

/// `Ok(bytes passed on)`, or the status of the refusal.
fn outcome(bytes: &[u8], piece: usize) -> Result<usize, u16> {
    let mut tracker = Tracker::new(1024);
    let mut passed = 0;
    for piece in bytes.chunks(piece) {
        let taken = tracker.advance(piece);
        passed += taken;
        if let Some(refusal) = tracker.refusal() {
            return Err(refusal.status);
        }
        if taken < piece.len() {
            break;
        }
    }
    Ok(passed)
}

#[track_caller]
fn check(bytes: &str, expected: Result<usize, u16>) {
    for piece in [bytes.len().max(1), 1, 2, 3, 7] {
        assert_eq!(outcome(bytes.as_bytes(), piece), expected, "in pieces of {piece}: {bytes:?}");
    }
}

#[test]
fn what_is_unambiguous_passes_whole() {
    for good in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\nA;x=\"y\"\r\n0123456789\r\n000\r\nX: y\r\n\r\n",
    ] {
        check(good, Ok(good.len()));
    }
}

#[test]
fn what_is_ambiguous_is_refused() {
    for (head, status) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", 400),
        ("Content-Length: 3, 3\r\n", 400),
        ("Content-Length: +3\r\n", 400),
        ("Content-Length: 0x3\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Content-Length : 3\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, identity\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        (" Transfer-Encoding: chunked\r\n", 400),
        ("X: y\r\n folded: z\r\n", 400),
        ("X: y\nZ: 1\r\n", 400),
        ("X: y\rZ: 1\r\n", 400),
        ("X: y\0\r\n", 400),
        ("X\0: y\r\n", 400),
        ("X(y: z\r\n", 400),
        (": z\r\n", 400),
        ("Host: b\r\n", 400),
    ] {
        check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n"), Err(status));
    }
    for (text, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:80:90\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 505),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ] {
        check(text, Err(status));
    }
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2000)), Err(431));
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X:y\r\n".repeat(150)), Err(431));
}

#[test]
fn bad_chunks_are_refused() {
    for body in [
        "\r\n",
        "x\r\n",
        "3 \r\nabc\r\n",
        "3\nabc\r\n",
        "3\r\nabcd\r\n",
        "3\r\nabc\n",
        "3\r\nabcX\n",
        "-1\r\n",
        "0x3\r\n",
        "1234567890abcdef\r\n",
        "3;\x01\r\n",
        "3;a\nb\r\n",
        ";x\r\n",
        "0\r\nX y\r\n\r\n",
        "0\r\nContent-Length: 1\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\n\n",
    ] {
        check(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"), Err(400));
    }
}

#[test]
fn after_an_upgrade_request_bytes_wait_for_the_answer() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let smuggled = format!("{head}GET /2 HTTP/1.1\r\nHost: b\r\n\r\n");
    check(&smuggled, Ok(head.len()));
    for tunnel in [true, false] {
        let mut tracker = Tracker::new(1024);
        assert_eq!(tracker.advance(smuggled.as_bytes()), head.len());
        assert!(tracker.is_undecided());
        tracker.decide(tunnel);
        assert_eq!(tracker.advance(b"\x81\x05hello"), 7);
        assert_eq!(tracker.is_in_head(), !tunnel);
    }
}

#[test]
fn a_good_request_before_a_bad_one_passes() {
    let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut tracker = Tracker::new(1024);
    assert_eq!(tracker.advance(format!("{good}GET / HTTP/9\r\n\r\n").as_bytes()), good.len());
    assert_eq!(tracker.refusal().map(|it| it.status), Some(505));
}

proptest::proptest! {
    /// However a stream is cut into pieces, the same bytes pass and the same answer is given; nothing panics.
    #[test]
    fn pieces_do_not_matter(
        parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..14),
        cuts in proptest::collection::vec(1usize..40, 1..40),
    ) {
        let bytes: Vec<u8> = parts.concat().into_bytes();
        let mut whole = Tracker::new(300);
        let passed = whole.advance(&bytes);
        let (mut cut, mut at, mut total) = (Tracker::new(300), 0, 0);
        for length in cuts.iter().cycle() {
            if at >= bytes.len() {
                break;
            }
            let piece = &bytes[at..(at + length).min(bytes.len())];
            let taken = cut.advance(piece);
            (at, total) = (at + piece.len(), total + taken);
            if taken < piece.len() {
                break;
            }
        }
        proptest::prop_assert_eq!(whole.refusal().is_some(), cut.refusal().is_some());
        if whole.refusal().is_none() {
            proptest::prop_assert_eq!(passed, total);
        }
        proptest::prop_assert_eq!(whole.heads(), cut.heads());
    }
}

/// What streams are made of: good and bad pieces of requests.
const PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: upgrade\r\nUpgrade: x\r\n",
    "\r\n",
    "abc",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "\r",
    "\n",
    "\0",
    "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
];
