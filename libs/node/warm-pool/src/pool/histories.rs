//! Generated histories: whatever is claimed, given back, broken, lost, answered late or not at all, and however often
//! the node dies, nobody gets a sandbox that is another's, unhealthy or taken, the counts stay within their bounds, and
//! in the end the pool is full again and nothing is left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{NEW, OLD};
use super::*;
use crate::{Claimed, Level, Refusal};

const OWNERS: usize = 4;
const POOLS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Step {
    Claim {
        pool: usize,
        owner: usize,
    },
    /// The `at`-th run ends.
    EndRun {
        at: usize,
        keep: bool,
    },
    /// A sandbox dies; its node hears of it like of everything else.
    Crash {
        at: usize,
    },
    /// A sandbox answers its checks with "not well" from now on.
    Sicken {
        at: usize,
    },
    /// The `at`-th message of those on their way arrives, in whatever order.
    Arrive {
        at: usize,
    },
    /// It never does.
    Lose {
        at: usize,
    },
    /// It arrives, and once more later.
    Twice {
        at: usize,
    },
    Pass {
        milliseconds: u64,
    },
    Change {
        pool: usize,
        new: bool,
    },
    Target {
        pool: usize,
        target: usize,
    },
    Forget {
        pool: usize,
        owner: usize,
    },
    /// The pool is drained, or no more.
    Close {
        pool: usize,
        is_closed: bool,
    },
    /// The node is killed and comes back.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (pool, owner) = (0..POOLS, 0..OWNERS);
    prop_oneof![
        10 => (pool.clone(), owner.clone()).prop_map(|(pool, owner)| Step::Claim { pool, owner }),
        7 => (any::<usize>(), proptest::bool::weighted(0.8)).prop_map(|(at, keep)| Step::EndRun { at, keep }),
        1 => any::<usize>().prop_map(|at| Step::Crash { at }),
        1 => any::<usize>().prop_map(|at| Step::Sicken { at }),
        30 => any::<usize>().prop_map(|at| Step::Arrive { at }),
        1 => any::<usize>().prop_map(|at| Step::Lose { at }),
        1 => any::<usize>().prop_map(|at| Step::Twice { at }),
        8 => (1..20_000u64).prop_map(|milliseconds| Step::Pass { milliseconds }),
        1 => (pool.clone(), any::<bool>()).prop_map(|(pool, new)| Step::Change { pool, new }),
        1 => (pool.clone(), 0..5usize).prop_map(|(pool, target)| Step::Target { pool, target }),
        1 => (pool.clone(), any::<bool>()).prop_map(|(pool, is_closed)| Step::Close { pool, is_closed }),
        1 => (pool, owner).prop_map(|(pool, owner)| Step::Forget { pool, owner }),
        1 => Just(Step::Restart),
    ]
}

/// A sandbox as it really is.
#[derive(Debug)]
struct Real {
    pool: PoolKey,
    profile: ProfileHash,
    /// Whose home was ever opened in it.
    owner: Option<Owner>,
    is_sick: bool,
}

struct World {
    settings: Settings,
    pool: WarmPool,
    now: Moment,
    specs: Vec<PoolSpec>,
    closed: [bool; POOLS],
    real: BTreeMap<SandboxId, Real>,
    /// Cold claims whose sandbox is not up yet.
    promised: HashMap<SandboxId, Owner>,
    messages: Vec<Event>,
    runs: Vec<(SandboxId, PoolKey, Owner)>,
    /// Sandboxes of which the pool knows, by a message that has arrived, that they are no good.
    condemned: BTreeSet<SandboxId>,
    /// Checks on their way: the last one of each sandbox, and when it was asked.
    asked: HashMap<SandboxId, (u64, Moment)>,
    /// Sandboxes that give their owners' logins back, as far as the pool has heard.
    retiring: HashMap<SandboxId, (PoolKey, Owner)>,
    started: BTreeSet<SandboxId>,
}

