//! Which member is asked, and what is done when it fails.
//!
//! What must hold: one member is asked for everything as long as it works. A call goes on to the next one when it was
//! certainly not sent, and, if doing it twice is the same as doing it once, whatever happened to it; never else.
//! Whoever failed is left out for a while; when all are left out, all are tried. Connections, and calls that queue for
//! them: `member`.

use super::health::Quiet;
use super::member::{Member, OfMember};
use super::patience::{CALL, Patience, TICKS};
use super::verdict::{Verdict, verdict, words};
use crate::kv::{EtcdTls, KvError};
use etcd_client::Error;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most members: which were asked is kept in the bits of one number.
const MOST: usize = 64;

/// What is done to the store.
#[derive(Clone, Copy)]
pub(super) struct Call {
    /// For errors.
    pub(super) step: &'static str,
    /// Whether doing it twice is the same as doing it once.
    pub(super) repeatable: bool,
}

/// The members of one etcd.
pub(super) struct Members {
    all: Vec<Member>,
    current: AtomicUsize,
    patience: Patience,
}

impl Members {
    /// Does not connect yet.
    pub(super) async fn new(addresses: &[String], tls: Option<&EtcdTls>) -> Result<Self, KvError> {
        let refused = |cause: String| KvError::Unavailable { step: "connect", cause };
        match addresses.len() {
            0 => return Err(refused("no address is given".to_owned())),
            1..=MOST => {}
            many => return Err(refused(format!("{many} addresses are given, {MOST} are the most"))),
        }
        let mut all = Vec::with_capacity(addresses.len());
        for address in addresses {
            all.push(Member::new(address, tls).await?);
        }
        let mut looked_at: Vec<_> = all.iter().map(|it| (Quiet::default(), it.health.clone())).collect();
        let look = move || looked_at.iter_mut().for_each(|(quiet, health)| quiet.look(health));
        // Each process begins with another one, so that not all of them load the same.
        let current = AtomicUsize::new((crate::clock::random() % all.len() as u64) as usize);
        Ok(Self { all, current, patience: Patience::start(look) })
    }

    /// Asks a member, then others while that may help. Returns the answer, and which member gave it.
    pub(super) async fn ask<C, R, T, F>(
        &self,
        call: Call,
        request: R,
        send: impl Fn(C, R) -> F,
        failed: impl Fn(Error) -> KvError,
    ) -> Result<(usize, T), KvError>
    where
        C: OfMember,
        R: Clone,
        F: Future<Output = Result<T, Error>>,
    {
        let mut request = Some(request);
        let (mut tried, mut left, mut told) = (0_u64, TICKS, Vec::<String>::new());
        while let Some(at) = self.choose(tried) {
            tried |= 1_u64 << at;
            let member = &self.all[at];
            let last = tried.count_ones() as usize == self.all.len();
            // Only a call that can go on keeps its request.
            let Some(mine) = (if last { request.take() } else { request.clone() }) else { break };
            member.health.asks();
            let goes_on = call.repeatable && !last;
            let outcome = tokio::select! {
                biased;
                outcome = send(C::of(member), mine) => Some(outcome),
                () = self.patience.over(&mut left, || goes_on && member.health.out_until_ms().is_some()) => None,
            };
            let doubt = if call.repeatable { "" } else { "; it may have been done" };
            let error = match outcome {
                Some(Ok(answer)) => {
                    member.health.answers();
                    return Ok((at, answer));
                }
                Some(Err(error)) => error,
                None if left > 0 => {
                    told.push(format!("{}: {}", member.url, member.health.why()));
                    continue;
                }
                None => {
                    told.push(format!("{}: no answer within {} s{doubt}", member.url, CALL.as_secs()));
                    break;
                }
            };
            let verdict = verdict(&error);
            if verdict == Verdict::Answer {
                member.health.answers();
                return Err(match failed(error) {
                    KvError::Unavailable { step, cause } => {
                        KvError::Unavailable { step, cause: format!("{}: {cause}", member.url) }
                    }
                    other => other,
                });
            }
            let why = words(&error);
            member.health.leave_out(&why);
            if verdict == Verdict::Unknown && !call.repeatable {
                told.push(format!("{}: {why}{doubt}", member.url));
                break;
            }
            told.push(format!("{}: {why}", member.url));
        }
        Err(KvError::Unavailable { step: call.step, cause: told.join("; ") })
    }

    /// A stream of this member broke.
    pub(super) fn leave_out(&self, at: usize, why: &str) {
        self.all[at].health.leave_out(why);
    }

    /// Whom to ask, but for those who were asked already.
    fn choose(&self, tried: u64) -> Option<usize> {
        let current = self.current.load(Ordering::Relaxed);
        let out = |at: usize| self.all[at].health.out_until_ms();
        let at = first(self.all.len(), current, tried, out)?;
        let chosen = &self.all[at];
        if chosen.health.out_until_ms().is_some() {
            chosen.health.take_back();
        } else if at != current && out(current).is_some() {
            let moved = self.current.compare_exchange(current, at, Ordering::Relaxed, Ordering::Relaxed);
            if moved.is_ok() {
                let (failed, why) = (&self.all[current].url, self.all[current].health.why());
                tracing::warn!(failed, why, now = chosen.url, "another member of etcd is asked from now on");
            }
        }
        Some(at)
    }

    /// From now on this one is asked.
    #[cfg(test)]
    pub(super) fn begin_at(&self, at: usize) {
        self.all[at].health.take_back();
        self.current.store(at, Ordering::Relaxed);
    }
}

/// The current one, or the next that works; when none does, the one that failed first. `tried` has a bit for each that
/// was asked already; `out` says until when one is left out.
fn first(count: usize, current: usize, tried: u64, out: impl Fn(usize) -> Option<u64>) -> Option<usize> {
    let ring = (0..count).map(|it| (current + it) % count).filter(|it| tried & (1_u64 << *it) == 0);
    ring.clone().find(|it| out(*it).is_none()).or_else(|| ring.min_by_key(|it| out(*it)))
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn one_is_asked_while_it_works_and_then_the_next() {
        let works = None;
        for (out, current, tried, wanted) in [
            ([works, works, works], 1, 0b000, Some(1)),
            ([works, Some(9), works], 1, 0b000, Some(2)),
            ([works, Some(9), Some(9)], 1, 0b000, Some(0)),
            ([works, works, works], 2, 0b100, Some(0)),
            ([works, Some(9), works], 0, 0b001, Some(2)),
            ([Some(7), Some(9), Some(8)], 1, 0b000, Some(0)),
            ([Some(7), Some(9), Some(8)], 1, 0b001, Some(2)),
            ([Some(9), Some(9), Some(9)], 2, 0b000, Some(2)),
            ([works, Some(9), works], 0, 0b101, Some(1)),
            ([works, works, works], 0, 0b111, None),
        ] {
            assert_eq!(first(3, current, tried, |it| out[it]), wanted, "{out:?} {current} {tried:b}");
        }
        assert_eq!(first(1, 0, 0, |_| Some(5)), Some(0), "whoever is alone is always asked");
    }
}
