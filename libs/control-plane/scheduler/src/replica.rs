//! One replica: what it is, what was last reported of it, and what this control plane holds of it.

use std::fmt;
use std::sync::Arc;

use pool_registry_types::{
    ControlPlaneId, ModelInfo, NodeId, PoolId, PoolKind, PoolReport, ReplicaId, ReplicaReport, ReplicaState,
};

use crate::arena::Key;
use crate::{DialectSet, Moment};

/// Names a replica while the scheduler knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaKey(pub(crate) Key);

impl ReplicaKey {
    /// The key as a number, for maps.
    pub const fn to_u64(self) -> u64 {
        self.0.to_u64()
    }
}

impl fmt::Debug for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicaKey({}.{})", self.0.index, self.0.generation)
    }
}

/// What a replica is: everything a dispatcher needs to know of it. Changes seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The node it runs on.
    pub node_id: NodeId,
    /// Where the node's one door is.
    pub address: String,
    /// Its pool.
    pub pool_id: PoolId,
    /// Its name within node and pool.
    pub replica_id: ReplicaId,
    /// What its pool is made of.
    pub kind: PoolKind,
    /// The engine recipe's name; the agent's, where the pool is of that kind.
    pub engine: String,
    /// The engine's own version.
    pub engine_version: String,
    /// The models that it serves.
    pub models: Vec<ModelInfo>,
    /// The dialects that it speaks by itself. Empty: not known, and nothing is held against it.
    pub dialects: DialectSet,
    /// Whether it notices a closed connection only on streams.
    pub cancel_on_stream_only: bool,
}

/// What was last reported of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Where it stands; only [`ReplicaState::Ready`] takes new tasks.
    pub state: ReplicaState,
    /// Room for tasks.
    pub slots_total: u32,
    /// Slots that other control planes hold.
    pub others_busy: u32,
    /// Free device memory, in bytes.
    pub vram_free_bytes: u64,
}

/// A report of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaUpdate {
    /// What it is.
    pub info: ReplicaInfo,
    /// Where it stands.
    pub status: ReplicaStatus,
}

impl ReplicaUpdate {
    /// Reads a report. `own` is this control plane's id: its own leases are counted here and not there.
    /// `node_draining` and the pool's own flag drain the replica.
    pub fn from_report(
        node_id: &NodeId,
        address: &str,
        node_draining: bool,
        pool: &PoolReport,
        replica: &ReplicaReport,
        own: &ControlPlaneId,
    ) -> Self {
        let draining = (node_draining || pool.draining) && replica.state == ReplicaState::Ready;
        let others_busy = replica
            .leases
            .iter()
            .filter(|(holder, _)| *holder != own)
            .map(|(_, slots)| *slots)
            .fold(0, u32::saturating_add);
        Self {
            info: ReplicaInfo {
                node_id: node_id.clone(),
                address: address.to_owned(),
                pool_id: pool.pool_id.clone(),
                replica_id: replica.replica_id.clone(),
                kind: pool.kind,
                engine: replica.engine.clone(),
                engine_version: replica.engine_version.clone(),
                models: replica.models.clone(),
                dialects: replica.dialects.iter().copied().collect(),
                cancel_on_stream_only: replica.cancel_on_stream_only,
            },
            status: ReplicaStatus {
                state: if draining {
                    ReplicaState::Draining
                } else {
                    replica.state
                },
                slots_total: replica.slots_total,
                others_busy,
                vram_free_bytes: replica.vram_free_bytes,
            },
        }
    }
}

/// Whether dispatches to the replica are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    Closed,
    /// A dispatch failed. `probes` were asked for since, the next one is due at `next_probe`.
    Open {
        next_probe: Moment,
        probes: u32,
    },
}

/// Whether the replica is left alone because its node refused a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HoldOff {
    pub(crate) until: Option<Moment>,
    /// Refusals in a row.
    pub(crate) refusals: u32,
}

/// A share of 1, in the unit of [`Rank::used`].
pub(crate) const WHOLE: u32 = 1 << 16;

/// The order in which the replicas of one pool are chosen: the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The share of slots that is taken, in 65,536ths.
    pub(crate) used: u32,
    /// How much device memory is missing to all that there could be.
    pub(crate) vram_missing: u64,
    /// The order of names within the pool.
    pub(crate) label: u64,
    pub(crate) replica: Key,
}

