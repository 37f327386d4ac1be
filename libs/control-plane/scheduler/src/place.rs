//! Placement: which replica a task gets, and why. Pure over the fleet as it stands.
//!
//! Filter (ready, not draining, breaker closed, model, dialect, room, pins, not failed for this task before), then
//! order: the same session or a shared prefix, unless that replica is busier than the least busy one by more than the
//! margin; the largest free share of slots; more free device memory; pool and replica by name.

use std::cmp::Ordering;

use pool_registry_types::PoolId;
use task_api::{PlacementMode, PlacementRequest};

use crate::affinity::Affinity;
use crate::arena::Key;
use crate::failed::Failed;
use crate::fleet::{Counts, Fleet};
use crate::replica::{Rank, WHOLE};
use crate::task::PREFIXES_MAX;
use crate::{DialectSet, Reason, Reasons};

/// What a task needs of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants<'a> {
    pub(crate) model: Option<Key>,
    pub(crate) pool: Option<Key>,
    pub(crate) dialects: DialectSet,
    pub(crate) wishes: Option<&'a PlacementRequest>,
    /// Replicas that failed this task before.
    pub(crate) failed: Option<&'a Failed>,
}

/// What a task would find warm: its session, then its owner's own things, then its prefixes, the longest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarmKeys {
    session: Option<u64>,
    owner: Option<u64>,
    prefixes: [u64; PREFIXES_MAX],
    prefixes_len: u8,
}

impl WarmKeys {
    pub(crate) fn new(session: Option<u64>, owner: Option<u64>, prefixes: &[u64]) -> Self {
        let mut kept = [0; PREFIXES_MAX];
        let mut prefixes_len = 0;
        for (place, prefix) in kept.iter_mut().zip(prefixes) {
            *place = *prefix;
            prefixes_len += 1;
        }
        Self {
            session,
            owner,
            prefixes: kept,
            prefixes_len,
        }
    }

    /// Each key with the reason that it would be.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Reason)> {
        let prefixes = self.prefixes.into_iter().take(usize::from(self.prefixes_len));
        let prefixes = (0u8..)
            .zip(prefixes)
            .map(|(prefix, key)| (key, Reason::PrefixWarm { prefix }));
        self.session
            .map(|key| (key, Reason::SessionWarm))
            .into_iter()
            .chain(self.owner.map(|key| (key, Reason::OwnerWarm)))
            .chain(prefixes)
    }
}

fn allows(wishes: Option<&PlacementRequest>, pool: &PoolId) -> bool {
    wishes.is_none_or(|wishes| {
        (wishes.mode != PlacementMode::Pin || wishes.pools.contains(pool)) && !wishes.avoid.contains(pool)
    })
}

fn prefers(wishes: Option<&PlacementRequest>, pool: &PoolId) -> bool {
    wishes.is_some_and(|wishes| wishes.mode == PlacementMode::Prefer && wishes.pools.contains(pool))
}

impl Fleet {
    /// Whether the replica is one that the task could run on, leaving aside whether it has room.
    pub(crate) fn fits(&self, wants: &Wants<'_>, key: Key) -> bool {
        let replica = &self.replicas[key];
        wants.model.is_none_or(|model| replica.models.contains(&model))
            && wants.pool.is_none_or(|pool| replica.pool == pool)
            && replica.speaks(wants.dialects)
            && wants
                .failed
                .is_none_or(|failed| !failed.rules_out(key, &replica.info.node_id))
            && allows(wants.wishes, &self.pools[replica.pool].id)
            && wants
                .wishes
                .is_none_or(|wishes| wishes.nodes.is_empty() || wishes.nodes.contains(&replica.info.node_id))
    }

