//! The node daemon: keeps pools at target and is the one door to their engines.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use daemon::config::{Sources, load};
use pool_managerd::Settings;

fn main() -> ExitCode {
    daemon::exit::run(|| {
        let loaded = load::<Settings>(&Sources::process())?;
        daemon::core_dumps::switch_off();
        daemon::open_files::raise_limit();
        daemon::tls::install_provider();
        let telemetry = daemon::telemetry::init("pool-managerd", &loaded.settings.telemetry)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(loaded.settings.worker_count())
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let result = runtime.block_on(pool_managerd::run(loaded));
        // A look at a slow driver or file system that is still under way is not waited for.
        runtime.shutdown_background();
        telemetry.shutdown(Duration::from_secs(2));
        Ok::<(), anyhow::Error>(result?)
    })
}
