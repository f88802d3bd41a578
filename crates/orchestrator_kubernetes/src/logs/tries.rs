//! When the output of a pod is asked for again after a connection to the API server ended, and when no more. Pure.
//!
//! What must hold: it is given up only when the API server says again and again that there is no such container, never
//! because it is away, or because what is between cuts connections of programs that say little.

use std::time::Duration;

/// The longest pause. A connection that lasted as long says that asking again at once does no harm.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// After so many refusals, one after another, it is given up until the program runs again.
const REFUSALS: u32 = 20;

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// After a new line, or after a long time.
    Late,
    /// Soon and without a line; or it was not made.
    Soon,
    /// The API server knows no such container, or no such pod.
    Refused,
}

impl Ended {
    /// `moved`: a new line came.
    pub(super) fn of<T>(went: &Result<T, kube::Error>, moved: bool, lasted: Duration) -> Self {
        match went {
            _ if moved || lasted >= PAUSE_MOST => Self::Late,
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => Self::Refused,
            _ => Self::Soon,
        }
    }
}

/// The connections until now.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Those since the last one that ended late.
    fruitless: u64,
    refusals: u32,
}

impl Tries {
    /// The pause before the next connection; `None` when there is to be none.
    pub(super) fn after(&mut self, ended: Ended) -> Option<Duration> {
        (self.fruitless, self.refusals) = match ended {
            Ended::Late => (0, 0),
            Ended::Soon => (self.fruitless + 1, self.refusals),
            Ended::Refused => (self.fruitless + 1, self.refusals + 1),
        };
        (self.refusals < REFUSALS).then(|| Duration::from_secs(self.fruitless).min(PAUSE_MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn how_a_connection_ended_is_told_by_its_answer_and_time() {
        let says = |code: u16| Err(kube::Error::Api(Box::new(Status::failure("", "").with_code(code))));
        let (soon, late) = (Duration::from_secs(1), PAUSE_MOST);
        for (went, moved, lasted, wanted) in [
            (Ok(()), false, soon, Ended::Soon),
            (Ok(()), true, soon, Ended::Late),
            (Ok(()), false, late, Ended::Late),
            (says(404), false, soon, Ended::Refused),
            (says(400), false, soon, Ended::Refused),
            (says(403), false, soon, Ended::Soon),
            (says(500), false, soon, Ended::Soon), // the node does not answer
            (Err(kube::Error::Service("reset".into())), false, soon, Ended::Soon),
            (Err(kube::Error::Service("reset".into())), true, soon, Ended::Late),
        ] {
            assert_eq!(Ended::of(&went, moved, lasted), wanted, "{went:?} {moved} {lasted:?}");
        }
    }

    #[test]
    fn only_refusals_end_it() {
        let mut tries = Tries::default();
        let pauses: Vec<u64> = (0..1000).map(|_| tries.after(Ended::Soon).unwrap().as_secs()).collect();
        assert_eq!((pauses[0], pauses[1], pauses[29], pauses[999]), (1, 2, 30, 30));
        assert_eq!(tries.after(Ended::Late), Some(Duration::ZERO));
        for _ in 1..REFUSALS {
            assert!(tries.after(Ended::Refused).is_some());
            assert!(tries.after(Ended::Soon).is_some());
        }
        assert_eq!(tries.after(Ended::Refused), None);
        assert_eq!(tries.after(Ended::Late), Some(Duration::ZERO), "another run begins anew");
    }
}
