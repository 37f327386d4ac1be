//! Telling control planes at once when a pool comes or goes, instead of waiting to be asked.
//!
//! Every address has a short queue and a task of its own, so a dead one holds up nobody. What does not get through after
//! a few tries is dropped: the next heartbeat says the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::secret::Secret;
use node_registration::Reporter;
use pool_registry_types::{
    NodeId, PoolCallback, PoolCallbackEvent, PoolId, PoolReport, ReplicaId, ReplicaState,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use upstream::Origin;

/// The most addresses that may be registered.
pub(crate) const ADDRESSES_MAX: usize = 16;
const QUEUE_MAX: usize = 64;
const TRIES_MAX: u32 = 4;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Why an address was not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallbackError {
    /// The address is none.
    #[error("`url` is no address: {0}")]
    Url(#[from] upstream::OriginError),
    /// There are too many.
    #[error("{ADDRESSES_MAX} addresses are registered already")]
    Full,
}

/// Posts `pool-ready` and `pool-lost`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Callbacks {
    inner: Arc<Inner>,
}

struct Inner {
    node_id: NodeId,
    client: reqwest::Client,
    reporter: Reporter,
    token: Option<Secret>,
    /// Where the token may be sent: addresses that the operator has set.
    trusted: Vec<Origin>,
    addresses: Mutex<BTreeMap<String, mpsc::Sender<Arc<PoolCallback>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Callbacks {
    /// Nobody is told yet. `trusted` are the addresses to which `token` may be sent.
    pub(crate) fn new(
        node_id: NodeId,
        client: reqwest::Client,
        reporter: Reporter,
        token: Option<Secret>,
        trusted: Vec<Origin>,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let addresses = Mutex::new(BTreeMap::new());
        Self {
            inner: Arc::new(Inner {
                node_id,
                client,
                reporter,
                token,
                trusted,
                addresses,
                tasks,
                stop,
            }),
        }
    }

    /// Tells `url` from now on. Asking again changes nothing.
    pub(crate) fn register(&self, url: &str) -> Result<(), CallbackError> {
        let origin: Origin = url.parse()?;
        let mut addresses = self
            .inner
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if addresses.contains_key(url) {
            return Ok(());
        }
        if addresses.len() >= ADDRESSES_MAX {
            return Err(CallbackError::Full);
        }
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let trusted = self
            .inner
            .trusted
            .iter()
            .any(|known| known.authority() == origin.authority());
        let post = post_all(self.inner.clone(), url.to_owned(), trusted, queue);
        self.inner
            .tasks
            .spawn(self.inner.stop.clone().run_until_cancelled_owned(post));
        addresses.insert(url.to_owned(), sender);
        Ok(())
    }

    /// Follows the reports and tells of each replica that comes or goes, until the reports end or it is dropped.
    pub(crate) async fn follow(self, mut reports: watch::Receiver<Arc<Vec<PoolReport>>>) {
        let mut before = reports.borrow_and_update().clone();
        while reports.changed().await.is_ok() {
            let now = reports.borrow_and_update().clone();
            for (pool_id, event) in changes(&before, &now) {
                self.tell(&pool_id, event);
            }
            before = now;
        }
    }

    /// Ends; what is in the queues is dropped.
    pub(crate) async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn tell(&self, pool_id: &PoolId, event: PoolCallbackEvent) {
        let (sequence, report) = self.inner.reporter.next();
        let Some(pool) = report.pools.into_iter().find(|pool| pool.pool_id == *pool_id) else {
            return;
        };
        let callback = Arc::new(PoolCallback {
            node_id: self.inner.node_id.clone(),
            event,
            pool_id: pool_id.clone(),
            incarnation: self.inner.reporter.incarnation().to_owned(),
            sequence,
            pool,
        });
        let addresses = self
            .inner
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (url, queue) in &*addresses {
            if queue.try_send(callback.clone()).is_err() {
                tracing::warn!(url, pool_id = %pool_id, "too many callbacks wait for this address; one is dropped");
            }
        }
    }
}

async fn post_all(
    inner: Arc<Inner>,
    url: String,
    trusted: bool,
    mut queue: mpsc::Receiver<Arc<PoolCallback>>,
) {
    while let Some(callback) = queue.recv().await {
        let mut wait = RETRY_FIRST;
        for attempt in 1..=TRIES_MAX {
            match post(&inner, &url, trusted, &callback).await {
                Ok(()) => break,
                Err(error) if attempt == TRIES_MAX => {
                    tracing::warn!(url, pool_id = %callback.pool_id, error, "a callback did not get through");
                }
                Err(_) => {
                    tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    wait *= 2;
                }
            }
        }
    }
}

async fn post(inner: &Inner, url: &str, trusted: bool, callback: &PoolCallback) -> Result<(), String> {
    let mut request = inner.client.post(url).json(callback).timeout(REQUEST_TIMEOUT);
    if let Some(token) = inner.token.as_ref().filter(|_| trusted) {
        request = request.bearer_auth(token.expose());
    }
    let response = request
        .send()
        .await
        .map_err(|error| daemon::exit::chain(&error))?;
    let status = response.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// What came and what went between two reports, one event per pool and kind.
fn changes(before: &[PoolReport], now: &[PoolReport]) -> Vec<(PoolId, PoolCallbackEvent)> {
    let ready = |reports: &[PoolReport]| -> BTreeMap<PoolId, Vec<ReplicaId>> {
        let of = |pool: &PoolReport| {
            let ready = pool
                .replicas
                .iter()
                .filter(|replica| replica.state == ReplicaState::Ready);
            ready.map(|replica| replica.replica_id.clone()).collect()
        };
        reports
            .iter()
            .map(|pool| (pool.pool_id.clone(), of(pool)))
            .collect()
    };
    let (before, now) = (ready(before), ready(now));
    let mut events = Vec::new();
    for (pool, replicas) in &now {
        let known = before.get(pool).map(Vec::as_slice).unwrap_or_default();
        if known.iter().any(|id| !replicas.contains(id)) {
            events.push((pool.clone(), PoolCallbackEvent::PoolLost));
        }
        if replicas.iter().any(|id| !known.contains(id)) {
            events.push((pool.clone(), PoolCallbackEvent::PoolReady));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool_registry_types::{PoolKind, ReplicaReport};

    fn pool(ready: &[&str]) -> PoolReport {
        let replica = |id: &&str| ReplicaReport {
            replica_id: id.parse().unwrap(),
            state: ReplicaState::Ready,
            engine: String::new(),
            engine_version: String::new(),
            models: Vec::new(),
            dialects: Vec::new(),
            cancel_on_stream_only: false,
            slots_total: 1,
            slots_free: 1,
            leases: BTreeMap::new(),
            vram_free_bytes: 0,
            last_error: None,
        };
        PoolReport {
            pool_id: "p".parse().unwrap(),
            kind: PoolKind::Engine,
            ready: true,
            draining: false,
            slots_total: 0,
            slots_free: 0,
            vram_total_bytes: 0,
            vram_free_bytes: 0,
            last_error: None,
            replicas: ready.iter().map(replica).collect(),
        }
    }

    #[test]
    fn each_replica_that_comes_or_goes_is_an_event_of_its_pool() {
        let check = |before: &[&str], now: &[&str], expect: &[PoolCallbackEvent]| {
            let seen: Vec<_> = changes(&[pool(before)], &[pool(now)])
                .into_iter()
                .map(|(_, event)| event)
                .collect();
            assert_eq!(seen, expect, "{before:?} {now:?}");
        };
        check(&[], &[], &[]);
        check(&[], &["a"], &[PoolCallbackEvent::PoolReady]);
        check(&["a"], &["a", "b"], &[PoolCallbackEvent::PoolReady]);
        check(&["a", "b"], &["a"], &[PoolCallbackEvent::PoolLost]);
        check(
            &["a"],
            &["b"],
            &[PoolCallbackEvent::PoolLost, PoolCallbackEvent::PoolReady],
        );
        check(&["a", "b"], &["b", "a"], &[]);
        assert_eq!(changes(&[], &[pool(&["a"])]).len(), 1);
    }
}
