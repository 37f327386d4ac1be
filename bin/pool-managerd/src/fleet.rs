//! The engines that this node keeps, in either way of keeping them.
//!
//! Owns: starting and stopping what it is told to, and saying what is there. Decides nothing: see [`plan`](crate::plan).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use engine_provisioner::launch::{self, Keeper, LaunchError, Launcher};
use engine_provisioner::{EngineSpec, EngineStatus, InProcess, Phase, Settings, SuperviseError};
use process::Identity;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::plan::Key;

/// After this long an engine that was asked to end is killed.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// How long a provisioner may take from its start until it holds its replica's lock.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How engines are kept.
#[derive(Clone, Debug)]
pub enum Launch {
    /// By threads of this process: they end with it. For `remuda up`.
    InProcess,
    /// By processes of their own, which outlive a restart of this one.
    Subprocess {
        /// The `engine-provisioner` program.
        program: PathBuf,
        /// How long after this process has gone they end by themselves.
        gone_after: Duration,
    },
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error("its provisioner ended before it could begin; its log is beside the handoffs, in provisioner/")]
    EndedAtOnce,
}

/// One engine that is kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) spec_hash: String,
    pub(crate) status: Option<EngineStatus>,
    pub(crate) stopping: bool,
}

/// What is there, and what failed since the last look.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) kept: BTreeMap<Key, Kept>,
    pub(crate) failed: Vec<(Key, StartError)>,
}

/// The engines that this node keeps.
pub(crate) struct Fleet {
    settings: Settings,
    means: Means,
    statuses: watch::Sender<BTreeMap<Key, EngineStatus>>,
}

enum Means {
    InProcess {
        engines: BTreeMap<Key, Engine>,
    },
    Subprocess {
        launcher: Box<Launcher>,
        launched: BTreeMap<Key, Launched>,
        stopping: BTreeMap<Key, JoinHandle<()>>,
    },
}

struct Engine {
    engine: InProcess,
    spec_hash: String,
    stopping: bool,
    /// Passes the engine's state on. Ends with the engine.
    forward: JoinHandle<()>,
}

struct Launched {
    identity: Identity,
    spec_hash: String,
    at: tokio::time::Instant,
}

impl Fleet {
    pub(crate) fn new(launch: Launch, settings: Settings, daemon_lock: PathBuf) -> Self {
        let means = match launch {
            Launch::InProcess => Means::InProcess {
                engines: BTreeMap::new(),
            },
            Launch::Subprocess { program, gone_after } => {
                let settings = settings.clone();
                let launcher = Launcher {
                    program,
                    settings,
                    daemon_lock,
                    daemon_gone_after: gone_after,
                };
                let (launched, stopping) = (BTreeMap::new(), BTreeMap::new());
                Means::Subprocess {
                    launcher: Box::new(launcher),
                    launched,
                    stopping,
                }
            }
        };
        let (statuses, _) = watch::channel(BTreeMap::new());
        Self {
            settings,
            means,
            statuses,
        }
    }

    /// How far each engine is, as it changes.
    pub(crate) fn statuses(&self) -> watch::Receiver<BTreeMap<Key, EngineStatus>> {
        self.statuses.subscribe()
    }

    /// Looks at what is there.
    pub(crate) async fn look(&mut self) -> io::Result<Look> {
        match &mut self.means {
            Means::InProcess { engines } => {
                let gone = |engine: &Engine| engine.engine.status().borrow().phase == Phase::Stopped;
                let before = engines.len();
                engines.retain(|_, engine| !gone(engine));
                if engines.len() != before {
                    self.statuses
                        .send_modify(|shown| shown.retain(|key, _| engines.contains_key(key)));
                }
                let kept = engines
                    .iter()
                    .map(|(key, engine)| (key.clone(), engine.kept()))
                    .collect();
                Ok(Look {
                    kept,
                    failed: Vec::new(),
                })
            }
            Means::Subprocess {
                launched, stopping, ..
            } => {
                stopping.retain(|_, task| !task.is_finished());
                let (found, statuses) = find(&self.settings).await?;
                let look = merge(found, &statuses, launched, stopping);
                self.statuses.send_if_modified(|shown| {
                    let news = *shown != statuses;
                    *shown = statuses;
                    news
                });
                Ok(look)
            }
        }
    }

    /// Begins to keep an engine. Whether it comes up shows in what is there later.
    pub(crate) async fn start(&mut self, key: Key, spec: EngineSpec) -> Result<(), StartError> {
        let spec_hash = spec.hash();
        match &mut self.means {
            Means::InProcess { engines } => {
                let engine = InProcess::start(spec, self.settings.clone())?;
                let forward = tokio::spawn(forward(key.clone(), engine.status(), self.statuses.clone()));
                engines.insert(
                    key,
                    Engine {
                        engine,
                        spec_hash,
                        stopping: false,
                        forward,
                    },
                );
            }
            Means::Subprocess {
                launcher, launched, ..
            } => {
                let launcher = launcher.clone();
                let started = tokio::task::spawn_blocking(move || launcher.launch(&spec)).await;
                let identity = started.expect("launching does not panic")?;
                launched.insert(
                    key,
                    Launched {
                        identity,
                        spec_hash,
                        at: tokio::time::Instant::now(),
                    },
                );
            }
        }
        Ok(())
    }

