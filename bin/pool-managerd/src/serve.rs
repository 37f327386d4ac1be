//! The node daemon: a node, its server, its registration, and their end.
//!
//! ```text
//! signal ──▶ draining is reported ──▶ tasks finish, until the deadline ──▶ engines end ──▶ deregister ──▶ exit
//! ```
//!
//! The server goes on until the engines have ended: whoever polls this node reads there that it drains, and a task that
//! comes all the same is refused by the door. It has a [`Shutdown`] of its own for that.

use std::sync::Arc;
use std::time::Duration;

use daemon::config::{ConfigFile, Loaded};
use daemon::exit::Ended;
use daemon::listen::{OpenBindRefused, listen, refuse_open_bind};
use daemon::metrics::Metrics;
use daemon::shutdown::{Drained, Kind, Shutdown};
use daemon::tls::{ALPN_HTTP, ClientAuth, Identity, TlsError, Watched, client_config, server_config};
use node_registration::{NodeReport, Options, Registration, Reporter};
use pool_registry_types::{PoolReport, ReplicaState};
use rustls_platform_verifier::ConfigVerifierExt;

use crate::callbacks::Callbacks;
use crate::metrics::{DoorMetrics, HandoffMetrics};
use crate::node::{Node, NodeConfig, NodeControl, NodeHandle};
use crate::reconcile::Asking;
use crate::server::{Access, Limits, Rooms, serve};
use crate::settings::{NodeIdentity, Settings};

/// What opens a node to other machines.
const KEYS: &str = "LLORCH_API_TOKEN, or POOL_MANAGERD_TLS_CERT, _KEY and _CA";

/// Open connections may take this long to end, once no task runs any more.
const END_MARGIN: Duration = Duration::from_secs(3);

/// Whoever reads metrics needs few connections.
const METRICS_CONNECTIONS_MAX: usize = 64;

