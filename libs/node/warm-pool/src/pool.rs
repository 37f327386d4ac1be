//! All pools of a node: what they share, and one place where a sandbox changes its state.

mod claims;
#[cfg(test)]
mod histories;
mod keeping;
mod lifecycle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::FixedState;

use crate::sandbox::{Check, Sandbox, State, Stray};
use crate::usage::Usage;
use crate::{Effect, Event, Moment, Owner, PoolKey, PoolSpec, ProfileHash, SandboxId, Settings};

/// One pool. The collections agree with the states of its sandboxes: only `index` and `unindex` change them.
#[derive(Debug)]
struct Pool {
    spec: PoolSpec,
    /// How often it was reloaded.
    generation: u64,
    is_closed: bool,
    /// Warm, healthy, of the present profile and not too old; the oldest first.
    fresh: VecDeque<SandboxId>,
    /// Warm and healthy, but to be replaced.
    stale: VecDeque<SandboxId>,
    verifying: usize,
    /// Owners' sandboxes, also those that are only starting.
    owners: HashMap<Owner, SandboxId>,
    /// Owners with sandboxes that are ending, and how many.
    leaving: HashMap<Owner, u32>,
    usage: Usage,
    /// Failed starts since the last good one.
    failures: u32,
    retry_at: Moment,
}

/// How many sandboxes a pool has, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Being made.
    pub starting: usize,
    /// Found after a restart and not checked yet.
    pub verifying: usize,
    /// Up, and nobody's.
    pub warm: usize,
    /// Those of `warm` that are to be replaced.
    pub stale: usize,
    /// With runs in them.
    pub busy: usize,
    /// Idle, kept for their owners.
    pub hot: usize,
    /// To be gone.
    pub ending: usize,
    /// Runs in all of them.
    pub runs: u32,
    /// What they are counted for, in bytes.
    pub memory_bytes: u64,
}

/// The agent pools of a node.
#[derive(Debug)]
pub struct WarmPool {
    settings: Settings,
    pools: Vec<Pool>,
    sandboxes: HashMap<SandboxId, Sandbox, FixedState>,
    /// Sandboxes of no pool, until they are gone.
    strays: BTreeMap<SandboxId, Stray>,
    /// All that are starting: `starts_max` at most.
    starting: Vec<SandboxId>,
    hot: Vec<SandboxId>,
    hot_bytes: u64,
    charged_bytes: u64,
    ending: usize,
    checks_asked: usize,
    next_sandbox: u64,
    next_check: u64,
    next_start_at: Moment,
    /// The pool whose turn it is to be filled first.
    first_pool: usize,
    /// Until when found sandboxes may come; `None` once adoption is done.
    adopting_until: Option<Moment>,
    draining: bool,
}

impl WarmPool {
    /// No pools yet. The node has just started at `now`: until [`Event::AdoptionDone`], nothing is started.
    ///
    /// `first_sandbox` must be above every number that this node ever gave; the wall clock in microseconds does.
    pub fn new(settings: Settings, first_sandbox: SandboxId, now: Moment) -> Self {
        let adopting_until = Some(now + settings.adoption_timeout);
        Self {
            settings,
            pools: Vec::new(),
            sandboxes: HashMap::default(),
            strays: BTreeMap::new(),
            starting: Vec::new(),
            hot: Vec::new(),
            hot_bytes: 0,
            charged_bytes: 0,
            ending: 0,
            checks_asked: 0,
            next_sandbox: first_sandbox.0,
            next_check: 0,
            next_start_at: now,
            first_pool: 0,
            adopting_until,
            draining: false,
        }
    }

    /// Adds a pool. Its first sandboxes start with the next tick.
    pub fn add_pool(&mut self, spec: PoolSpec) -> PoolKey {
        self.pools.push(Pool {
            spec,
            generation: 0,
            is_closed: false,
            fresh: VecDeque::new(),
            stale: VecDeque::new(),
            verifying: 0,
            owners: HashMap::new(),
            leaving: HashMap::new(),
            usage: Usage::default(),
            failures: 0,
            retry_at: Moment::ZERO,
        });
        PoolKey(self.pools.len() - 1)
    }

