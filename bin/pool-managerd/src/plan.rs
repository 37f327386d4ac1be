//! What to do so that what is there becomes what is wanted. Pure.
//!
//! ```text
//! (desired, observed) ──plan──▶ [Start | Drain | Stop] ──execute──▶ observed changes ──▶ …
//! ```
//!
//! A changed setting and a reload are the same thing here: engines that are outdated. They serve until enough current
//! ones are ready, then they drain, then they are stopped. Doing a plan twice does nothing the second time, because
//! what was started, drained or stopped shows in what is observed.

use std::collections::{BTreeMap, BTreeSet};

use pool_registry_types::{PoolId, ReplicaId};

use crate::pools::{REPLICAS_MAX, replica_id};

/// What one pool is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desired {
    /// How many current engines.
    pub replicas: u32,
    /// Whether an engine may be started now; not while the last start failed a moment ago.
    pub may_start: bool,
}

/// One engine that this node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Whether it was started from what is wanted now.
    pub current: bool,
    /// Whether it answers and takes tasks.
    pub ready: bool,
    /// Where it stands on its way out.
    pub leaving: Leaving,
}

/// Where an engine stands on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It stays.
    No,
    /// It finishes what it has.
    Draining,
    /// It has finished, or its deadline has passed.
    Drained,
    /// It is being stopped.
    Stopping,
}

/// One engine, by name.
pub type Key = (PoolId, ReplicaId);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an engine under this name.
    Start(Key),
    /// Let the engine finish what it has.
    Drain(Key),
    /// End the engine.
    Stop(Key),
}

/// The actions that lead from `observed` to `desired`. A pool that is not desired is to have nothing.
pub fn plan(desired: &BTreeMap<PoolId, Desired>, observed: &BTreeMap<Key, Observed>) -> Vec<Action> {
    let pools: BTreeSet<&PoolId> = desired
        .keys()
        .chain(observed.keys().map(|(pool, _)| pool))
        .collect();
    let nothing = Desired {
        replicas: 0,
        may_start: false,
    };
    let mut actions = Vec::new();
    for pool in pools {
        let here: Vec<(&Key, &Observed)> = observed.iter().filter(|((id, _), _)| id == pool).collect();
        plan_pool(pool, *desired.get(pool).unwrap_or(&nothing), &here, &mut actions);
    }
    actions
}

