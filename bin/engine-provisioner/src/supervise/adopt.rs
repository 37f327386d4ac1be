//! While another provisioner keeps the replica: watching what is there instead of doing anything.

use std::time::Duration;

use pool_registry_types::Handoff;
use process::Identity;
use tokio_util::sync::CancellationToken;

use super::{Claim, Supervision};
use crate::launch::{Keeper, read_bounded};
use crate::probe;
use crate::settings::state_dir;
use crate::status::Phase;

/// How often the lock and the engine are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// An engine that answered is asked again each so many looks.
const LOOKS_PER_PROBE: u64 = 10;

/// How long an engine may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the replica is ours, and clears away what its last keeper left. Answers false when stopped before.
pub(super) async fn wait_for_claim(supervision: &mut Supervision, stop: &CancellationToken) -> bool {
    for look in 0_u64.. {
        match supervision.claim() {
            Ok(Claim::Ours) => {
                supervision.status.send_modify(|status| {
                    status.adopted = false;
                    status.phase = Phase::Fetching;
                    status.url = None;
                    status.pid = None;
                });
                clear_away(supervision).await;
                return true;
            }
            Ok(Claim::Taken(keeper)) => watch(supervision, keeper, look % LOOKS_PER_PROBE == 0).await,
            Err(error) => supervision.status.send_modify(|status| {
                status.phase = Phase::BackingOff;
                status.last_error = Some(daemon::exit::chain(&error));
            }),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    false
}

/// Publishes the state of the engine that somebody else keeps. One that answered is asked again only when it is `due`.
async fn watch(supervision: &Supervision, keeper: Option<Keeper>, due: bool) {
    let other_spec = keeper
        .as_ref()
        .filter(|keeper| keeper.spec_hash != supervision.spec_hash);
    let settled = supervision.status.borrow().phase == Phase::Ready && supervision.status.borrow().adopted;
    if settled && other_spec.is_none() && !due {
        return;
    }
    let found = match other_spec {
        Some(other) => Err(format!(
            "this replica is kept by process {} with other settings; end that one first",
            other.identity.pid
        )),
        None => look(supervision).await,
    };
    supervision.status.send_if_modified(|status| {
        let before = status.clone();
        status.adopted = true;
        match found {
            Ok(handoff) => {
                status.phase = Phase::Ready;
                status.last_error = None;
                status.url = Some(handoff.url);
                status.pid = handoff.pid;
                status.engine_version = handoff.engine_version;
            }
            Err(error) => {
                status.phase = Phase::Starting;
                status.last_error = Some(error);
                status.url = None;
                status.pid = None;
            }
        }
        *status != before
    });
}

async fn look(supervision: &Supervision) -> Result<Handoff, String> {
    let handoff =
        read_handoff(supervision).ok_or("another provisioner has the engine and it does not answer yet")?;
    if handoff.spec_hash.as_ref() != Some(&supervision.spec_hash) {
        return Err("the handoff that is there is of an engine with other settings".to_owned());
    }
    if !identity(&handoff).is_some_and(|identity| identity.is_alive()) {
        return Err("the engine of the handoff that is there has ended".to_owned());
    }
    let port = handoff
        .url
        .rsplit(':')
        .next()
        .and_then(|port| port.trim_end_matches('/').parse().ok());
    let port = port.ok_or_else(|| format!("the handoff's address {:?} has no port", handoff.url))?;
    probe::probe(port, &supervision.recipe.probe, PROBE_TIMEOUT)
        .await
        .map_err(|error| error.to_string())?;
    Ok(handoff)
}

/// Ends an engine whose keeper is gone, and removes its handoff.
///
/// On Linux the kernel has killed it with its keeper already; this is for systems where it does not.
async fn clear_away(supervision: &Supervision) {
    remove_temporary_files(supervision);
    let Some(handoff) = read_handoff(supervision) else {
        return;
    };
    if let Some(identity) = identity(&handoff)
        && handoff.supervisor_pid.is_some()
        && identity.is_alive()
    {
        tracing::warn!(
            pid = identity.pid,
            "ending an engine that outlived its provisioner"
        );
        let grace = supervision.policy.stop_timeout;
        let ended = tokio::task::spawn_blocking(move || process::terminate(&identity, grace)).await;
        if let Ok(Err(error)) = ended {
            tracing::error!(error = %error, "cannot end it");
        }
    }
    let spec = &supervision.spec;
    if let Err(error) =
        handoff_watcher::remove(&supervision.settings.handoff_dir, &spec.pool_id, &spec.replica_id)
    {
        tracing::error!(error = %daemon::exit::chain(&error), "an old handoff stays");
    }
}

/// Removes what provisioners that were killed in the middle of writing left: those of this replica at once, because
/// nobody else writes for it now, and those of others that are old: nobody writes for as long as a minute.
fn remove_temporary_files(supervision: &Supervision) {
    let (handoff_dir, spec) = (&supervision.settings.handoff_dir, &supervision.spec);
    handoff_watcher::remove_halves(handoff_dir, &spec.pool_id, &spec.replica_id);
    let ours = format!(".{}_{}.", spec.pool_id, spec.replica_id);
    for directory in [handoff_dir.clone(), state_dir(handoff_dir)] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let temporary = name.as_encoded_bytes().starts_with(b".");
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|modified| modified.elapsed().ok());
            let old = age.is_some_and(|age| age > Duration::from_secs(60));
            if temporary && (old || name.as_encoded_bytes().starts_with(ours.as_bytes())) {
                // Another provisioner may have been faster.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn read_handoff(supervision: &Supervision) -> Option<Handoff> {
    let spec = &supervision.spec;
    let name = Handoff::file_name(&spec.pool_id, &spec.replica_id);
    serde_json::from_slice(&read_bounded(&supervision.settings.handoff_dir.join(name)).ok()?).ok()
}

fn identity(handoff: &Handoff) -> Option<Identity> {
    Some(Identity {
        pid: handoff.pid?,
        start_time_ticks: handoff.start_time_ticks?,
        boot_id: handoff.boot_id.clone()?,
    })
}
