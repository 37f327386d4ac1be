//! Content-addressed store of model files.

mod progress;

use std::path::PathBuf;

pub use progress::{Progress, Step, Unit};

/// The model hub's address, unless the settings name another one.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";

/// `remuda` in the user's cache directory: `$XDG_CACHE_HOME`, else `~/.cache`.
pub fn default_cache_dir() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        // Without a home there is nothing that outlives the boot to put it in.
        .unwrap_or_else(std::env::temp_dir);
    base.join("remuda")
}
