//! When to send what to one control plane. Pure: time, events and luck come in, a state and an effect go out.
//!
//! ```text
//!            due                     accepted
//! Waiting ─────────▶ Registering ─────────────────▶ Registered ◀──────────┐
//!    ▲ ▲                  │ failed                     │ due or changed   │ accepted
//!    │ └──────────────────┘                            ▼                  │
//!    │            unknown (404): at once            Beating ──────────────┘
//!    └─────────────────────────────────────────────────┤
//!                              Registered ◀── failed ──┘   (due after the back-off)
//! stop, anywhere ──▶ Left, with a Deregister if the control plane may know the node
//! ```

use std::time::{Duration, Instant};

/// The first retry comes within this time; each further one within twice as long.
pub const RETRY_BASE: Duration = Duration::from_millis(500);
/// No retry waits longer than this.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// A control plane that says no is asked again this seldom: only a person can change that.
pub const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// The least time between two heartbeats to one control plane.
pub const BEAT_GAP_MIN: Duration = Duration::from_millis(100);
/// A control plane may not ask for heartbeats more often than this.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(200);
/// A control plane may not ask for heartbeats less often than this.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// Where the node stands with one control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not registered; the next try is at `due`.
    Waiting {
        /// Failed tries in a row.
        failures: u32,
        /// When to try.
        due: Instant,
        /// Whether the control plane may know the node from before.
        known: bool,
    },
    /// A registration is under way.
    Registering {
        /// Failed tries in a row.
        failures: u32,
    },
    /// Registered; the next heartbeat is at `due`.
    Registered {
        /// Failed heartbeats in a row.
        failures: u32,
        /// When to send.
        due: Instant,
        /// No heartbeat before this.
        not_before: Instant,
    },
    /// A heartbeat is under way.
    Beating {
        /// Failed heartbeats in a row.
        failures: u32,
        /// Whether something changed since the report was made.
        changed: bool,
    },
    /// Done.
    Left,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The state's time has come.
    Due,
    /// The node has something new to report.
    Changed,
    /// The request under way has ended.
    Answered(Answer),
    /// The node is going.
    Stop,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Taken; the next heartbeat is wanted in this many milliseconds (0: no wish).
    Accepted {
        /// As in the answer's `next_heartbeat_ms`.
        next_heartbeat_ms: u64,
    },
    /// The control plane does not know the node (404).
    Unknown,
    /// The control plane says no: wrong token, wrong certificate, bad request. A person has to change something.
    Refused,
    /// No answer, or one that says that trying again is right.
    Failed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but wait for the state's time.
    Nothing,
    /// Send a registration.
    Register,
    /// Send a heartbeat.
    Heartbeat,
    /// Send a deregistration and end.
    Deregister,
}

/// What does not change from step to step, and the luck of this one.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The heartbeat interval when the control plane has no wish.
    pub interval: Duration,
    /// A random number from 0 to 1.
    pub luck: f64,
}

impl State {
    /// The state to begin with: due at once.
    pub fn new(now: Instant) -> Self {
        Self::Waiting {
            failures: 0,
            due: now,
            known: false,
        }
    }

    /// When [`Event::Due`] is to come. None: something else has to happen first.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Self::Waiting { due, .. } | Self::Registered { due, .. } => Some(*due),
            Self::Registering { .. } | Self::Beating { .. } | Self::Left => None,
        }
    }
}

