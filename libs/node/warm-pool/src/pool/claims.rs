//! Claims: an owner asks for its sandbox.

use super::WarmPool;
use crate::sandbox::{Check, State};
use crate::{Claimed, Effect, Level, Moment, Owner, PoolKey, Refusal, SandboxId};

impl WarmPool {
    /// A place for one more run of the owner: in its own sandbox, in a warm one, or in one that is started for it.
    ///
    /// Constant time, but when there is a refusal for want of room. Give it back with
    /// [`Event::RunEnded`](crate::Event::RunEnded), unless [`Effect::RunsLost`] has taken it.
    pub fn claim(
        &mut self,
        now: Moment,
        pool: PoolKey,
        owner: &Owner,
        effects: &mut Vec<Effect>,
    ) -> Result<Claimed, Refusal> {
        if pool.0 >= self.pools.len() {
            return Err(Refusal::NoSuchPool);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.pools[pool.0].is_closed {
            return Err(Refusal::Closed);
        }
        if self.adopting_until.is_some() {
            return Err(Refusal::Adopting);
        }
        if self.pools[pool.0].leaving.contains_key(owner) {
            return Err(Refusal::HomeBusy);
        }
        let claimed = match self.pools[pool.0].owners.get(owner).copied() {
            Some(sandbox) => self.claim_own(now, sandbox, owner, effects)?,
            None => self.claim_new(now, pool, owner, effects)?,
        };
        let remembered_max = self.settings.owners_remembered_max;
        self.pools[pool.0].usage.note(now, owner, remembered_max);
        Ok(claimed)
    }

    /// The owner has a sandbox.
    fn claim_own(
        &mut self,
        now: Moment,
        id: SandboxId,
        owner: &Owner,
        effects: &mut Vec<Effect>,
    ) -> Result<Claimed, Refusal> {
        if self.check_is_late(now, id) {
            self.fail(now, id, crate::LossReason::Unhealthy, effects);
            return Err(Refusal::HomeBusy);
        }
        let sandbox = &self.sandboxes[&id];
        let (level, runs) = match &sandbox.state {
            State::Starting {
                claim: Some((_, runs)),
                ..
            } => (Level::Cold, *runs),
            State::Busy { runs, .. } => (Level::Shared, *runs),
            State::Hot { .. } => (Level::Hot, 0),
            State::Starting { claim: None, .. }
            | State::Verifying
            | State::Warm { .. }
            | State::Ending { .. } => unreachable!("only an owner's sandbox stands among the owners"),
        };
        if runs >= self.settings.runs_max {
            return Err(Refusal::RunsMax { runs });
        }
        if let State::Hot { .. } = sandbox.state {
            let grown = self.pools[sandbox.pool.0].spec.owned_bytes;
            self.make_room(
                now,
                grown.saturating_sub(sandbox.charged_bytes),
                0,
                Some(id),
                effects,
            )?;
        }
        let runs = runs + 1;
        let state = match &self.sandboxes[&id].state {
            State::Starting { since, .. } => State::Starting {
                since: *since,
                claim: Some((owner.clone(), runs)),
            },
            _ => State::Busy {
                owner: owner.clone(),
                runs,
            },
        };
        self.set_state(id, state);
        Ok(Claimed {
            sandbox: id,
            level,
            profile: self.sandboxes[&id].profile,
            runs,
        })
    }

    /// The owner has none.
    fn claim_new(
        &mut self,
        now: Moment,
        pool: PoolKey,
        owner: &Owner,
        effects: &mut Vec<Effect>,
    ) -> Result<Claimed, Refusal> {
        // Those that did not answer in time are on nobody's list yet: each is met once, and then it ends.
        while let Some(id) = self.next_warm(pool) {
            if self.check_is_late(now, id) {
                self.fail(now, id, crate::LossReason::Unhealthy, effects);
                continue;
            }
            let grown = self.pools[pool.0].spec.owned_bytes;
            self.make_room(
                now,
                grown.saturating_sub(self.sandboxes[&id].charged_bytes),
                0,
                None,
                effects,
            )?;
            self.set_state(
                id,
                State::Busy {
                    owner: owner.clone(),
                    runs: 1,
                },
            );
            self.refill(now, pool, effects);
            return Ok(Claimed {
                sandbox: id,
                level: Level::Warm,
                profile: self.sandboxes[&id].profile,
                runs: 1,
            });
        }
        self.claim_cold(now, pool, owner, effects)
    }

    fn next_warm(&self, pool: PoolKey) -> Option<SandboxId> {
        let pool = &self.pools[pool.0];
        pool.fresh.front().or_else(|| pool.stale.front()).copied()
    }

    /// Takes over the start that is furthest, or begins one.
    fn claim_cold(
        &mut self,
        now: Moment,
        pool: PoolKey,
        owner: &Owner,
        effects: &mut Vec<Effect>,
    ) -> Result<Claimed, Refusal> {
        let profile = self.profile_of(pool);
        let grown = self.pools[pool.0].spec.owned_bytes;
        let claim = Some((owner.clone(), 1));
        let begun = self.starting.iter().copied().find(|id| {
            let sandbox = &self.sandboxes[id];
            sandbox.pool == pool
                && self.is_present(sandbox)
                && matches!(sandbox.state, State::Starting { claim: None, .. })
        });
        if let Some(id) = begun {
            let sandbox = &self.sandboxes[&id];
            let since = sandbox.born;
            self.make_room(now, grown.saturating_sub(sandbox.charged_bytes), 0, None, effects)?;
            self.set_state(id, State::Starting { since, claim });
            self.refill(now, pool, effects);
            return Ok(Claimed {
                sandbox: id,
                level: Level::Cold,
                profile,
                runs: 1,
            });
        }
        if let Some(retry_after) = self.pools[pool.0]
            .retry_at
            .checked_sub(now)
            .filter(|left| !left.is_zero())
        {
            return Err(Refusal::StartsFailing { retry_after });
        }
        if self.starting.len() >= self.settings.starts_max {
            return Err(Refusal::StartsBusy);
        }
        self.make_room(now, grown, 1, None, effects)?;
        let id = self.start(now, pool, claim, effects);
        Ok(Claimed {
            sandbox: id,
            level: Level::Cold,
            profile,
            runs: 1,
        })
    }

    /// Whether a check of the sandbox is on its way for longer than one may be. The tick that would have seen it may
    /// be late; a claim is not.
    pub(super) fn check_is_late(&self, now: Moment, id: SandboxId) -> bool {
        match self.sandboxes[&id].check {
            Check::Asked { at, .. } => now.saturating_sub(at) >= self.settings.check_timeout,
            Check::Due(_) => false,
        }
    }

    /// Succeeds when there is room for so many more bytes and sandboxes. Otherwise begins to end what is worth least
    /// among the idle, all that is needed at once, and refuses until it is gone. Warm sandboxes are not touched: the
    /// pool would start them again, and the two would go round for ever.
    fn make_room(
        &mut self,
        now: Moment,
        bytes: u64,
        sandboxes: usize,
        but: Option<SandboxId>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (mut missing, mut places) = self.missing(bytes, sandboxes);
        if missing == 0 && places == 0 {
            return Ok(());
        }
        // What is ending is room that comes by itself.
        let coming = self
            .sandboxes
            .values()
            .filter(|one| matches!(one.state, State::Ending { .. }));
        for one in coming {
            missing = missing.saturating_sub(one.charged_bytes);
            places = places.saturating_sub(1);
        }
        while missing > 0 || places > 0 {
            let Some(id) = self.least_valuable(now, but) else {
                return Err(Refusal::NoRoom);
            };
            missing = missing.saturating_sub(self.sandboxes[&id].charged_bytes);
            places = places.saturating_sub(1);
            self.retire(now, id, effects);
        }
        Err(Refusal::MakingRoom)
    }

    /// How many bytes and places are too few for so many more.
    fn missing(&self, bytes: u64, sandboxes: usize) -> (u64, usize) {
        (
            (self.charged_bytes + bytes).saturating_sub(self.settings.memory_bytes_max),
            (self.sandboxes.len() + sandboxes).saturating_sub(self.settings.sandboxes_max),
        )
    }
}
