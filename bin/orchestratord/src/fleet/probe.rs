//! Asking a node whether a replica that failed is there again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Limited};
use pool_registry_types::{PoolReport, ReplicaState};
use scheduler::{ReplicaInfo, ReplicaKey};

use crate::plane::{NodeLink, SharedPlane};

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest answer that a probe reads.
const PROBE_ANSWER_LEN_MAX: usize = 4 * 1024 * 1024;

/// Probes once; the scheduler asks again when this one fails.
pub(super) async fn probe(plane: SharedPlane, key: ReplicaKey, info: Arc<ReplicaInfo>) {
    let began = Instant::now();
    let ready = tokio::time::timeout(PROBE_TIMEOUT, is_ready(&plane, &info))
        .await
        .unwrap_or(false);
    plane.metrics.health_check(ready, began.elapsed());
    if ready {
        let now = plane.now();
        plane
            .guarded
            .with(|scheduler, effects| scheduler.bring_back(now, key, effects));
        tracing::info!(
            pool_id = %info.pool_id, replica_id = %info.replica_id, node_id = %info.node_id,
            "a replica answers again"
        );
    }
}

async fn is_ready(plane: &SharedPlane, info: &ReplicaInfo) -> bool {
    let Ok(link) = plane.link(info) else { return false };
    let pool = match link {
        NodeLink::Local(door) => door.pool(&info.pool_id),
        NodeLink::Remote(remote) => {
            let Ok(response) = remote.get(&format!("/v2/pools/{}", info.pool_id)).await else {
                return false;
            };
            if !response.status().is_success() {
                return false;
            }
            let body = Limited::new(response.into_body(), PROBE_ANSWER_LEN_MAX)
                .collect()
                .await;
            body.ok()
                .and_then(|body| serde_json::from_slice::<PoolReport>(&body.to_bytes()).ok())
        }
    };
    pool.is_some_and(|pool| {
        pool.replicas
            .iter()
            .any(|replica| replica.replica_id == info.replica_id && replica.state == ReplicaState::Ready)
    })
}
