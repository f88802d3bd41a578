//! Judges passwords beside the threads that serve: each takes tens of milliseconds (PBKDF2), in which a core would answer
//! nobody else.
//!
//! What must hold: whatever clients send, at most [`AT_ONCE`] are judged at once in this process, few wait for their turn,
//! and no client longer than [`PATIENCE`]. A password that several bring at the same time is judged once.
//!
//! Not here: what is right, and what was proven before, which waits for nobody (`protect`).

use crate::protect::{Attempt, Fingerprint, Login, Look, Users};
use arco_daemon::{OnExit, Supervisor};
use http::HeaderMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Most passwords that are judged at once: they take the processors from those who serve.
const AT_ONCE: usize = 2;
/// Most that are judged or wait for their turn.
const MOST: usize = AT_ONCE + 16;
/// Longest wait of a client.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a password is right, once that is known.
type Outcome = Option<bool>;

/// The passwords that are judged in this process.
#[derive(Debug)]
pub(super) struct Judges {
    turns: Semaphore,
    /// Those that are judged or wait, and where the outcome is told.
    under_way: Mutex<HashMap<Fingerprint, watch::Receiver<Outcome>>>,
}

impl Default for Judges {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), under_way: Mutex::default() }
    }
}

/// A password under way until this is dropped. First it is not found any more, then whoever waits hears when nobody judges it.
struct UnderWay {
    judges: Arc<Judges>,
    fingerprint: Fingerprint,
    tell: watch::Sender<Outcome>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.judges.lock().remove(&self.fingerprint);
    }
}

impl Judges {
    fn lock(&self) -> MutexGuard<'_, HashMap<Fingerprint, watch::Receiver<Outcome>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the outcome will be told, and whether it is judged for this attempt; `None` when there is no place for it.
    fn begin(
        self: &Arc<Self>,
        supervisor: &Supervisor,
        users: &Arc<Users>,
        attempt: &Attempt,
    ) -> Option<(watch::Receiver<Outcome>, bool)> {
        let mut all = self.lock();
        let fingerprint = attempt.fingerprint();
        if let Some(told) = all.get(&fingerprint) {
            return Some((told.clone(), false));
        }
        if all.len() >= MOST {
            return None;
        }
        let (tell, told) = watch::channel(None);
        all.insert(fingerprint, told.clone());
        drop(all);
        let under_way = UnderWay { judges: Arc::clone(self), fingerprint, tell };
        let (users, attempt) = (Arc::clone(users), attempt.clone());
        // Of its own: the client may leave, and others wait for the same.
        supervisor.spawn("password", OnExit::Continue, async move {
            let Ok(_turn) = under_way.judges.turns.acquire().await else { return Ok(()) };
            let judged = tokio::task::spawn_blocking(move || users.judge(&attempt)).await.unwrap_or_default();
            if judged.is_some() {
                under_way.tell.send_replace(judged);
            }
            Ok(())
        });
        Some((told, true))
    }
}

