//! Starting and stopping a control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use daemon::config::ConfigError;
use daemon::listen::{ListenError, OpenBindRefused, listen_shared, refuse_open_bind};
use daemon::shutdown::{Drained, Kind, Shutdown};
use daemon::tls::{ClientAuth, Identity, TlsError, Watched, client_config, server_config};
use pool_managerd::NodeControl;
use pool_registry_types::NodeId;
use store::{Store, StoreError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use upstream::ConnectOptions;

use crate::access::Access;
use crate::fleet;
use crate::plane::{Plane, SharedPlane};
use crate::rooms;
use crate::serve::{Front, start_worker};
use crate::settings::Settings;

/// The store's file in the data directory.
const STORE_FILE: &str = "remuda.db";

/// Where authentication is set, for the error that asks for it.
const KEY_NAMES: &str = "LLORCH_API_TOKEN or ORCHD_API_KEYS (or make a key with `remuda keys create`)";

/// A running control plane.
pub struct ControlPlane {
    plane: SharedPlane,
    addr: SocketAddr,
    workers: Vec<JoinHandle<()>>,
    done: CancellationToken,
}

/// A node in the same process.
pub struct LocalNode {
    /// Its name.
    pub node_id: NodeId,
    /// The way to it.
    pub control: NodeControl,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are wrong.
    #[error("the control plane cannot start")]
    Config(#[from] ConfigError),
    /// The address is taken or not ours.
    #[error("the control plane cannot start")]
    Listen(#[from] ListenError),
    /// The address is open to everybody.
    #[error("the control plane cannot start")]
    Open(#[from] OpenBindRefused),
    /// The store cannot be opened.
    #[error("the control plane cannot start")]
    Store(#[from] StoreError),
    /// The certificates cannot be used.
    #[error("the control plane cannot start")]
    Tls(#[from] TlsError),
    /// A thread could not be started.
    #[error("a worker thread cannot be started")]
    Thread(#[source] std::io::Error),
}

impl ControlPlane {
    /// Starts worker threads and the tasks around them; the latter run on the current runtime, which has to outlive it.
    ///
    /// Nothing is bound before everything else is right.
    pub fn start(
        settings: Settings,
        node: Option<LocalNode>,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let keys = settings.check()?;
        let directory = settings.data_dir.clone().unwrap_or_else(default_data_dir);
        let store = Store::open(settings.store(directory.join(STORE_FILE)), keys)?;
        let access = Access::new(store.clone(), settings.api_token.clone(), false);
        refuse_open_bind(settings.addr, access.is_required(), settings.insecure, KEY_NAMES)?;
        let identity = Identity::of_settings(
            settings.tls_cert.as_deref(),
            settings.tls_key.as_deref(),
            ["ORCHD_TLS_CERT", "ORCHD_TLS_KEY"],
        )?;
        let connect_options = ConnectOptions {
            silence_timeout: settings.node_silence_ms,
            tls: node_tls(&settings, identity.as_ref())?,
            ..ConnectOptions::default()
        };
        let tls = identity
            .map(|identity| client_tls(identity, settings.tls_ca.clone()))
            .transpose()?;
        let workers = settings.worker_count();
        let listeners = listen_shared(settings.addr, workers)?;
        let addr = listeners[0].local_addr().unwrap_or(settings.addr);
        let metrics_listener = match settings.metrics_port {
            Some(port) => Some(listen_shared(SocketAddr::new(settings.addr.ip(), port), 1)?.remove(0)),
            None => None,
        };
        let room = Arc::new(Semaphore::new(settings.connections_max));
        let plane = Arc::new(Plane::new(settings, access, store, connect_options, shutdown));
        start_services(&plane, node);
        if let Some(tls) = &tls {
            let follow = tls.clone().follow(plane.shutdown.clone());
            plane.shutdown.spawn("certificates", Kind::Background, follow);
        }
        let done = CancellationToken::new();
        let front = Arc::new(Front {
            router: rooms::router(plane.clone()),
            plane: plane.clone(),
            room,
            tls,
        });
        let mut threads = Vec::with_capacity(workers + 1);
        for (index, listener) in listeners.into_iter().chain(metrics_listener).enumerate() {
            let worker =
                start_worker(front.clone(), listener, index, done.clone()).map_err(StartError::Thread)?;
            threads.push(worker);
        }
        Ok(Self {
            plane,
            addr,
            workers: threads,
            done,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether a replica of the model is ready; of any model without one.
    pub fn serves(&self, model: Option<&str>) -> bool {
        let models = self.plane.guarded.with(|scheduler, _| scheduler.models());
        models.iter().any(|known| {
            model.is_none_or(|model| *known.id == *model || known.aliases.iter().any(|a| a == model))
        })
    }

    /// Whether a pool of the agent takes tasks.
    pub fn has_agent(&self, agent: &str) -> bool {
        let replicas = crate::agents::home::replicas(&self.plane, Some(agent));
        replicas.iter().any(crate::agents::home::is_ready)
    }

    /// Waits for the shutdown to begin, then until what runs has ended, but not longer than the drain timeout.
    pub async fn run(self) -> Drained {
        let drained = self
            .plane
            .shutdown
            .drain(self.plane.settings.drain_timeout_ms)
            .await;
        self.done.cancel();
        let workers = self.workers;
        // Joining blocks, but not for long: the workers have nothing left to do.
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), joined).await;
        self.plane.store.close().await;
        drained
    }
}

fn start_services(plane: &SharedPlane, node: Option<LocalNode>) {
    let shutdown = &plane.shutdown;
    shutdown.spawn("ticker", Kind::Background, fleet::tick(plane.clone()));
    shutdown.spawn(
        "silent nodes",
        Kind::Background,
        fleet::look_for_silent_nodes(plane.clone()),
    );
    if let Some(node) = node {
        let follow = fleet::follow_local_node(plane.clone(), node.node_id, node.control);
        shutdown.spawn("local node", Kind::Background, follow);
    }
    if !plane.settings.pool_managers.is_empty() || plane.settings.pool_managers_dns.is_some() {
        shutdown.spawn("node polls", Kind::Background, fleet::poll_nodes(plane.clone()));
    }
}

/// What is shown to nodes and asked of them.
fn node_tls(
    settings: &Settings,
    identity: Option<&Identity>,
) -> Result<Option<Arc<rustls::ClientConfig>>, TlsError> {
    let Some(ca) = &settings.tls_ca else {
        return Ok(None);
    };
    Ok(Some(Arc::new(client_config(ca, identity, &[b"h2"])?)))
}

/// What is shown to clients and asked of them. Nodes have certificates, people have keys.
fn client_tls(
    identity: Identity,
    ca: Option<PathBuf>,
) -> Result<Arc<Watched<rustls::ServerConfig>>, TlsError> {
    let mut files = vec![identity.cert.clone(), identity.key.clone()];
    files.extend(ca.clone());
    let clients = ca.map_or(ClientAuth::Off, ClientAuth::Optional);
    let make = move || server_config(&identity, &clients, &[b"http/1.1"]);
    Ok(Arc::new(Watched::new(files, make)?))
}

/// `$XDG_DATA_HOME/remuda`, or `~/.local/share/remuda`.
fn default_data_dir() -> PathBuf {
    let from_environment = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from_environment("XDG_DATA_HOME")
        .or_else(|| from_environment("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("."))
        .join("remuda")
}
