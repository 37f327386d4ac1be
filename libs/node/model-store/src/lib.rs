//! Content-addressed store of model files, and the resumable download behind it.
//!
//! Owns: where model files come from ([`Source`]), how they get here ([`Download`]), and how they are kept ([`Store`]).
//! Does not own: what is in a model file, and which engine reads it.
//!
//! Invariants:
//! - A blob is under its name only when it is complete and has the SHA-256 that the name says.
//! - A token goes to the host that it is for, never to one that it redirects to, and into no log and no error.
//! - Every wait and every retry is bounded; what was downloaded before an end of any kind is used the next time.

mod digest;
mod download;
mod hub;
mod progress;
mod source;
mod store;

use std::path::PathBuf;

pub use digest::{Digest, DigestError};
pub use download::{Download, DownloadError, Downloaded, RetryPolicy, client};
pub use progress::{Progress, Step, Unit};
pub use reqwest::Url;
pub use source::{HubFile, Place, Source, SourceError};
pub use store::{Model, Removed, Store, StoreError, StoreOptions};

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
