//! The life of one engine, as a pure state machine: times and events come in, effects go out.
//!
//! ```text
//!            ┌────────────── the time has come ──────────────┐
//!            ▼                                               │
//! Fetching ──got it──▶ Starting ──answers──▶ Ready           │
//!     │                 │    │                │ │            │
//!     │            ended│    │never answers   │ │hangs       │
//!     │                 │    ▼                │ ▼            │
//!     │                 │  Ending ◀───────────┼─┘            │
//!     └──failed──────┐  │    │ended      ended│              │
//!                    ▼  ▼    ▼                ▼              │
//!                    BackingOff ─────────────────────────────┘
//! any ──stop──▶ (Ending while there is a process) ──▶ Stopped
//! ```
//!
//! Invariants:
//! - A new process is started only after the old one was reaped ([`Event::Exited`]), so its GPU memory is free.
//! - The handoff is written only while the engine answers and is removed before the engine is asked to end.
//! - Failures never stop the trying: within the budget the pause doubles, beyond it the pause is the long one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::recipe::Recipe;
use crate::status::Phase;

/// How patient a provisioner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// An engine must answer within this time from its start.
    pub ready_timeout: Duration,
    /// How long after the request to end an engine is killed.
    pub stop_timeout: Duration,
    /// An engine that was ready and has not answered for so long is ended and started again.
    pub hung_after: Duration,
    /// How often an engine that is ready is asked whether it still answers.
    pub probe_interval: Duration,
    /// How long one question may take. An engine that computes on every core may be slow to answer.
    pub probe_timeout: Duration,
    /// The first pause after a failure; each further one is twice as long.
    pub pause_min: Duration,
    /// The longest pause within the budget.
    pub pause_max: Duration,
    /// How many failures within [`Policy::budget_window`] the budget allows.
    pub budget: usize,
    /// See [`Policy::budget`].
    pub budget_window: Duration,
    /// The pause when the budget is used up.
    pub pause_beyond_budget: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ready_timeout: Duration::from_secs(900),
            stop_timeout: Duration::from_secs(5),
            hung_after: Duration::from_secs(60),
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(10),
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
            budget: 5,
            budget_window: Duration::from_secs(600),
            pause_beyond_budget: Duration::from_secs(60),
        }
    }
}

impl Policy {
    /// The usual patience, with the times that the recipe gives.
    pub fn of(recipe: &Recipe) -> Self {
        let usual = Self::default();
        recipe.start.as_ref().map_or(usual, |start| Self {
            ready_timeout: Duration::from_secs(start.ready_timeout_s),
            stop_timeout: Duration::from_secs(start.stop_timeout_s),
            ..usual
        })
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Engine and model are there.
    Fetched,
    /// Engine or model could not be got.
    FetchFailed(String),
    /// The process could not be started.
    StartFailed(String),
    /// The engine answered a probe.
    Answered,
    /// The engine did not answer a probe.
    Unanswered(String),
    /// The process has ended and was reaped.
    Exited(String),
    /// Time has passed.
    Tick,
    /// The engine is no longer wanted.
    Stop,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Get engine and model.
    Fetch,
    /// Leave off getting them.
    CancelFetch,
    /// Start the process and begin to probe it.
    Start,
    /// Announce the engine.
    WriteHandoff,
    /// Take the announcement back.
    RemoveHandoff,
    /// Ask the process to end.
    Terminate,
    /// Kill the process.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fetching,
    Starting { answer_by: Instant },
    Ready { silent_since: Option<Instant> },
    Ending { kill_at: Instant, then: Then },
    BackingOff { until: Instant },
    Stopped,
}

/// What follows once a process that was asked to end has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    BackOff,
    Stop,
}

/// How often a process that survives a kill is killed again. It can only be in the middle of a system call.
const KILL_INTERVAL: Duration = Duration::from_secs(1);

/// One engine's life.
#[derive(Clone, Debug)]
pub struct Life {
    policy: Policy,
    state: State,
    /// When it failed, within the budget's window; never more than the budget and one.
    failed_at: VecDeque<Instant>,
    failures: u32,
    last_error: Option<String>,
    /// The state of the generator behind the jitter.
    jitter: u64,
}

