//! What happens to one sandbox.

use super::WarmPool;
use crate::sandbox::{Check, Sandbox, State, Stray};
use crate::{Effect, LossReason, Moment, Owner, PoolKey, ProfileHash, SandboxId};

impl WarmPool {
    /// Begins to make a sandbox. Whether it may was asked before.
    pub(super) fn start(
        &mut self,
        now: Moment,
        pool: PoolKey,
        claim: Option<(Owner, u32)>,
        effects: &mut Vec<Effect>,
    ) -> SandboxId {
        let id = SandboxId(self.next_sandbox);
        let profile = self.profile_of(pool);
        self.insert(
            id,
            new_sandbox(
                now,
                (pool, self.pools[pool.0].generation),
                profile,
                State::Starting { since: now, claim },
            ),
        );
        effects.push(Effect::Start {
            sandbox: id,
            pool,
            profile,
        });
        id
    }

    /// A sandbox of the node's former life. Nobody's of the present profile is checked and used; an owner's gives its
    /// login back and ends, because what ran in it is gone.
    pub(super) fn found(
        &mut self,
        now: Moment,
        id: SandboxId,
        pool: Option<PoolKey>,
        profile: ProfileHash,
        owner: Option<Owner>,
        effects: &mut Vec<Effect>,
    ) {
        if self.sandboxes.contains_key(&id) || self.strays.contains_key(&id) {
            return;
        }
        let Some(pool) = pool.filter(|pool| pool.0 < self.pools.len()) else {
            self.stray(now, id, owner, effects);
            return;
        };
        let take_back = owner.is_some();
        let spec = &self.pools[pool.0].spec;
        let wanted = spec.target > self.pools[pool.0].fresh.len() + self.pools[pool.0].verifying;
        let room = self.sandboxes.len() < self.settings.sandboxes_max
            && self.charged_bytes + spec.warm_bytes <= self.settings.memory_bytes_max;
        if take_back || self.is_closed(pool) || profile != spec.profile || !wanted || !room {
            let state = State::Ending {
                owner,
                take_back,
                asked: now,
            };
            self.insert(id, new_sandbox(now, (pool, 0), profile, state));
            self.ask_to_end(id, effects);
            return;
        }
        self.insert(id, new_sandbox(now, (pool, 0), profile, State::Verifying));
        self.ask_health(now, id, effects);
    }

