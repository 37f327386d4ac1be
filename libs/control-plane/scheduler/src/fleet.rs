//! The fleet: every replica, its pool, its models, and an index by which the least busy replica of a pool is found
//! without looking at the others.
//!
//! Invariants, checked by `check` after every step of the generated histories:
//! - a replica stands in its pool's index exactly when it can take a task now, at the rank that its load gives it;
//! - the counters of pools and models are the sums over their replicas;
//! - a replica that is gone stays until its last lease is given back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pool_registry_types::{ModelInfo, NodeId, PoolId, PoolKind, ReplicaId};

use crate::arena::{Arena, Key};
use crate::pace::Pace;
use crate::queue::Queue;
use crate::replica::{Breaker, HoldOff, Rank, Replica};
use crate::{DialectSet, Moment, ReplicaInfo, ReplicaUpdate, Settings};

/// The distance between two names in a pool's order; a name between two others takes the middle.
const LABEL_STEP: u64 = 1 << 32;

/// A pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    /// Drained by this control plane.
    pub(crate) draining: bool,
    /// Its replicas by name.
    pub(crate) replicas: BTreeMap<(ReplicaId, NodeId), Key>,
    /// Those that can take a task now, the best first.
    pub(crate) index: BTreeSet<Rank>,
    pub(crate) counts: Counts,
    pub(crate) leased: u32,
    pub(crate) queue: Queue,
    pub(crate) pace: Pace,
    /// When it last had a ready replica; the moment it became known, before that.
    pub(crate) last_ready: Moment,
    /// When it last had a replica at all.
    pub(crate) last_present: Moment,
}

/// Sums over replicas that are present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) known: u32,
    pub(crate) ready: u32,
    pub(crate) ready_slots: u32,
    /// How many speak each dialect.
    speaks: [u32; 8],
}

impl Counts {
    fn add(&mut self, replica: &Replica) {
        self.known += 1;
        if let Some(slots) = replica.counted_slots {
            self.ready += 1;
            self.ready_slots = self.ready_slots.saturating_add(slots);
        }
        for at in spoken(replica) {
            self.speaks[at] += 1;
        }
    }

    fn remove(&mut self, replica: &Replica) {
        self.known -= 1;
        if let Some(slots) = replica.counted_slots {
            self.ready -= 1;
            self.ready_slots = self.ready_slots.saturating_sub(slots);
        }
        for at in spoken(replica) {
            self.speaks[at] -= 1;
        }
    }

    /// Whether any of them speaks one of `dialects`, or may.
    pub(crate) fn speak(&self, dialects: DialectSet) -> bool {
        dialects.is_empty() || self.speaks[7] > 0 || dialect_places(dialects).any(|at| self.speaks[at] > 0)
    }
}

/// Where a set counts: a place for each dialect, and the last one when nothing is known.
fn dialect_places(dialects: DialectSet) -> impl Iterator<Item = usize> {
    (0..7)
        .filter(move |at| dialects.has_place(*at))
        .chain(dialects.is_empty().then_some(7))
}

/// The places at which a replica counts: none for sandboxes, which speak no dialect at all.
fn spoken(replica: &Replica) -> impl Iterator<Item = usize> {
    let places = dialect_places(replica.info.dialects);
    places.filter(|_| replica.info.kind == PoolKind::Engine)
}

/// A name by which a model, or an agent, can be asked for.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: Arc<str>,
    /// Whether it is an agent's name: those are names of their own.
    pub(crate) is_agent: bool,
    /// What the model says of itself, where this name is its id and not an alias.
    pub(crate) described: Option<ModelInfo>,
    /// The pools that serve it, or did lately.
    pub(crate) serving: Vec<Serving>,
}