impl World {
    fn new(targets: [usize; POOLS], settings: Settings) -> Self {
        let specs: Vec<PoolSpec> = targets
            .into_iter()
            .map(|target| PoolSpec {
                name: "p".into(),
                profile: OLD,
                target,
                warm_bytes: 10,
                owned_bytes: 100,
            })
            .collect();
        let mut pool = WarmPool::new(settings.clone(), SandboxId(1), Moment::ZERO);
        for spec in &specs {
            pool.add_pool(spec.clone());
        }
        let mut world = Self {
            settings,
            pool,
            now: Moment::ZERO,
            specs,
            closed: [false; POOLS],
            real: BTreeMap::new(),
            promised: HashMap::new(),
            messages: Vec::new(),
            runs: Vec::new(),
            condemned: BTreeSet::new(),
            asked: HashMap::new(),
            retiring: HashMap::new(),
            started: BTreeSet::new(),
        };
        world.tell(Event::AdoptionDone);
        world
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::Unhealthy { sandbox, .. } | Event::Lost { sandbox } => {
                self.condemned.insert(*sandbox);
            }
            Event::Healthy { sandbox, check, .. }
                if self.asked.get(sandbox).is_some_and(|(number, _)| number == check) =>
            {
                self.asked.remove(sandbox);
            }
            Event::Ended { sandbox } => {
                self.retiring.remove(sandbox);
            }
            _ => {}
        }
        let effects = self.pool.step(self.now, event);
        self.do_all(effects);
    }

    fn do_all(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start {
                    sandbox,
                    pool,
                    profile,
                } => {
                    assert!(self.started.insert(sandbox), "{sandbox} was started twice");
                    assert!(!self.closed[pool.0], "{sandbox} is started in a closed pool");
                    let real = Real {
                        pool,
                        profile,
                        owner: None,
                        is_sick: false,
                    };
                    self.real.insert(sandbox, real);
                    // One in eight cannot be made.
                    self.messages.push(if sandbox.0 % 8 == 5 {
                        self.real.remove(&sandbox);
                        Event::StartFailed { sandbox }
                    } else {
                        Event::Started { sandbox }
                    });
                }
                Effect::CheckHealth { sandbox, check } => {
                    self.asked.insert(sandbox, (check, self.now));
                    self.messages.push(match self.real.get(&sandbox) {
                        Some(real) if !real.is_sick => Event::Healthy {
                            sandbox,
                            check,
                            memory_bytes: 20,
                        },
                        _ => Event::Unhealthy { sandbox, check },
                    });
                }
                Effect::Ready { sandbox, owner } => {
                    assert_eq!(self.promised.remove(&sandbox), Some(owner.clone()));
                    self.pour(sandbox, &owner);
                }
                Effect::RunsLost {
                    sandbox, owner, runs, ..
                } => {
                    let before = self.runs.len();
                    self.runs.retain(|run| run.0 != sandbox);
                    assert_eq!(before - self.runs.len(), runs as usize, "{owner:?} in {sandbox}");
                    self.promised.remove(&sandbox);
                }
                Effect::Retire { sandbox, owner } => {
                    if let Some(real) = self.real.get(&sandbox) {
                        assert!(real.owner.is_none() || real.owner.as_ref() == Some(&owner));
                    }
                    if let Some(known) = self.pool.sandboxes.get(&sandbox) {
                        self.retiring.insert(sandbox, (known.pool, owner));
                    }
                    self.gone(sandbox);
                }
                Effect::End { sandbox } => {
                    let poured = self.real.get(&sandbox).and_then(|real| real.owner.as_ref());
                    assert!(poured.is_none(), "{sandbox} ends without its login taken back");
                    self.gone(sandbox);
                }
                Effect::OwnerFree { .. } | Effect::Room => {}
            }
        }
    }

    /// It is ended at once; that it is may be heard late.
    fn gone(&mut self, sandbox: SandboxId) {
        let running = self.runs.iter().any(|run| run.0 == sandbox);
        assert!(!running, "{sandbox} ends with runs in it, and nobody was told");
        self.real.remove(&sandbox);
        // A start that is still on its way comes to nothing.
        self.messages
            .retain(|message| !matches!(message, Event::Started { sandbox: other } if *other == sandbox));
        self.messages.push(Event::Ended { sandbox });
    }

    /// The owner's home is opened in it.
    fn pour(&mut self, sandbox: SandboxId, owner: &Owner) {
        if let Some(real) = self.real.get_mut(&sandbox) {
            assert!(
                real.owner.is_none() || real.owner.as_ref() == Some(owner),
                "{sandbox} was {:?}'s and is now {owner:?}'s",
                real.owner
            );
            real.owner = Some(owner.clone());
        }
    }

    fn claim(&mut self, pool: usize, owner: usize) {
        let (pool, owner) = (PoolKey(pool), Owner::new(format!("owner-{owner}")));
        let mut effects = Vec::new();
        let claimed = self.pool.claim(self.now, pool, &owner, &mut effects);
        // What a claim makes known to be lost comes before what it gets.
        self.do_all(effects);
        match claimed {
            Ok(claimed) => self.claimed(pool, owner, claimed),
            Err(Refusal::NoSuchPool | Refusal::Draining) => panic!("there are pools, and the node stays"),
            Err(Refusal::Closed) => assert!(self.closed[pool.0]),
            Err(_) => {}
        }
    }

    fn claimed(&mut self, pool: PoolKey, owner: Owner, claimed: Claimed) {
        let Claimed {
            sandbox,
            level,
            profile,
            runs,
        } = claimed;
        assert!(!self.closed[pool.0], "{sandbox} is handed out by a closed pool");
        assert!(
            !self.condemned.contains(&sandbox),
            "{sandbox} is no good, and was handed out"
        );
        if let Some((_, at)) = self.asked.get(&sandbox) {
            let waited = self.now.saturating_sub(*at);
            assert!(
                waited < self.settings.check_timeout,
                "{sandbox} has not answered for {waited:?}"
            );
        }
        let leaving = self
            .retiring
            .values()
            .any(|(its, who)| *its == pool && *who == owner);
        assert!(!leaving, "{owner:?}'s login is not back yet");
        let elsewhere = self
            .runs
            .iter()
            .any(|(other, its, who)| *its == pool && *who == owner && *other != sandbox);
        assert!(!elsewhere, "{owner:?} has two sandboxes in a pool");
        assert!(
            self.runs
                .iter()
                .all(|(other, _, who)| *other != sandbox || *who == owner),
            "{sandbox} is taken"
        );
        let before = self.runs.iter().filter(|run| run.0 == sandbox).count();
        assert_eq!(before + 1, runs as usize);
        assert!(runs <= self.settings.runs_max);
        assert_eq!(
            level == Level::Shared || (level == Level::Cold && before > 0),
            before > 0
        );
        if let Some(real) = self.real.get(&sandbox) {
            assert_eq!((real.pool, real.profile), (pool, profile));
            assert_eq!(level == Level::Hot, before == 0 && real.owner.is_some());
        }
        match level {
            Level::Cold => {
                self.promised.insert(sandbox, owner.clone());
            }
            Level::Warm | Level::Shared | Level::Hot => self.pour(sandbox, &owner),
        }
        self.runs.push((sandbox, pool, owner));
    }

    fn end_run(&mut self, at: usize, keep: bool) {
        if self.runs.is_empty() {
            return;
        }
        let (sandbox, ..) = self.runs.swap_remove(at % self.runs.len());
        if self.runs.iter().all(|run| run.0 != sandbox) {
            self.promised.remove(&sandbox);
        }
        self.tell(Event::RunEnded { sandbox, keep });
    }

    /// A message arrives, unless it is of a check that was asked too long ago: a real one would be late as well.
    fn arrive(&mut self, at: usize) {
        if !self.messages.is_empty() {
            let message = self.messages.swap_remove(at % self.messages.len());
            self.tell(message);
        }
    }

    fn pick(&self, at: usize) -> Option<SandboxId> {
        (!self.real.is_empty()).then(|| {
            *self
                .real
                .keys()
                .nth(at % self.real.len())
                .expect("less than there are")
        })
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Claim { pool, owner } => self.claim(pool, owner),
            Step::EndRun { at, keep } => self.end_run(at, keep),
            Step::Crash { at } => {
                if let Some(sandbox) = self.pick(at) {
                    self.real.remove(&sandbox);
                    self.messages.push(Event::Lost { sandbox });
                }
            }
            Step::Sicken { at } => {
                if let Some(sandbox) = self.pick(at) {
                    self.real.get_mut(&sandbox).expect("it was picked").is_sick = true;
                }
            }
            Step::Arrive { at } => self.arrive(at),
            Step::Lose { at } => {
                // What is asked again, or has a time of its own. That a start came up is not lost: the node sees it.
                if !self.messages.is_empty() {
                    let at = at % self.messages.len();
                    let lost = matches!(
                        self.messages[at],
                        Event::Healthy { .. }
                            | Event::Unhealthy { .. }
                            | Event::Ended { .. }
                            | Event::Lost { .. }
                    );
                    if lost {
                        self.messages.swap_remove(at);
                    }
                }
            }
            Step::Twice { at } => {
                if !self.messages.is_empty() {
                    let message = self.messages[at % self.messages.len()].clone();
                    if !matches!(message, Event::Lost { .. }) {
                        self.tell(message);
                    }
                }
            }
            Step::Pass { milliseconds } => {
                self.now += Duration::from_millis(milliseconds);
                self.tell(Event::Tick);
            }
            Step::Change { pool, new } => {
                let profile = if new { NEW } else { OLD };
                self.specs[pool].profile = profile;
                self.tell(Event::Reloaded {
                    pool: PoolKey(pool),
                    profile,
                });
            }
            Step::Target { pool, target } => {
                self.specs[pool].target = target;
                self.tell(Event::TargetChanged {
                    pool: PoolKey(pool),
                    target,
                });
            }
            Step::Forget { pool, owner } => {
                let owner = Owner::new(format!("owner-{owner}"));
                self.tell(Event::OwnerGone {
                    pool: PoolKey(pool),
                    owner,
                });
            }
            Step::Close { pool, is_closed } => self.close(pool, is_closed),
            Step::Restart => self.restart(),
        }
        self.check();
    }

    fn close(&mut self, at: usize, is_closed: bool) {
        self.closed[at] = is_closed;
        let pool = PoolKey(at);
        self.tell(match is_closed {
            true => Event::Closed { pool },
            false => Event::Opened { pool },
        });
    }

    /// Everything that the node knew is gone; what it started is not.
    fn restart(&mut self) {
        let first = SandboxId(self.pool.next_sandbox);
        self.pool = WarmPool::new(self.settings.clone(), first, self.now);
        for spec in &self.specs {
            self.pool.add_pool(spec.clone());
        }
        self.messages
            .retain(|message| matches!(message, Event::Started { .. } | Event::Ended { .. }));
        self.closed = [false; POOLS];
        self.runs.clear();
        self.promised.clear();
        self.asked.clear();
        self.retiring.clear();
        let found: Vec<Event> = self
            .real
            .iter()
            .map(|(id, real)| Event::Found {
                sandbox: *id,
                pool: Some(real.pool),
                profile: real.profile,
                owner: real.owner.clone(),
            })
            .collect();
        for event in found {
            self.tell(event);
        }
        let mut effects = Vec::new();
        let early = self
            .pool
            .claim(self.now, PoolKey(0), &Owner::new("early"), &mut effects);
        assert_eq!(early, Err(Refusal::Adopting));
        self.tell(Event::AdoptionDone);
    }

    /// What must hold at every moment.
    fn check(&self) {
        let pool = &self.pool;
        // Strays are not of this pool's making.
        let count = pool.sandboxes.len();
        assert!(count <= self.settings.sandboxes_max, "{count} sandboxes");
        assert!(pool.starting.len() <= self.settings.starts_max);
        assert!(
            pool.checks_asked
                <= self
                    .settings
                    .checks_max
                    .max(pool.pools[0].verifying + pool.pools[1].verifying + 1)
        );
        // Every index again, from the states alone.
        let charged: u64 = pool.sandboxes.values().map(|one| one.charged_bytes).sum();
        assert_eq!(charged, pool.charged_bytes);
        let asked = pool
            .sandboxes
            .values()
            .filter(|one| matches!(one.check, Check::Asked { .. }))
            .count();
        assert_eq!(asked, pool.checks_asked);
        let mut hot_bytes = 0;
        let mut counted = [0; 6];
        for (id, sandbox) in &pool.sandboxes {
            let own = &pool.pools[sandbox.pool.0];
            let (at, listed) = match &sandbox.state {
                State::Starting { claim, .. } => (
                    0,
                    pool.starting.contains(id)
                        && claim.as_ref().is_none_or(|(who, _)| own.owners[who] == *id),
                ),
                State::Verifying => (1, true),
                State::Warm { stale: false } => (2, own.fresh.contains(id)),
                State::Warm { stale: true } => (3, own.stale.contains(id)),
                State::Busy { owner, .. } => (4, own.owners[owner] == *id),
                State::Hot { owner, .. } => {
                    hot_bytes += sandbox.charged_bytes;
                    (4, own.owners[owner] == *id && pool.hot.contains(id))
                }
                State::Ending { owner, .. } => {
                    (5, owner.as_ref().is_none_or(|who| own.leaving.contains_key(who)))
                }
            };
            assert!(listed, "{id} is not where it should be: {sandbox:?}");
            counted[at] += 1;
        }
        assert_eq!(hot_bytes, pool.hot_bytes);
        assert_eq!(counted[5], pool.ending);
        let sum = |of: fn(&Pool) -> usize| pool.pools.iter().map(of).sum::<usize>();
        assert_eq!(counted[1], sum(|one| one.verifying));
        assert_eq!(
            (counted[2], counted[3]),
            (sum(|one| one.fresh.len()), sum(|one| one.stale.len()))
        );
        assert_eq!(counted[0], pool.starting.len());
        let claimed = pool
            .starting
            .iter()
            .filter(|id| matches!(pool.sandboxes[*id].state, State::Starting { claim: Some(_), .. }))
            .count();
        assert_eq!(counted[4] + claimed, sum(|one| one.owners.len()));
    }

    /// Everything is answered, and time passes.
    fn settle(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for _ in 0..1000 {
                if self.messages.is_empty() {
                    break;
                }
                self.arrive(0);
                self.check();
            }
            self.now += Duration::from_secs(1);
            self.tell(Event::Tick);
        }
        while !self.messages.is_empty() {
            self.arrive(0);
        }
    }
}