    pub(super) fn started(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            // It was given up and forgotten: a late one must not stay.
            self.stray(now, id, None, effects);
            return;
        };
        let pool = sandbox.pool;
        match sandbox.state.clone() {
            State::Starting { claim, .. } => {
                self.pools[pool.0].failures = 0;
                self.pools[pool.0].retry_at = Moment::ZERO;
                let check = self.first_check(now, id);
                self.set_check(id, check);
                let state = match claim {
                    Some((owner, runs)) => {
                        effects.push(Effect::Ready {
                            sandbox: id,
                            owner: owner.clone(),
                        });
                        State::Busy { owner, runs }
                    }
                    None => State::Warm {
                        stale: self.is_stale(now, &self.sandboxes[&id]),
                    },
                };
                self.set_state(id, state);
                self.refill_all(now, effects);
            }
            // The end was asked for before it was there.
            State::Ending { .. } => self.ask_to_end(id, effects),
            State::Verifying | State::Warm { .. } | State::Busy { .. } | State::Hot { .. } => {}
        }
    }

    pub(super) fn start_failed(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        let State::Starting { claim, .. } = sandbox.state.clone() else {
            return;
        };
        let pool = sandbox.pool;
        self.back_off(now, pool, id);
        if let Some((owner, runs)) = claim {
            effects.push(Effect::RunsLost {
                sandbox: id,
                owner,
                runs,
                reason: LossReason::StartFailed,
            });
        }
        // Half of it may be there. No home was ever opened in it.
        self.end(now, id, None, false, effects);
        self.refill_all(now, effects);
    }

    /// The next try waits twice as long as the last one, and up to a quarter more, so that pools do not try in step.
    fn back_off(&mut self, now: Moment, pool: PoolKey, id: SandboxId) {
        let settings = &self.settings;
        let pool = &mut self.pools[pool.0];
        pool.failures = pool.failures.saturating_add(1);
        let doublings = (pool.failures - 1).min(16);
        let wait = settings
            .start_backoff_min
            .saturating_mul(1 << doublings)
            .min(settings.start_backoff_max);
        let spread = u32::try_from(id.0.wrapping_mul(0x9e37_79b9) & 0xff).unwrap_or(0);
        pool.retry_at = now + wait + wait * spread / 1024;
    }

    pub(super) fn healthy(
        &mut self,
        now: Moment,
        id: SandboxId,
        number: u64,
        memory_bytes: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else {
            return;
        };
        if !matches!(sandbox.check, Check::Asked { number: asked, .. } if asked == number) {
            return;
        }
        if matches!(sandbox.state, State::Ending { .. }) {
            return;
        }
        sandbox.measured_bytes = Some(memory_bytes);
        if self.check_is_late(now, id) {
            // Too late is no answer, whether or not a tick has seen it.
            self.fail(now, id, LossReason::Unhealthy, effects);
            self.refill_all(now, effects);
            return;
        }
        self.set_check(id, Check::Due(now + self.settings.check_interval));
        self.recharge(id);
        if self.sandboxes[&id].state == State::Verifying {
            let stale = self.is_stale(now, &self.sandboxes[&id]);
            self.set_state(id, State::Warm { stale });
            self.refill_all(now, effects);
        }
        self.keep_within_memory(now, effects);
    }

    pub(super) fn unhealthy(&mut self, now: Moment, id: SandboxId, number: u64, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        if matches!(sandbox.check, Check::Asked { number: asked, .. } if asked == number) {
            self.fail(now, id, LossReason::Unhealthy, effects);
            self.refill_all(now, effects);
        }
    }

    pub(super) fn lost(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        match self.sandboxes.get(&id).map(|sandbox| &sandbox.state) {
            None => self.stray(now, id, None, effects),
            Some(State::Starting { .. }) => self.start_failed(now, id, effects),
            Some(_) => {
                self.fail(now, id, LossReason::Lost, effects);
                self.refill_all(now, effects);
            }
        }
    }

    /// The sandbox is no good any more. Its runs are lost; a login in it is still taken back if that can be done.
    pub(super) fn fail(&mut self, now: Moment, id: SandboxId, reason: LossReason, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        match sandbox.state.clone() {
            State::Starting { .. } => self.start_failed(now, id, effects),
            State::Verifying | State::Warm { .. } => self.end(now, id, None, false, effects),
            State::Busy { owner, runs } => {
                effects.push(Effect::RunsLost {
                    sandbox: id,
                    owner: owner.clone(),
                    runs,
                    reason,
                });
                self.end(now, id, Some(owner), true, effects);
            }
            State::Hot { owner, .. } => self.end(now, id, Some(owner), true, effects),
            State::Ending { .. } => {}
        }
    }

    pub(super) fn run_ended(&mut self, now: Moment, id: SandboxId, keep: bool, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        match sandbox.state.clone() {
            // It never was anybody's: a claim that was given up before it was up leaves it as it was.
            State::Starting {
                since,
                claim: Some((owner, runs)),
            } => {
                let claim = (runs > 1).then(|| (owner, runs - 1));
                self.set_state(id, State::Starting { since, claim });
            }
            State::Busy { owner, runs } if runs > 1 => {
                self.set_state(
                    id,
                    State::Busy {
                        owner,
                        runs: runs - 1,
                    },
                );
                // One run that leaves the sandbox unfit says so for the last one too.
                if !keep {
                    self.mark_unfit(id);
                }
            }
            State::Busy { owner, .. } => {
                let fit = keep && !self.is_closed(sandbox.pool) && !self.is_unfit(id);
                if fit && !self.is_stale(now, &self.sandboxes[&id]) && !self.check_is_late(now, id) {
                    let keep_for = self.pools[sandbox.pool.0].usage.keep_for(&owner, &self.settings);
                    self.set_state(
                        id,
                        State::Hot {
                            owner,
                            until: now + keep_for,
                        },
                    );
                    self.keep_within_memory(now, effects);
                } else {
                    self.end(now, id, Some(owner), true, effects);
                }
                self.refill_all(now, effects);
            }
            // Runs of a lost sandbox are told as lost; that they also end is no news.
            State::Starting { claim: None, .. }
            | State::Verifying
            | State::Warm { .. }
            | State::Hot { .. }
            | State::Ending { .. } => {}
        }
    }

    pub(super) fn owner_gone(
        &mut self,
        now: Moment,
        pool: PoolKey,
        owner: &Owner,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = self
            .pools
            .get(pool.0)
            .and_then(|pool| pool.owners.get(owner))
            .copied()
        else {
            return;
        };
        match self.sandboxes[&id].state {
            State::Hot { .. } => self.retire(now, id, effects),
            State::Busy { .. } => self.mark_unfit(id),
            _ => {}
        }
    }

    pub(super) fn ended(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        if self.strays.remove(&id).is_some() {
            return;
        }
        if !matches!(
            self.sandboxes.get(&id).map(|sandbox| &sandbox.state),
            Some(State::Ending { .. })
        ) {
            if self.sandboxes.contains_key(&id) {
                // It ended by itself. What it leaves is cleared away in the usual way.
                self.lost(now, id, effects);
            }
            return;
        }
        let Some(sandbox) = self.remove(id) else { return };
        if let State::Ending {
            owner: Some(owner), ..
        } = sandbox.state
            && !self.pools[sandbox.pool.0].leaving.contains_key(&owner)
        {
            effects.push(Effect::OwnerFree {
                pool: sandbox.pool,
                owner,
            });
        }
        effects.push(Effect::Room);
        self.refill_all(now, effects);
    }

    /// A sandbox that is of no pool: it ends, and nothing else can become of it.
    fn stray(&mut self, now: Moment, id: SandboxId, owner: Option<Owner>, effects: &mut Vec<Effect>) {
        self.next_sandbox = self.next_sandbox.max(id.0.saturating_add(1));
        let stray = self.strays.entry(id).or_insert(Stray { owner, asked: now });
        effects.push(stray.order(id));
    }

    /// Ends what is idle, with its login taken back when it has an owner.
    pub(super) fn retire(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        match self.sandboxes[&id].state.clone() {
            State::Hot { owner, .. } | State::Busy { owner, .. } => {
                self.end(now, id, Some(owner), true, effects);
            }
            State::Starting { .. } | State::Verifying | State::Warm { .. } => {
                self.end(now, id, None, false, effects);
            }
            State::Ending { .. } => {}
        }
    }

    pub(super) fn end(
        &mut self,
        now: Moment,
        id: SandboxId,
        owner: Option<Owner>,
        take_back: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.set_check(id, Check::Due(Moment::MAX));
        self.set_state(
            id,
            State::Ending {
                owner,
                take_back,
                asked: now,
            },
        );
        self.ask_to_end(id, effects);
    }

    /// Asks for the end, the first time or again.
    pub(super) fn ask_to_end(&mut self, id: SandboxId, effects: &mut Vec<Effect>) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        if let State::Ending { owner, take_back, .. } = &sandbox.state {
            effects.push(match owner {
                Some(owner) if *take_back => Effect::Retire {
                    sandbox: id,
                    owner: owner.clone(),
                },
                _ => Effect::End { sandbox: id },
            });
        }
    }

    pub(super) fn ask_health(&mut self, now: Moment, id: SandboxId, effects: &mut Vec<Effect>) {
        self.next_check += 1;
        let number = self.next_check;
        self.set_check(id, Check::Asked { at: now, number });
        effects.push(Effect::CheckHealth {
            sandbox: id,
            check: number,
        });
    }

    /// When a sandbox is checked first: anywhere in an interval, so that what started together is not checked together.
    fn first_check(&self, now: Moment, id: SandboxId) -> Check {
        let spread = u32::try_from(id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap_or(0);
        let interval = self.settings.check_interval;
        Check::Due(now + interval - interval * spread / 512)
    }

    /// Counts it for what it now is known to use.
    fn recharge(&mut self, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else {
            return;
        };
        let due = sandbox.due_bytes(&self.pools[sandbox.pool.0].spec);
        if matches!(sandbox.state, State::Hot { .. }) {
            self.hot_bytes = self.hot_bytes - sandbox.charged_bytes + due;
        }
        self.charged_bytes = self.charged_bytes - sandbox.charged_bytes + due;
        sandbox.charged_bytes = due;
    }

    /// Not to be kept after its runs.
    fn mark_unfit(&mut self, id: SandboxId) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.is_fit = false;
        }
    }

    fn is_unfit(&self, id: SandboxId) -> bool {
        self.sandboxes.get(&id).is_some_and(|sandbox| !sandbox.is_fit)
    }
}

fn new_sandbox(
    now: Moment,
    (pool, generation): (PoolKey, u64),
    profile: ProfileHash,
    state: State,
) -> Sandbox {
    Sandbox {
        pool,
        profile,
        generation,
        born: now,
        measured_bytes: None,
        charged_bytes: 0,
        is_fit: true,
        check: Check::Due(Moment::MAX),
        state,
    }
}
