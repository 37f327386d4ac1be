//! An engine's stream on its way to the client: bytes pass as they come, watched and not changed.
//!
//! ```text
//! held first chunks ──▶ chunks as they come ──▶ the dialect's end ──▶ slot given back, counted
//!                                       └─ cut, silent ──▶ the dialect's error event ──▶ end
//! ```
//!
//! Dropping a relay (the client went away) drops the engine's body, which cancels the work, and gives the slot back.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use adapter_host::{StreamEnd, StreamWatch, error_event};
use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use pool_registry_types::Dialect;
use scheduler::Outcome;
use task_api::{ApiError, ErrorCode};
use tokio::time::Sleep;
use tracing::Span;

use crate::dispatch::READ_OUT_MAX;
use crate::metrics::{PoolMetrics, TaskOutcome};
use crate::plane::{AnswerBody, Grant};

/// One stream.
pub(crate) struct Relay {
    /// None once it has ended.
    running: Option<Running>,
    dialect: Dialect,
    watch: StreamWatch,
    held: VecDeque<Bytes>,
    pool: Arc<PoolMetrics>,
    silence: Silence,
    span: Span,
    correlation_id: HeaderValue,
}

struct Running {
    body: AnswerBody,
    grant: Grant,
}

/// Notices that nothing came for a while, with one timer for the whole stream and no look at the clock for a chunk: the
/// timer strikes some times within the bound, and each chunk makes the count begin again.
struct Silence {
    bound: Duration,
    strikes: u32,
    timer: Pin<Box<Sleep>>,
    /// The timer has the task's waker, which stays the same for the whole stream.
    is_armed: bool,
}

/// How many strikes make a silence. One more than fit into the bound, so that it is never cut short.
const STRIKES_MAX: u32 = 5;

impl Relay {
    /// `held` is what was read while it was waited for the first data.
    pub(crate) fn new(
        dialect: Dialect,
        watch: StreamWatch,
        held: VecDeque<Bytes>,
        (body, grant): (AnswerBody, Grant),
        pool: Arc<PoolMetrics>,
        silence_max: Duration,
        correlation_id: HeaderValue,
    ) -> Self {
        let mut silence = Silence::new(silence_max);
        if watch.has_ended() {
            silence.end_soon();
        }
        Self {
            running: Some(Running { body, grant }),
            dialect,
            watch,
            held,
            pool,
            silence,
            span: crate::spans::stream(),
            correlation_id,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.running.is_none() && self.held.is_empty()
    }

    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(chunk) = self.held.pop_front() {
            return Poll::Ready(Some(chunk));
        }
        loop {
            let Some(running) = &mut self.running else {
                return Poll::Ready(None);
            };
            if running.grant.is_cancelled() {
                return Poll::Ready(self.cancel());
            }
            match Pin::new(&mut running.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(chunk) = frame.into_data() else { continue };
                    let whole_events = self.watch.relay(chunk);
                    self.silence.strikes = 0;
                    if self.watch.has_ended() {
                        self.silence.end_soon();
                    }
                    if !whole_events.is_empty() {
                        return Poll::Ready(Some(whole_events));
                    }
                }
                Poll::Ready(Some(Err(why))) => return Poll::Ready(self.end(Some(&why))),
                Poll::Ready(None) => return Poll::Ready(self.end(None)),
                Poll::Pending => {
                    if self.silence.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    return Poll::Ready(self.give_up());
                }
            }
        }
    }

    /// The engine's body has ended, well or not. Gives what the client still has to be told.
    fn end(&mut self, why: Option<&str>) -> Option<Bytes> {
        let running = self.running.take()?;
        let usage = self.watch.usage();
        self.pool.tokens(usage);
        self.span.record("tokens_out", usage.tokens_out.unwrap_or(0));
        match self.watch.finish() {
            StreamEnd::Complete => {
                self.pool.ended(TaskOutcome::Completed);
                running.grant.finish(Outcome::Completed);
                self.held_back()
            }
            // The client has the engine's own error event.
            StreamEnd::Error(error) => {
                crate::dispatch::failed(&running.grant, &self.correlation_id, &error);
                self.pool.ended(TaskOutcome::Failed);
                running.grant.finish(Outcome::Failed);
                self.held_back()
            }
            StreamEnd::Cut { .. } => {
                crate::dispatch::lost(
                    &running.grant,
                    &self.correlation_id,
                    &why.unwrap_or("the stream ended without its end"),
                );
                self.pool.ended(TaskOutcome::Failed);
                running.grant.finish(Outcome::Failed);
                let error = ApiError::new(
                    ErrorCode::WorkerReset,
                    "the engine went away in the middle of the answer; what was sent is not complete",
                );
                Some(error_event(self.dialect, &error, self.watch.is_halved()))
            }
        }
    }

    /// The last bytes of a stream that did not end its last line.
    fn held_back(&mut self) -> Option<Bytes> {
        Some(self.watch.held_back()).filter(|bytes| !bytes.is_empty())
    }

    /// Somebody cancelled the request by its name.
    fn cancel(&mut self) -> Option<Bytes> {
        self.let_go();
        Some(error_event(
            self.dialect,
            &crate::recent::cancelled(),
            self.watch.is_halved(),
        ))
    }

    /// Ends the engine's work and gives the slot back.
    fn let_go(&mut self) {
        if let Some(running) = self.running.take() {
            self.pool.tokens(self.watch.usage());
            self.pool.ended(TaskOutcome::Cancelled);
            // The body first: its drop is what cancels the work that holds the slot.
            drop(running.body);
            running.grant.finish(Outcome::Cancelled);
        }
    }

    fn give_up(&mut self) -> Option<Bytes> {
        // The answer is complete and only the connection is still open.
        if self.watch.has_ended() {
            return self.end(None);
        }
        let running = self.running.take()?;
        self.pool.tokens(self.watch.usage());
        self.pool.ended(TaskOutcome::Failed);
        let waited = self.silence.bound.as_millis();
        let error = ApiError::new(
            ErrorCode::DecodeTimeout,
            format!("the engine sent nothing for {waited} ms"),
        );
        crate::dispatch::failed(&running.grant, &self.correlation_id, &error);
        running.grant.finish(Outcome::Failed);
        Some(error_event(self.dialect, &error, self.watch.is_halved()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Silence {
    fn new(bound: Duration) -> Self {
        Self {
            bound,
            strikes: 0,
            timer: Box::pin(tokio::time::sleep(bound / (STRIKES_MAX - 1))),
            is_armed: false,
        }
    }

    /// The answer is whole; only the end of its body may still come.
    fn end_soon(&mut self) {
        self.strikes = STRIKES_MAX;
        self.strike_in(READ_OUT_MAX);
    }

    fn strike_in(&mut self, wait: Duration) {
        self.timer.as_mut().reset(tokio::time::Instant::now() + wait);
        self.is_armed = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.is_armed || self.timer.is_elapsed() {
            if self.timer.as_mut().poll(cx).is_pending() {
                self.is_armed = true;
                break;
            }
            self.strikes += 1;
            if self.strikes >= STRIKES_MAX {
                return Poll::Ready(());
            }
            self.strike_in(self.bound / (STRIKES_MAX - 1));
        }
        Poll::Pending
    }
}
