//! One case each: what a claim gets, what is started, replaced, kept and ended.

use std::time::Duration;

use super::*;
use crate::{Claimed, Level, LossReason, Refusal};

pub(super) const OLD: ProfileHash = ProfileHash([1; 32]);
pub(super) const NEW: ProfileHash = ProfileHash([2; 32]);

fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

fn owner(name: &str) -> Owner {
    Owner::new(name)
}

/// A pool whose node answers everything at once.
struct Node {
    pool: WarmPool,
    key: PoolKey,
    now: Moment,
    /// What was asked for and not answered by [`Node::obey`].
    told: Vec<Effect>,
}

impl Node {
    fn new(settings: Settings, target: usize) -> Self {
        let mut pool = WarmPool::new(settings, SandboxId(1), Moment::ZERO);
        let spec = PoolSpec {
            name: "claude".into(),
            profile: OLD,
            target,
            warm_bytes: 10,
            owned_bytes: 100,
        };
        let key = pool.add_pool(spec);
        Self {
            pool,
            key,
            now: Moment::ZERO,
            told: Vec::new(),
        }
    }

    /// Adopted, and all warm.
    fn ready(settings: Settings, target: usize) -> Self {
        let mut node = Self::new(settings, target);
        node.step(Event::AdoptionDone);
        for _ in 0..target + 2 {
            node.obey();
            node.pass(1);
        }
        node.obey();
        assert_eq!(node.counts().warm, target);
        node.told.clear();
        node
    }

    fn step(&mut self, event: Event) {
        let effects = self.pool.step(self.now, event);
        self.told.extend(effects);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += at(seconds);
        self.step(Event::Tick);
    }

    fn claim(&mut self, name: &str) -> Result<Claimed, Refusal> {
        self.pool.claim(self.now, self.key, &owner(name), &mut self.told)
    }

    fn end_run(&mut self, claimed: Claimed) {
        self.step(Event::RunEnded {
            sandbox: claimed.sandbox,
            keep: true,
        });
    }

    fn counts(&self) -> Counts {
        self.pool.counts(self.key)
    }

    /// Does all that was asked for, and what that asks for.
    fn obey(&mut self) {
        let mut rounds = 0;
        while self.told.iter().any(is_order) {
            rounds += 1;
            assert!(rounds < 100, "it goes on and on: {:?}", self.told);
            let orders = std::mem::take(&mut self.told);
            for order in orders {
                match order {
                    Effect::Start { sandbox, .. } => self.step(Event::Started { sandbox }),
                    Effect::CheckHealth { sandbox, check } => {
                        self.step(Event::Healthy {
                            sandbox,
                            check,
                            memory_bytes: 10,
                        });
                    }
                    Effect::Retire { sandbox, .. } | Effect::End { sandbox } => {
                        self.step(Event::Ended { sandbox });
                    }
                    other => self.told.push(other),
                }
            }
        }
    }

    fn starts(&self) -> usize {
        self.told
            .iter()
            .filter(|effect| matches!(effect, Effect::Start { .. }))
            .count()
    }

    fn ends(&self) -> Vec<SandboxId> {
        let ends = self.told.iter().filter_map(|effect| match effect {
            Effect::End { sandbox } | Effect::Retire { sandbox, .. } => Some(*sandbox),
            _ => None,
        });
        ends.collect()
    }
}

fn is_order(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Start { .. } | Effect::CheckHealth { .. } | Effect::Retire { .. } | Effect::End { .. }
    )
}

#[test]
fn a_claim_is_warm_then_shared_then_hot_and_the_pool_is_filled_again() {
    let mut node = Node::ready(Settings::default(), 3);
    let first = node.claim("ann").unwrap();
    assert_eq!((first.level, first.runs), (Level::Warm, 1));
    assert_eq!(node.starts(), 1);
    let second = node.claim("ann").unwrap();
    assert_eq!(
        (second.sandbox, second.level, second.runs),
        (first.sandbox, Level::Shared, 2)
    );
    let other = node.claim("bob").unwrap();
    assert_ne!(other.sandbox, first.sandbox);
    node.end_run(first);
    node.end_run(second);
    assert_eq!((node.counts().hot, node.counts().busy), (1, 1));
    let again = node.claim("ann").unwrap();
    assert_eq!((again.sandbox, again.level), (first.sandbox, Level::Hot));
    node.obey();
    node.pass(1);
    node.obey();
    assert_eq!(node.counts().warm, 3);
}

