//! What the tests of a whole node share: a place of their own, fake engines, and bounded waiting.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake_engine::{Behaviour, FakeEngine, Settings as FakeSettings};
use http::{Request, Response};
use http_body_util::BodyExt;
use pool_managerd::{Door, DoorBody, DoorError, Launch, Node, NodeConfig, NodeHandle, PoolSettings};
use pool_registry_types::{ControlPlaneId, Handoff, PoolId, PoolReport, ReplicaId};

/// Longer than anything here takes, also on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A node with a runtime directory of its own.
pub(crate) struct Bench {
    pub(crate) directory: PathBuf,
    pub(crate) node: Option<NodeHandle>,
    _root: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(pools: Vec<PoolSettings>) -> Self {
        Self::with(pools, |_| {})
    }

    pub(crate) fn with(pools: Vec<PoolSettings>, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("engines");
        let engines = engine_provisioner::Settings {
            handoff_dir: directory.clone(),
            ..engine_provisioner::Settings::default()
        };
        let mut config = NodeConfig::new(pools, engines);
        config.watch_interval = Duration::from_millis(50);
        config.asking.probe_interval = Duration::from_millis(200);
        config.asking.probe_timeout = Duration::from_millis(500);
        change(&mut config);
        let node = Node::start(config, Launch::InProcess).unwrap();
        Self {
            directory,
            node: Some(node),
            _root: root,
        }
    }

    pub(crate) fn door(&self) -> &Door {
        self.node.as_ref().unwrap().door()
    }

    /// Announces an engine in the original's smallest shape.
    pub(crate) fn announce(&self, pool: &str, replica: &str, url: &str, slots: Option<u32>) {
        let slots = slots.map_or(String::new(), |slots| format!(r#","slots":{slots}"#));
        let text = format!(
            r#"{{"pool_id":"{pool}","replica_id":"{replica}","engine":"llamacpp","url":"{url}","engine_version":"v1"{slots}}}"#
        );
        let handoff: Handoff = serde_json::from_str(&text).unwrap();
        handoff_watcher::write(&self.directory, &handoff).unwrap();
    }

    /// Waits until the pool is as `good` says.
    pub(crate) async fn until(
        &self,
        pool: &str,
        what: &str,
        good: impl Fn(&PoolReport) -> bool,
    ) -> PoolReport {
        let id = pool.parse().unwrap();
        let deadline = Instant::now() + LONG;
        loop {
            let report = self.door().pool(&id);
            match report {
                Some(report) if good(&report) => return report,
                report => assert!(
                    Instant::now() < deadline,
                    "not within {LONG:?}: {what}; now {report:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn ready(&self, pool: &str) -> PoolReport {
        self.until(pool, "ready", |pool| pool.ready).await
    }

    pub(crate) async fn free(&self, pool: &str, slots: u32) -> PoolReport {
        self.until(pool, &format!("{slots} free slots"), |pool| {
            pool.slots_free == slots
        })
        .await
    }

    /// Asks for an answer through the door.
    pub(crate) async fn call(&self, replica: &str, prompt: &str) -> Result<Response<DoorBody>, DoorError> {
        call(self.door(), replica, prompt).await
    }
}

pub(crate) async fn call(door: &Door, replica: &str, prompt: &str) -> Result<Response<DoorBody>, DoorError> {
    let (pool, replica): (PoolId, ReplicaId) = ("p".parse().unwrap(), replica.parse().unwrap());
    door.call(&pool, &replica, &holder(), chat(prompt, true)).await
}

pub(crate) fn holder() -> ControlPlaneId {
    "plane-1".parse().unwrap()
}

pub(crate) fn chat(prompt: &str, stream: bool) -> Request<Bytes> {
    let body = serde_json::json!({
        "model": "fake", "stream": stream, "messages": [{"role": "user", "content": prompt}],
    });
    Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Bytes::from(body.to_string()))
        .unwrap()
}

/// The next piece of an answer.
pub(crate) async fn next(body: &mut DoorBody) -> Option<Bytes> {
    let frame = tokio::time::timeout(LONG, body.frame()).await.unwrap()?;
    Some(frame.unwrap().into_data().unwrap())
}

pub(crate) fn fake(slots: u32) -> FakeEngine {
    fake_on(0, slots)
}

pub(crate) fn fake_on(port: u16, slots: u32) -> FakeEngine {
    // It builds a runtime of its own, which is not allowed on a thread that drives one.
    let settings = FakeSettings {
        port,
        slots,
        ..FakeSettings::default()
    };
    let started = std::thread::spawn(|| FakeEngine::start(settings)).join();
    started.unwrap().unwrap()
}

pub(crate) fn behaviour(words: &str) -> Behaviour {
    words.parse().unwrap()
}

pub(crate) async fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !good() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