fn plan_pool(pool: &PoolId, desired: Desired, here: &[(&Key, &Observed)], actions: &mut Vec<Action>) {
    let wanted = desired.replicas as usize;
    let staying = || here.iter().filter(|(_, seen)| seen.leaving == Leaving::No);
    let mut current: Vec<_> = staying().filter(|(_, seen)| seen.current).collect();
    let mut outdated: Vec<_> = staying().filter(|(_, seen)| !seen.current).collect();

    if desired.may_start && current.len() < wanted {
        let free = (0..REPLICAS_MAX * 2)
            .map(replica_id)
            .filter(|id| here.iter().all(|((_, taken), _)| taken != id));
        actions.extend(
            free.take(wanted - current.len())
                .map(|id| Action::Start((pool.clone(), id))),
        );
    }
    // Those that answer go last, and among equals those that came first.
    current.sort_by_key(|(_, seen)| !seen.ready);
    actions.extend(
        current
            .iter()
            .skip(wanted)
            .map(|(key, _)| Action::Drain((*key).clone())),
    );

    // An outdated engine serves in the place of a current one that is not ready yet.
    let ready = current.iter().take(wanted).filter(|(_, seen)| seen.ready).count();
    outdated.sort_by_key(|(_, seen)| !seen.ready);
    let mut places = wanted.saturating_sub(ready);
    for (key, seen) in outdated {
        if seen.ready && places > 0 {
            places -= 1;
        } else {
            actions.push(Action::Drain((*key).clone()));
        }
    }
    let drained = here.iter().filter(|(_, seen)| seen.leaving == Leaving::Drained);
    actions.extend(drained.map(|(key, _)| Action::Stop((*key).clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(replica: &str) -> Key {
        (PoolId::new("p").unwrap(), ReplicaId::new(replica).unwrap())
    }

    /// `"r0 cr"`: current and ready; `o` outdated; `-` draining; `!` drained; `x` stopping.
    fn seen(text: &str) -> (Key, Observed) {
        let (name, marks) = text.split_once(' ').unwrap();
        let leaving = match marks {
            _ if marks.contains('-') => Leaving::Draining,
            _ if marks.contains('!') => Leaving::Drained,
            _ if marks.contains('x') => Leaving::Stopping,
            _ => Leaving::No,
        };
        (
            key(name),
            Observed {
                current: marks.contains('c'),
                ready: marks.contains('r'),
                leaving,
            },
        )
    }

    fn check(replicas: u32, observed: &[&str], expect: &[&str]) {
        let desired = BTreeMap::from([(
            PoolId::new("p").unwrap(),
            Desired {
                replicas,
                may_start: true,
            },
        )]);
        let observed: BTreeMap<_, _> = observed.iter().map(|text| seen(text)).collect();
        let shown: Vec<String> = plan(&desired, &observed)
            .into_iter()
            .map(|action| match action {
                Action::Start((_, id)) => format!("start {id}"),
                Action::Drain((_, id)) => format!("drain {id}"),
                Action::Stop((_, id)) => format!("stop {id}"),
            })
            .collect();
        assert_eq!(shown, expect, "{observed:?}");
    }

    #[test]
    fn what_is_missing_is_started_and_what_is_right_is_left_alone() {
        check(0, &[], &[]);
        check(1, &[], &["start r0"]);
        check(3, &["r1 cr"], &["start r0", "start r2"]);
        check(1, &["r0 cr"], &[]);
        check(1, &["r0 c"], &[]);
        check(1, &["r0 cx"], &["start r1"]);
    }

    #[test]
    fn what_is_too_much_is_drained_then_stopped() {
        check(1, &["r0 c", "r1 cr"], &["drain r0"]);
        check(1, &["r0 cr", "r1 cr"], &["drain r1"]);
        check(0, &["r0 cr"], &["drain r0"]);
        check(0, &["r0 cr-"], &[]);
        check(0, &["r0 cr!"], &["stop r0"]);
        check(0, &["r0 cx"], &[]);
    }

    #[test]
    fn an_outdated_engine_serves_until_the_new_one_answers() {
        check(1, &["r0 or"], &["start r1"]);
        check(1, &["r0 or", "r1 c"], &[]);
        check(1, &["r0 or", "r1 cr"], &["drain r0"]);
        check(1, &["r0 or!", "r1 cr"], &["stop r0"]);
        check(1, &["r0 o", "r1 c"], &["drain r0"]);
        check(2, &["r0 or", "r1 or", "r2 cr", "r3 c"], &["drain r1"]);
    }

    #[test]
    fn pools_that_nobody_wants_end() {
        let observed = BTreeMap::from([seen("r0 cr"), seen("r1 o!")]);
        assert_eq!(
            plan(&BTreeMap::new(), &observed),
            [Action::Drain(key("r0")), Action::Stop(key("r1"))]
        );
    }

    #[test]
    fn nothing_is_started_while_it_may_not() {
        let desired = BTreeMap::from([(
            PoolId::new("p").unwrap(),
            Desired {
                replicas: 1,
                may_start: false,
            },
        )]);
        assert_eq!(plan(&desired, &BTreeMap::new()), []);
    }

    proptest! {
        /// Carries plans out in a world where engines become ready, break and go, and sees that it comes to rest at
        /// what is wanted, and that a reload alone never leaves the pool without a ready engine.
        #[test]
        fn it_comes_to_rest_at_what_is_wanted(
            replicas in 0..4_u32,
            start in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..6),
        ) {
            let pool = PoolId::new("p").unwrap();
            let desired = BTreeMap::from([(pool.clone(), Desired { replicas, may_start: true })]);
            let mut world: BTreeMap<Key, Observed> = (0..)
                .zip(&start)
                .map(|(at, (current, ready))| {
                    let seen = Observed { current: *current, ready: *ready, leaving: Leaving::No };
                    ((pool.clone(), replica_id(at)), seen)
                })
                .collect();
            let serving = |world: &BTreeMap<Key, Observed>| {
                world.values().filter(|seen| seen.ready && seen.leaving == Leaving::No).count()
            };
            let mut rounds = 0;
            loop {
                let actions = plan(&desired, &world);
                let before = serving(&world);
                for action in &actions {
                    match action {
                        Action::Start(key) => {
                            let seen = Observed { current: true, ready: false, leaving: Leaving::No };
                            prop_assert!(world.insert(key.clone(), seen).is_none(), "started twice");
                        }
                        Action::Drain(key) => world.get_mut(key).unwrap().leaving = Leaving::Draining,
                        Action::Stop(key) => world.get_mut(key).unwrap().leaving = Leaving::Stopping,
                    }
                }
                prop_assert!(serving(&world) >= before.min(replicas as usize), "took away what was needed");
                prop_assert!(plan(&desired, &world).is_empty(), "a plan carried out leaves nothing to do");
                // Time passes.
                let mut moved = false;
                world.retain(|_, seen| seen.leaving != Leaving::Stopping);
                for seen in world.values_mut() {
                    let next = match seen.leaving {
                        Leaving::No => Observed { ready: true, ..*seen },
                        Leaving::Draining => Observed { leaving: Leaving::Drained, ..*seen },
                        Leaving::Drained | Leaving::Stopping => *seen,
                    };
                    moved |= next != *seen;
                    *seen = next;
                }
                rounds += 1;
                prop_assert!(rounds < 20, "it does not come to rest");
                if !moved && actions.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(world.len(), replicas as usize);
            prop_assert!(world.values().all(|seen| seen.current && seen.ready && seen.leaving == Leaving::No));
        }
    }
}