/// One step. An event that does not fit the state changes nothing.
pub fn step(state: State, now: Instant, event: Event, timing: Timing) -> (State, Effect) {
    use State::{Beating, Left, Registered, Registering, Waiting};
    match (state, event) {
        (Left, _) => (Left, Effect::Nothing),
        (Waiting { known: false, .. }, Event::Stop) => (Left, Effect::Nothing),
        (_, Event::Stop) => (Left, Effect::Deregister),

        (Waiting { failures, due, .. }, Event::Due) if now >= due => {
            (Registering { failures }, Effect::Register)
        }
        (Waiting { .. }, _) => (state, Effect::Nothing),

        (Registering { .. }, Event::Answered(Answer::Accepted { next_heartbeat_ms })) => {
            (registered(now, next_heartbeat_ms, false, timing), Effect::Nothing)
        }
        (Registering { failures }, Event::Answered(Answer::Failed | Answer::Unknown)) => {
            let due = now + back_off(failures, timing.luck);
            (
                Waiting {
                    failures: failures.saturating_add(1),
                    due,
                    known: true,
                },
                Effect::Nothing,
            )
        }
        (Registering { failures }, Event::Answered(Answer::Refused)) => {
            let due = now + refused(timing.luck);
            (
                Waiting {
                    failures: failures.saturating_add(1),
                    due,
                    known: false,
                },
                Effect::Nothing,
            )
        }
        (Registering { .. }, Event::Due | Event::Changed) => (state, Effect::Nothing),

        (Registered { failures, due, .. }, Event::Due) if now >= due => (
            Beating {
                failures,
                changed: false,
            },
            Effect::Heartbeat,
        ),
        (Registered { .. }, Event::Due) => (state, Effect::Nothing),
        // While the control plane does not answer, changes wait for the back-off like everything else.
        (
            Registered {
                failures: 0,
                due,
                not_before,
            },
            Event::Changed,
        ) => {
            let due = due.min(now.max(not_before));
            (
                Registered {
                    failures: 0,
                    due,
                    not_before,
                },
                Effect::Nothing,
            )
        }
        (Registered { .. }, Event::Changed | Event::Answered(_)) => (state, Effect::Nothing),

        (Beating { failures, .. }, Event::Changed) => (
            Beating {
                failures,
                changed: true,
            },
            Effect::Nothing,
        ),
        (Beating { changed, .. }, Event::Answered(Answer::Accepted { next_heartbeat_ms })) => (
            registered(now, next_heartbeat_ms, changed, timing),
            Effect::Nothing,
        ),
        // The control plane is there and has forgotten the node: a restart. All its nodes learn of it within one
        // heartbeat, which spreads them already.
        (Beating { .. }, Event::Answered(Answer::Unknown)) => (Registering { failures: 0 }, Effect::Register),
        (Beating { failures, .. }, Event::Answered(Answer::Failed)) => {
            let due = now + back_off(failures, timing.luck);
            let failures = failures.saturating_add(1);
            (
                Registered {
                    failures,
                    due,
                    not_before: due,
                },
                Effect::Nothing,
            )
        }
        (Beating { failures, .. }, Event::Answered(Answer::Refused)) => {
            let due = now + refused(timing.luck);
            let failures = failures.saturating_add(1);
            (
                Registered {
                    failures,
                    due,
                    not_before: due,
                },
                Effect::Nothing,
            )
        }
        (Beating { .. }, Event::Due) => (state, Effect::Nothing),
    }
}

fn registered(now: Instant, next_heartbeat_ms: u64, changed: bool, timing: Timing) -> State {
    let not_before = now + BEAT_GAP_MIN;
    let wanted = match next_heartbeat_ms {
        0 => timing.interval,
        ms => Duration::from_millis(ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
    };
    // Up to a tenth early, so that nodes that were started together do not beat together for ever.
    let due = if changed {
        not_before
    } else {
        now + wanted.mul_f64(1.0 - 0.1 * timing.luck)
    };
    State::Registered {
        failures: 0,
        due,
        not_before,
    }
}

/// Full jitter: anywhere between nothing and a bound that doubles with each failure.
fn back_off(failures: u32, luck: f64) -> Duration {
    let bound = RETRY_BASE
        .saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX))
        .min(RETRY_MAX);
    bound.mul_f64(luck).max(Duration::from_millis(10))
}

