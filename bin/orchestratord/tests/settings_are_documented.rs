//! docs/settings.md says what this daemon declares.

use std::path::Path;

#[test]
fn settings_are_documented() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    if let Err(difference) = daemon::config::check_reference::<orchestratord::Settings>(&document) {
        panic!("{difference}");
    }
}