fn settings() -> Settings {
    Settings {
        sandboxes_max: 12,
        memory_bytes_max: 700,
        hot_memory_bytes_max: 150,
        starts_max: 3,
        ends_max: 4,
        checks_max: 5,
        runs_max: 3,
        start_backoff_max: Duration::from_secs(8),
        age_max: Duration::from_secs(300),
        owners_remembered_max: 3,
        ..Settings::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        targets in [0..5usize, 0..5usize],
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new(targets, settings());
        for step in steps {
            world.take(step);
        }
        // Runs end; then the pool is full, and holds nothing that nobody needs.
        while !world.runs.is_empty() {
            world.end_run(0, true);
        }
        for at in 0..POOLS {
            world.close(at, false);
        }
        world.settle(200);
        for at in 0..POOLS {
            let counts = world.pool.counts(PoolKey(at));
            prop_assert_eq!(counts.warm, world.specs[at].target, "pool {} has {:?}", at, counts);
            prop_assert_eq!((counts.busy, counts.runs), (0, 0));
            // One may just have become old; of before the last reload there is none.
            let pool = &world.pool.pools[at];
            prop_assert!(pool.stale.iter().all(|id| world.pool.is_present(&world.pool.sandboxes[id])));
        }
        // All that is there is known.
        for id in world.real.keys() {
            prop_assert!(world.pool.sandboxes.contains_key(id), "{} is there, and nobody knows", id);
        }
        world.tell(Event::Drain);
        world.settle(30);
        prop_assert!(world.pool.is_empty(), "{:?}", world.pool);
        prop_assert!(world.real.is_empty(), "{:?}", world.real);
    }
}
