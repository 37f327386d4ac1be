//! An engine kept by a thread of this process: how `remuda up` does it. The engine dies with the process.

use std::thread;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;
use crate::spec::EngineSpec;
use crate::status::{EngineStatus, Phase};
use crate::supervise::{SuperviseError, Supervision, supervise};

/// An engine that a thread of this process keeps.
///
/// Dropping it asks the engine to end and does not wait; whoever wants to know that it has ended awaits
/// [`InProcess::stopped`]. If the process ends before that, the kernel kills the engine.
#[derive(Debug)]
pub struct InProcess {
    status: watch::Receiver<EngineStatus>,
    stop: CancellationToken,
}

impl InProcess {
    /// Begins to keep the engine of `spec`. Only what is wrong with the spec or the recipe is an error here; everything
    /// else shows in the status and is tried again.
    pub fn start(spec: EngineSpec, settings: Settings) -> Result<Self, SuperviseError> {
        let (supervision, status) = Supervision::new(spec, settings)?;
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SuperviseError::Thread)?;
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || runtime.block_on(supervise(supervision, stopping)))
            .map_err(SuperviseError::Thread)?;
        Ok(Self { status, stop })
    }

    /// The engine's state, as it changes.
    pub fn status(&self) -> watch::Receiver<EngineStatus> {
        self.status.clone()
    }

    /// Asks the engine to end. It is not started again.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the engine has ended for good. Safe to cancel.
    pub async fn stopped(&self) -> EngineStatus {
        let mut status = self.status.clone();
        // The sender goes away only with the thread, and then the engine has ended as well.
        let _ = status.wait_for(|status| status.phase == Phase::Stopped).await;
        status.borrow().clone()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