    /// The pools that the task could run in, with the sums over their replicas that could run it.
    pub(crate) fn pools_for<'a>(&'a self, wants: Wants<'a>) -> impl Iterator<Item = (Key, &'a Counts)> {
        let serving = wants
            .model
            .and_then(|model| self.models.get(model))
            .map_or(&[][..], |model| &model.serving);
        let whole_pool = if wants.model.is_none() { wants.pool } else { None };
        let whole_pool = whole_pool.and_then(|key| Some((key, &self.pools.get(key)?.counts)));
        serving
            .iter()
            .map(|serving| (serving.pool, &serving.counts))
            .chain(whole_pool)
            .filter(move |(key, _)| {
                wants.pool.is_none_or(|pool| pool == *key) && allows(wants.wishes, &self.pools[*key].id)
            })
    }

    /// Whether any replica is ready, busy or not, that the task could run on.
    pub(crate) fn any_ready(&self, wants: Wants<'_>) -> bool {
        self.pools_for(wants).any(|(key, counts)| {
            counts.ready > 0
                && self.pools[key].replicas.values().any(|replica| {
                    self.replicas[*replica].counted_slots.is_some() && self.fits(&wants, *replica)
                })
        })
    }

    /// The best replica of one pool that has room for the task.
    fn best_in_pool(&self, wants: &Wants<'_>, pool: Key) -> Option<Rank> {
        self.pools[pool]
            .index
            .iter()
            .find(|rank| self.fits(wants, rank.replica))
            .copied()
    }
}

/// The best of one pool.
#[derive(Clone, Copy)]
struct Candidate {
    rank: Rank,
    pool: Key,
    preferred: bool,
}

impl Candidate {
    fn order(&self, other: &Self, fleet: &Fleet) -> Ordering {
        let by_load = |one: &Self| (!one.preferred, one.rank.used, one.rank.vram_missing);
        by_load(self)
            .cmp(&by_load(other))
            .then_with(|| fleet.pools[self.pool].id.cmp(&fleet.pools[other.pool].id))
    }
}

/// Finds the replica for a task; None when none that fits has room. `margin` is in 65,536ths.
pub(crate) fn choose(
    fleet: &Fleet,
    affinity: &Affinity,
    wants: &Wants<'_>,
    warm: &WarmKeys,
    margin: u32,
) -> Option<(Key, Reasons)> {
    let mut best: Option<Candidate> = None;
    let mut pools = 0usize;
    for (pool, _) in fleet.pools_for(*wants) {
        pools += 1;
        if let Some(rank) = fleet.best_in_pool(wants, pool) {
            let candidate = Candidate {
                rank,
                pool,
                preferred: prefers(wants.wishes, &fleet.pools[pool].id),
            };
            if best.is_none_or(|best| candidate.order(&best, fleet) == Ordering::Less) {
                best = Some(candidate);
            }
        }
    }
    let best = best?;
    let mut reasons = Reasons::default();
    match wants.wishes.map(|wishes| wishes.mode) {
        Some(PlacementMode::Pin) => reasons.push(Reason::Pinned),
        Some(PlacementMode::Prefer) if best.preferred => reasons.push(Reason::Preferred),
        Some(PlacementMode::Prefer) => reasons.push(Reason::PreferredFull),
        Some(PlacementMode::Auto) | None => {}
    }
    match choose_warm(fleet, affinity, wants, warm, best, margin) {
        Warm::Use(replica, reason) => {
            reasons.push(reason);
            return Some((replica, reasons));
        }
        Warm::TooBusy => reasons.push(Reason::WarmTooBusy),
        Warm::Nowhere => {}
    }
    if pools == 1 && fleet.pools[best.pool].index.len() == 1 {
        reasons.push(Reason::OnlyOne);
    } else {
        let used_permille =
            u16::try_from(u64::from(best.rank.used) * 1000 / u64::from(WHOLE)).unwrap_or(1000);
        reasons.push(Reason::LeastBusy { used_permille });
    }
    Some((best.rank.replica, reasons))
}

enum Warm {
    Use(Key, Reason),
    TooBusy,
    Nowhere,
}

