//! One node: its last believed report, and what a newer one changes.

use std::collections::{BTreeMap, VecDeque};

use pool_registry_types::{
    Capabilities, MachineId, NodeId, NodeState, PoolId, PoolKind, PoolReport, ReplicaId, ReplicaReport,
};

use crate::Moment;

/// How many former incarnations of a node are remembered, so that their late reports are known as such.
pub(crate) const INCARNATIONS_MAX: usize = 8;

/// What has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A node stands elsewhere. `from` is None for a new one, `to` is None for one that is gone.
    Node {
        /// Which.
        node_id: NodeId,
        /// Where it stood.
        from: Option<NodeState>,
        /// Where it stands.
        to: Option<NodeState>,
    },
    /// A replica is there that was not, whether it is ready or not.
    ReplicaUp(Replica),
    /// Something about a replica is another than before.
    ReplicaChanged(Replica),
    /// A replica is no longer there, or its node is offline.
    ReplicaDown {
        /// Its node.
        node_id: NodeId,
        /// Its pool.
        pool_id: PoolId,
        /// Its name.
        replica_id: ReplicaId,
    },
}

/// A replica with what its node and pool say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Its node.
    pub node_id: NodeId,
    /// Where the node's one door is.
    pub address: String,
    /// Whether the whole node takes no new tasks.
    pub node_draining: bool,
    /// Its pool.
    pub pool_id: PoolId,
    /// What the pool is made of.
    pub kind: PoolKind,
    /// Whether the pool takes no new tasks on this node.
    pub pool_draining: bool,
    /// The replica's own report.
    pub report: ReplicaReport,
}

/// A node as it is known.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    /// Which node.
    pub node_id: NodeId,
    /// The hardware under it.
    pub machine_id: MachineId,
    /// Where its one door is.
    pub address: String,
    /// Its hardware.
    pub capabilities: Capabilities,
    /// The node daemon's version.
    pub version: String,
    /// When it was last heard from.
    pub last_seen: Moment,
    /// How far its clock is ahead of ours, in milliseconds, when it says what time it has.
    pub clock_ahead_ms: Option<i64>,
    pub(crate) liveness: Liveness,
    pub(crate) draining_itself: bool,
    pub(crate) drained_by_us: bool,
    pub(crate) incarnation: String,
    pub(crate) sequence: u64,
    pub(crate) former: VecDeque<Former>,
    pub(crate) pools: BTreeMap<PoolId, PoolEntry>,
}

/// A start of the node whose place a later one has taken.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub(crate) incarnation: String,
    pub(crate) address: String,
}

/// How long ago the node was heard from, in the steps that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Online,
    Stale,
    Offline,
}

/// A pool's last believed report.
#[derive(Clone, Debug)]
pub(crate) struct PoolEntry {
    pub(crate) report: PoolReport,
    pub(crate) sequence: u64,
}

impl NodeEntry {
    /// Where the node stands.
    pub fn state(&self) -> NodeState {
        match self.liveness {
            Liveness::Offline => NodeState::Offline,
            Liveness::Online | Liveness::Stale if self.draining() => NodeState::Draining,
            Liveness::Stale => NodeState::Stale,
            Liveness::Online => NodeState::Online,
        }
    }

    /// Whether the node takes no new tasks, by its own wish or by ours.
    pub fn draining(&self) -> bool {
        self.draining_itself || self.drained_by_us
    }

    /// The pools as last reported, by id.
    pub fn pools(&self) -> impl Iterator<Item = &PoolReport> {
        self.pools.values().map(|pool| &pool.report)
    }

    pub(crate) fn forget_incarnation(&mut self, next: &str) {
        if self.incarnation != next && !self.incarnation.is_empty() {
            self.former.push_back(Former {
                incarnation: std::mem::take(&mut self.incarnation),
                address: self.address.clone(),
            });
            if self.former.len() > INCARNATIONS_MAX {
                self.former.pop_front();
            }
        }
        self.former.retain(|former| former.incarnation != next);
        next.clone_into(&mut self.incarnation);
    }

