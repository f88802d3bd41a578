//! Futures that answer requests. That of an ordinary request is one type of more than a kilobyte: its box is used again for the next
//! one, which costs less than to free and to allocate it.
//!
//! What must hold: what a future holds goes with its end, or with the request that is given up.

use super::super::body::ResponseBody;
use super::taking::TakenBody;
use http::Response;
use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_util::sync::ReusableBoxFuture;

/// Most boxes that a core keeps when nobody uses them.
const KEPT: usize = 64;

type Answer = Result<Response<TakenBody<ResponseBody>>, Infallible>;
type Reusable = ReusableBoxFuture<'static, Answer>;

thread_local! {
    /// Of futures that have ended.
    static FREE: RefCell<Vec<Reusable>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(super) enum Answering {
    /// In a box that is used again; `None` when it has ended.
    Kept(Option<Reusable>),
    /// In a box of its own.
    Own(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl Answering {
    /// A future of a type that is common.
    pub(super) fn kept(future: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self::Kept(Some(match FREE.with_borrow_mut(Vec::pop) {
            Some(mut free) => {
                free.set(future);
                free
            }
            None => ReusableBoxFuture::new(future),
        }))
    }

    /// Any other.
    pub(super) fn own(future: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self::Own(Box::pin(future))
    }
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let kept = match &mut *self {
            Self::Own(future) => return future.as_mut().poll(cx),
            Self::Kept(kept) => kept,
        };
        // Nobody asks again after the end.
        let Some(future) = kept else { return Poll::Pending };
        let answer = ready!(future.poll(cx));
        if let Some(ended) = kept.take() {
            FREE.with_borrow_mut(|free| {
                if free.len() < KEPT {
                    free.push(ended);
                }
            });
        }
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::taking::Taking;
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn answer() -> Answer {
        Ok(Taking::new(Duration::ZERO).watch(Response::new(ResponseBody::own(String::new(), None))))
    }

    #[tokio::test]
    async fn a_box_is_used_again_and_holds_nothing_meanwhile() {
        let free = || FREE.with_borrow(Vec::len);
        let held = Arc::new(());
        let begin = || {
            let held = Arc::clone(&held);
            Answering::kept(async move {
                tokio::task::yield_now().await;
                drop(held);
                answer()
            })
        };
        let (one, other) = (begin(), begin());
        assert_eq!((Arc::strong_count(&held), free()), (3, 0));
        assert!(one.await.is_ok());
        assert_eq!((Arc::strong_count(&held), free()), (2, 1));
        // One that is given up takes its box with it.
        drop(other);
        assert_eq!((Arc::strong_count(&held), free()), (1, 1));
        let again = begin();
        assert_eq!(free(), 0);
        assert!(again.await.is_ok() && Answering::own(async { answer() }).await.is_ok());
        assert_eq!((Arc::strong_count(&held), free()), (1, 1));
    }
}
