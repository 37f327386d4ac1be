//! Where workspaces are: on a node, whose name stands in a workspace's id, so that every control plane finds it.

use std::sync::Arc;

use pool_registry_types::{NodeId, PoolId};
use scheduler::ReplicaInfo;
use task_api::{ApiError, ErrorCode, WorkspaceId};

use crate::plane::{RETRY_AFTER_DEFAULT_MS, SharedPlane};

/// The id by which clients know a workspace. None: the names are longer than an id may be.
pub(crate) fn named(id: &str, node: &NodeId) -> Option<WorkspaceId> {
    WorkspaceId::new(format!("{id}.{node}")).ok()
}

/// Its name on its node, and the node.
pub(crate) fn parts(id: &WorkspaceId) -> Result<(String, NodeId), ApiError> {
    let parts = id.as_str().split_once('.');
    let parts = parts.and_then(|(id, node)| Some((id.to_owned(), NodeId::new(node).ok()?)));
    parts.ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no workspace {id}")).with_param("workspace")
    })
}

/// An agent pool of the node, this one if it is there: any of them leads to the node's workspaces.
pub(crate) fn on_node(
    plane: &SharedPlane,
    node: &NodeId,
    pool: Option<&PoolId>,
) -> Result<Arc<ReplicaInfo>, ApiError> {
    let mut there = super::home::replicas(plane, None);
    there.retain(|replica| replica.info.node_id == *node);
    there.sort_by_key(|replica| pool != Some(&replica.info.pool_id));
    let found = there.first().map(|replica| replica.info.clone());
    found.ok_or_else(|| {
        let message = format!(
            "the workspace is on node {node}, which is not there now; it is kept there, so try again when the node is back"
        );
        ApiError::new(ErrorCode::PoolUnavailable, message).with_retry_after_ms(RETRY_AFTER_DEFAULT_MS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_where_the_workspace_is() {
        let node = NodeId::new("gpu-1.example").unwrap();
        let id = named("0123456789abcdef0123456789abcdef", &node).unwrap();
        assert_eq!(
            parts(&id).unwrap(),
            ("0123456789abcdef0123456789abcdef".to_owned(), node)
        );
        for wrong in ["w", "w.", "w.:"] {
            let error = parts(&WorkspaceId::new(wrong).unwrap()).unwrap_err();
            assert_eq!(error.code, ErrorCode::NotFound, "{wrong}");
        }
    }
}
