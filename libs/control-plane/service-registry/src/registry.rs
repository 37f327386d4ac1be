//! The registry as its caller sees it: reports in, changes out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pool_registry_types::{HeartbeatRequest, NodeId, NodeState, PoolCallback, PoolReport, RegisterRequest};

use crate::node::{Liveness, put_in_order};
use crate::{Change, Moment, NodeEntry};

/// The most pools that one node may have.
const POOLS_PER_NODE_MAX: usize = 1024;

/// The most replicas that one pool may have on one node.
const REPLICAS_PER_POOL_MAX: usize = 1024;

/// The registry's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a node should be heard from.
    pub heartbeat_interval: Duration,
    /// How much later a heartbeat may be before its node is stale.
    pub stale_grace: Duration,
    /// After how long without a heartbeat a node is offline.
    pub node_timeout: Duration,
    /// How often `tick` is called. When it comes later than twice that, this process was asleep, and silence in that
    /// time says nothing about the nodes.
    pub check_interval: Duration,
    /// How long a node that is offline stays listed.
    pub forget_after: Duration,
    /// The most nodes.
    pub nodes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(10),
            stale_grace: Duration::from_secs(5),
            node_timeout: Duration::from_secs(30),
            check_interval: Duration::from_secs(10),
            forget_after: Duration::from_secs(24 * 60 * 60),
            nodes_max: 10_000,
        }
    }
}

/// What became of a report that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is believed now.
    Taken,
    /// It is older than what is believed already, and was left aside. Its sender has nothing to do.
    Late,
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node is not known, or it was started anew since it registered: it has to register.
    #[error("this node is not registered")]
    Unknown,
    /// There are as many nodes as there may be.
    #[error("there are {nodes_max} nodes already, no more are taken")]
    TooManyNodes {
        /// How many there may be.
        nodes_max: usize,
    },
    /// The report names more pools or replicas than one node may have.
    #[error("a node may have {POOLS_PER_NODE_MAX} pools with {REPLICAS_PER_POOL_MAX} replicas each")]
    TooLarge,
    /// The node reports for itself; a report that was read off it says nothing newer.
    #[error("this node reports for itself")]
    ReportsItself,
    /// Another node, at another address, is alive under the same name. Machines that were copied are like that.
    #[error(
        "another node of this name is alive at {address}; give each an own POOL_MANAGERD_NODE_ID, or stop that one"
    )]
    NameTaken {
        /// Where the other one is.
        address: String,
    },
}

/// Every node that is known.
#[derive(Debug)]
pub struct Registry {
    settings: Settings,
    nodes: BTreeMap<NodeId, NodeEntry>,
    last_tick: Moment,
    /// Silence before this moment is not held against anybody.
    listening_since: Moment,
}

impl Registry {
    /// No node at all.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            nodes: BTreeMap::new(),
            last_tick: Duration::ZERO,
            listening_since: Duration::ZERO,
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When a node should be heard from next.
    pub fn next_heartbeat(&self) -> Duration {
        self.settings.heartbeat_interval
    }

    /// Takes a registration. Also takes what was read off a node by polling: such a report has no incarnation and is
    /// refused while the node reports for itself.
    pub fn register(
        &mut self,
        now: Moment,
        request: RegisterRequest,
        changes: &mut Vec<Change>,
    ) -> Result<Applied, Refusal> {
        let mut pools = request.pools;
        check_size(&pools)?;
        put_in_order(&mut pools);
        let Some(node) = self.nodes.get_mut(&request.node_id) else {
            return self.insert(now, RegisterRequest { pools, ..request }, changes);
        };
        let polled = request.incarnation.is_empty();
        if polled && !node.incarnation.is_empty() && node.liveness != Liveness::Offline {
            return Err(Refusal::ReportsItself);
        }
        if !polled && node.is_alive_elsewhere(&request.incarnation, &request.address) {
            let address = node.address.clone();
            return Err(Refusal::NameTaken { address });
        }
        if node.has_superseded(&request.incarnation) {
            return Ok(Applied::Late);
        }
        if node.incarnation == request.incarnation {
            if is_late(node.sequence, request.sequence) {
                return Ok(Applied::Late);
            }
        } else {
            node.begin_incarnation(&request.incarnation);
        }
        let moved = node.address != request.address;
        node.machine_id = request.machine_id;
        node.address = request.address;
        node.capabilities = request.capabilities;
        node.version = request.version;
        node.take_report(
            now,
            Report {
                pools,
                sequence: request.sequence,
                draining: request.draining,
                moved,
            },
            changes,
        );
        Ok(Applied::Taken)
    }