fn refused(luck: f64) -> Duration {
    REFUSED_RETRY.mul_f64(0.5 + 0.5 * luck)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMING: Timing = Timing {
        interval: Duration::from_secs(10),
        luck: 1.0,
    };

    /// Runs events at the times given in milliseconds and gives the effects.
    fn run(events: &[(u64, Event)]) -> (State, Vec<Effect>) {
        let start = Instant::now();
        let mut state = State::new(start);
        let mut effects = Vec::new();
        for (at, event) in events {
            let (next, effect) = step(state, start + Duration::from_millis(*at), *event, TIMING);
            state = next;
            effects.push(effect);
        }
        (state, effects)
    }

    const OK: Event = Event::Answered(Answer::Accepted {
        next_heartbeat_ms: 1000,
    });
    const FAILED: Event = Event::Answered(Answer::Failed);

    #[test]
    fn the_usual_life() {
        let (state, effects) = run(&[
            (0, Event::Due),
            (5, OK),
            (950, Event::Due),
            (960, OK),
            (970, Event::Stop),
        ]);
        use Effect::{Deregister, Heartbeat, Nothing, Register};
        assert_eq!(effects, [Register, Nothing, Heartbeat, Nothing, Deregister]);
        assert_eq!(state, State::Left);
        // With no luck at all the whole interval is waited for.
        let begin = Instant::now();
        let registered = step(
            State::Registering { failures: 0 },
            begin,
            OK,
            Timing { luck: 0.0, ..TIMING },
        )
        .0;
        assert_eq!(registered.due(), Some(begin + Duration::from_secs(1)));
        let wish = Event::Answered(Answer::Accepted { next_heartbeat_ms: 0 });
        let registered = step(
            State::Registering { failures: 0 },
            begin,
            wish,
            Timing { luck: 0.0, ..TIMING },
        )
        .0;
        assert_eq!(registered.due(), Some(begin + TIMING.interval));
        let wish = Event::Answered(Answer::Accepted {
            next_heartbeat_ms: u64::MAX,
        });
        let registered = step(
            State::Registering { failures: 0 },
            begin,
            wish,
            Timing { luck: 0.0, ..TIMING },
        )
        .0;
        assert_eq!(registered.due(), Some(begin + HEARTBEAT_MAX));
    }

    #[test]
    fn a_change_is_told_at_once_but_not_in_a_storm() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let (state, _) = step(State::Registering { failures: 0 }, at(0), OK, TIMING);
        let (state, _) = step(state, at(1), Event::Changed, TIMING);
        assert_eq!(state.due(), Some(at(100)), "not sooner than the gap");
        let (state, effect) = step(state, at(100), Event::Due, TIMING);
        assert_eq!(effect, Effect::Heartbeat);
        let (state, _) = step(state, at(101), Event::Changed, TIMING);
        let (state, _) = step(state, at(102), OK, TIMING);
        assert_eq!(
            state.due(),
            Some(at(202)),
            "a change while a report was under way makes another"
        );
        let (state, _) = step(state, at(700), Event::Changed, TIMING);
        assert_eq!(state.due(), Some(at(202)), "already due");
    }

    #[test]
    fn failures_back_off_and_changes_do_not_undo_that() {
        let begin = Instant::now();
        let mut state = State::Beating {
            failures: 0,
            changed: false,
        };
        for (failures, wait_ms) in [
            (1, 500),
            (2, 1000),
            (3, 2000),
            (4, 4000),
            (5, 8000),
            (6, 10_000),
            (7, 10_000),
        ] {
            let (failed, effect) = step(state, begin, FAILED, TIMING);
            assert_eq!(effect, Effect::Nothing);
            let due = begin + Duration::from_millis(wait_ms);
            assert_eq!(
                failed,
                State::Registered {
                    failures,
                    due,
                    not_before: due
                }
            );
            assert_eq!(step(failed, begin, Event::Changed, TIMING).0, failed);
            state = step(failed, due, Event::Due, TIMING).0;
        }
    }

    #[test]
    fn a_404_registers_again_at_once_and_a_401_seldom() {
        let begin = Instant::now();
        let beating = State::Beating {
            failures: 3,
            changed: false,
        };
        let (state, effect) = step(beating, begin, Event::Answered(Answer::Unknown), TIMING);
        assert_eq!(
            (state, effect),
            (State::Registering { failures: 0 }, Effect::Register)
        );
        let (state, _) = step(state, begin, Event::Answered(Answer::Refused), TIMING);
        assert_eq!(state.due(), Some(begin + REFUSED_RETRY));
        assert_eq!(
            step(state, begin, Event::Stop, TIMING),
            (State::Left, Effect::Nothing),
            "it was never let in"
        );
        // A 404 to a registration is not followed by a registration at once: that would be a storm of one.
        let registering = State::Registering { failures: 0 };
        let (state, effect) = step(registering, begin, Event::Answered(Answer::Unknown), TIMING);
        assert_eq!(effect, Effect::Nothing);
        assert!(state.due().is_some_and(|due| due > begin));
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Due),
            3 => Just(Event::Changed),
            3 => (0..100_000_u64).prop_map(|ms| Event::Answered(Answer::Accepted { next_heartbeat_ms: ms })),
            2 => Just(Event::Answered(Answer::Failed)),
            1 => Just(Event::Answered(Answer::Unknown)),
            1 => Just(Event::Answered(Answer::Refused)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_goes_on_and_never_storms(
            history in proptest::collection::vec((event(), 0..3000_u64, 0.0..1.0_f64), 1..300)
        ) {
            let mut now = Instant::now();
            let mut state = State::new(now);
            let mut under_way = false;
            let mut last_beat: Option<Instant> = None;
            for (event, wait_ms, luck) in history {
                now += Duration::from_millis(wait_ms);
                if matches!(event, Event::Answered(_)) && !under_way {
                    continue;
                }
                if matches!(event, Event::Answered(_)) {
                    under_way = false;
                }
                let (next, effect) = step(state, now, event, Timing { luck, ..TIMING });
                match effect {
                    Effect::Nothing => {}
                    Effect::Register | Effect::Heartbeat => {
                        prop_assert!(!under_way, "two requests at once");
                        under_way = true;
                        if effect == Effect::Heartbeat {
                            prop_assert!(last_beat.is_none_or(|last| now - last >= BEAT_GAP_MIN));
                            last_beat = Some(now);
                        }
                    }
                    Effect::Deregister => prop_assert!(false, "nobody said stop"),
                }
                prop_assert_eq!(under_way, next.due().is_none(), "either a request is under way or a time is set");
                if let Some(due) = next.due() {
                    prop_assert!(due <= now + HEARTBEAT_MAX, "it always goes on");
                }
                state = next;
            }
        }
    }
}
