//! What the task has done beside it: starting, checking, taking back, ending.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox::{CreateRequest, Driver, DriverError, Found, RendezvousError, Returned, Sandbox, SandboxError};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use warm_pool::{Event, PoolKey, SandboxId};

use super::{Keeper, Message, Task};
use crate::agents::home::{HomeTrouble, salvage};
use crate::agents::label::Label;
use crate::agents::live::Live;
use crate::agents::parts::{NodeParts, PoolParts};
use crate::agents::workspaces;

/// How long an init may take to connect.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the sandboxes of a former life are waited for. An init tries at least twice a second.
const RETURN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a sandbox that lost its connection is waited for, when its owner's home is still in it.
const BACK_TIMEOUT: Duration = Duration::from_secs(5);
const LIST_RETRY: Duration = Duration::from_secs(2);
/// How long new sandboxes wait for a driver that cannot say which there are.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// Sandboxes that have come back by themselves and that nobody has taken yet.
#[derive(Clone, Default)]
pub(in crate::agents) struct Returning {
    inner: Arc<(Mutex<HashMap<SandboxId, Sandbox>>, Notify)>,
}

impl Returning {
    /// Takes them in as they come.
    pub(in crate::agents) async fn follow(self, mut returned: Returned) {
        while let Some(sandbox) = returned.next().await {
            if let Some(number) = number_of(sandbox.id()) {
                self.map().insert(number, sandbox);
                self.inner.1.notify_waiters();
            }
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Sandbox>> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self, sandbox: SandboxId, timeout: Duration) -> Option<Sandbox> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let notified = self.inner.1.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if let Some(found) = self.map().remove(&sandbox) {
                return Some(found);
            }
            tokio::time::timeout_at(deadline, notified).await.ok()?;
        }
    }
}

/// The name of a sandbox, for its driver.
pub(in crate::agents) fn name_of(number: SandboxId) -> sandbox::SandboxId {
    format!("a{:x}", number.0)
        .parse()
        .expect("a letter and hexadecimal digits are a name")
}

/// The number of a sandbox that this node has made.
fn number_of(name: &sandbox::SandboxId) -> Option<SandboxId> {
    let digits = name.as_str().strip_prefix('a')?;
    u64::from_str_radix(digits, 16).ok().map(SandboxId)
}

/// Finds what a former life of this node has left, and tells of it. A driver that does not answer keeps the others
/// waiting for a while only.
pub(in crate::agents) async fn adopt(node: Arc<NodeParts>, keeper: Keeper, returned: Returning) {
    let doors = node.rendezvous.doors();
    let mut lists = JoinSet::new();
    for driver in node.drivers.all() {
        lists.spawn(list(driver.clone()));
    }
    let patience = tokio::time::sleep(LIST_PATIENCE);
    let mut patience = std::pin::pin!(patience);
    let mut is_told = false;
    let mut known = Vec::new();
    loop {
        tokio::select! {
            listed = lists.join_next() => match listed {
                Some(Ok((driver, found))) => {
                    known.extend(found.iter().map(|one| one.id.clone()));
                    take_in(&node, &driver, found, &keeper, &returned).await;
                }
                // It has panicked, which the runtime has reported.
                Some(Err(_)) => {}
                None => break,
            },
            () = &mut patience, if !is_told => {
                is_told = true;
                keeper.tell(Message::Event(Event::AdoptionDone));
            }
        }
    }
    for door in doors.iter().filter(|door| !known.contains(door)) {
        node.rendezvous.forget(door);
    }
    if !is_told {
        keeper.tell(Message::Event(Event::AdoptionDone));
    }
}

async fn list(driver: Arc<dyn Driver>) -> (Arc<dyn Driver>, Vec<Found>) {
    loop {
        match driver.list().await {
            Ok(found) => return (driver, found),
            Err(error) => {
                tracing::error!(
                    driver = driver.name(),
                    error = daemon::exit::chain(&error),
                    "cannot see which sandboxes there are; tried again"
                );
                tokio::time::sleep(LIST_RETRY).await;
            }
        }
    }
}