    fn insert(
        &mut self,
        now: Moment,
        request: RegisterRequest,
        changes: &mut Vec<Change>,
    ) -> Result<Applied, Refusal> {
        if self.nodes.len() >= self.settings.nodes_max {
            return Err(Refusal::TooManyNodes {
                nodes_max: self.settings.nodes_max,
            });
        }
        let node = NodeEntry {
            node_id: request.node_id.clone(),
            machine_id: request.machine_id,
            address: request.address,
            capabilities: request.capabilities,
            version: request.version,
            last_seen: now,
            clock_ahead_ms: None,
            liveness: Liveness::Online,
            draining_itself: request.draining,
            drained_by_us: false,
            incarnation: request.incarnation,
            sequence: request.sequence,
            former: VecDeque::new(),
            pools: BTreeMap::new(),
        };
        let node = self.nodes.entry(request.node_id).or_insert(node);
        changes.push(Change::Node {
            node_id: node.node_id.clone(),
            from: None,
            to: Some(node.state()),
        });
        node.put_pools(request.pools, request.sequence, changes);
        Ok(Applied::Taken)
    }

    /// Takes a heartbeat. `time_ms` is our wall clock, in milliseconds since 1970, to compare the node's with.
    pub fn heartbeat(
        &mut self,
        now: Moment,
        time_ms: u64,
        node_id: &NodeId,
        request: HeartbeatRequest,
        changes: &mut Vec<Change>,
    ) -> Result<Applied, Refusal> {
        let mut pools = request.pools;
        check_size(&pools)?;
        put_in_order(&mut pools);
        let node = self.nodes.get_mut(node_id).ok_or(Refusal::Unknown)?;
        if node.incarnation != request.incarnation {
            return node.of_another_incarnation(&request.incarnation);
        }
        if is_late(node.sequence, request.sequence) {
            return Ok(Applied::Late);
        }
        if let Some(capabilities) = request.capabilities {
            node.capabilities = capabilities;
        }
        if request.time_ms != 0 {
            node.clock_ahead_ms = Some(
                request
                    .time_ms
                    .cast_signed()
                    .saturating_sub(time_ms.cast_signed()),
            );
        }
        let report = Report {
            pools,
            sequence: request.sequence,
            draining: request.draining,
            moved: false,
        };
        node.take_report(now, report, changes);
        Ok(Applied::Taken)
    }

    /// Takes what a node says about one of its pools between two heartbeats.
    pub fn callback(
        &mut self,
        now: Moment,
        callback: PoolCallback,
        changes: &mut Vec<Change>,
    ) -> Result<Applied, Refusal> {
        let mut pools = vec![callback.pool];
        check_size(&pools)?;
        put_in_order(&mut pools);
        let node = self.nodes.get_mut(&callback.node_id).ok_or(Refusal::Unknown)?;
        if node.incarnation != callback.incarnation {
            return node.of_another_incarnation(&callback.incarnation);
        }
        let pool = pools.pop().expect("one was put in");
        // A heartbeat names every pool, so its sequence counts for this one too, also when it was not among them.
        let believed = node
            .pools
            .get(&pool.pool_id)
            .map_or(0, |entry| entry.sequence)
            .max(node.sequence);
        if callback.sequence != 0 && callback.sequence <= believed {
            return Ok(Applied::Late);
        }
        if !node.pools.contains_key(&pool.pool_id) && node.pools.len() >= POOLS_PER_NODE_MAX {
            return Err(Refusal::TooLarge);
        }
        node.heard(now, changes);
        node.put_pool(pool, callback.sequence, changes);
        Ok(Applied::Taken)
    }

    /// The node takes its leave. Doing so again changes nothing.
    pub fn deregister(&mut self, node_id: &NodeId, changes: &mut Vec<Change>) {
        if let Some(node) = self.nodes.remove(node_id) {
            node.leave(changes);
        }
    }

    /// Starts or ends the draining of a node by this control plane. It holds until it is ended, also when the node is
    /// started anew.
    pub fn set_draining(
        &mut self,
        node_id: &NodeId,
        draining: bool,
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        let node = self.nodes.get_mut(node_id).ok_or(Refusal::Unknown)?;
        let (state, drained) = (node.state(), node.draining());
        node.drained_by_us = draining;
        node.tell_state(state, changes);
        if node.draining() != drained && node.liveness != Liveness::Offline {
            node.announce_all(changes);
        }
        Ok(())
    }

