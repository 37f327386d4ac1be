//! The control plane's process.

use std::process::ExitCode;
use std::time::Duration;

use daemon::config::{self, Sources};
use daemon::shutdown::Shutdown;
use daemon::telemetry;
use orchestratord::{ControlPlane, LocalNode, Settings};
use pool_managerd::{Launch, Node, NodeConfig, PoolSettings};
use pool_registry_types::NodeId;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    daemon::exit::run(|| {
        let loaded = config::load::<Settings>(&Sources::process())?;
        let settings = loaded.settings;
        daemon::core_dumps::switch_off();
        daemon::open_files::raise_limit();
        daemon::tls::install_provider();
        let telemetry = telemetry::init("orchestratord", &settings.telemetry)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let outcome = runtime.block_on(async {
            let shutdown = Shutdown::new();
            shutdown.listen_to_signals()?;
            let drain_timeout = settings.drain_timeout_ms;
            let node = if settings.cloud_profile {
                None
            } else {
                let pools = loaded
                    .file
                    .section::<Vec<PoolSettings>>("pools")?
                    .unwrap_or_default();
                let mut config = NodeConfig::new(pools, settings.engines.clone());
                config.agents = settings.agents.config(&[]);
                Some(Node::start(config, Launch::InProcess)?)
            };
            let local = node.as_ref().map(|node| LocalNode {
                node_id: node_id(),
                control: node.control(),
            });
            let control_plane = ControlPlane::start(settings, local, shutdown.clone())?;
            tracing::info!(addr = %control_plane.addr(), "listening");
            let drained = control_plane.run().await;
            if let Some(node) = node {
                node.shutdown(drain_timeout, true).await;
            }
            anyhow::Ok(shutdown.outcome(drained)?)
        });
        drop(runtime);
        telemetry.shutdown(Duration::from_secs(2));
        outcome
    })
}

/// The name of the node in this process: the machine's, as far as that is an identifier.
fn node_id() -> NodeId {
    let name = pool_managerd::host_name();
    name.and_then(|name| NodeId::new(name).ok())
        .unwrap_or_else(|| NodeId::new("local").expect("an identifier"))
}