async fn take_in(
    node: &NodeParts,
    driver: &Arc<dyn Driver>,
    found: Vec<Found>,
    keeper: &Keeper,
    returned: &Returning,
) {
    let deadline = Instant::now() + RETURN_TIMEOUT;
    for one in found {
        let Some(sandbox) = number_of(&one.id) else {
            if destroy_by(driver.as_ref(), &one.id).await {
                node.rendezvous.forget(&one.id);
            }
            continue;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let connected = returned.take(sandbox, left).await;
        let label = connected
            .as_ref()
            .and_then(Sandbox::label)
            .and_then(|label| Label::parse(&label));
        tracing::info!(
            sandbox = %one.id, owner = label.as_ref().and_then(|label| label.owner.as_deref()),
            connected = connected.is_some(), "found a sandbox of a former life of this node"
        );
        keeper.tell(Message::Found {
            sandbox,
            driver: driver.clone(),
            label,
            connected,
        });
    }
}

/// Why a sandbox did not come up.
#[derive(Debug, thiserror::Error)]
enum StartTrouble {
    #[error("its agent is not installed yet")]
    NotInstalled,
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Tells the keeper when the sandbox's connection has ended.
pub(super) fn tell_when_lost(live: &Arc<Live>, keeper: Keeper) {
    let (sandbox, number) = (Arc::downgrade(live), live.number);
    let connection = live.sandbox.clone();
    tokio::spawn(async move {
        connection.gone().await;
        drop(connection);
        if sandbox.upgrade().is_some() {
            keeper.tell(Message::Event(Event::Lost { sandbox: number }));
        }
    });
}

impl Task {
    pub(super) fn start(&mut self, sandbox: SandboxId, pool: PoolKey) {
        let Some(pool) = self.pools.iter().find(|known| known.key == pool).cloned() else {
            return;
        };
        self.drivers.insert(sandbox, pool.driver.clone());
        let (node, keeper) = (self.node.clone(), self.keeper.clone());
        if !self.waiting.contains_key(&sandbox) {
            pool.metrics.refills.inc();
        }
        tokio::spawn(async move {
            let begun = Instant::now();
            match start(&node, &pool, sandbox).await {
                Ok(connected) => {
                    pool.metrics.start_ms.note(begun.elapsed());
                    let live = Arc::new(Live::new(sandbox, pool, node, connected));
                    tell_when_lost(&live, keeper.clone());
                    keeper.tell(Message::Up(live));
                }
                Err(error) => {
                    let problem = daemon::exit::chain(&error);
                    tracing::error!(pool_id = %pool.id, error = problem, "a sandbox did not start");
                    pool.set_problem(Some(format!("a sandbox did not start: {problem}")));
                    keeper.tell(Message::Event(Event::StartFailed { sandbox }));
                }
            }
        });
    }

    pub(super) fn check(&self, sandbox: SandboxId, check: u64) {
        let (live, keeper) = (self.lives.get(&sandbox).cloned(), self.keeper.clone());
        tokio::spawn(async move {
            let health = match live {
                Some(live) => live.sandbox.health().await.ok(),
                None => None,
            };
            keeper.tell(Message::Event(match health {
                Some(health) => Event::Healthy {
                    sandbox,
                    check,
                    memory_bytes: health.memory_bytes,
                },
                None => Event::Unhealthy { sandbox, check },
            }));
        });
    }

    /// Ends a sandbox; with `take_back`, its owner's home comes first. One end at a time.
    pub(super) fn end(&mut self, sandbox: SandboxId, take_back: bool) {
        if !self.ending.insert(sandbox) {
            return;
        }
        let (node, keeper, returned) = (self.node.clone(), self.keeper.clone(), self.returned.clone());
        let live = self.lives.get(&sandbox).cloned();
        let found = self.found.get(&sandbox).cloned();
        // One that came up after it was given up is nobody's any more: whoever has made it, ends it.
        let drivers = match self.drivers.get(&sandbox) {
            Some(driver) => vec![driver.clone()],
            None => self.node.drivers.all().cloned().collect(),
        };
        let evidence = found.as_ref().and_then(|(label, _)| {
            let pool = self
                .pools
                .iter()
                .find(|pool| pool.agent.as_str() == label.agent)?;
            Some(pool.profile.login.evidence.clone())
        });
        tokio::spawn(async move {
            if let Some(live) = &live {
                live.lost.cancel();
            }
            let taken = match (&live, &found) {
                _ if !take_back => Ok(()),
                (Some(live), _) => take_back_from(&node, live, &returned).await,
                (None, Some((label, connected))) => {
                    take_back_found(
                        &node,
                        sandbox,
                        label,
                        connected.clone(),
                        evidence.as_deref(),
                        &returned,
                    )
                    .await
                }
                (None, None) => Ok(()),
            };
            let is_done = match taken {
                Ok(()) => destroy(&node, &drivers, sandbox, live.as_deref()).await,
                Err(error) => {
                    // It stays until its home is safe; the pool asks again.
                    tracing::error!(
                        sandbox = %name_of(sandbox), error = daemon::exit::chain(&error),
                        "the home of a sandbox that is to end could not be taken back; tried again"
                    );
                    false
                }
            };
            keeper.tell(Message::EndOf { sandbox, is_done });
        });
    }
}

async fn start(node: &NodeParts, pool: &PoolParts, number: SandboxId) -> Result<Sandbox, StartTrouble> {
    let installed = pool.installed.get().ok_or(StartTrouble::NotInstalled)?;
    let id = name_of(number);
    let expected = node.rendezvous.expect(&id)?;
    let request = CreateRequest {
        id,
        connect: expected.connect(),
        agent_directory: installed.clone(),
        image: pool.image.clone(),
        limits: pool.limits,
        environment: Vec::new(),
        init: node.init.clone(),
    };
    pool.driver.create(request).await?;
    let connected = expected.arrived(ARRIVE_TIMEOUT).await?;
    connected.set_label(&pool.label().text())?;
    Ok(connected)
}

/// Takes the home back from a sandbox of this life, also when its connection is lost and comes back.
async fn take_back_from(node: &NodeParts, live: &Live, returned: &Returning) -> Result<(), HomeTrouble> {
    if live.owned().is_none() {
        return Ok(());
    }
    let label = live.sandbox.label().and_then(|label| Label::parse(&label));
    if !live.sandbox.is_gone() {
        match live.give_back().await {
            Err(error) if live.sandbox.is_gone() => {
                tracing::warn!(sandbox = %live.sandbox.id(), error = daemon::exit::chain(&error), "a sandbox went away while its home was taken back");
            }
            given => return given,
        }
    }
    let Some(back) = returned.take(live.number, BACK_TIMEOUT).await else {
        // It is no more: what was not taken back before is lost with it.
        tracing::warn!(sandbox = %live.sandbox.id(), "a sandbox is gone, and what its home had new with it");
        return Ok(());
    };
    let Some(label) = label else { return Ok(()) };
    workspaces::salvage(&node.workspaces, &back, &label).await;
    let evidence = live.pool.profile.login.evidence.as_str();
    salvage(&node.homes, &back, &label, Some(evidence)).await?;
    live.pool.metrics.take_backs.inc();
    Ok(())
}

async fn take_back_found(
    node: &NodeParts,
    sandbox: SandboxId,
    label: &Label,
    connected: Option<Sandbox>,
    evidence: Option<&str>,
    returned: &Returning,
) -> Result<(), HomeTrouble> {
    let connected = match connected.filter(|connected| !connected.is_gone()) {
        Some(connected) => Some(connected),
        None => returned.take(sandbox, BACK_TIMEOUT).await,
    };
    let Some(connected) = connected else {
        return Ok(());
    };
    workspaces::salvage(&node.workspaces, &connected, label).await;
    if salvage(&node.homes, &connected, label, evidence).await? {
        tracing::info!(sandbox = %connected.id(), owner = label.owner, "took a home back from a sandbox that outlived its node");
    }
    Ok(())
}

/// Ends it and removes what is left of it. False: something is still there.
async fn destroy(
    node: &NodeParts,
    drivers: &[Arc<dyn Driver>],
    sandbox: SandboxId,
    live: Option<&Live>,
) -> bool {
    let name = name_of(sandbox);
    if let Some(live) = live {
        // The driver ends what does not end by itself.
        let _ = live.sandbox.end().await;
    }
    for driver in drivers {
        if !destroy_by(driver.as_ref(), &name).await {
            return false;
        }
    }
    node.rendezvous.forget(&name);
    true
}

async fn destroy_by(driver: &dyn Driver, name: &sandbox::SandboxId) -> bool {
    match driver.destroy(name).await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(
                sandbox = %name, driver = driver.name(), error = daemon::exit::chain(&error),
                "a sandbox cannot be ended; tried again"
            );
            false
        }
    }
}
