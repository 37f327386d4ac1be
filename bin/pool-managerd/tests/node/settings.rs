//! docs/settings.md says what this program declares.

use std::path::Path;

use daemon::config::check_reference;

#[test]
fn settings_are_documented() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    if let Err(difference) = check_reference::<pool_managerd::Settings>(&document) {
        panic!("{difference}");
    }
}