fn choose_warm(
    fleet: &Fleet,
    affinity: &Affinity,
    wants: &Wants<'_>,
    warm: &WarmKeys,
    best: Candidate,
    margin: u32,
) -> Warm {
    let mut answer = Warm::Nowhere;
    for (key, reason) in warm.iter() {
        let mut least: Option<Rank> = None;
        for replica in affinity.warm(key) {
            let Some(known) = fleet.replicas.get(replica) else {
                continue;
            };
            if !fleet.fits(wants, replica) {
                continue;
            }
            answer = Warm::TooBusy;
            // What an owner has on a node is worth more than an even load.
            let margin = match reason {
                Reason::OwnerWarm => WHOLE,
                _ => margin,
            };
            let same_wish = prefers(wants.wishes, &known.info.pool_id) == best.preferred;
            if let Some(rank) = known.rank
                && same_wish
                && rank.used <= best.rank.used.saturating_add(margin)
                && least.is_none_or(|least| rank.used < least.used)
            {
                least = Some(rank);
            }
        }
        if let Some(rank) = least {
            return Warm::Use(rank.replica, reason);
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use pool_registry_types::{Dialect, PoolKind};

    use crate::testing::{Bench, model, place_of, pool, replica};
    use crate::{DialectSet, Refusal, ReplicaUpdate, Settings, Target, TaskSpec};

    /// The sandboxes of a node for an agent.
    fn sandboxes(node: &str, pool_id: &str, agent: &str) -> ReplicaUpdate {
        let mut update = replica(node, pool_id, "sandboxes", "");
        update.info.kind = PoolKind::Agent;
        agent.clone_into(&mut update.info.engine);
        update.info.models.clear();
        update.info.dialects = DialectSet::EMPTY;
        update
    }

    fn for_owner(agent: &str, owner: u64) -> TaskSpec<'_> {
        TaskSpec {
            owner: Some(owner),
            ..TaskSpec::new(Target::Agent(agent))
        }
    }

    #[test]
    fn an_agent_is_no_model_and_a_model_no_agent() {
        let mut bench = Bench::new(Settings::default());
        bench.up(sandboxes("n1", "claude", "claude"));
        bench.up(replica("n1", "engines", "r0", "demo"));
        let placed = bench.placed(&TaskSpec::new(Target::Agent("claude")));
        assert_eq!(place_of(&placed), "claude/sandboxes/n1");
        let refusal = |bench: &mut Bench, spec: &TaskSpec<'_>| bench.submit(spec).unwrap_err();
        assert_eq!(refusal(&mut bench, &model("claude")), Refusal::NoSuchModel);
        let demo = TaskSpec::new(Target::Agent("demo"));
        assert_eq!(refusal(&mut bench, &demo), Refusal::NoSuchAgent);
        let (claude, engines) = (pool("claude"), pool("engines"));
        let in_pool = |pool| {
            TaskSpec::new(Target::AgentInPool {
                agent: "claude",
                pool,
            })
        };
        assert_eq!(refusal(&mut bench, &in_pool(&engines)), Refusal::NoSuchAgent);
        bench.placed(&in_pool(&claude));
        let chat = TaskSpec {
            dialects: DialectSet::from(Dialect::ChatCompletions),
            ..TaskSpec::new(Target::Pool(&claude))
        };
        assert_eq!(refusal(&mut bench, &chat), Refusal::DialectUnsupported);
        let models: Vec<String> = bench
            .scheduler
            .models()
            .into_iter()
            .map(|m| m.id.to_string())
            .collect();
        assert_eq!(models, ["demo"]);
    }

    #[test]
    fn an_owners_tasks_go_where_the_sandbox_is_while_it_has_room() {
        let mut bench = Bench::new(Settings::default());
        for node in ["n1", "n2", "n3"] {
            bench.up(sandboxes(node, "claude", "claude"));
        }
        let places: Vec<String> = (0..4)
            .map(|_| place_of(&bench.placed(&for_owner("claude", 7))))
            .collect();
        assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
        let elsewhere = place_of(&bench.placed(&for_owner("claude", 7)));
        assert_ne!(elsewhere, places[0], "the first node has four slots");
        let another = place_of(&bench.placed(&for_owner("claude", 8)));
        assert_ne!(another, places[0], "another owner goes by load");
    }
}
