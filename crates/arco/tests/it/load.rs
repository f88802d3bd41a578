//! Clients that ask on and on while a test does something, and count what went wrong.

use arco_testkit::until;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A client that has complained this often has said enough.
const COMPLAINTS: usize = 20;

/// Running clients.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts that many clients; each asks with a function of its own, whose error is its complaint.
    pub(crate) fn start<F>(clients: usize, client: impl Fn() -> F) -> Self
    where
        F: FnMut() -> Result<(), String> + Send + 'static,
    {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let start = |_| {
            let (stop, answers, mut ask) = (stop.clone(), answers.clone(), client());
            std::thread::spawn(move || {
                let mut complaints = Vec::new();
                while !stop.load(Ordering::SeqCst) && complaints.len() < COMPLAINTS {
                    match ask() {
                        Ok(()) => drop(answers.fetch_add(1, Ordering::SeqCst)),
                        Err(complaint) => complaints.push(complaint.chars().take(200).collect()),
                    }
                    std::thread::sleep(Duration::from_millis(2)); // the pace of a client
                }
                complaints
            })
        };
        let clients = (0..clients).map(start).collect();
        Self { stop, answers, clients }
    }

    /// Waits for that many further answers.
    pub(crate) fn goes_on(&self, more: usize) {
        let before = self.answers.load(Ordering::SeqCst);
        until("answers under load", 60, || (self.answers.load(Ordering::SeqCst) >= before + more).then_some(()));
    }

    /// Stops the clients; their complaints.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.into_iter().flat_map(|it| it.join().expect("no client panics")).collect()
    }
}
