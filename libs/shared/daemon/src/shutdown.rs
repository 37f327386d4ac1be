//! Ending in order.
//!
//! ```text
//! running ──SIGTERM, SIGINT, stop()──▶ stopping ──work done──────────────▶ drained (exit 0)
//!                                          └──deadline, second signal──▶ aborted (exit 130)
//! ```
//!
//! While stopping, listeners accept nothing more and [`Kind::Background`] tasks are dropped; [`Kind::Work`] goes on until
//! it is done, the deadline has passed, or a second signal says that somebody does not want to wait. Then it is dropped
//! as well. Everything that is spawned here is waited for: nothing outlives [`Shutdown::drain`].
//!
//! SIGHUP ends no daemon: it says that files have changed. Certificates are looked at again at once
//! ([`Watched::follow`](crate::tls::Watched::follow)); settings are read at the start only, and the log says so. A
//! program that lives in a terminal ends with it ([`Shutdown::listen_to_signals_in_terminal`]).

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a task is to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A piece of work for somebody. It is finished before the process ends, if the deadline allows.
    Work,
    /// Goes on for as long as the process does; dropped when the shutdown begins. Its end or panic before that is a fault
    /// that stops the process.
    Background,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All work was finished.
    Clean,
    /// The deadline passed or a second signal came with work still going on.
    Aborted,
}

/// What SIGHUP means to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    FilesChanged,
    End,
}