/// One pool's replicas that serve one model.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) pool: Key,
    pub(crate) counts: Counts,
    pub(crate) last_present: Moment,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) replicas: Arena<Replica>,
    pub(crate) pools: Arena<Pool>,
    pub(crate) models: Arena<Model>,
    pools_by_id: HashMap<PoolId, Key>,
    models_by_name: HashMap<Arc<str>, Key>,
    agents_by_name: HashMap<Arc<str>, Key>,
    /// When which replica has to be looked at.
    pub(crate) timers: BTreeSet<(Moment, Key)>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self {
            replicas: Arena::new(),
            pools: Arena::new(),
            models: Arena::new(),
            pools_by_id: HashMap::new(),
            models_by_name: HashMap::new(),
            agents_by_name: HashMap::new(),
            timers: BTreeSet::new(),
        }
    }

    pub(crate) fn pool_key(&self, id: &PoolId) -> Option<Key> {
        self.pools_by_id.get(id).copied()
    }

    pub(crate) fn model_key(&self, name: &str) -> Option<Key> {
        self.models_by_name.get(name).copied()
    }

    pub(crate) fn agent_key(&self, name: &str) -> Option<Key> {
        self.agents_by_name.get(name).copied()
    }

    pub(crate) fn replica_key(&self, node: &NodeId, pool: &PoolId, replica: &ReplicaId) -> Option<Key> {
        let pool = self.pool_key(pool)?;
        self.pools[pool]
            .replicas
            .get(&(replica.clone(), node.clone()))
            .copied()
    }

    // ---- replicas ----

    pub(crate) fn upsert(&mut self, now: Moment, update: ReplicaUpdate, settings: &Settings) -> Key {
        let info = &update.info;
        let known = self.replica_key(&info.node_id, &info.pool_id, &info.replica_id);
        let key = match known {
            Some(key) => {
                self.count(now, key, false);
                key
            }
            None => self.insert(now, &update),
        };
        self.take_update(now, key, update, settings);
        self.count(now, key, true);
        self.reindex(key);
        key
    }

    fn insert(&mut self, now: Moment, update: &ReplicaUpdate) -> Key {
        let pool = self.intern_pool(now, &update.info.pool_id);
        let replica = Replica {
            info: Arc::new(update.info.clone()),
            status: update.status,
            // Until its update is taken, which makes its names known.
            present: false,
            pool,
            models: Vec::new(),
            breaker: Breaker::Closed,
            hold_off: HoldOff::default(),
            others_until: None,
            leased: 0,
            label: 0,
            rank: None,
            counted_slots: None,
            timer: None,
        };
        let key = self.replicas.insert(replica);
        self.label(pool, key);
        key
    }

    /// Gives a new replica its place in the pool's order of names.
    fn label(&mut self, pool: Key, key: Key) {
        let info = &self.replicas[key].info;
        let name = (info.replica_id.clone(), info.node_id.clone());
        let pool = &mut self.pools[pool];
        let before = pool
            .replicas
            .range(..&name)
            .next_back()
            .map_or(0, |(_, other)| self.replicas[*other].label);
        let after = pool
            .replicas
            .range(&name..)
            .next()
            .map(|(_, other)| self.replicas[*other].label);
        pool.replicas.insert(name, key);
        let label = after.map_or(before.saturating_add(LABEL_STEP), |after| before.midpoint(after));
        if label != before && after != Some(label) && label != u64::MAX {
            self.replicas[key].label = label;
            return;
        }
        let mut label = 0;
        let keys: Vec<Key> = pool.replicas.values().copied().collect();
        for other in keys {
            label += LABEL_STEP;
            self.replicas[other].label = label;
            self.reindex(other);
        }
    }

    fn take_update(&mut self, now: Moment, key: Key, update: ReplicaUpdate, settings: &Settings) {
        if !self.replicas[key].present || *self.replicas[key].info != update.info {
            let models = self.intern_models(now, &update.info);
            let replica = &mut self.replicas[key];
            replica.models = models;
            replica.info = Arc::new(update.info);
        }
        let replica = &mut self.replicas[key];
        let was_ready = replica.present && replica.status.state == pool_registry_types::ReplicaState::Ready;
        replica.status = update.status;
        replica.present = true;
        let is_ready = replica.status.state == pool_registry_types::ReplicaState::Ready;
        if is_ready && !was_ready {
            // Its node has seen it down and up again: that is later knowledge than our failed dispatch.
            replica.breaker = Breaker::Closed;
        }
        replica.others_until = (replica.status.others_busy > 0).then_some(now + settings.others_trust);
        if replica.has_room() {
            replica.hold_off = HoldOff::default();
        }
    }

    /// The replica is gone; its leases stay.
    pub(crate) fn remove(&mut self, now: Moment, key: Key) {
        self.count(now, key, false);
        let replica = &mut self.replicas[key];
        replica.present = false;
        replica.counted_slots = None;
        self.reindex(key);
        self.drop_if_done(key);
    }

    fn drop_if_done(&mut self, key: Key) {
        let replica = &self.replicas[key];
        if replica.present || replica.leased > 0 {
            return;
        }
        let replica = self.replicas.remove(key).expect("it was there just now");
        if let Some(timer) = replica.timer {
            self.timers.remove(&(timer, key));
        }
        let name = (replica.info.replica_id.clone(), replica.info.node_id.clone());
        self.pools[replica.pool].replicas.remove(&name);
    }

    /// Adds the replica to the counters of its pool and models, or takes it out of them before something changes that
    /// they count.
    pub(crate) fn count(&mut self, now: Moment, key: Key, present: bool) {
        let replica = &mut self.replicas[key];
        if !replica.present {
            return;
        }
        if present {
            let drained = self.pools[replica.pool].draining;
            replica.counted_slots = (replica.is_ready() && !drained).then_some(replica.status.slots_total);
        }
        let replica = &self.replicas[key];
        let pool = &mut self.pools[replica.pool];
        pool.last_present = now;
        if pool.counts.ready > 0 {
            pool.last_ready = now;
        }
        let change = if present { Counts::add } else { Counts::remove };
        change(&mut pool.counts, replica);
        for model in &replica.models {
            let serving = &mut self.models[*model].serving;
            let serving = serving.iter_mut().find(|serving| serving.pool == replica.pool);
            let serving = serving.expect("every model of a replica has its pool among those that serve it");
            serving.last_present = now;
            change(&mut serving.counts, replica);
        }
    }

    /// Puts the replica where it belongs in its pool's index, and its timer where it belongs.
    pub(crate) fn reindex(&mut self, key: Key) {
        let replica = &mut self.replicas[key];
        let pool = &mut self.pools[replica.pool];
        let rank = if pool.draining {
            None
        } else {
            replica.rank_now(key)
        };
        if rank != replica.rank {
            if let Some(old) = replica.rank {
                pool.index.remove(&old);
            }
            if let Some(new) = rank {
                pool.index.insert(new);
            }
            replica.rank = rank;
        }
        let timer = replica.next_timer();
        if timer != replica.timer {
            if let Some(old) = replica.timer {
                self.timers.remove(&(old, key));
            }
            if let Some(new) = timer {
                self.timers.insert((new, key));
            }
            replica.timer = timer;
        }
    }

    pub(crate) fn lease(&mut self, key: Key) {
        let replica = &mut self.replicas[key];
        replica.leased += 1;
        self.pools[replica.pool].leased += 1;
        self.reindex(key);
    }

    pub(crate) fn give_back(&mut self, key: Key) {
        let replica = &mut self.replicas[key];
        replica.leased -= 1;
        self.pools[replica.pool].leased -= 1;
        self.reindex(key);
        self.drop_if_done(key);
    }

    pub(crate) fn hold_off(&mut self, now: Moment, key: Key, settings: &Settings) {
        let hold_off = &mut self.replicas[key].hold_off;
        if hold_off.until.is_some() {
            // Several leases that were refused at once are one refusal.
            return;
        }
        let wait = settings.hold_off_min * 2u32.saturating_pow(hold_off.refusals.min(16));
        hold_off.until = Some(now + wait.min(settings.hold_off_max));
        hold_off.refusals += 1;
        self.reindex(key);
    }

    pub(crate) fn set_breaker(&mut self, now: Moment, key: Key, breaker: Breaker) {
        self.count(now, key, false);
        self.replicas[key].breaker = breaker;
        self.count(now, key, true);
        self.reindex(key);
    }

    pub(crate) fn set_pool_draining(&mut self, now: Moment, pool: Key, draining: bool) {
        let keys: Vec<Key> = self.pools[pool].replicas.values().copied().collect();
        for key in &keys {
            self.count(now, *key, false);
        }
        self.pools[pool].draining = draining;
        for key in keys {
            self.count(now, key, true);
            self.reindex(key);
        }
    }

    // ---- pools and models ----

    fn intern_pool(&mut self, now: Moment, id: &PoolId) -> Key {
        if let Some(key) = self.pool_key(id) {
            return key;
        }
        let key = self.pools.insert(Pool {
            id: id.clone(),
            draining: false,
            replicas: BTreeMap::new(),
            index: BTreeSet::new(),
            counts: Counts::default(),
            leased: 0,
            queue: Queue::default(),
            pace: Pace::default(),
            last_ready: now,
            last_present: now,
        });
        self.pools_by_id.insert(id.clone(), key);
        key
    }

    fn intern_models(&mut self, now: Moment, info: &ReplicaInfo) -> Vec<Key> {
        let pool = self
            .pool_key(&info.pool_id)
            .expect("a replica's pool is known before its models");
        let mut keys = Vec::new();
        if info.kind == PoolKind::Agent {
            return vec![self.intern_model(now, &info.engine, pool, true)];
        }
        for model in &info.models {
            let names = std::iter::once(&model.id).chain(&model.aliases);
            for name in names {
                let key = self.intern_model(now, name, pool, false);
                if *name == model.id {
                    self.models[key].described = Some(model.clone());
                }
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        keys
    }

    fn intern_model(&mut self, now: Moment, name: &str, pool: Key, is_agent: bool) -> Key {
        let by_name = match is_agent {
            true => &mut self.agents_by_name,
            false => &mut self.models_by_name,
        };
        let key = by_name.get(name).copied().unwrap_or_else(|| {
            let name: Arc<str> = Arc::from(name);
            let key = self.models.insert(Model {
                name: name.clone(),
                is_agent,
                described: None,
                serving: Vec::new(),
            });
            by_name.insert(name, key);
            key
        });
        let serving = &mut self.models[key].serving;
        if !serving.iter().any(|serving| serving.pool == pool) {
            serving.push(Serving {
                pool,
                counts: Counts::default(),
                last_present: now,
            });
        }
        key
    }

    /// Forgets pools and models that had no replica for a long time.
    pub(crate) fn forget(&mut self, now: Moment, forget_after: std::time::Duration) {
        let old = |last_present: Moment| now.saturating_sub(last_present) > forget_after;
        let models: Vec<Key> = self.models.iter().map(|(key, _)| key).collect();
        for key in models {
            let model = &mut self.models[key];
            model
                .serving
                .retain(|serving| serving.counts.known > 0 || !old(serving.last_present));
            if model.serving.is_empty() {
                let model = self.models.remove(key).expect("it was there just now");
                match model.is_agent {
                    true => self.agents_by_name.remove(&model.name),
                    false => self.models_by_name.remove(&model.name),
                };
            }
        }
        let pools: Vec<Key> = self.pools.iter().map(|(key, _)| key).collect();
        for key in pools {
            let pool = &self.pools[key];
            let served = || {
                self.models
                    .iter()
                    .any(|(_, model)| model.serving.iter().any(|serving| serving.pool == key))
            };
            if pool.replicas.is_empty() && pool.queue.is_empty() && old(pool.last_present) && !served() {
                let pool = self.pools.remove(key).expect("it was there just now");
                self.pools_by_id.remove(&pool.id);
            }
        }
    }
}
