//! The life of a task.
//!
//! ```text
//!  Accepted ──Wait──▶ Queued ──Place──▶ Placed ──FirstByte──▶ Running
//!     │ ▲                                ▲ │
//!     │ └────────────ComeBack────────────┼─┘
//!     └──────────────Place───────────────┘
//!  from each of them: ──────End──────▶ Ended
//! ```
//!
//! A task comes back only from `Placed`: once a byte is on its way to the client it cannot start over,
//! because two answers would be glued together.

use crate::Moment;
use crate::arena::Key;

/// What a waiting task knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The pool in whose queue it stands. Any other pool that can run it may take it from there.
    pub(crate) home: Key,
    /// Since when it waits.
    pub(crate) since: Moment,
    /// When it is looked at again if nothing happens.
    pub(crate) due: Moment,
}

/// What a task with a slot knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// Whose slot.
    pub(crate) replica: Key,
    /// Since when.
    pub(crate) since: Moment,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Accepted,
    Queued(Wait),
    Placed(Hold),
    Running(Hold),
    Ended,
}

/// What may happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Wait(Wait),
    Place(Hold),
    FirstByte,
    ComeBack,
    End,
}

/// Why an event cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misstep {
    /// The answer has begun.
    AnswerBegun,
    /// It already has a slot.
    HasSlot,
    /// It has no slot.
    NoSlot,
    /// It waits already.
    Waits,
    /// It is over.
    Over,
}

impl Life {
    /// What comes of `event`.
    pub(crate) fn step(self, event: Event) -> Result<Self, Misstep> {
        match (self, event) {
            (Self::Accepted, Event::Wait(wait)) => Ok(Self::Queued(wait)),
            (Self::Queued(_), Event::Wait(_)) => Err(Misstep::Waits),
            (Self::Accepted | Self::Queued(_), Event::Place(hold)) => Ok(Self::Placed(hold)),
            (Self::Placed(_) | Self::Running(_), Event::Wait(_) | Event::Place(_)) => Err(Misstep::HasSlot),
            (Self::Accepted | Self::Queued(_), Event::FirstByte | Event::ComeBack) => Err(Misstep::NoSlot),
            (Self::Placed(hold) | Self::Running(hold), Event::FirstByte) => Ok(Self::Running(hold)),
            (Self::Placed(_), Event::ComeBack) => Ok(Self::Accepted),
            (Self::Running(_), Event::ComeBack) => Err(Misstep::AnswerBegun),
            (Self::Accepted | Self::Queued(_) | Self::Placed(_) | Self::Running(_), Event::End) => {
                Ok(Self::Ended)
            }
            (
                Self::Ended,
                Event::Wait(_) | Event::Place(_) | Event::FirstByte | Event::ComeBack | Event::End,
            ) => Err(Misstep::Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: Key = Key {
        index: 0,
        generation: 0,
    };
    const WAIT: Wait = Wait {
        home: KEY,
        since: Duration::ZERO,
        due: Duration::ZERO,
    };
    const HOLD: Hold = Hold {
        replica: KEY,
        since: Duration::ZERO,
    };

    fn check(life: Life, expect: [Result<Life, Misstep>; 5]) {
        let events = [
            Event::Wait(WAIT),
            Event::Place(HOLD),
            Event::FirstByte,
            Event::ComeBack,
            Event::End,
        ];
        assert_eq!(events.map(|event| life.step(event)), expect, "{life:?}");
    }

    #[test]
    fn every_event_in_every_state() {
        use Life::{Accepted, Ended, Placed, Queued, Running};
        use Misstep::{AnswerBegun, HasSlot, NoSlot, Over, Waits};
        check(
            Accepted,
            [
                Ok(Queued(WAIT)),
                Ok(Placed(HOLD)),
                Err(NoSlot),
                Err(NoSlot),
                Ok(Ended),
            ],
        );
        check(
            Queued(WAIT),
            [Err(Waits), Ok(Placed(HOLD)), Err(NoSlot), Err(NoSlot), Ok(Ended)],
        );
        check(
            Placed(HOLD),
            [
                Err(HasSlot),
                Err(HasSlot),
                Ok(Running(HOLD)),
                Ok(Accepted),
                Ok(Ended),
            ],
        );
        check(
            Running(HOLD),
            [
                Err(HasSlot),
                Err(HasSlot),
                Ok(Running(HOLD)),
                Err(AnswerBegun),
                Ok(Ended),
            ],
        );
        check(Ended, [Err(Over); 5]);
    }
}
