//! Which node keeps an owner's login for an agent.
//!
//! With one node there is no question. With several, the scheduler remembers where an owner's tasks and logins went; what
//! it does not know is asked of the nodes once, and when none has a login, the owner and the nodes' names decide.

use std::sync::Arc;
use std::time::Duration;

use pool_registry_types::{LoginStatus, PoolKind, ReplicaState};
use scheduler::{ReplicaEntry, ReplicaInfo};
use task_api::{ApiError, ErrorCode};

use super::link::{AgentLink, Refused};
use super::runner::owner_hash;
use crate::plane::{RETRY_AFTER_DEFAULT_MS, SharedPlane};

/// How long nodes may take to say whether they have a login.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a login is, or will be.
pub(crate) struct Home {
    pub(crate) info: Arc<ReplicaInfo>,
    /// What its node has just said.
    pub(crate) status: Option<LoginStatus>,
}

/// The replicas of agents; of one agent, if it is named.
pub(crate) fn replicas(plane: &SharedPlane, agent: Option<&str>) -> Vec<ReplicaEntry> {
    let all = plane.guarded.with(|scheduler, _| scheduler.replicas(None));
    let wanted = |replica: &ReplicaEntry| {
        replica.info.kind == PoolKind::Agent && agent.is_none_or(|agent| replica.info.engine == agent)
    };
    all.into_iter().filter(wanted).collect()
}

/// Those of one agent; an error when there is none.
pub(crate) fn known(plane: &SharedPlane, agent: &str) -> Result<Vec<ReplicaEntry>, ApiError> {
    let found = replicas(plane, Some(agent));
    if found.is_empty() {
        let message = format!("no pool is for the agent {agent:?}; GET /v2/agents tells which there are");
        return Err(ApiError::new(ErrorCode::NotFound, message).with_param("agent"));
    }
    Ok(found)
}

pub(crate) fn is_ready(replica: &ReplicaEntry) -> bool {
    replica.state == ReplicaState::Ready && !replica.taken_out
}

/// Finds homes.
pub(crate) struct Homes<'p> {
    plane: &'p SharedPlane,
}

impl<'p> Homes<'p> {
    pub(crate) fn of(plane: &'p SharedPlane) -> Self {
        Self { plane }
    }

    /// The node of an owner's login, which is where the owner's tasks go from now on.
    pub(crate) async fn find(&self, agent: &str, owner: &str) -> Result<Home, ApiError> {
        let mut ready = known(self.plane, agent)?;
        ready.retain(is_ready);
        if ready.is_empty() {
            let message = format!("no pool of {agent} is ready; GET /v2/pools tells why");
            return Err(
                ApiError::new(ErrorCode::PoolUnready, message).with_retry_after_ms(RETRY_AFTER_DEFAULT_MS)
            );
        }
        if let [only] = &ready[..] {
            return Ok(Home {
                info: only.info.clone(),
                status: None,
            });
        }
        let hash = owner_hash(self.plane, owner, agent);
        let warm = self
            .plane
            .guarded
            .with(|scheduler, _| scheduler.warm_replicas(hash));
        let remembered = warm
            .iter()
            .find_map(|key| ready.iter().find(|replica| replica.key == *key));
        if let Some(known) = remembered {
            return Ok(Home {
                info: known.info.clone(),
                status: None,
            });
        }
        let asked = ready.iter().map(|replica| self.ask(&replica.info, owner));
        let said = futures_util::future::join_all(asked).await;
        let has_login =
            |status: &Option<LoginStatus>| status.as_ref().is_some_and(|status| status.version.is_some());
        let at = said
            .iter()
            .position(has_login)
            .unwrap_or_else(|| by_name(&ready, owner));
        let replica = &ready[at];
        self.plane
            .guarded
            .with(|scheduler, _| scheduler.note_warm(hash, replica.key));
        Ok(Home {
            info: replica.info.clone(),
            status: said.into_iter().nth(at).flatten(),
        })
    }

    async fn ask(&self, info: &Arc<ReplicaInfo>, owner: &str) -> Option<LoginStatus> {
        let link = AgentLink::to(self.plane, info).ok()?;
        let said = tokio::time::timeout(ASK_TIMEOUT, link.status(owner)).await;
        // A node that cannot say has nothing to say.
        said.ok()?.ok()
    }
}

/// The replica whose node's name goes best with the owner's: the same one on every control plane, as long as it is there
/// (rendezvous hashing).
fn by_name(ready: &[ReplicaEntry], owner: &str) -> usize {
    let weight = |replica: &ReplicaEntry| fnv(&format!("{owner}\n{}", replica.info.node_id));
    let best = (0..ready.len()).max_by_key(|at| weight(&ready[*at]));
    best.unwrap_or(0)
}

/// FNV-1a: the same in every process, and nobody gains by choosing a name.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// What a node's refusal means to a client.
pub(crate) fn of_node(refused: Refused) -> ApiError {
    match refused {
        Refused::Final(error) => error,
        Refused::Slot => ApiError::new(ErrorCode::ReplicaExhausted, "the node has no room for this now")
            .with_retry_after_ms(RETRY_AFTER_DEFAULT_MS),
        Refused::Out(why) => {
            ApiError::new(ErrorCode::PoolUnready, why).with_retry_after_ms(RETRY_AFTER_DEFAULT_MS)
        }
        Refused::NoAnswer(why) => {
            ApiError::new(ErrorCode::WorkerReset, "the node gave no answer").with_internal(why)
        }
    }
}