#[test]
fn an_owner_has_so_many_runs_and_no_more() {
    let mut node = Node::ready(
        Settings {
            runs_max: 2,
            ..Settings::default()
        },
        1,
    );
    node.claim("ann").unwrap();
    node.claim("ann").unwrap();
    assert_eq!(node.claim("ann"), Err(Refusal::RunsMax { runs: 2 }));
}

#[test]
fn a_cold_claim_takes_over_a_start_and_is_told_when_it_is_up() {
    let mut node = Node::new(
        Settings {
            starts_max: 2,
            ..Settings::default()
        },
        1,
    );
    node.step(Event::AdoptionDone);
    assert_eq!(node.starts(), 1);
    let ann = node.claim("ann").unwrap();
    assert_eq!(ann.level, Level::Cold);
    let bob = node.claim("bob").unwrap();
    assert_eq!(node.claim("eve"), Err(Refusal::StartsBusy));
    node.step(Event::Started { sandbox: ann.sandbox });
    assert!(node.told.contains(&Effect::Ready {
        sandbox: ann.sandbox,
        owner: owner("ann")
    }));
    node.step(Event::StartFailed { sandbox: bob.sandbox });
    let reason = LossReason::StartFailed;
    let lost = Effect::RunsLost {
        sandbox: bob.sandbox,
        owner: owner("bob"),
        runs: 1,
        reason,
    };
    assert!(node.told.contains(&lost));
    assert!(matches!(node.claim("eve"), Err(Refusal::StartsFailing { .. })));
}

#[test]
fn a_login_is_taken_back_before_its_owner_gets_another_sandbox() {
    let mut node = Node::ready(Settings::default(), 2);
    let claimed = node.claim("ann").unwrap();
    node.step(Event::RunEnded {
        sandbox: claimed.sandbox,
        keep: false,
    });
    assert!(node.told.contains(&Effect::Retire {
        sandbox: claimed.sandbox,
        owner: owner("ann")
    }));
    assert_eq!(node.claim("ann"), Err(Refusal::HomeBusy));
    assert!(node.claim("bob").is_ok());
    node.told.clear();
    node.step(Event::Ended {
        sandbox: claimed.sandbox,
    });
    assert!(node.told.contains(&Effect::OwnerFree {
        pool: node.key,
        owner: owner("ann")
    }));
    assert!(node.claim("ann").is_ok());
}

#[test]
fn the_unhealthy_are_replaced_and_never_handed_out() {
    let mut node = Node::ready(Settings::default(), 2);
    node.pass(31);
    let checks: Vec<_> = node
        .told
        .iter()
        .filter(|effect| matches!(effect, Effect::CheckHealth { .. }))
        .collect();
    assert_eq!(checks.len(), 2);
    let Effect::CheckHealth { sandbox, check } = *checks[0] else {
        unreachable!()
    };
    node.told.clear();
    node.step(Event::Unhealthy { sandbox, check });
    assert_eq!(node.ends(), [sandbox]);
    assert_eq!(node.starts(), 1);
    // The other one says nothing, and nobody has looked yet.
    node.now += at(11);
    let claimed = node.claim("ann").unwrap();
    assert_eq!(claimed.level, Level::Cold);
    assert_eq!(node.ends().len(), 2);
}

#[test]
fn an_answer_that_comes_too_late_is_none() {
    let mut node = Node::ready(Settings::default(), 1);
    node.pass(31);
    let Some(&Effect::CheckHealth { sandbox, check }) = node.told.first() else {
        panic!("{:?}", node.told)
    };
    node.now += at(10);
    node.step(Event::Healthy {
        sandbox,
        check,
        memory_bytes: 1,
    });
    assert_eq!(node.ends(), [sandbox]);
}

#[test]
fn a_new_profile_rolls_through_without_falling_below_the_target() {
    let settings = Settings {
        starts_max: 2,
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 6);
    let hot = node.claim("ann").unwrap();
    node.end_run(hot);
    node.obey();
    node.pass(1);
    node.obey();
    assert_eq!(node.counts().warm, 6);
    node.step(Event::Reloaded {
        pool: node.key,
        profile: NEW,
    });
    for _ in 0..20 {
        let counts = node.counts();
        assert!(
            counts.warm >= 6 && counts.warm + counts.starting <= 8,
            "{counts:?}"
        );
        // One order at a time, so that every state in between is seen.
        let next = node.told.iter().position(is_order);
        match next.map(|next| node.told.remove(next)) {
            Some(Effect::Start { sandbox, .. }) => node.step(Event::Started { sandbox }),
            Some(Effect::CheckHealth { sandbox, check }) => {
                node.step(Event::Healthy {
                    sandbox,
                    check,
                    memory_bytes: 10,
                });
            }
            Some(Effect::Retire { sandbox, .. } | Effect::End { sandbox }) => {
                node.step(Event::Ended { sandbox });
            }
            _ => node.pass(1),
        }
    }
    node.obey();
    let counts = node.counts();
    assert_eq!((counts.warm, counts.stale, counts.hot), (6, 0, 0));
    assert_eq!(node.claim("bob").unwrap().profile, NEW);
}

