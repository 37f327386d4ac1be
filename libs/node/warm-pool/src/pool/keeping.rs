//! Keeping pools at their targets: starts, replacements, room, and the periodic look at everything.

use std::time::Duration;

use super::WarmPool;
use crate::sandbox::{Check, State};
use crate::{Effect, LossReason, Moment, PoolKey, ProfileHash, SandboxId};

/// Time between two ticks when nothing is due earlier.
const TICK: Duration = Duration::from_secs(1);

/// What a refill did or what keeps it from starting more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refill {
    Full,
    Started,
    /// Too many are starting, it is too early, or the last ones failed.
    NotNow,
    NoRoom,
}

impl WarmPool {
    /// When the next [`Event::Tick`](crate::Event::Tick) is due.
    pub fn next_tick(&self, now: Moment) -> Moment {
        let waits = self.adopting_until.is_none()
            && self.next_start_at > now
            && (0..self.pools.len()).any(|pool| self.lacking(PoolKey(pool)) > 0);
        if waits {
            self.next_start_at.min(now + TICK)
        } else {
            now + TICK
        }
    }

    pub(super) fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.adopting_until.is_some_and(|until| now >= until) {
            self.adopting_until = None;
        }
        let mut ids: Vec<SandboxId> = self.sandboxes.keys().copied().collect();
        // Checks go round: the oldest due first would need an order that nothing else needs.
        ids.sort_unstable();
        for id in ids {
            self.look_at(now, id, effects);
        }
        for (id, stray) in &mut self.strays {
            if now.saturating_sub(stray.asked) >= self.settings.end_retry {
                stray.asked = now;
                effects.push(stray.order(*id));
            }
        }
        self.end_idle(now, effects);
        self.keep_within_memory(now, effects);
        self.refill_all(now, effects);
    }

    fn look_at(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        let sandbox = &self.sandboxes[&id];
        match &sandbox.state {
            State::Starting { since, .. } => {
                if now.saturating_sub(*since) >= self.settings.start_timeout {
                    self.start_failed(now, id, effects);
                }
                return;
            }
            State::Ending {
                owner,
                take_back,
                asked,
            } => {
                if now.saturating_sub(*asked) >= self.settings.end_retry {
                    let state = State::Ending {
                        owner: owner.clone(),
                        take_back: *take_back,
                        asked: now,
                    };
                    self.set_state(id, state);
                    self.ask_to_end(id, effects);
                }
                return;
            }
            State::Warm { stale: false } if self.is_stale(now, sandbox) => {
                self.set_state(id, State::Warm { stale: true });
            }
            State::Hot { until, .. }
                if self.ending < self.settings.ends_max && (now >= *until || self.is_stale(now, sandbox)) =>
            {
                self.retire(now, id, effects);
                return;
            }
            State::Warm { .. } | State::Hot { .. } | State::Busy { .. } | State::Verifying => {}
        }
        match self.sandboxes[&id].check {
            Check::Asked { .. } if self.check_is_late(now, id) => {
                self.fail(now, id, LossReason::Unhealthy, effects);
            }
            Check::Due(due) if now >= due && self.checks_asked < self.settings.checks_max => {
                self.ask_health(now, id, effects);
            }
            Check::Asked { .. } | Check::Due(_) => {}
        }
    }

    /// Ends what is idle in closed pools. What has runs ends with them.
    pub(super) fn end_idle(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let of_closed = self.sandboxes.iter().filter(|(_, one)| self.is_closed(one.pool));
        let mut ids: Vec<SandboxId> = of_closed.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            match &self.sandboxes[&id].state {
                State::Starting { claim: None, .. }
                | State::Verifying
                | State::Warm { .. }
                | State::Hot { .. } => self.retire(now, id, effects),
                State::Starting { claim: Some(_), .. } | State::Busy { .. } | State::Ending { .. } => {}
            }
        }
    }

    pub(super) fn reloaded(
        &mut self,
        now: Moment,
        pool: PoolKey,
        profile: ProfileHash,
        effects: &mut Vec<Effect>,
    ) {
        let Some(changed) = self.pools.get_mut(pool.0) else {
            return;
        };
        changed.spec.profile = profile;
        changed.generation += 1;
        // The new one is not to blame for what the old one did.
        changed.failures = 0;
        changed.retry_at = Moment::ZERO;
        let warm: Vec<SandboxId> = changed.fresh.iter().chain(&changed.stale).copied().collect();
        for id in warm {
            let stale = self.is_stale(now, &self.sandboxes[&id]);
            self.set_state(id, State::Warm { stale });
        }
        self.refill_all(now, effects);
    }

    /// Fills every pool, a different one first each time, so that none takes all starts.
    pub(super) fn refill_all(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let count = self.pools.len();
        for at in 0..count {
            let pool = PoolKey((self.first_pool + at) % count);
            self.refill(now, pool, effects);
        }
        if count > 0 {
            self.first_pool = (self.first_pool + 1) % count;
        }
    }

    /// Starts what the pool lacks, as far as that is allowed now, and ends what it has too much.
    pub(super) fn refill(&mut self, now: Moment, pool: PoolKey, effects: &mut Vec<Effect>) {
        if self.is_closed(pool) || self.adopting_until.is_some() {
            return;
        }
        let blocked = loop {
            match self.start_one(now, pool, effects) {
                Refill::Started => {}
                other => break other == Refill::NoRoom,
            }
        };
        if blocked && self.ending == 0 {
            // A warm sandbox for whoever comes is worth more than the least valuable one kept for somebody. Where
            // there is none such, a stale one makes room for its own successor.
            if let Some(id) = self.least_valuable(now, None) {
                self.retire(now, id, effects);
            } else if self.starting.is_empty()
                && let Some(id) = self.pools[pool.0].stale.front().copied()
            {
                self.retire(now, id, effects);
            }
        }
        self.end_surplus(now, pool, effects);
    }

    /// Warm sandboxes of the present profile that are missing, counting those on their way.
    fn lacking(&self, pool: PoolKey) -> usize {
        if self.is_closed(pool) {
            return 0;
        }
        let one = &self.pools[pool.0];
        let coming = self.starting.iter().filter(|id| {
            let sandbox = &self.sandboxes[*id];
            sandbox.pool == pool
                && self.is_present(sandbox)
                && matches!(sandbox.state, State::Starting { claim: None, .. })
        });
        one.spec
            .target
            .saturating_sub(one.fresh.len() + one.verifying + coming.count())
    }

    fn start_one(&mut self, now: Moment, pool: PoolKey, effects: &mut Vec<Effect>) -> Refill {
        if self.lacking(pool) == 0 {
            return Refill::Full;
        }
        let one = &self.pools[pool.0];
        // After a failure, one at a time until one is good.
        let trying = one.failures > 0 && self.starting.iter().any(|id| self.sandboxes[id].pool == pool);
        if self.starting.len() >= self.settings.starts_max
            || now < self.next_start_at
            || now < one.retry_at
            || trying
        {
            return Refill::NotNow;
        }
        if self.sandboxes.len() >= self.settings.sandboxes_max
            || self.charged_bytes + one.spec.warm_bytes > self.settings.memory_bytes_max
        {
            return Refill::NoRoom;
        }
        self.next_start_at = now + self.settings.start_spacing;
        self.start(now, pool, None, effects);
        Refill::Started
    }

    /// Stale ones go when fresh ones stand in their place; then what is over the target.
    fn end_surplus(&mut self, now: Moment, pool: PoolKey, effects: &mut Vec<Effect>) {
        loop {
            let one = &self.pools[pool.0];
            if self.ending >= self.settings.ends_max || one.fresh.len() + one.stale.len() <= one.spec.target {
                return;
            }
            let Some(id) = one.stale.front().or_else(|| one.fresh.front()).copied() else {
                return;
            };
            self.retire(now, id, effects);
        }
    }

    /// Ends the least valuable idle sandboxes while they, or all together, use more than they may.
    pub(super) fn keep_within_memory(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.hot_bytes > self.settings.hot_memory_bytes_max
            || (self.charged_bytes > self.settings.memory_bytes_max && self.ending == 0)
        {
            let Some(id) = self.least_valuable(now, None) else {
                return;
            };
            self.retire(now, id, effects);
        }
    }

    /// The idle sandbox whose owner used it least of late, for the memory that it takes.
    pub(super) fn least_valuable(&self, now: Moment, but: Option<SandboxId>) -> Option<SandboxId> {
        let value = |id: &SandboxId| {
            let sandbox = &self.sandboxes[id];
            let State::Hot { owner, .. } = &sandbox.state else {
                return 0.0;
            };
            let mebibytes = (sandbox.charged_bytes >> 20).max(1);
            // Exact for any memory that a machine has.
            let mebibytes = f64::from(u32::try_from(mebibytes).unwrap_or(u32::MAX));
            self.pools[sandbox.pool.0].usage.value(now, owner) / mebibytes
        };
        let candidates = self.hot.iter().filter(|id| Some(**id) != but);
        candidates
            .min_by(|a, b| value(a).total_cmp(&value(b)).then(a.cmp(b)))
            .copied()
    }
}
