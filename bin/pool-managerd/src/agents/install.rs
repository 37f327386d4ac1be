//! Installing a pool's CLI by npm, before its first sandbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agents::install::{self, Progress};
use warm_pool::Event;

use super::config::AgentsConfig;
use super::keeper::{Keeper, Message};
use super::parts::PoolParts;
use crate::door::chain;
use crate::replica::Changed;

/// The first pause after an installation that failed, and the longest.
const INSTALL_RETRY_FIRST: Duration = Duration::from_secs(2);
const INSTALL_RETRY_MAX: Duration = Duration::from_secs(60);

/// Whether the CLI is installed; then the pool knows where, and takes runs.
pub(super) fn is_installed(pool: &PoolParts, config: &AgentsConfig) -> bool {
    match install::installed(&pool.profile, &config.installed) {
        Some(place) => {
            // It is set here only, before anybody else knows the pool.
            let _ = pool.installed.set(place);
            pool.open();
            true
        }
        None => false,
    }
}

/// Installs the pool's CLI unless it is there; then sandboxes may be started.
pub(super) async fn keep_installed(
    pool: Arc<PoolParts>,
    directory: PathBuf,
    keeper: Keeper,
    changed: Arc<Changed>,
) {
    let mut pause = INSTALL_RETRY_FIRST;
    while pool.installed.get().is_none() {
        let (installing, directory) = (pool.clone(), directory.clone());
        let installed = tokio::task::spawn_blocking(move || {
            let agent = installing.agent.as_str();
            let mut progress = |progress| log_progress(agent, progress);
            install::install(&installing.profile, &directory, &mut progress)
        });
        match installed.await {
            Ok(Ok(place)) => {
                tracing::info!(agent = pool.agent.as_str(), place = %place.display(), "the agent is installed");
                // Nobody else sets it.
                let _ = pool.installed.set(place);
                pool.open();
                keeper.tell(Message::Event(Event::TargetChanged {
                    pool: pool.key,
                    target: pool.warm,
                }));
            }
            Ok(Err(error)) => {
                let problem = format!("{} is not installed: {}", pool.agent.as_str(), chain(&error));
                tracing::error!(
                    agent = pool.agent.as_str(),
                    error = problem,
                    "an agent cannot be installed; tried again"
                );
                pool.set_problem(Some(problem));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(INSTALL_RETRY_MAX);
            }
            // The runtime ends.
            Err(_) => return,
        }
        changed.set();
    }
}

fn log_progress(agent: &str, progress: Progress) {
    match progress {
        Progress::Waiting => tracing::info!(agent, "another process installs the agent; waiting for it"),
        Progress::Started { packages } => tracing::info!(agent, packages, "installing the agent by npm"),
        Progress::Fetched { packages } => tracing::info!(agent, packages, "fetched"),
    }
}