/// A replica as the fleet keeps it.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) info: Arc<ReplicaInfo>,
    pub(crate) status: ReplicaStatus,
    /// False when it was removed while tasks still held its slots.
    pub(crate) present: bool,
    pub(crate) pool: Key,
    /// Every name that its models can be asked for by.
    pub(crate) models: Vec<Key>,
    pub(crate) breaker: Breaker,
    pub(crate) hold_off: HoldOff,
    /// Until when `status.others_busy` counts as taken. None: no longer.
    pub(crate) others_until: Option<Moment>,
    /// Slots that we hold.
    pub(crate) leased: u32,
    /// Its place in the order of names within the pool.
    pub(crate) label: u64,
    /// Its place in the pool's index; None while it can take nothing.
    pub(crate) rank: Option<Rank>,
    /// Slots for which it counts in its pool and models as ready; None when it does not.
    pub(crate) counted_slots: Option<u32>,
    /// When it has to be looked at again.
    pub(crate) timer: Option<Moment>,
}

impl Replica {
    /// Takes tasks, busy or not.
    pub(crate) fn is_ready(&self) -> bool {
        self.present && self.status.state == ReplicaState::Ready && self.breaker == Breaker::Closed
    }

    pub(crate) fn speaks(&self, dialects: DialectSet) -> bool {
        if self.info.kind == PoolKind::Agent {
            // An agent speaks no dialect, and its not naming one is no doubt about it.
            return dialects.is_empty();
        }
        dialects.is_empty() || self.info.dialects.is_empty() || self.info.dialects.meets(dialects)
    }

    /// Whether a slot may be tried: we hold fewer than there are, and the others are not known to hold the rest.
    pub(crate) fn has_room(&self) -> bool {
        let others = if self.others_until.is_some() {
            self.status.others_busy
        } else {
            0
        };
        self.leased.saturating_add(others) < self.status.slots_total
    }

    /// Its rank, if it can take a task now.
    pub(crate) fn rank_now(&self, key: Key) -> Option<Rank> {
        if !self.is_ready() || self.hold_off.until.is_some() || !self.has_room() {
            return None;
        }
        let busy = u64::from(self.leased) + u64::from(self.status.others_busy);
        let used = busy * u64::from(WHOLE) / u64::from(self.status.slots_total.max(1));
        Some(Rank {
            used: u32::try_from(used).unwrap_or(WHOLE).min(WHOLE),
            vram_missing: u64::MAX - self.status.vram_free_bytes,
            label: self.label,
            replica: key,
        })
    }

    /// When something about it changes by itself.
    pub(crate) fn next_timer(&self) -> Option<Moment> {
        let probe = match self.breaker {
            Breaker::Open { next_probe, .. } if self.present => Some(next_probe),
            Breaker::Open { .. } | Breaker::Closed => None,
        };
        [probe, self.hold_off.until, self.others_until]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use pool_registry_types::Dialect;

    use super::*;

    fn check(node_draining: bool, pool_draining: bool, state: ReplicaState, expect: ReplicaState) {
        let own = ControlPlaneId::new("own").unwrap();
        let leases = [("own", 1), ("other", 2), ("dead", 3)]
            .map(|(id, slots)| (ControlPlaneId::new(id).unwrap(), slots));
        let replica = ReplicaReport {
            replica_id: ReplicaId::new("r0").unwrap(),
            state,
            engine: "llamacpp".to_owned(),
            engine_version: "b1".to_owned(),
            models: Vec::new(),
            dialects: vec![Dialect::Messages],
            cancel_on_stream_only: true,
            slots_total: 8,
            slots_free: 2,
            leases: leases.into_iter().collect(),
            vram_free_bytes: 7,
            last_error: None,
        };
        let pool = PoolReport {
            pool_id: PoolId::new("p").unwrap(),
            kind: PoolKind::Engine,
            ready: true,
            draining: pool_draining,
            slots_total: 8,
            slots_free: 2,
            vram_total_bytes: 0,
            vram_free_bytes: 0,
            last_error: None,
            replicas: Vec::new(),
        };
        let node = NodeId::new("n").unwrap();
        let update = ReplicaUpdate::from_report(&node, "http://n:9200", node_draining, &pool, &replica, &own);
        let status = ReplicaStatus {
            state: expect,
            slots_total: 8,
            others_busy: 5,
            vram_free_bytes: 7,
        };
        assert_eq!(update.status, status);
        assert!(update.info.dialects.contains(Dialect::Messages) && update.info.cancel_on_stream_only);
    }

    #[test]
    fn our_own_leases_are_counted_here_and_draining_comes_from_above() {
        check(false, false, ReplicaState::Ready, ReplicaState::Ready);
        check(true, false, ReplicaState::Ready, ReplicaState::Draining);
        check(false, true, ReplicaState::Ready, ReplicaState::Draining);
        check(true, true, ReplicaState::Failed, ReplicaState::Failed);
    }
}
