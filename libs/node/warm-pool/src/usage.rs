//! How an owner used a pool lately: how long keeping a sandbox for it is worth the memory.

use std::collections::HashMap;
use std::time::Duration;

use crate::{Moment, Owner, Settings};

/// A use counts half after this time.
const HALF_LIFE: Duration = Duration::from_secs(1800);
/// Weight of the newest gap between two uses in their running mean.
const NEWEST_WEIGHT: f64 = 0.4;
/// A sandbox is kept for this many mean gaps: of gaps that come at random, nine in ten are shorter.
const GAPS_KEPT: f64 = 2.3;

#[derive(Clone, Copy, Debug)]
struct Use {
    last: Moment,
    mean_gap_seconds: Option<f64>,
    /// Uses, each halved with every half-life since.
    weight: f64,
}

impl Use {
    fn weight_at(&self, now: Moment) -> f64 {
        let halvings = now.saturating_sub(self.last).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.weight * (-halvings).exp2()
    }
}

/// The recent use of one pool by each owner; the longest unused are forgotten first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    owners: HashMap<Owner, Use>,
}

impl Usage {
    pub(crate) fn note(&mut self, now: Moment, owner: &Owner, remembered_max: usize) {
        if let Some(used) = self.owners.get_mut(owner) {
            let gap = now.saturating_sub(used.last).as_secs_f64();
            let mean = used.mean_gap_seconds.unwrap_or(gap);
            used.weight = used.weight_at(now) + 1.0;
            used.mean_gap_seconds = Some(mean + (gap - mean) * NEWEST_WEIGHT);
            used.last = now;
            return;
        }
        if self.owners.len() >= remembered_max {
            self.forget_older_half();
        }
        let first = Use {
            last: now,
            mean_gap_seconds: None,
            weight: 1.0,
        };
        self.owners.insert(owner.clone(), first);
    }

    /// Half at once, so that a claim of a new owner costs constant time on average.
    fn forget_older_half(&mut self) {
        let mut moments: Vec<Moment> = self.owners.values().map(|used| used.last).collect();
        if moments.is_empty() {
            return;
        }
        let middle = moments.len() / 2;
        let (_, &mut median, _) = moments.select_nth_unstable(middle);
        self.owners.retain(|_, used| used.last > median);
    }

    /// How long an idle sandbox is kept for the owner. Somebody who comes back less often than the longest time gets
    /// the shortest: the memory would be held and given up before the next use.
    pub(crate) fn keep_for(&self, owner: &Owner, settings: &Settings) -> Duration {
        let (least, most) = (settings.hot_idle_min, settings.hot_idle_max);
        let gap = self.owners.get(owner).and_then(|used| used.mean_gap_seconds);
        match gap {
            Some(gap) if gap <= most.as_secs_f64() => {
                Duration::from_secs_f64(gap * GAPS_KEPT).clamp(least.min(most), most)
            }
            _ => least.min(most),
        }
    }

    /// What keeping a sandbox for the owner is worth: its recent uses.
    pub(crate) fn value(&self, now: Moment, owner: &Owner) -> f64 {
        self.owners.get(owner).map_or(0.0, |used| used.weight_at(now))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    #[test]
    fn the_limit_follows_each_owners_own_gaps() {
        let settings = Settings::default();
        let mut usage = Usage::default();
        let [often, seldom, once] = ["often", "seldom", "once"].map(Owner::new);
        usage.note(at(0), &once, 10);
        for n in 0..6 {
            usage.note(at(n * 120), &often, 10);
            usage.note(at(n * 7200), &seldom, 10);
        }
        assert_eq!(usage.keep_for(&often, &settings), Duration::from_secs(276));
        assert_eq!(usage.keep_for(&seldom, &settings), settings.hot_idle_min);
        assert_eq!(usage.keep_for(&once, &settings), settings.hot_idle_min);
        assert!(usage.value(at(700), &often) > usage.value(at(700), &once));
    }

    #[test]
    fn a_use_long_ago_is_worth_little() {
        let mut usage = Usage::default();
        let [then, now] = ["then", "now"].map(Owner::new);
        for n in 0..10 {
            usage.note(at(n), &then, 10);
        }
        usage.note(at(6 * 3600), &now, 10);
        assert!(usage.value(at(6 * 3600), &now) > usage.value(at(6 * 3600), &then));
    }

    #[test]
    fn no_more_owners_are_remembered_than_allowed() {
        let mut usage = Usage::default();
        for n in 0..1000 {
            usage.note(at(n), &Owner::new(format!("owner-{n}")), 16);
            assert!(usage.len() <= 16);
        }
        assert!(usage.value(at(1000), &Owner::new("owner-999")) > 0.9);
    }
}
