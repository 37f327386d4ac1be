//! docs/settings.md says what this program declares.

use std::path::Path;

use daemon::config::{self, check_reference};
use daemon::telemetry::TelemetrySettings;

/// What all of its commands have.
#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    common: engine_provisioner::Settings,

    #[command(flatten)]
    telemetry: TelemetrySettings,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "engine-provisioner";
    const ABOUT: &'static str = "";
}

#[test]
fn settings_are_documented() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    if let Err(difference) = check_reference::<Settings>(&document) {
        panic!("{difference}");
    }
}
