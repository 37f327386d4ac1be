//! Keeping one engine: does what the [`Life`] of the engine says, and tells it what happens.
//!
//! ```text
//!  fetch task ─┐                         ┌─▶ fetch task
//!  prober ─────┤                         ├─▶ process (start, end)
//!  process ────┼─▶ events ─▶ Life::step ─┼─▶ handoff (write, remove)
//!  clock ──────┤                         └─▶ status
//!  stop ───────┘
//! ```
//! One replica is kept by one provisioner: the replica's lock file says by whom. Who finds it taken watches the engine
//! that is there, and takes over when its keeper is gone.

mod adopt;
mod run;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pool_registry_types::{PoolId, ReplicaId};
use process::{Identity, LockFile};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::launch::{Files, Keeper};
use crate::life::Policy;
use crate::recipe::{Recipe, RecipeError};
use crate::settings::Settings;
use crate::spec::{EngineSpec, SpecError, check_device_mask};
use crate::status::{EngineStatus, Phase};

/// How long, and how often, a lock is tried whose holder is not known.
const CLAIM_ATTEMPTS: usize = 20;
const CLAIM_INTERVAL: Duration = Duration::from_millis(10);

/// Why an engine cannot be kept at all. What only goes wrong on the way shows in the status.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// There is no such recipe, or it is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The spec asks for what cannot be.
    #[error("the engine of pool {pool_id}, replica {replica_id}, cannot be as asked")]
    Spec {
        /// Which pool.
        pool_id: PoolId,
        /// Which replica.
        replica_id: ReplicaId,
        /// Why.
        source: SpecError,
    },
    /// There is no thread or no runtime to be had.
    #[error("cannot start a thread for the engine")]
    Thread(#[source] io::Error),
    /// The replica's lock file cannot be used.
    #[error("cannot use the lock file {}", path.display())]
    Lock {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One engine that is to be kept, checked and not yet begun.
#[derive(Debug)]
pub struct Supervision {
    pub(crate) spec: EngineSpec,
    pub(crate) spec_hash: String,
    pub(crate) settings: Settings,
    pub(crate) recipe: Recipe,
    pub(crate) policy: Policy,
    pub(crate) files: Files,
    pub(crate) status: watch::Sender<EngineStatus>,
    /// Held once this is the provisioner that keeps the replica.
    lock: Option<LockFile>,
}

impl Supervision {
    /// Checks `spec` against its recipe. The status begins with [`Phase::Fetching`].
    pub fn new(
        spec: EngineSpec,
        settings: Settings,
    ) -> Result<(Self, watch::Receiver<EngineStatus>), SuperviseError> {
        let recipe = Recipe::load(&spec.recipe, settings.recipes_dir.as_deref())?;
        spec.check(&recipe)
            .and_then(|()| check_device_mask(&settings.gpu_mask))
            .map_err(|source| SuperviseError::Spec {
                pool_id: spec.pool_id.clone(),
                replica_id: spec.replica_id.clone(),
                source,
            })?;
        let spec_hash = spec.hash();
        let status = EngineStatus::new(spec.pool_id.clone(), spec.replica_id.clone(), spec_hash.clone());
        let (sender, receiver) = watch::channel(status);
        let files = Files::of(&settings.handoff_dir, &spec.pool_id, &spec.replica_id);
        let policy = Policy::of(&recipe);
        Ok((
            Self {
                spec,
                spec_hash,
                settings,
                recipe,
                policy,
                files,
                status: sender,
                lock: None,
            },
            receiver,
        ))
    }

    /// Replaces how patient it is.
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Which spec it is.
    pub fn spec_hash(&self) -> String {
        self.spec_hash.clone()
    }

    /// The recipe of its engine.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Becomes the provisioner that keeps this replica, unless another one is: then answers who, as far as known.
    pub fn claim(&mut self) -> Result<Claim, SuperviseError> {
        if self.lock.is_some() {
            return Ok(Claim::Ours);
        }
        let mut lock = match self.take_lock().map_err(|source| SuperviseError::Lock {
            path: self.files.lock.clone(),
            source,
        })? {
            Ok(lock) => lock,
            Err(keeper) => return Ok(Claim::Taken(keeper)),
        };
        let keeper = Keeper {
            pool_id: self.spec.pool_id.clone(),
            replica_id: self.spec.replica_id.clone(),
            spec_hash: self.spec_hash.clone(),
            identity: Identity::own(),
        };
        let note = serde_json::to_string(&keeper).expect("a keeper is made of texts and numbers");
        lock.set_note(&note).map_err(|source| SuperviseError::Lock {
            path: self.files.lock.clone(),
            source,
        })?;
        self.lock = Some(lock);
        Ok(Claim::Ours)
    }

    /// The lock, or who has it. Whoever only looks whether it is held has it for a moment: that is waited for.
    fn take_lock(&self) -> io::Result<Result<LockFile, Option<Keeper>>> {
        for _ in 0..CLAIM_ATTEMPTS {
            if let Some(lock) = LockFile::try_acquire(&self.files.lock)? {
                return Ok(Ok(lock));
            }
            let keeper: Option<Keeper> = serde_json::from_str(&LockFile::note(&self.files.lock)?).ok();
            if let Some(keeper) = keeper.filter(Keeper::is_alive) {
                return Ok(Err(Some(keeper)));
            }
            std::thread::sleep(CLAIM_INTERVAL);
        }
        Ok(Err(None))
    }
}

impl Drop for Supervision {
    fn drop(&mut self) {
        if let Some(lock) = &mut self.lock {
            // This process may live on, and the note would then name it as the keeper of what it keeps no more.
            let _ = lock.set_note("");
        }
    }
}

/// Who keeps a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This provisioner does now.
    Ours,
    /// Another one does. None: it has not said yet who it is.
    Taken(Option<Keeper>),
}

/// Keeps the engine until `stop` is cancelled and the engine has ended; then the status says [`Phase::Stopped`].
///
/// While another provisioner keeps the replica, the engine is only watched. Not safe to cancel: dropping the future
/// kills the engine and leaves its handoff behind.
pub async fn supervise(mut supervision: Supervision, stop: CancellationToken) {
    let ours = adopt::wait_for_claim(&mut supervision, &stop).await;
    if ours {
        run::run(&supervision, &stop).await;
    }
    supervision.status.send_modify(|status| {
        status.phase = Phase::Stopped;
        status.progress = None;
        status.url = None;
        status.pid = None;
    });
}