    /// Begins to end an engine.
    pub(crate) fn stop(&mut self, key: &Key) {
        match &mut self.means {
            Means::InProcess { engines } => {
                if let Some(engine) = engines.get_mut(key) {
                    engine.stopping = true;
                    engine.engine.stop();
                }
            }
            Means::Subprocess {
                launched, stopping, ..
            } => {
                let launched = launched.remove(key).map(|launched| launched.identity);
                let (directory, stopped) = (self.settings.handoff_dir.clone(), key.clone());
                let task = tokio::task::spawn_blocking(move || stop_process(&directory, &stopped, launched));
                stopping.insert(key.clone(), task);
            }
        }
    }

    /// Ends every engine and waits, for as long as `deadline` allows. How many are left.
    pub(crate) async fn stop_all(&mut self, deadline: tokio::time::Instant) -> usize {
        loop {
            let look = self.look().await.unwrap_or_default();
            for (key, kept) in &look.kept {
                if !kept.stopping {
                    self.stop(key);
                }
            }
            if look.kept.is_empty() || tokio::time::Instant::now() >= deadline {
                return look.kept.len();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Engine {
    fn kept(&self) -> Kept {
        let status = Some(self.engine.status().borrow().clone());
        Kept {
            spec_hash: self.spec_hash.clone(),
            status,
            stopping: self.stopping,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

async fn forward(
    key: Key,
    mut status: watch::Receiver<EngineStatus>,
    shown: watch::Sender<BTreeMap<Key, EngineStatus>>,
) {
    loop {
        let now = status.borrow_and_update().clone();
        shown.send_modify(|shown| {
            shown.insert(key.clone(), now);
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}

type Found = (Vec<Keeper>, BTreeMap<Key, EngineStatus>);

async fn find(settings: &Settings) -> io::Result<Found> {
    let directory = settings.handoff_dir.clone();
    let found = tokio::task::spawn_blocking(move || {
        let keepers = launch::keepers(&directory)?;
        let mut statuses = BTreeMap::new();
        for keeper in &keepers {
            if let Some(status) = launch::status(&directory, &keeper.pool_id, &keeper.replica_id) {
                statuses.insert((keeper.pool_id.clone(), keeper.replica_id.clone()), status);
            }
        }
        Ok((keepers, statuses))
    });
    found.await.expect("looking for provisioners does not panic")
}

/// Puts together who holds a lock and who was launched a moment ago and does not hold one yet.
fn merge(
    keepers: Vec<Keeper>,
    statuses: &BTreeMap<Key, EngineStatus>,
    launched: &mut BTreeMap<Key, Launched>,
    stopping: &BTreeMap<Key, JoinHandle<()>>,
) -> Look {
    let mut look = Look::default();
    for keeper in keepers {
        let key = (keeper.pool_id, keeper.replica_id);
        launched.remove(&key);
        let status = statuses
            .get(&key)
            .filter(|status| status.spec_hash == keeper.spec_hash)
            .cloned();
        let stopping = stopping.contains_key(&key);
        look.kept.insert(
            key,
            Kept {
                spec_hash: keeper.spec_hash,
                status,
                stopping,
            },
        );
    }
    for key in stopping.keys() {
        let gone = || Kept {
            spec_hash: String::new(),
            status: None,
            stopping: true,
        };
        look.kept.entry(key.clone()).or_insert_with(gone);
    }
    launched.retain(|key, launched| {
        if !launched.identity.is_alive() || launched.at.elapsed() > LAUNCH_TIMEOUT {
            look.failed.push((key.clone(), StartError::EndedAtOnce));
            return false;
        }
        let kept = Kept {
            spec_hash: launched.spec_hash.clone(),
            status: None,
            stopping: false,
        };
        look.kept.insert(key.clone(), kept);
        true
    });
    look
}

fn stop_process(directory: &std::path::Path, (pool, replica): &Key, launched: Option<Identity>) {
    let stopped = match launch::keeper(directory, pool, replica) {
        Ok(Some(keeper)) => keeper.stop(STOP_GRACE),
        Ok(None) => launched.map_or(Ok(true), |identity| process::terminate(&identity, STOP_GRACE)),
        Err(error) => Err(error),
    };
    match stopped {
        Ok(true) => tracing::info!(pool_id = %pool, replica_id = %replica, "the engine was stopped"),
        Ok(false) => {
            tracing::warn!(pool_id = %pool, replica_id = %replica, "the engine does not end; tried again");
        }
        Err(error) => {
            tracing::warn!(pool_id = %pool, replica_id = %replica, %error, "the engine cannot be stopped");
        }
    }
}