    /// Takes what happened and says what is to be done. An event about a sandbox that is not in a state to have it is
    /// late, and changes nothing that matters.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Tick => self.tick(now, out),
            Event::Found {
                sandbox,
                pool,
                profile,
                owner,
            } => {
                self.found(now, sandbox, pool, profile, owner, out);
            }
            Event::AdoptionDone => {
                self.adopting_until = None;
                self.refill_all(now, out);
            }
            Event::Started { sandbox } => self.started(now, sandbox, out),
            Event::StartFailed { sandbox } => self.start_failed(now, sandbox, out),
            Event::Healthy {
                sandbox,
                check,
                memory_bytes,
            } => {
                self.healthy(now, sandbox, check, memory_bytes, out);
            }
            Event::Unhealthy { sandbox, check } => self.unhealthy(now, sandbox, check, out),
            Event::Lost { sandbox } => self.lost(now, sandbox, out),
            Event::RunEnded { sandbox, keep } => self.run_ended(now, sandbox, keep, out),
            Event::OwnerGone { pool, owner } => self.owner_gone(now, pool, &owner, out),
            Event::Ended { sandbox } => self.ended(now, sandbox, out),
            Event::Reloaded { pool, profile } => self.reloaded(now, pool, profile, out),
            Event::Closed { pool } => {
                if let Some(pool) = self.pools.get_mut(pool.0) {
                    pool.is_closed = true;
                    self.end_idle(now, out);
                }
            }
            Event::Opened { pool } => {
                if let Some(pool) = self.pools.get_mut(pool.0) {
                    pool.is_closed = false;
                    self.refill_all(now, out);
                }
            }
            Event::TargetChanged { pool, target } => {
                if let Some(pool) = self.pools.get_mut(pool.0) {
                    pool.spec.target = target;
                    self.refill_all(now, out);
                }
            }
            Event::Drain => {
                self.draining = true;
                self.end_idle(now, out);
            }
        }
        effects
    }

    /// What the pool wants.
    pub fn spec(&self, pool: PoolKey) -> Option<&PoolSpec> {
        self.pools.get(pool.0).map(|pool| &pool.spec)
    }

    /// How many sandboxes the pool has, by state. Looks at every sandbox.
    pub fn counts(&self, pool: PoolKey) -> Counts {
        let mut counts = Counts::default();
        for sandbox in self.sandboxes.values().filter(|sandbox| sandbox.pool == pool) {
            counts.memory_bytes += sandbox.charged_bytes;
            match &sandbox.state {
                State::Starting { claim, .. } => {
                    counts.starting += 1;
                    counts.runs += claim.as_ref().map_or(0, |(_, runs)| *runs);
                }
                State::Verifying => counts.verifying += 1,
                State::Warm { stale } => {
                    counts.warm += 1;
                    counts.stale += usize::from(*stale);
                }
                State::Busy { runs, .. } => {
                    counts.busy += 1;
                    counts.runs += runs;
                }
                State::Hot { .. } => counts.hot += 1,
                State::Ending { .. } => counts.ending += 1,
            }
        }
        counts
    }

    /// Sandboxes of all pools and of none, whatever their state.
    pub fn len(&self) -> usize {
        self.sandboxes.len() + self.strays.len()
    }

    /// Whether there is no sandbox at all: a drained node may stop.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.strays.is_empty()
    }

    /// Whom the sandbox belongs to.
    pub fn owner_of(&self, sandbox: SandboxId) -> Option<&Owner> {
        if let Some(stray) = self.strays.get(&sandbox) {
            return stray.owner.as_ref();
        }
        match &self.sandboxes.get(&sandbox)?.state {
            State::Starting { claim, .. } => claim.as_ref().map(|(owner, _)| owner),
            State::Busy { owner, .. } | State::Hot { owner, .. } => Some(owner),
            State::Ending { owner, .. } => owner.as_ref(),
            State::Verifying | State::Warm { .. } => None,
        }
    }

    /// Adds a sandbox that is not known yet.
    fn insert(&mut self, id: SandboxId, sandbox: Sandbox) {
        self.next_sandbox = self.next_sandbox.max(id.0.saturating_add(1));
        self.sandboxes.insert(id, sandbox);
        self.index(id);
    }

    /// Forgets a sandbox; gives what it was.
    fn remove(&mut self, id: SandboxId) -> Option<Sandbox> {
        self.unindex(id);
        let sandbox = self.sandboxes.remove(&id)?;
        self.checks_asked -= usize::from(matches!(sandbox.check, Check::Asked { .. }));
        Some(sandbox)
    }

    /// The one way in which a known sandbox changes its state.
    fn set_state(&mut self, id: SandboxId, state: State) {
        self.unindex(id);
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.state = state;
        }
        self.index(id);
    }

    fn set_check(&mut self, id: SandboxId, check: Check) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            self.checks_asked -= usize::from(matches!(sandbox.check, Check::Asked { .. }));
            self.checks_asked += usize::from(matches!(check, Check::Asked { .. }));
            sandbox.check = check;
        }
    }

    fn index(&mut self, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else {
            return;
        };
        let pool = &mut self.pools[sandbox.pool.0];
        sandbox.charged_bytes = sandbox.due_bytes(&pool.spec);
        self.charged_bytes += sandbox.charged_bytes;
        match &sandbox.state {
            State::Starting { claim, .. } => {
                self.starting.push(id);
                if let Some((owner, _)) = claim {
                    pool.owners.insert(owner.clone(), id);
                }
            }
            State::Verifying => pool.verifying += 1,
            State::Warm { stale: false } => pool.fresh.push_back(id),
            State::Warm { stale: true } => pool.stale.push_back(id),
            State::Busy { owner, .. } => {
                pool.owners.insert(owner.clone(), id);
            }
            State::Hot { owner, .. } => {
                pool.owners.insert(owner.clone(), id);
                self.hot.push(id);
                self.hot_bytes += sandbox.charged_bytes;
            }
            State::Ending { owner, .. } => {
                self.ending += 1;
                if let Some(owner) = owner {
                    *pool.leaving.entry(owner.clone()).or_default() += 1;
                }
            }
        }
    }

    fn unindex(&mut self, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get(&id) else {
            return;
        };
        let pool = &mut self.pools[sandbox.pool.0];
        self.charged_bytes -= sandbox.charged_bytes;
        match &sandbox.state {
            State::Starting { claim, .. } => {
                self.starting.retain(|other| *other != id);
                if let Some((owner, _)) = claim {
                    pool.owners.remove(owner);
                }
            }
            State::Verifying => pool.verifying -= 1,
            State::Warm { stale: false } => take_out(&mut pool.fresh, id),
            State::Warm { stale: true } => take_out(&mut pool.stale, id),
            State::Busy { owner, .. } => {
                pool.owners.remove(owner);
            }
            State::Hot { owner, .. } => {
                pool.owners.remove(owner);
                self.hot.retain(|other| *other != id);
                self.hot_bytes -= sandbox.charged_bytes;
            }
            State::Ending { owner, .. } => {
                self.ending -= 1;
                if let Some(owner) = owner
                    && let Some(count) = pool.leaving.get_mut(owner)
                {
                    *count -= 1;
                    if *count == 0 {
                        pool.leaving.remove(owner);
                    }
                }
            }
        }
    }

    /// Whether sandboxes of this profile and age are to be replaced.
    fn is_stale(&self, now: Moment, sandbox: &Sandbox) -> bool {
        !self.is_present(sandbox) || now.saturating_sub(sandbox.born) >= self.age_max(sandbox.born)
    }

    /// Whether the sandbox was made after the last reload of its pool, from its present profile.
    fn is_present(&self, sandbox: &Sandbox) -> bool {
        let pool = &self.pools[sandbox.pool.0];
        sandbox.profile == pool.spec.profile && sandbox.generation == pool.generation
    }

    /// Whether nothing of the pool is started or handed out, and what is idle ends.
    fn is_closed(&self, pool: PoolKey) -> bool {
        self.draining || self.pools[pool.0].is_closed
    }

    /// Up to an eighth less for some than for others, so that what was started together is not replaced together.
    fn age_max(&self, born: Moment) -> Moment {
        let spread = born.as_millis().wrapping_mul(0x9e37_79b9) & 0xff;
        let spread = u32::try_from(spread).unwrap_or(0);
        self.settings.age_max - self.settings.age_max * spread / 2048
    }

    fn profile_of(&self, pool: PoolKey) -> ProfileHash {
        self.pools[pool.0].spec.profile
    }
}

/// Takes `id` out of a queue. It mostly stands at the front; one that fails a check may stand anywhere.
fn take_out(queue: &mut VecDeque<SandboxId>, id: SandboxId) {
    if queue.front() == Some(&id) {
        queue.pop_front();
    } else {
        queue.retain(|other| *other != id);
    }
}