impl Life {
    /// A life that begins with fetching. `seed` makes the jitter of many lives differ.
    pub fn new(policy: Policy, seed: u64) -> (Self, Vec<Effect>) {
        let life = Self {
            policy,
            state: State::Fetching,
            failed_at: VecDeque::new(),
            failures: 0,
            last_error: None,
            jitter: seed | 1,
        };
        (life, vec![Effect::Fetch])
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Fetching => Phase::Fetching,
            State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Ending { .. } => Phase::Stopping,
            State::BackingOff { .. } => Phase::BackingOff,
            State::Stopped => Phase::Stopped,
        }
    }

    /// What last went wrong; None once the engine answers again.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// How often it has failed in all.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When [`Event::Tick`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Starting { answer_by } => Some(answer_by),
            State::Ending { kill_at, .. } => Some(kill_at),
            State::BackingOff { until } => Some(until),
            State::Fetching | State::Ready { .. } | State::Stopped => None,
        }
    }

    /// Takes `event` in at `now` and says what is to be done, in order.
    ///
    /// One long table, because every pair of state and event is to be seen, by the reader and by the compiler.
    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match (self.state, event) {
            (State::Fetching, Event::Fetched) => {
                self.state = State::Starting {
                    answer_by: now + self.policy.ready_timeout,
                };
                vec![Effect::Start]
            }
            (State::Fetching, Event::FetchFailed(error)) => self.back_off(now, error),
            (State::Fetching, Event::Stop) => self.stopped(vec![Effect::CancelFetch]),

            (State::Starting { .. }, Event::Answered) => {
                self.state = State::Ready { silent_since: None };
                self.last_error = None;
                vec![Effect::WriteHandoff]
            }
            (State::Starting { .. }, Event::StartFailed(error) | Event::Exited(error)) => {
                self.back_off(now, error)
            }
            (State::Starting { answer_by }, Event::Unanswered(error)) if now >= answer_by => {
                self.never_answered(now, &error)
            }
            (State::Starting { answer_by }, Event::Tick) if now >= answer_by => {
                self.never_answered(now, "the engine is still loading")
            }
            (State::Starting { .. }, Event::Stop) => self.end(now, Then::Stop, vec![]),

            (State::Ready { .. }, Event::Answered) => {
                self.state = State::Ready { silent_since: None };
                vec![]
            }
            (State::Ready { silent_since: None }, Event::Unanswered(_)) => {
                self.state = State::Ready {
                    silent_since: Some(now),
                };
                vec![]
            }
            (
                State::Ready {
                    silent_since: Some(since),
                },
                Event::Unanswered(error),
            ) => {
                let silent = now.saturating_duration_since(since);
                if silent < self.policy.hung_after {
                    return vec![];
                }
                self.last_error = Some(format!(
                    "the engine has not answered for {} s: {error}",
                    silent.as_secs()
                ));
                self.end(now, Then::BackOff, vec![Effect::RemoveHandoff])
            }
            (State::Ready { .. }, Event::Exited(error)) => {
                let mut effects = vec![Effect::RemoveHandoff];
                effects.extend(self.back_off(now, error));
                effects
            }
            (State::Ready { .. }, Event::Stop) => self.end(now, Then::Stop, vec![Effect::RemoveHandoff]),

            (State::Ending { then: Then::Stop, .. }, Event::Exited(_)) => self.stopped(vec![]),
            (
                State::Ending {
                    then: Then::BackOff, ..
                },
                Event::Exited(error),
            ) => {
                let error = self.last_error.take().unwrap_or(error);
                self.back_off(now, error)
            }
            (State::Ending { kill_at, then }, Event::Tick) if now >= kill_at => {
                self.state = State::Ending {
                    kill_at: now + KILL_INTERVAL,
                    then,
                };
                vec![Effect::Kill]
            }
            (State::Ending { kill_at, .. }, Event::Stop) => {
                self.state = State::Ending {
                    kill_at,
                    then: Then::Stop,
                };
                vec![]
            }

            (State::BackingOff { until }, Event::Tick) if now >= until => {
                self.state = State::Fetching;
                vec![Effect::Fetch]
            }
            (State::BackingOff { .. }, Event::Stop) => self.stopped(vec![]),

            // A tick before its time, and what a probe says about a process that is being started or ended.
            (
                State::Starting { .. } | State::Ending { .. } | State::BackingOff { .. },
                Event::Tick | Event::Answered | Event::Unanswered(_),
            ) => vec![],
            (State::Fetching | State::Ready { .. }, Event::Tick) => vec![],
            (State::Fetching, Event::Answered | Event::Unanswered(_)) => vec![],
            // The executor fetches only in Fetching and has a process only in the three states that follow.
            (State::Fetching | State::BackingOff { .. }, Event::StartFailed(_) | Event::Exited(_)) => vec![],
            (State::Ready { .. } | State::Ending { .. }, Event::StartFailed(_)) => vec![],
            (
                State::Starting { .. }
                | State::Ready { .. }
                | State::Ending { .. }
                | State::BackingOff { .. },
                Event::Fetched | Event::FetchFailed(_),
            ) => vec![],
            (State::Stopped, _) => vec![],
        }
    }

    fn never_answered(&mut self, now: Instant, error: &str) -> Vec<Effect> {
        let seconds = self.policy.ready_timeout.as_secs();
        self.last_error = Some(format!(
            "the engine did not answer within {seconds} s of its start: {error}"
        ));
        self.end(now, Then::BackOff, vec![])
    }

    fn end(&mut self, now: Instant, then: Then, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.state = State::Ending {
            kill_at: now + self.policy.stop_timeout,
            then,
        };
        effects.push(Effect::Terminate);
        effects
    }

    fn stopped(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        self.state = State::Stopped;
        effects
    }

    fn back_off(&mut self, now: Instant, error: String) -> Vec<Effect> {
        self.failures = self.failures.saturating_add(1);
        self.failed_at.push_back(now);
        while let Some(&first) = self.failed_at.front()
            && (self.failed_at.len() > self.policy.budget + 1
                || now.saturating_duration_since(first) > self.policy.budget_window)
        {
            self.failed_at.pop_front();
        }
        let pause = self.pause();
        self.state = State::BackingOff { until: now + pause };
        self.last_error = Some(if self.failed_at.len() > self.policy.budget {
            let window = self.policy.budget_window.as_secs();
            let slowly = self.policy.pause_beyond_budget.as_secs();
            format!(
                "{error} (more than {} failures in {window} s: tried every {slowly} s only)",
                self.policy.budget
            )
        } else {
            error
        });
        vec![]
    }

    fn pause(&mut self) -> Duration {
        let count = self.failed_at.len();
        let pause = if count > self.policy.budget {
            self.policy.pause_beyond_budget
        } else {
            let doublings = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
            self.policy
                .pause_min
                .saturating_mul(1 << doublings)
                .min(self.policy.pause_max)
        };
        // A quarter more or less, so that many engines that failed together are not started together.
        let permille = u32::try_from(self.random() % 501).unwrap_or(0);
        pause * (750 + permille) / 1000
    }

    /// xorshift64: enough for a jitter.
    fn random(&mut self) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        self.jitter
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
