//! `engine-provisioner run`: the parent of one engine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::config::{self, Sources};
use daemon::exit::Ended;
use daemon::shutdown::Shutdown;
use daemon::telemetry::TelemetrySettings;
use tokio::sync::watch;

use crate::launch::{Files, read_bounded, write_whole};
use crate::life::Policy;
use crate::spec::EngineSpec;
use crate::status::EngineStatus;
use crate::supervise::{Claim, Supervision, supervise};

/// The state file is written at most so often.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);

/// How long after the request to stop everything must have ended, beyond the engine's own time.
const STOP_MARGIN: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    common: crate::Settings,

    #[command(flatten)]
    telemetry: TelemetrySettings,

    /// File with the engine's spec, as JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,

    /// Lock file that the node daemon holds while it lives; without one the engine is kept until told to end
    #[arg(long, value_name = "FILE")]
    daemon_lock: Option<PathBuf>,

    /// How long after the last holder of that lock the engine is ended
    #[arg(long, value_name = "MS", default_value = "45000", value_parser = config::milliseconds)]
    daemon_gone_after_ms: Duration,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "engine-provisioner";
    const ABOUT: &'static str = "Keep the engine of a spec file until told to end";
    const PREFIXES: &'static [&'static str] = &["ENGINE_PROVISIONER_"];
}

pub(super) fn run(sources: &Sources) -> anyhow::Result<()> {
    let settings = config::load::<Settings>(sources)?.settings;
    let telemetry = daemon::telemetry::init("engine-provisioner", &settings.telemetry)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let result = runtime.block_on(keep(settings));
    // The engine has ended; a download's or a build's thread that still sleeps is not waited for.
    runtime.shutdown_background();
    telemetry.shutdown(Duration::from_secs(1));
    result
}

async fn keep(settings: Settings) -> anyhow::Result<()> {
    let spec = read_spec(&settings.spec)?;
    let files = Files::of(&settings.common.handoff_dir, &spec.pool_id, &spec.replica_id);
    let (mut supervision, status) = Supervision::new(spec, settings.common)?;
    if let Claim::Taken(keeper) = supervision.claim()? {
        let hash = supervision.spec_hash();
        return match keeper {
            // Asking for what already holds succeeds.
            Some(keeper) if keeper.spec_hash == hash => {
                tracing::info!(pid = keeper.identity.pid, "this engine is being kept already");
                Ok(())
            }
            Some(keeper) => Err(refused(format!(
                "the engine of pool {}, replica {}, is kept by process {} with other settings; end that one first",
                keeper.pool_id, keeper.replica_id, keeper.identity.pid
            ))),
            None => Err(refused(
                "another process has just begun to keep this engine".to_owned(),
            )),
        };
    }
    let shutdown = Shutdown::new();
    shutdown.listen_to_signals().context("cannot listen to signals")?;
    if let Some(lock) = settings.daemon_lock {
        tokio::spawn(watch_daemon(
            lock,
            settings.daemon_gone_after_ms,
            shutdown.clone(),
        ));
    }
    let writer = tokio::spawn(write_status(files.status, status));
    let stop_timeout = Policy::of(supervision.recipe()).stop_timeout;
    let stop = shutdown.stop_token();
    let too_late = async {
        shutdown.stopped().await;
        tokio::select! {
            () = shutdown.aborted() => {}
            () = tokio::time::sleep(stop_timeout + STOP_MARGIN) => {}
        }
    };
    tokio::select! {
        () = supervise(supervision, stop) => {}
        // Dropping the supervision kills the engine.
        () = too_late => tracing::warn!("the engine did not end in time and is killed"),
    }
    // The last state is written once its sender is gone.
    let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    Ok(())
}

fn refused(text: String) -> anyhow::Error {
    Ended {
        code: daemon::exit::FAILURE,
        text,
    }
    .into()
}

fn read_spec(path: &Path) -> anyhow::Result<EngineSpec> {
    let bytes = read_bounded(path).with_context(|| format!("cannot read the spec {}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let text = format!("{}:{}: {error}", path.display(), error.line());
        Ended {
            code: daemon::exit::USAGE,
            text,
        }
        .into()
    })
}

/// Begins the shutdown once nobody has held the daemon's lock for `gone_after`.
async fn watch_daemon(lock: PathBuf, gone_after: Duration, shutdown: Shutdown) {
    // Monotonic, so a jump of the clock ends no engine. A suspended machine does not count its sleep either.
    let mut last_held = Instant::now();
    let interval = (gone_after / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        match process::is_held(&lock) {
            Ok(true) => last_held = Instant::now(),
            Ok(false) => {}
            Err(error) => {
                // What cannot be seen is not known to be gone.
                tracing::warn!(lock = %lock.display(), %error, "cannot look at the node daemon's lock");
                last_held = Instant::now();
            }
        }
        if last_held.elapsed() >= gone_after {
            tracing::warn!(
                seconds = gone_after.as_secs(),
                "the node daemon is gone: ending the engine"
            );
            shutdown.stop();
            return;
        }
        tokio::time::sleep(interval).await;
    }
}

async fn write_status(path: PathBuf, mut status: watch::Receiver<EngineStatus>) {
    loop {
        let json =
            serde_json::to_vec(&*status.borrow_and_update()).expect("a status is made of texts and numbers");
        if let Err(error) = write_whole(&path, &json) {
            tracing::debug!(path = %path.display(), %error, "cannot write the state");
        }
        if status.changed().await.is_err() {
            return;
        }
        if status.borrow().progress.is_some() {
            tokio::time::sleep(STATUS_INTERVAL).await;
        }
    }
}
