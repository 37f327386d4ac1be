//! The door's part for agent pools.

use bytes::Bytes;
use futures_util::Stream;
use pool_registry_types::{
    AgentLogin, AgentRun, ControlPlaneId, LoginInput, LoginStatus, PoolId, ReplicaId, WorkspaceMade,
    WorkspaceView,
};

use super::{Door, DoorError};
use crate::agents::{AgentEvents, LoginEvents, WorkspaceContent};

impl Door {
    /// Grants a slot of the agent pool or refuses, then runs the agent in its owner's sandbox.
    ///
    /// `holder` is who the slot is counted for. When this returns, the run has its sandbox; a refusal has begun nothing,
    /// and the run may be placed elsewhere. The slot is held until the last event, or until a dropped stream's run has
    /// been interrupted. Cancel safe: dropping the future is the same as dropping the stream.
    pub async fn run_agent(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        run: AgentRun,
    ) -> Result<AgentEvents, DoorError> {
        match self.agents() {
            Some(agents) => agents.run(pool, holder, run).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Begins a login of an owner in the owner's sandbox. It needs a slot, too.
    pub async fn begin_login(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        login: AgentLogin,
    ) -> Result<LoginEvents, DoorError> {
        match self.agents() {
            Some(agents) => agents.begin_login(pool, holder, login).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Gives a login what the person has entered.
    pub async fn login_input(
        &self,
        pool: &PoolId,
        login_id: &str,
        input: LoginInput,
    ) -> Result<(), DoorError> {
        match self.agents() {
            Some(agents) => agents.login_input(pool, login_id, input),
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Asks the agent whether an owner is logged in.
    pub async fn login_status(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        owner: &str,
    ) -> Result<LoginStatus, DoorError> {
        match self.agents() {
            Some(agents) => agents.login_status(pool, holder, owner).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Takes a directory in, as a tar archive in pieces, for the owner's runs to work in.
    ///
    /// Cancel safe: what was not whole is not there.
    pub async fn upload_workspace(
        &self,
        pool: &PoolId,
        owner: &str,
        pieces: impl Stream<Item = Result<Bytes, String>> + Send + Unpin,
    ) -> Result<WorkspaceMade, DoorError> {
        match self.agents() {
            Some(agents) => agents.upload_workspace(pool, owner, pieces).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Removes a workspace of the owner's.
    pub async fn remove_workspace(&self, pool: &PoolId, owner: &str, id: &str) -> Result<(), DoorError> {
        match self.agents() {
            Some(agents) => agents.remove_workspace(pool, owner, id).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// What an owner's task has made of its workspace.
    pub async fn task_workspace(
        &self,
        pool: &PoolId,
        owner: &str,
        task: &str,
        view: WorkspaceView,
    ) -> Result<WorkspaceContent, DoorError> {
        match self.agents() {
            Some(agents) => agents.task_workspace(pool, owner, task, view).await,
            None => Err(no_agent_pool(pool)),
        }
    }

    /// Removes an owner's login; a sandbox that has it ends.
    pub async fn remove_login(&self, pool: &PoolId, owner: &str) -> Result<(), DoorError> {
        match self.agents() {
            Some(agents) => agents.remove_login(pool, owner).await,
            None => Err(no_agent_pool(pool)),
        }
    }
}

fn no_agent_pool(pool: &PoolId) -> DoorError {
    DoorError::UnknownReplica {
        pool_id: pool.clone(),
        replica_id: agent_replica(),
    }
}

/// The one replica that an agent pool reports.
pub(crate) fn agent_replica() -> ReplicaId {
    ReplicaId::new("sandboxes").expect("it is an identifier")
}
