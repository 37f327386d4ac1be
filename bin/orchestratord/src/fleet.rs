//! Keeping the scheduler true to the fleet: reports in, time, probes, and nodes that have to be asked.

mod local;
mod poll;
mod probe;

use std::sync::PoisonError;
use std::time::Duration;

use pool_registry_types::{NodeId, NodeState};
use scheduler::{Effects, ReplicaUpdate, Scheduler};
use service_registry::{Applied, Change, Refusal, Registry};

use crate::plane::{Plane, SharedPlane};

pub(crate) use local::follow_local_node;
pub(crate) use poll::poll_nodes;

/// The longest time between two looks at what is due.
const TICK_MAX: Duration = Duration::from_secs(1);
/// The shortest: what is due is gathered, so that a busy queue costs no more than this many rounds.
const TICK_MIN: Duration = Duration::from_millis(5);

impl Plane {
    /// Lets `report` change the registry, and takes what has changed into the scheduler.
    pub(crate) fn take_report<T>(
        &self,
        report: impl FnOnce(&mut Registry, Duration, &mut Vec<Change>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let now = self.now();
        let mut changes = Vec::new();
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let result = report(&mut registry, now, &mut changes);
        if !changes.is_empty() {
            // Still under the registry's lock: two reports must reach the scheduler in the order in which they were
            // believed.
            self.guarded.with(|scheduler, effects| {
                for change in &changes {
                    self.apply(now, change, scheduler, effects);
                }
            });
            self.due.notify_one();
        }
        drop(registry);
        result
    }

    fn apply(&self, now: Duration, change: &Change, scheduler: &mut Scheduler, effects: &mut Effects) {
        match change {
            Change::Node { node_id, from, to } => tell_node(node_id, *from, *to),
            Change::ReplicaUp(replica) | Change::ReplicaChanged(replica) => {
                let update = ReplicaUpdate::from_replica(replica, &self.id);
                scheduler.upsert_replica(now, update, effects);
            }
            Change::ReplicaDown {
                node_id,
                pool_id,
                replica_id,
            } => {
                tracing::info!(%node_id, %pool_id, %replica_id, "a replica is gone");
                scheduler.remove_replica(now, node_id, pool_id, replica_id, effects);
            }
        }
    }
}

/// One line for each time a node comes, changes its state, or goes.
fn tell_node(node_id: &NodeId, from: Option<NodeState>, to: Option<NodeState>) {
    match (from.map(NodeState::as_str), to.map(NodeState::as_str)) {
        (None, Some(state)) => tracing::info!(%node_id, state, "a node has joined"),
        (Some(before), Some(state)) => tracing::info!(%node_id, state, before, "a node is {state}"),
        (before, None) => tracing::info!(%node_id, before, "a node has left"),
    }
}

/// Reads a change of the registry as the scheduler takes it.
trait FromReplica {
    fn from_replica(replica: &service_registry::Replica, own: &pool_registry_types::ControlPlaneId) -> Self;
}

impl FromReplica for ReplicaUpdate {
    fn from_replica(replica: &service_registry::Replica, own: &pool_registry_types::ControlPlaneId) -> Self {
        let pool = pool_registry_types::PoolReport {
            pool_id: replica.pool_id.clone(),
            kind: replica.kind,
            ready: true,
            draining: replica.pool_draining,
            slots_total: 0,
            slots_free: 0,
            vram_total_bytes: 0,
            vram_free_bytes: 0,
            last_error: None,
            replicas: Vec::new(),
        };
        Self::from_report(
            &replica.node_id,
            &replica.address,
            replica.node_draining,
            &pool,
            &replica.report,
            own,
        )
    }
}

/// Does what is due, for as long as the control plane runs.
pub(crate) async fn tick(plane: SharedPlane) {
    loop {
        let now = plane.now();
        let due = plane.guarded.with(|scheduler, effects| {
            scheduler.tick(now, effects);
            scheduler.next_due()
        });
        for (key, info) in plane.guarded.take_probes() {
            plane.shutdown.spawn(
                "probe",
                daemon::shutdown::Kind::Work,
                probe::probe(plane.clone(), key, info),
            );
        }
        let wait = due
            .map_or(TICK_MAX, |due| due.saturating_sub(plane.now()))
            .clamp(TICK_MIN, TICK_MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = plane.due.notified() => tokio::time::sleep(TICK_MIN).await,
        }
    }
}

/// Looks for silent nodes, for as long as the control plane runs.
pub(crate) async fn look_for_silent_nodes(plane: SharedPlane) {
    let mut interval = tokio::time::interval(plane.settings.stale_check_interval_secs);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // The registry refuses nothing here: time passes for everybody.
        let _ = plane.take_report(|registry, now, changes| {
            registry.tick(now, changes);
            Ok(Applied::Taken)
        });
    }
}
