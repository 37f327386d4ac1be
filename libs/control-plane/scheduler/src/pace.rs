//! How fast slots come free lately: the base of estimates, and of nothing else.

use std::time::Duration;

/// How much the latest sample counts.
const WEIGHT: f64 = 0.1;
/// The bounds of what clients are told.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// What they are told before anything is known.
const RETRY_AFTER_UNKNOWN_MS: u64 = 1_000;

/// The mean time for which a task holds a slot, the latest counting most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    hold_ms: Option<f64>,
}

impl Pace {
    pub(crate) fn sample(&mut self, held: Duration) {
        let held_ms = held.as_secs_f64() * 1e3;
        self.hold_ms = Some(
            self.hold_ms
                .map_or(held_ms, |mean| mean + WEIGHT * (held_ms - mean)),
        );
    }

    /// The mean, once anything is known.
    pub(crate) fn hold_ms(self) -> Option<u64> {
        self.hold_ms.map(to_ms)
    }

    /// When the task with `ahead` others before it will have a slot of `slots`; None while nothing is known.
    pub(crate) fn start_in_ms(self, ahead: u32, slots: u32) -> Option<u64> {
        self.hold_ms
            .map(|hold_ms| to_ms(hold_ms * (f64::from(ahead) + 1.0) / f64::from(slots.max(1))))
    }

    /// When a full queue will probably have a place.
    pub(crate) fn retry_after_ms(self, slots: u32) -> u64 {
        self.start_in_ms(0, slots).map_or(RETRY_AFTER_UNKNOWN_MS, |ms| {
            ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end())
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time is positive, and `as` saturates"
)]
fn to_ms(ms: f64) -> u64 {
    ms.ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_the_recent_pace() {
        let mut pace = Pace::default();
        assert_eq!((pace.start_in_ms(5, 2), pace.retry_after_ms(2)), (None, 1_000));
        pace.sample(Duration::from_millis(1_000));
        assert_eq!(
            (
                pace.start_in_ms(0, 1),
                pace.start_in_ms(5, 2),
                pace.retry_after_ms(4)
            ),
            (Some(1_000), Some(3_000), 250)
        );
        for _ in 0..100 {
            pace.sample(Duration::from_millis(10));
        }
        assert_eq!(pace.hold_ms(), Some(11));
        assert_eq!(pace.retry_after_ms(4), 100);
    }
}
