//! What a run or a login tells while it goes on.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use pool_registry_types::{AgentEvent, LoginEvent};
use tokio::sync::mpsc;

/// Events that wait for a slow reader. Then the agent waits.
pub(super) const EVENTS_MAX: usize = 64;

/// Events in order; the last one ends the run or the login. Dropping the stream before that cancels it.
pub struct Events<T> {
    receiver: mpsc::Receiver<T>,
}

/// The events of a run.
pub type AgentEvents = Events<AgentEvent>;

/// The events of a login.
pub type LoginEvents = Events<LoginEvent>;

impl<T> Events<T> {
    pub(super) fn channel() -> (mpsc::Sender<T>, Self) {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        (sender, Self { receiver })
    }

    /// The next event; None after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<T> {
        self.receiver.recv().await
    }
}

impl<T> Stream for Events<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.receiver.poll_recv(cx)
    }
}

impl<T> fmt::Debug for Events<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