/// What comes of the password that a request from `address` brings.
pub(super) async fn judge(
    judges: &Arc<Judges>,
    supervisor: &Supervisor,
    users: &Arc<Users>,
    headers: &HeaderMap,
    address: IpAddr,
) -> Login {
    let judging = async {
        loop {
            let attempt = match users.look(headers, address) {
                Look::Known(login) => return login,
                Look::Unknown(attempt) => attempt,
            };
            let Some((mut told, is_first)) = judges.begin(supervisor, users, &attempt) else { return Login::Busy };
            let outcome = told.wait_for(Option::is_some).await.ok().and_then(|it| *it);
            match outcome {
                Some(true) => return Login::Welcome,
                Some(false) => {
                    if !is_first {
                        users.refused(&attempt);
                    }
                    return Login::Refused;
                }
                // Whoever brought it first has sent too many wrong ones meanwhile: this one is looked at again.
                None => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, judging).await.unwrap_or(Login::Busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Limits, Listening, Protocol, Shared};
    use crate::metrics::Metrics;
    use crate::source::file::FileSource;
    use base64::Engine as _;
    use futures_util::future::join_all;
    use http::HeaderValue;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    /// `secret`, by 1000 rounds.
    fn line() -> String {
        let (rounds, mut hash) = (std::num::NonZeroU32::new(1000).unwrap(), [0u8; 32]);
        aws_lc_rs::pbkdf2::derive(aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256, rounds, b"saltsalt", b"secret", &mut hash);
        let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
        format!("ann:pbkdf2-sha256$1000${}${}\n", hex(b"saltsalt"), hex(&hash))
    }

    fn credentials(password: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("ann:{password}")))
    }

    /// Users who have proven nothing, and who judges them.
    fn fresh() -> (Arc<Judges>, Supervisor, Arc<Users>) {
        (Arc::default(), Supervisor::new(), Arc::new(Users::parse(&line(), "r").unwrap()))
    }

    async fn ask(of: &(Arc<Judges>, Supervisor, Arc<Users>), password: &str, last: u8) -> Login {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, HeaderValue::try_from(credentials(password)).unwrap());
        judge(&of.0, &of.1, &of.2, &headers, [192, 0, 2, last].into()).await
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let of = fresh();
        let turns = of.0.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        let began = Instant::now();
        assert_eq!(ask(&of, "secret", 1).await, Login::Busy);
        assert!(began.elapsed() >= PATIENCE);
        drop(turns);
        assert_eq!(ask(&of, "secret", 1).await, Login::Welcome);
        assert!(of.0.lock().is_empty(), "nothing stays");
    }

    #[tokio::test]
    async fn what_several_bring_is_judged_once() {
        for (password, expected) in [("secret", Login::Welcome), ("wrong", Login::Refused)] {
            let of = fresh();
            let turns = of.0.turns.acquire_many(AT_ONCE as u32).await.unwrap();
            let asking = join_all((0..25).map(|last| ask(&of, password, last)));
            let releasing = async {
                // All of them have asked when this is polled.
                assert_eq!(of.0.lock().len(), 1);
                drop(turns);
            };
            let (outcomes, ()) = tokio::join!(asking, releasing);
            assert!(outcomes.iter().all(|it| *it == expected), "{outcomes:?}");
            assert!(of.0.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn an_address_gains_nothing_by_guessing_all_at_once() {
        let of = fresh();
        let guesses: Vec<_> = (0..MOST).map(|it| format!("guess {it}")).collect();
        let outcomes = join_all(guesses.iter().map(|it| ask(&of, it, 1))).await;
        let count = |login| outcomes.iter().filter(|it| **it == login).count();
        assert_eq!(count(Login::Refused) + count(Login::TooMany), MOST, "{outcomes:?}");
        assert!(count(Login::TooMany) > 0, "{outcomes:?}");
    }

    /// A gateway of one thread: `inside.test` asks for passwords, `open.test` for nothing.
    struct Gateway {
        supervisor: Supervisor,
        shared: Arc<Shared>,
        listening: Listening,
        _engine: Engine,
        _folder: tempfile::TempDir,
    }

    impl Gateway {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("users"), line()).unwrap();
            let path = folder.path().join("gateway.yaml");
            let answers = "answer: {status: 200, body: fine}";
            let file = format!(
                "routes:\n\
                 \x20 - {{hosts: [inside.test], basic_auth: {{realm: r, users_file: users}}, {answers}}}\n\
                 \x20 - {{hosts: [open.test], {answers}}}\n"
            );
            std::fs::write(&path, file).unwrap();
            let supervisor = Supervisor::new();
            let minute = Duration::from_secs(60);
            let shared = Shared::new(Limits::new(65_536, minute, minute), Metrics::new());
            shared.snapshot.store(Arc::new(FileSource::new(&path, Metrics::new()).load().unwrap().snapshot));
            let engine = Engine::start(&supervisor, Arc::clone(&shared), 1).unwrap();
            let listening = engine.listen(SocketAddr::from(([127, 0, 0, 1], 0)), &Protocol::Http).unwrap();
            Self { supervisor, shared, listening, _engine: engine, _folder: folder }
        }

        async fn send(&self, host: &str, password: Option<&str>) -> TcpStream {
            let mut stream = TcpStream::connect(self.listening.address).await.unwrap();
            let field = password.map(|it| format!("Authorization: {}\r\n", credentials(it))).unwrap_or_default();
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{field}Connection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }

        /// Status and text of an answer.
        async fn ask(&self, host: &str, password: Option<&str>) -> (u16, String) {
            answer(self.send(host, password).await).await
        }
    }

    impl Drop for Gateway {
        fn drop(&mut self) {
            self.supervisor.token().cancel();
        }
    }

    async fn answer(mut stream: TcpStream) -> (u16, String) {
        let mut text = String::new();
        let reading = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut text));
        reading.await.expect("an answer in time").unwrap();
        (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
    }

    #[tokio::test]
    async fn others_are_answered_while_passwords_are_judged() {
        let gateway = Gateway::start();
        let (status, text) = gateway.ask("inside.test", None).await;
        assert!(status == 401 && text.contains("www-authenticate: Basic realm=\"r\""), "{text}");
        assert_eq!(gateway.ask("inside.test", Some("secret")).await.0, 200);
        // From now on nobody is judged.
        let turns = gateway.shared.judges.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        let mut waiting = Vec::new();
        for number in 0..MOST {
            waiting.push(gateway.send("inside.test", Some(&format!("guess {number}"))).await);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while gateway.shared.judges.lock().len() < MOST {
            assert!(Instant::now() < deadline, "{} wait", gateway.shared.judges.lock().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(gateway.ask("open.test", None).await.0, 200, "the one thread that serves is free");
        assert_eq!(gateway.ask("inside.test", Some("secret")).await.0, 200, "it was proven");
        let (status, text) = gateway.ask("inside.test", Some("one too many")).await;
        assert!(status == 429 && text.contains("retry-after: "), "{text}");
        drop(turns);
        for stream in waiting {
            let (status, text) = answer(stream).await;
            // They all came from one address.
            assert!([401, 429].contains(&status), "{text}");
        }
        assert!(gateway.shared.judges.lock().is_empty());
    }
}