#[test]
fn a_reload_replaces_what_is_there_of_the_same_profile_too() {
    let mut node = Node::ready(Settings::default(), 2);
    let busy = node.claim("ann").unwrap();
    let hot = node.claim("bob").unwrap();
    node.end_run(hot);
    node.obey();
    node.pass(1);
    node.obey();
    let before: Vec<SandboxId> = node.pool.pools[0].fresh.iter().copied().collect();
    // One is on its way already, and is of before.
    node.step(Event::TargetChanged {
        pool: node.key,
        target: 3,
    });
    node.pass(1);
    assert_eq!(node.starts(), 1);
    node.step(Event::Reloaded {
        pool: node.key,
        profile: OLD,
    });
    for _ in 0..8 {
        node.obey();
        node.pass(1);
        assert!(node.counts().warm >= 2, "{:?}", node.counts());
    }
    let after: Vec<SandboxId> = node.pool.pools[0].fresh.iter().copied().collect();
    assert!(after.len() == 3 && before.iter().all(|id| !after.contains(id)));
    let counts = node.counts();
    assert_eq!((counts.warm, counts.stale, counts.hot, counts.busy), (3, 0, 0, 1));
    // What runs may go on, and its sandbox goes with the last run.
    assert_eq!(node.claim("ann").unwrap().sandbox, busy.sandbox);
    node.end_run(busy);
    node.end_run(busy);
    assert_eq!(node.ends(), [busy.sandbox]);
}

#[test]
fn a_closed_pool_ends_the_idle_and_starts_nothing_until_it_is_opened() {
    let mut node = Node::ready(Settings::default(), 2);
    let busy = node.claim("ann").unwrap();
    let hot = node.claim("bob").unwrap();
    node.end_run(hot);
    node.step(Event::Closed { pool: node.key });
    assert_eq!(node.claim("ann"), Err(Refusal::Closed));
    for _ in 0..3 {
        node.obey();
        node.pass(1);
    }
    assert_eq!((node.pool.len(), node.counts().busy), (1, 1));
    node.end_run(busy);
    node.obey();
    assert!(node.pool.is_empty());
    node.step(Event::Opened { pool: node.key });
    for _ in 0..3 {
        node.obey();
        node.pass(1);
    }
    assert_eq!(node.counts().warm, 2);
    assert!(node.claim("ann").is_ok());
}

#[test]
fn a_full_node_replaces_one_at_a_time() {
    let settings = Settings {
        sandboxes_max: 3,
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 3);
    node.step(Event::Reloaded {
        pool: node.key,
        profile: NEW,
    });
    assert_eq!((node.ends().len(), node.counts().warm), (1, 2));
    for _ in 0..8 {
        node.obey();
        node.pass(1);
    }
    assert_eq!((node.counts().warm, node.counts().stale), (3, 0));
}

#[test]
fn the_old_are_replaced() {
    let settings = Settings {
        age_max: at(3600),
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 2);
    let before: Vec<SandboxId> = node.pool.pools[0].fresh.iter().copied().collect();
    for _ in 0..130 {
        node.pass(30);
        node.obey();
    }
    let after: Vec<SandboxId> = node.pool.pools[0].fresh.iter().copied().collect();
    assert!(after.len() == 2 && before.iter().all(|id| !after.contains(id)));
}

#[test]
fn failing_starts_back_off_and_one_good_one_ends_it() {
    let mut node = Node::new(Settings::default(), 4);
    node.step(Event::AdoptionDone);
    let mut tries = 0;
    for _ in 0..600 {
        for effect in std::mem::take(&mut node.told) {
            match effect {
                Effect::Start { sandbox, .. } => {
                    tries += 1;
                    node.step(Event::StartFailed { sandbox });
                }
                Effect::End { sandbox } => node.step(Event::Ended { sandbox }),
                _ => {}
            }
        }
        node.pass(1);
    }
    assert!((10..25).contains(&tries), "{tries} tries in ten minutes");
    for _ in 0..90 {
        node.obey();
        node.pass(1);
    }
    assert_eq!(node.counts().warm, 4);
}