    /// Looks who has not been heard from. Call it every [`Settings::check_interval`].
    pub fn tick(&mut self, now: Moment, changes: &mut Vec<Change>) {
        if now.saturating_sub(self.last_tick) > 2 * self.settings.check_interval {
            self.listening_since = now;
        }
        self.last_tick = now;
        let settings = &self.settings;
        let listening_since = self.listening_since;
        self.nodes.retain(|_, node| {
            let silent_for = now.saturating_sub(node.last_seen.max(listening_since));
            if node.liveness == Liveness::Offline {
                if silent_for <= settings.forget_after {
                    return true;
                }
                node.leave(changes);
                return false;
            }
            if silent_for > settings.node_timeout {
                node.become_liveness(Liveness::Offline, changes);
                node.withdraw_all(changes);
            } else if silent_for > settings.heartbeat_interval + settings.stale_grace {
                node.become_liveness(Liveness::Stale, changes);
            }
            true
        });
    }

    /// One node.
    pub fn node(&self, node_id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(node_id)
    }

    /// Every node, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values()
    }
}

/// A full report: all pools of a node.
struct Report {
    pools: Vec<PoolReport>,
    sequence: u64,
    draining: bool,
    /// The node's address is another one than before.
    moved: bool,
}

impl NodeEntry {
    /// Whether a later incarnation has taken this one's place.
    ///
    /// Which of two is the later one shows only in the order in which they registered, and a registration may be held
    /// up. So this holds as long as the later one is heard from: when it falls silent and the other one still speaks,
    /// it was the other way round.
    fn has_superseded(&self, incarnation: &str) -> bool {
        self.liveness == Liveness::Online
            && self.former.iter().any(|former| former.incarnation == incarnation)
    }

    /// Whether the name belongs to a node at another address that has missed no heartbeat. A node that was started anew
    /// is at the same address, or the earlier start of it falls silent.
    fn is_alive_elsewhere(&self, incarnation: &str, address: &str) -> bool {
        self.liveness == Liveness::Online
            && !self.incarnation.is_empty()
            && self.incarnation != incarnation
            && self.address != address
    }

    /// What becomes of a report that is not of the present incarnation and no registration.
    fn of_another_incarnation(&self, incarnation: &str) -> Result<Applied, Refusal> {
        let former = self
            .former
            .iter()
            .find(|former| former.incarnation == incarnation);
        match former {
            // It lost its name while it was silent, and is alive after all.
            Some(former) if self.is_alive_elsewhere(incarnation, &former.address) => {
                Err(Refusal::NameTaken {
                    address: self.address.clone(),
                })
            }
            Some(_) if self.has_superseded(incarnation) => Ok(Applied::Late),
            Some(_) | None => Err(Refusal::Unknown),
        }
    }

    fn begin_incarnation(&mut self, incarnation: &str) {
        self.forget_incarnation(incarnation);
        self.sequence = 0;
        for pool in self.pools.values_mut() {
            pool.sequence = 0;
        }
    }

    fn take_report(&mut self, now: Moment, report: Report, changes: &mut Vec<Change>) {
        self.heard(now, changes);
        let (state, drained) = (self.state(), self.draining());
        self.draining_itself = report.draining;
        self.tell_state(state, changes);
        self.sequence = report.sequence;
        self.put_pools(report.pools, report.sequence, changes);
        if report.moved || self.draining() != drained {
            self.announce_all(changes);
        }
    }

    /// The node was heard from. Of one that was offline only what it says now is believed.
    fn heard(&mut self, now: Moment, changes: &mut Vec<Change>) {
        self.last_seen = self.last_seen.max(now);
        if self.liveness == Liveness::Offline {
            self.sequence = self
                .pools
                .values()
                .map(|pool| pool.sequence)
                .fold(self.sequence, u64::max);
            self.pools.clear();
        }
        self.become_liveness(Liveness::Online, changes);
    }

    fn become_liveness(&mut self, liveness: Liveness, changes: &mut Vec<Change>) {
        let state = self.state();
        self.liveness = liveness;
        self.tell_state(state, changes);
    }

    fn tell_state(&self, before: NodeState, changes: &mut Vec<Change>) {
        let after = self.state();
        if before != after {
            changes.push(Change::Node {
                node_id: self.node_id.clone(),
                from: Some(before),
                to: Some(after),
            });
        }
    }

    fn leave(&self, changes: &mut Vec<Change>) {
        if self.liveness != Liveness::Offline {
            self.withdraw_all(changes);
        }
        changes.push(Change::Node {
            node_id: self.node_id.clone(),
            from: Some(self.state()),
            to: None,
        });
    }
}

/// Sequence 0 stands for no order at all: a sender that does not count.
fn is_late(believed: u64, sequence: u64) -> bool {
    sequence != 0 && sequence < believed
}

fn check_size(pools: &[PoolReport]) -> Result<(), Refusal> {
    let fits = pools.len() <= POOLS_PER_NODE_MAX
        && pools
            .iter()
            .all(|pool| pool.replicas.len() <= REPLICAS_PER_POOL_MAX);
    if fits { Ok(()) } else { Err(Refusal::TooLarge) }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
