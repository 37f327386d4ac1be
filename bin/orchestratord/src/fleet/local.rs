//! The node in this process: its reports arrive without a network.

use std::time::Duration;

use pool_managerd::NodeControl;
use pool_registry_types::{HeartbeatRequest, MachineId, NodeId, RegisterRequest};
use service_registry::{Applied, Refusal};

use crate::access::now_ms;
use crate::plane::{Plane, SharedPlane};

/// Says of a node that its address is this process.
const LOCAL_ADDRESS: &str = "http://127.0.0.1:0";

/// Registers the node and passes its reports on, for as long as the control plane runs.
pub(crate) async fn follow_local_node(plane: SharedPlane, node_id: NodeId, node: NodeControl) {
    plane.put_local_node(node_id.clone(), node.clone());
    let mut sequence = 1;
    if let Err(refusal) = register(&plane, &node_id, &node, sequence) {
        plane
            .shutdown
            .fail(format!("the node of this process was refused: {refusal}"));
        return;
    }
    let mut reports = node.door().reports();
    let interval = plane
        .settings
        .heartbeat_interval_ms
        .min(plane.settings.node_timeout_ms / 3);
    loop {
        sequence += 1;
        let beat = HeartbeatRequest {
            pools: node.door().snapshot(),
            draining: node.is_draining(),
            capabilities: Some(node.capabilities()),
            incarnation: plane.id.to_string(),
            sequence,
            time_ms: now_ms(),
        };
        let taken = plane
            .take_report(|registry, now, changes| registry.heartbeat(now, now_ms(), &node_id, beat, changes));
        if matches!(taken, Err(Refusal::Unknown)) {
            // Somebody has deregistered it, and it is still here.
            plane.put_local_node(node_id.clone(), node.clone());
            sequence += 1;
            if let Err(refusal) = register(&plane, &node_id, &node, sequence) {
                tracing::warn!(%refusal, "the node of this process cannot be registered again");
            }
        } else if !matches!(taken, Ok(Applied::Taken)) {
            tracing::warn!(?taken, "a report of the node of this process was not taken");
        }
        // A change is passed on at once; without one the node is heard from all the same.
        let _ = tokio::time::timeout(interval.max(Duration::from_millis(1)), reports.changed()).await;
        reports.mark_unchanged();
    }
}

fn register(plane: &Plane, node_id: &NodeId, node: &NodeControl, sequence: u64) -> Result<(), Refusal> {
    let request = RegisterRequest {
        node_id: node_id.clone(),
        machine_id: MachineId::new(node_id.as_str()).expect("a node id is a machine id"),
        address: LOCAL_ADDRESS.to_owned(),
        pools: node.door().snapshot(),
        capabilities: node.capabilities(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: plane.id.to_string(),
        sequence,
    };
    plane
        .take_report(|registry, now, changes| registry.register(now, request, changes))
        .map(drop)
}