#[test]
fn starts_are_bounded_and_spaced() {
    let settings = Settings {
        starts_max: 3,
        start_spacing: Duration::from_millis(500),
        ..Settings::default()
    };
    let mut node = Node::new(settings, 10);
    node.step(Event::Tick);
    assert_eq!(node.starts(), 0, "nothing is started before adoption is done");
    node.step(Event::AdoptionDone);
    assert_eq!(node.starts(), 1);
    assert_eq!(node.pool.next_tick(node.now), Duration::from_millis(500));
    for _ in 0..10 {
        node.pass(1);
    }
    assert_eq!(node.starts(), 3);
}

#[test]
fn the_least_valuable_goes_when_idle_memory_is_short() {
    let settings = Settings {
        hot_memory_bytes_max: 250,
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 4);
    for _ in 0..3 {
        let claimed = node.claim("often").unwrap();
        node.end_run(claimed);
        node.pass(5);
    }
    for name in ["once", "twice", "twice"] {
        let claimed = node.claim(name).unwrap();
        node.end_run(claimed);
        node.obey();
        node.pass(1);
    }
    // Measured by now, they are small. What is asked about is what they are believed to be.
    let claimed = node.claim("large").unwrap();
    node.pool
        .hot
        .iter()
        .for_each(|id| assert_ne!(*id, claimed.sandbox));
    node.pool.settings.hot_memory_bytes_max = 110;
    node.end_run(claimed);
    let left: Vec<&str> = node
        .pool
        .hot
        .iter()
        .filter_map(|id| node.pool.owner_of(*id))
        .map(Owner::as_str)
        .collect();
    assert!(!left.contains(&"once") || left.len() == 4, "{left:?}");
    assert!(left.contains(&"often"), "{left:?}");
    assert!(node.pool.hot_bytes <= 110);
}

#[test]
fn room_is_made_by_ending_idle_ones_and_never_busy_ones() {
    let settings = Settings {
        sandboxes_max: 2,
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 0);
    let ann = node.claim("ann").unwrap();
    node.obey();
    let bob = node.claim("bob").unwrap();
    node.obey();
    assert_eq!(node.claim("eve"), Err(Refusal::NoRoom));
    node.end_run(bob);
    assert_eq!(node.claim("eve"), Err(Refusal::MakingRoom));
    assert_eq!(node.ends(), [bob.sandbox]);
    assert_eq!(node.claim("eve"), Err(Refusal::MakingRoom));
    node.obey();
    assert!(node.told.contains(&Effect::Room));
    assert_eq!(node.claim("eve").unwrap().level, Level::Cold);
    assert_eq!(node.pool.owner_of(ann.sandbox), Some(&owner("ann")));
}

#[test]
fn memory_is_a_limit_too() {
    let settings = Settings {
        memory_bytes_max: 230,
        ..Settings::default()
    };
    let mut node = Node::ready(settings, 3);
    assert!(node.claim("ann").is_ok());
    assert!(node.claim("bob").is_ok());
    assert_eq!(node.claim("eve"), Err(Refusal::NoRoom));
    assert!(node.counts().memory_bytes <= 230);
}

#[test]
fn an_idle_sandbox_goes_after_its_time() {
    let mut node = Node::ready(Settings::default(), 1);
    let claimed = node.claim("ann").unwrap();
    node.end_run(claimed);
    node.obey();
    for _ in 0..58 {
        node.pass(1);
        node.obey();
    }
    assert_eq!(node.counts().hot, 1);
    node.pass(3);
    assert_eq!(node.ends(), [claimed.sandbox]);
}

#[test]
fn after_a_restart_owners_are_salvaged_and_the_rest_is_checked_first() {
    let mut node = Node::new(Settings::default(), 2);
    let found = |sandbox, profile, name: Option<&str>| Event::Found {
        sandbox: SandboxId(sandbox),
        pool: Some(PoolKey(0)),
        profile,
        owner: name.map(Owner::new),
    };
    node.step(found(70, OLD, None));
    node.step(found(71, OLD, Some("ann")));
    node.step(found(72, NEW, None));
    node.step(found(73, OLD, None));
    node.step(found(74, OLD, None));
    assert_eq!(node.claim("ann"), Err(Refusal::Adopting));
    node.step(Event::AdoptionDone);
    assert!(node.told.contains(&Effect::Retire {
        sandbox: SandboxId(71),
        owner: owner("ann")
    }));
    assert_eq!(
        node.ends(),
        [71, 72, 74].map(SandboxId),
        "taken back, of another profile, too many"
    );
    assert_eq!(node.starts(), 0);
    assert_eq!(node.claim("ann"), Err(Refusal::HomeBusy));
    let bob = node.claim("bob").unwrap();
    assert_eq!(
        (bob.level, bob.sandbox),
        (Level::Cold, SandboxId(75)),
        "the found ones are not checked yet"
    );
    node.obey();
    assert_eq!(node.counts().warm, 2);
    assert_eq!(node.claim("ann").unwrap().sandbox, SandboxId(70));
}

