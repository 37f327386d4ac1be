//! What a pool's sandboxes need before the first one: its CLI installed by npm, or its image in the driver.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agents::install::{self, Progress};

use super::config::AgentsConfig;
use super::parts::PoolParts;
use crate::door::chain;
use crate::replica::Changed;

/// The first pause after an attempt that failed, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Whether the CLI is known to be installed; then the pool takes runs. Whether an image is there takes longer to know.
pub(super) fn is_installed(pool: &PoolParts, config: &AgentsConfig) -> bool {
    if pool.image.is_some() {
        return false;
    }
    let Some(place) = install::installed(&pool.profile, &config.installed) else {
        return false;
    };
    // It is set here only, before anybody else knows the pool.
    let _ = pool.installed.set(Some(place));
    pool.open();
    true
}

/// Comes back when sandboxes of the pool can be made; tries until then, and says why it is not done.
pub(super) async fn prepare(pool: &Arc<PoolParts>, directory: PathBuf, changed: Arc<Changed>) {
    let mut pause = RETRY_FIRST;
    while pool.installed.get().is_none() {
        let prepared = match &pool.image {
            Some(image) => pool
                .driver
                .check(Some(image))
                .await
                .map(|()| None)
                .map_err(|error| format!("{} has no sandboxes: {}", pool.agent.as_str(), chain(&error))),
            None => install_cli(pool.clone(), directory.clone()).await.map(Some),
        };
        match prepared {
            // Nobody else sets it.
            Ok(place) => drop(pool.installed.set(place)),
            Err(problem) => {
                tracing::error!(
                    agent = pool.agent.as_str(),
                    error = problem,
                    "an agent cannot be prepared; tried again"
                );
                pool.set_problem(Some(problem));
                changed.set();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
    pool.open();
    changed.set();
}

async fn install_cli(pool: Arc<PoolParts>, directory: PathBuf) -> Result<PathBuf, String> {
    let installing = tokio::task::spawn_blocking(move || {
        let agent = pool.agent.as_str();
        let mut progress = |progress| log_progress(agent, progress);
        let place = install::install(&pool.profile, &directory, &mut progress);
        let place = place.map_err(|error| format!("{agent} is not installed: {}", chain(&error)))?;
        tracing::info!(agent, place = %place.display(), "the agent is installed");
        Ok(place)
    });
    installing
        .await
        .unwrap_or_else(|_| Err("the node ends".to_owned()))
}

fn log_progress(agent: &str, progress: Progress) {
    match progress {
        Progress::Waiting => tracing::info!(agent, "another process installs the agent; waiting for it"),
        Progress::Started { packages } => tracing::info!(agent, packages, "installing the agent by npm"),
        Progress::Fetched { packages } => tracing::info!(agent, packages, "fetched"),
    }
}