    fn replica(&self, pool: &PoolReport, report: &ReplicaReport) -> Replica {
        Replica {
            node_id: self.node_id.clone(),
            address: self.address.clone(),
            node_draining: self.draining(),
            pool_id: pool.pool_id.clone(),
            kind: pool.kind,
            pool_draining: pool.draining,
            report: report.clone(),
        }
    }

    fn down(&self, pool_id: &PoolId, replica_id: &ReplicaId) -> Change {
        Change::ReplicaDown {
            node_id: self.node_id.clone(),
            pool_id: pool_id.clone(),
            replica_id: replica_id.clone(),
        }
    }

    /// Every replica has changed, because something about the node has.
    pub(crate) fn announce_all(&self, changes: &mut Vec<Change>) {
        for pool in self.pools.values() {
            let replicas = &pool.report.replicas;
            changes.extend(
                replicas
                    .iter()
                    .map(|report| Change::ReplicaChanged(self.replica(&pool.report, report))),
            );
        }
    }

    /// Every replica is gone for whoever places tasks.
    pub(crate) fn withdraw_all(&self, changes: &mut Vec<Change>) {
        for pool in self.pools.values() {
            for report in &pool.report.replicas {
                changes.push(self.down(&pool.report.pool_id, &report.replica_id));
            }
        }
    }

    /// Takes one pool's newer report.
    pub(crate) fn put_pool(&mut self, report: PoolReport, sequence: u64, changes: &mut Vec<Change>) {
        match self.pools.get_mut(&report.pool_id) {
            Some(entry) if entry.report == report => entry.sequence = sequence,
            before => {
                let before = before.map(|entry| entry.report.clone());
                self.compare(before.as_ref(), &report, changes);
                self.pools
                    .insert(report.pool_id.clone(), PoolEntry { report, sequence });
            }
        }
    }

    /// Both reports have their replicas in order of id, each id once.
    fn compare(&self, before: Option<&PoolReport>, after: &PoolReport, changes: &mut Vec<Change>) {
        let same_pool =
            before.is_some_and(|before| before.draining == after.draining && before.kind == after.kind);
        let replicas_before = before.map_or(&[][..], |before| &before.replicas);
        for report in &after.replicas {
            match find(replicas_before, &report.replica_id) {
                None => changes.push(Change::ReplicaUp(self.replica(after, report))),
                Some(old) if same_pool && old == report => {}
                Some(_) => changes.push(Change::ReplicaChanged(self.replica(after, report))),
            }
        }
        for old in replicas_before {
            if find(&after.replicas, &old.replica_id).is_none() {
                changes.push(self.down(&after.pool_id, &old.replica_id));
            }
        }
    }

    /// Takes all pools of a full report, and takes away those that it no longer names.
    pub(crate) fn put_pools(&mut self, reports: Vec<PoolReport>, sequence: u64, changes: &mut Vec<Change>) {
        let gone: Vec<PoolId> = self
            .pools
            .iter()
            .filter(|(id, entry)| {
                entry.sequence <= sequence
                    && reports.binary_search_by(|report| report.pool_id.cmp(id)).is_err()
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            let entry = self.pools.remove(&id).expect("it was found just now");
            changes.extend(
                entry
                    .report
                    .replicas
                    .iter()
                    .map(|replica| self.down(&id, &replica.replica_id)),
            );
        }
        for report in reports {
            let newer_known = self
                .pools
                .get(&report.pool_id)
                .is_some_and(|entry| entry.sequence > sequence);
            if !newer_known {
                self.put_pool(report, sequence, changes);
            }
        }
    }
}

fn find<'a>(replicas: &'a [ReplicaReport], id: &ReplicaId) -> Option<&'a ReplicaReport> {
    replicas
        .binary_search_by(|report| report.replica_id.cmp(id))
        .ok()
        .map(|at| &replicas[at])
}

/// Puts pools and replicas in order and keeps one of each id: what a report repeats counts once.
pub(crate) fn put_in_order(pools: &mut Vec<PoolReport>) {
    pools.sort_by(|a, b| a.pool_id.cmp(&b.pool_id));
    pools.dedup_by(|a, b| a.pool_id == b.pool_id);
    for pool in pools {
        pool.replicas.sort_by(|a, b| a.replica_id.cmp(&b.replica_id));
        pool.replicas.dedup_by(|a, b| a.replica_id == b.replica_id);
    }
}