#[test]
fn an_adoption_that_nobody_ends_ends_by_itself() {
    let mut node = Node::new(Settings::default(), 1);
    node.pass(29);
    assert_eq!(node.starts(), 0);
    node.pass(1);
    assert_eq!(node.starts(), 1);
}

#[test]
fn what_comes_up_after_it_was_given_up_is_ended() {
    let mut node = Node::new(Settings::default(), 1);
    node.step(Event::AdoptionDone);
    let Some(&Effect::Start { sandbox, .. }) = node.told.first() else {
        panic!("{:?}", node.told)
    };
    node.pass(60);
    assert_eq!(node.ends(), [sandbox]);
    node.told.clear();
    node.step(Event::Started { sandbox });
    assert_eq!(node.ends(), [sandbox]);
    node.step(Event::Ended { sandbox });
    node.told.clear();
    node.step(Event::Started { sandbox });
    assert_eq!(node.ends(), [sandbox]);
}

#[test]
fn an_end_that_nobody_confirms_is_asked_for_again() {
    let mut node = Node::ready(Settings::default(), 1);
    let claimed = node.claim("ann").unwrap();
    node.step(Event::Lost {
        sandbox: claimed.sandbox,
    });
    assert!(
        node.told
            .iter()
            .any(|effect| matches!(effect, Effect::RunsLost { runs: 1, .. }))
    );
    node.told.clear();
    node.pass(9);
    assert!(node.ends().is_empty());
    node.pass(1);
    assert_eq!(node.ends(), [claimed.sandbox]);
}

#[test]
fn what_belongs_to_no_pool_is_ended_until_it_is_gone() {
    let mut node = Node::new(Settings::default(), 0);
    for (sandbox, name) in [(70, None), (71, Some("ann"))] {
        let found = Event::Found {
            sandbox: SandboxId(sandbox),
            pool: None,
            profile: OLD,
            owner: name.map(Owner::new),
        };
        node.step(found.clone());
        node.step(found);
    }
    assert_eq!(node.ends(), [70, 71].map(SandboxId));
    assert!(matches!(node.told[1], Effect::Retire { .. }));
    node.told.clear();
    node.pass(10);
    assert_eq!(
        node.ends(),
        [70, 71].map(SandboxId),
        "nobody has said that they are gone"
    );
    node.step(Event::Drain);
    assert!(!node.pool.is_empty());
    node.obey();
    assert!(node.pool.is_empty());
    // One that is heard of after that.
    node.step(Event::Lost {
        sandbox: SandboxId(71),
    });
    assert_eq!(node.ends(), [SandboxId(71)]);
    node.obey();
    node.told.clear();
    node.pass(60);
    assert!(node.pool.is_empty() && node.ends().is_empty());
}

#[test]
fn draining_ends_the_idle_and_waits_for_the_busy() {
    let mut node = Node::ready(Settings::default(), 2);
    let busy = node.claim("ann").unwrap();
    let hot = node.claim("bob").unwrap();
    node.end_run(hot);
    node.step(Event::Drain);
    assert_eq!(node.claim("ann"), Err(Refusal::Draining));
    node.obey();
    assert_eq!((node.pool.len(), node.counts().busy), (1, 1));
    node.end_run(busy);
    node.obey();
    assert!(node.pool.is_empty());
}

#[test]
fn a_removed_login_leaves_no_sandbox_behind() {
    let mut node = Node::ready(Settings::default(), 2);
    let busy = node.claim("ann").unwrap();
    node.step(Event::OwnerGone {
        pool: node.key,
        owner: owner("ann"),
    });
    assert_eq!(node.counts().busy, 1);
    node.end_run(busy);
    assert_eq!(node.ends(), [busy.sandbox]);
}

#[test]
fn pools_share_the_starts() {
    let mut pool = WarmPool::new(
        Settings {
            starts_max: 4,
            start_spacing: Duration::ZERO,
            ..Settings::default()
        },
        SandboxId(1),
        at(0),
    );
    for name in ["a", "b"] {
        let spec = PoolSpec {
            name: name.into(),
            profile: OLD,
            target: 2,
            warm_bytes: 1,
            owned_bytes: 1,
        };
        pool.add_pool(spec);
    }
    pool.step(at(0), Event::AdoptionDone);
    assert_eq!(
        (pool.counts(PoolKey(0)).starting, pool.counts(PoolKey(1)).starting),
        (2, 2)
    );
}