/// Why the daemon did not start, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The settings are wrong.
    #[error("the node daemon cannot start")]
    Config(#[from] daemon::config::ConfigError),
    /// It would have been open to everybody.
    #[error("the node daemon cannot start")]
    Open(#[from] OpenBindRefused),
    /// TLS cannot be used as set.
    #[error("the node daemon cannot start")]
    Tls(#[from] TlsError),
    /// The port is taken.
    #[error("the node daemon cannot start")]
    Listen(#[from] daemon::listen::ListenError),
    /// The node did not start.
    #[error("the node does not start")]
    Node(#[source] Ended),
    /// No HTTP client.
    #[error("cannot make an HTTP client")]
    Client(#[from] reqwest::Error),
    /// No trust in anybody.
    #[error("the system's certificate authorities cannot be used")]
    Platform(#[from] rustls::Error),
    /// Something of the system's.
    #[error("the system refused")]
    Io(#[from] std::io::Error),
    /// It ended with something left undone.
    #[error("the node daemon did not end well")]
    Ended(#[from] Ended),
}

/// Runs the node daemon until it is told to end.
pub async fn run(loaded: Loaded<Settings>) -> Result<(), DaemonError> {
    let Loaded { settings, file } = loaded;
    let identity = settings.identity()?;
    let tls_identity = Identity::of_settings(
        settings.tls_cert.as_deref(),
        settings.tls_key.as_deref(),
        ["POOL_MANAGERD_TLS_CERT", "POOL_MANAGERD_TLS_KEY"],
    )?;
    let access = Access {
        token: settings.api_token.clone(),
        certificates: tls_identity.is_some() && settings.tls_ca.is_some(),
    };
    refuse_open_bind(
        settings.addr,
        access.token.is_some() || access.certificates,
        settings.insecure,
        KEYS,
    )?;
    let tls = tls_identity
        .map(|identity| server_tls(identity, &settings))
        .transpose()?;
    let handoffs = HandoffMetrics::new();
    let config = node_config(&settings, &file, &handoffs)?;
    let listener = listen(settings.addr, false)?;
    let metrics_listener = match settings.metrics_port {
        Some(port) => Some(listen((settings.addr.ip(), port).into(), false)?),
        None => None,
    };
    let shutdown = Shutdown::new();
    shutdown.listen_to_signals()?;

    let node = Node::start(config, settings.launch()).map_err(|error| {
        let code = daemon::exit::USAGE;
        DaemonError::Node(Ended {
            code,
            text: daemon::exit::chain(&error),
        })
    })?;
    let control = node.control();
    let reporter = reporter(&control);
    let client = http_client(&settings)?;
    let callbacks = callbacks(&settings, &identity, client.clone(), reporter.clone());
    let metrics = Arc::new(Metrics::new("pool-managerd"));
    handoffs.register(&metrics);
    let collector = DoorMetrics(control.door().clone());
    metrics.register(|registry| registry.register_collector(Box::new(collector)));

    let rooms = Arc::new(Rooms {
        control: control.clone(),
        identity: identity.clone(),
        reporter: reporter.clone(),
        callbacks: callbacks.clone(),
        metrics,
        access,
        body_max_bytes: usize::try_from(settings.body_max_bytes).unwrap_or(usize::MAX),
        body_timeout: settings.body_timeout_ms,
    });
    let address = listener.local_addr()?;
    let limits = Limits {
        connections_max: settings.connections_max,
        first_request: settings.head_timeout_ms,
    };
    let server = Shutdown::new();
    let ended = server.clone();
    // Ending before the signal is a fault, as for everything in the background.
    shutdown.spawn("server", Kind::Background, async move { ended.stopped().await });
    spawn_server(&server, listener, rooms.clone(), tls.clone(), limits);
    if let Some(listener) = metrics_listener {
        spawn_server(
            &server,
            listener,
            rooms,
            tls.clone(),
            Limits {
                connections_max: METRICS_CONNECTIONS_MAX,
                ..limits
            },
        );
    }
    if let Some(tls) = tls {
        shutdown.spawn("certificates", Kind::Background, tls.follow(shutdown.clone()));
    }
    tracing::info!(node_id = %identity.node_id, %address, "the node is up");
    let registration = register(&settings, &identity, client, &reporter);
    shutdown.spawn(
        "callbacks",
        Kind::Background,
        callbacks.clone().follow(control.door().reports()),
    );
    follow_changes(&shutdown, &control, registration.as_ref());
    end(node, registration, callbacks, &settings, (&shutdown, &server)).await
}

fn spawn_server(
    shutdown: &Shutdown,
    listener: std::net::TcpListener,
    rooms: Arc<Rooms>,
    tls: Option<Arc<Watched<rustls::ServerConfig>>>,
    limits: Limits,
) {
    let stop = shutdown.clone();
    shutdown.spawn("server", Kind::Background, async move {
        if let Err(error) = serve(listener, rooms, tls, limits, stop.clone()).await {
            stop.fail(format!("the server ended: {error}"));
        }
    });
}

/// Waits for the signal and takes everything down in order.
async fn end(
    node: NodeHandle,
    registration: Option<Arc<Registration>>,
    callbacks: Callbacks,
    settings: &Settings,
    (shutdown, server): (&Shutdown, &Shutdown),
) -> Result<(), DaemonError> {
    shutdown.stopped().await;
    let control = node.control();
    control.begin_draining();
    if let Some(registration) = &registration {
        registration.changed();
    }
    let taking_down = node.shutdown(settings.drain_timeout_ms, !settings.keep_engines);
    let left = tokio::select! {
        left = taking_down => left,
        // Engines in processes of their own end by themselves some time after this one has gone.
        () = shutdown.aborted() => usize::MAX,
    };
    callbacks.stop().await;
    if let Some(registration) = registration {
        registration.stop().await;
    }
    // No task holds a slot any more, so what is left are connections whose other ends do not answer. They are dropped,
    // and nobody is told: nothing was lost.
    server.stop();
    tokio::select! {
        _ = server.drain(END_MARGIN) => {}
        () = shutdown.aborted() => drop(server.drain(Duration::ZERO).await),
    }
    shutdown.drain(END_MARGIN).await;
    shutdown.outcome(Drained::Clean)?;
    if left > 0 {
        let text = "ended before everything was finished".to_owned();
        return Err(Ended {
            code: daemon::exit::INTERRUPTED,
            text,
        }
        .into());
    }
    Ok(())
}

fn node_config(
    settings: &Settings,
    file: &ConfigFile,
    handoffs: &HandoffMetrics,
) -> Result<NodeConfig, DaemonError> {
    let pools = settings.pool_settings(file)?;
    let secure = pools.iter().any(|pool| {
        pool.url
            .iter()
            .chain(&pool.urls)
            .any(|url| url.starts_with("https:"))
    });
    let tls = if secure {
        Some(Arc::new(rustls::ClientConfig::with_platform_verifier()?))
    } else {
        None
    };
    Ok(NodeConfig {
        watch_interval: settings.watch_interval_ms,
        auto_delete_handoff: settings.auto_delete_handoff,
        gpu_discovery_interval: settings.gpu_discovery_interval_ms,
        asking: Asking {
            probe_interval: settings.probe_interval_ms,
            probe_timeout: settings.probe_timeout_ms,
            tls,
        },
        observe_handoff: handoffs.observer(),
        agents: settings.agents.config(&[]),
        ..NodeConfig::new(pools, settings.engine_settings())
    })
}

fn server_tls(
    identity: Identity,
    settings: &Settings,
) -> Result<Arc<Watched<rustls::ServerConfig>>, TlsError> {
    let mut files = vec![identity.cert.clone(), identity.key.clone()];
    // Optional, so that /health can be asked by whoever watches over the machine; the rooms want one for the rest.
    let clients = match &settings.tls_ca {
        Some(ca) => ClientAuth::Optional(ca.clone()),
        None => ClientAuth::Off,
    };
    files.extend(settings.tls_ca.clone());
    let watched = Watched::new(files, move || server_config(&identity, &clients, ALPN_HTTP))?;
    Ok(Arc::new(watched))
}

/// For registering and callbacks.
fn http_client(settings: &Settings) -> Result<reqwest::Client, DaemonError> {
    // The environment's proxies are for the internet; control planes are on our own network.
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .user_agent(concat!("pool-managerd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(3))
        .pool_max_idle_per_host(1)
        .tcp_nodelay(true);
    if let Some(ca) = &settings.tls_ca {
        let own = Identity::of_settings(
            settings.tls_cert.as_deref(),
            settings.tls_key.as_deref(),
            ["POOL_MANAGERD_TLS_CERT", "POOL_MANAGERD_TLS_KEY"],
        )?;
        builder = builder.tls_backend_preconfigured(client_config(ca, own.as_ref(), &[])?);
    }
    Ok(builder.build()?)
}

fn reporter(control: &NodeControl) -> Reporter {
    let control = control.clone();
    let incarnation = format!("{:016x}", rand::random::<u64>());
    let source = move || NodeReport {
        pools: control.door().snapshot(),
        draining: control.is_draining(),
        capabilities: control.capabilities(),
    };
    Reporter::new(incarnation, Arc::new(source))
}

fn callbacks(
    settings: &Settings,
    identity: &NodeIdentity,
    client: reqwest::Client,
    reporter: Reporter,
) -> Callbacks {
    let set = settings
        .orchestratord_url
        .iter()
        .chain(&settings.orchestratord_callback_url);
    let trusted = set.filter_map(|url| url.parse().ok()).collect();
    let token = settings.api_token.clone();
    let callbacks = Callbacks::new(identity.node_id.clone(), client, reporter, token, trusted);
    if let Some(url) = &settings.orchestratord_callback_url
        && let Err(error) = callbacks.register(url)
    {
        tracing::error!(url, error = %error, "POOL_MANAGERD_ORCHESTRATORD_CALLBACK_URL cannot be used");
    }
    callbacks
}

fn register(
    settings: &Settings,
    identity: &NodeIdentity,
    client: reqwest::Client,
    reporter: &Reporter,
) -> Option<Arc<Registration>> {
    if !settings.cloud_profile {
        return None;
    }
    let options = Options {
        control_planes: settings.orchestratord_url.clone(),
        node_id: identity.node_id.clone(),
        machine_id: identity.machine_id.clone(),
        address: identity.address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        heartbeat_interval: settings.heartbeat_interval_secs,
        api_token: settings.api_token.as_ref().map(|token| token.expose().to_owned()),
        client,
    };
    Some(Arc::new(Registration::start(&options, reporter)))
}

/// Sends a heartbeat at once when something changes that decides where tasks go. Slots that are taken and given back do
/// not: a control plane knows its own, and refusals say the rest.
fn follow_changes(shutdown: &Shutdown, control: &NodeControl, registration: Option<&Arc<Registration>>) {
    let Some(registration) = registration else { return };
    let registration = Arc::downgrade(registration);
    let mut reports = control.door().reports();
    shutdown.spawn("changes", Kind::Background, async move {
        let mut before = outline(&reports.borrow_and_update());
        while reports.changed().await.is_ok() {
            let now = outline(&reports.borrow_and_update());
            if now != before {
                before = now;
                let Some(registration) = registration.upgrade() else {
                    return;
                };
                registration.changed();
            }
        }
    });
}

/// What of a report decides where tasks go.
fn outline(pools: &[PoolReport]) -> Vec<(PoolReport, Vec<ReplicaState>)> {
    let bare = |pool: &PoolReport| {
        let mut pool = pool.clone();
        pool.slots_free = 0;
        pool.vram_free_bytes = 0;
        for replica in &mut pool.replicas {
            replica.slots_free = 0;
            replica.vram_free_bytes = 0;
            replica.leases.clear();
        }
        let states = pool.replicas.iter().map(|replica| replica.state).collect();
        (pool, states)
    };
    pools.iter().map(bare).collect()
}