/// The process's one shutdown. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    stop: Signal,
    abort: Signal,
    hangup: Arc<Notify>,
    tracker: TaskTracker,
    fault: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on SIGTERM and SIGINT begin the shutdown, a second one cuts it short, and SIGHUP says that files have
    /// changed. Needs a runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn listen_to_signals(&self) -> std::io::Result<JoinHandle<()>> {
        self.listen(Hangup::FilesChanged)
    }

    /// The same for a program in a terminal: SIGHUP says that the terminal has gone, and begins the shutdown, too. Where
    /// SIGHUP was ignored when the program started (`nohup`), it stays so.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn listen_to_signals_in_terminal(&self) -> std::io::Result<JoinHandle<()>> {
        self.listen(Hangup::End)
    }

    fn listen(&self, on_hangup: Hangup) -> std::io::Result<JoinHandle<()>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = match on_hangup {
            Hangup::End if hangup_is_ignored() => None,
            Hangup::End | Hangup::FilesChanged => Some(signal(SignalKind::hangup())?),
        };
        let shutdown = self.clone();
        Ok(tokio::spawn(async move {
            loop {
                let hung_up = async {
                    match &mut hangup {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    }
                };
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    _ = hung_up => {
                        if on_hangup == Hangup::FilesChanged {
                            tracing::info!(
                                signal = "SIGHUP",
                                "certificates are looked at again; settings are read at the start only: to change \
                                 them, restart"
                            );
                            shutdown.hangup.notify_waiters();
                            continue;
                        }
                        "SIGHUP"
                    }
                };
                if shutdown.is_stopping() {
                    tracing::warn!(signal = name, "second signal: dropping what is left");
                    shutdown.abort.raise();
                    return;
                }
                tracing::info!(
                    signal = name,
                    "stopping: finishing what was begun; another signal ends it at once"
                );
                shutdown.stop();
            }
        }))
    }

    /// Begins the shutdown. Doing it again changes nothing.
    pub fn stop(&self) {
        self.stop.raise();
    }

    /// Begins the shutdown because something that must not end has ended. The process's exit code will say so.
    pub fn fail(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::error!(fault = text, "stopping because of a fault");
        // Only the first fault is kept: the others follow from it.
        let _ = self.fault.set(text);
        self.stop.raise();
    }

    /// What made it fail, if anything did.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Whether it has begun.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// Waits until it has begun. Cancel-safe.
    pub async fn stopped(&self) {
        self.stop.token.cancelled().await;
    }

    /// The same for a future that one task polls again and again, from its first poll to its last: it costs a load.
    pub fn stopped_in_task(&self) -> impl Future<Output = ()> + use<> {
        self.stop.clone().raised_in_task()
    }

    /// Waits for the next SIGHUP that says that files have changed. Cancel-safe; one that comes while nobody waits is
    /// missed.
    pub async fn files_changed(&self) {
        self.hangup.notified().await;
    }

    /// Waits until work is to be dropped. Cancel-safe. Work on a runtime of its own looks here.
    pub async fn aborted(&self) {
        self.abort.token.cancelled().await;
    }

    /// A token that is cancelled when the shutdown begins, for code that takes one.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.token.child_token()
    }

    /// Spawns a task on the current runtime and keeps count of it. A panic is logged under the task's name.
    pub fn spawn(&self, name: &'static str, kind: Kind, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.watched(name, kind, task));
    }

    /// The same for a task that stays on this thread; needs a `LocalSet` or a local runtime.
    pub fn spawn_local(&self, name: &'static str, kind: Kind, task: impl Future<Output = ()> + 'static) {
        self.tracker.spawn_local(self.watched(name, kind, task));
    }

    /// Counts a future that the caller runs by own means; the drain waits for it.
    pub fn track<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        self.tracker.track_future(task)
    }

    /// Tasks that are still going on.
    pub fn tasks(&self) -> usize {
        self.tracker.len()
    }

    /// Waits until the shutdown begins, then until everything is done, but not longer than `deadline`. What is left then
    /// is dropped. Call it once, last.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.stopped().await;
        self.tracker.close();
        let drained = tokio::select! {
            biased;
            () = self.tracker.wait() => Drained::Clean,
            () = self.aborted() => Drained::Aborted,
            () = tokio::time::sleep(deadline) => Drained::Aborted,
        };
        if drained == Drained::Aborted {
            tracing::warn!(tasks = self.tracker.len(), "work is dropped unfinished");
            self.abort.raise();
            // Dropping takes a turn of the runtime; only a task that blocks its thread can hold this up.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
        }
        drained
    }

    /// The exit code after a drain, as an error unless it is 0.
    ///
    /// # Errors
    /// 70 after a fault, 130 when work was dropped.
    pub fn outcome(&self, drained: Drained) -> Result<(), crate::exit::Ended> {
        match (self.fault(), drained) {
            (Some(fault), _) => Err(crate::exit::Ended {
                code: crate::exit::INTERNAL,
                text: fault.to_owned(),
            }),
            (None, Drained::Clean) => Ok(()),
            (None, Drained::Aborted) => Err(crate::exit::Ended {
                code: crate::exit::INTERRUPTED,
                text: "ended before everything was finished".to_owned(),
            }),
        }
    }

    fn watched<F: Future<Output = ()> + 'static>(
        &self,
        name: &'static str,
        kind: Kind,
        task: F,
    ) -> impl Future<Output = ()> + use<F> {
        let shutdown = self.clone();
        let end = match kind {
            Kind::Work => self.abort.clone(),
            Kind::Background => self.stop.clone(),
        };
        async move {
            // After a panic nothing of the task is looked at again, so no broken state can be seen.
            let ended = tokio::select! {
                biased;
                () = end.raised_in_task() => return,
                ended = AssertUnwindSafe(task).catch_unwind() => ended,
            };
            match (ended, kind) {
                (Ok(()), Kind::Work) => {}
                (Ok(()), Kind::Background) if shutdown.is_stopping() => {}
                (Ok(()), Kind::Background) => shutdown.fail(format!("the task {name} ended")),
                (Err(panic), Kind::Work) => {
                    tracing::error!(task = name, panic = panic_text(&*panic), "a task panicked");
                }
                (Err(panic), Kind::Background) => {
                    shutdown.fail(format!("the task {name} panicked: {}", panic_text(&*panic)));
                }
            }
        }
    }
}

/// Whether whoever started this process wants it to outlive the terminal. Where the system does not tell: no.
pub fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is signal 1, the lowest bit.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Raised once, and stays so.
#[derive(Debug, Clone, Default)]
struct Signal {
    token: CancellationToken,
    /// What the token says, without its lock.
    is_raised: Arc<AtomicBool>,
}

impl Signal {
    fn raise(&self) {
        self.is_raised.store(true, Ordering::Release);
        self.token.cancel();
    }

    fn is_raised(&self) -> bool {
        self.is_raised.load(Ordering::Acquire)
    }

    /// Waits for it. The token is asked once, which leaves the task's waker with it; after that the flag is enough. So it
    /// works only in one task, whose waker stays the same.
    async fn raised_in_task(self) {
        let mut raised = pin!(self.token.cancelled());
        let mut is_waiting = false;
        std::future::poll_fn(|cx| {
            if self.is_raised() {
                return Poll::Ready(());
            }
            if !is_waiting {
                is_waiting = true;
                return raised.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await;
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

#[cfg(test)]
mod tests;
