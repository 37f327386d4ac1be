//! The node in this process: its reports arrive without a network.

use std::time::Duration;

use pool_managerd::NodeControl;
use pool_registry_types::{HeartbeatRequest, MachineId, NodeId, RegisterRequest};
use service_registry::{Applied, Refusal};

use crate::access::now_ms;
use crate::plane::{Plane, SharedPlane};

/// Stands where another node's address does: this one is called as a function, and listens nowhere.
const LOCAL_ADDRESS: &str = "this process";

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
        match taken {
            Ok(Applied::Taken) => {}
            Ok(Applied::Late) => {
                tracing::warn!("a report of the node of this process came after a newer one");
            }
            Err(Refusal::Unknown) => {
                // Somebody has deregistered it, and it is still here.
                plane.put_local_node(node_id.clone(), node.clone());
                sequence += 1;
                if let Err(refusal) = register(&plane, &node_id, &node, sequence) {
                    tracing::warn!(%refusal, "the node of this process cannot be registered again");
                }
            }
            Err(refusal) => tracing::warn!(%refusal, "a report of the node of this process was refused"),
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
        draining: node.is_draining(),
        capabilities: node.capabilities(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: plane.id.to_string(),
        sequence,
    };
    plane
        .take_report(|registry, now, changes| registry.register(now, request, changes))
        .map(drop)
}
