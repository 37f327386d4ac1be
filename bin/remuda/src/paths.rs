//! Where Remuda keeps things of a person: data in `$XDG_DATA_HOME/remuda`, what can be had again in
//! `$XDG_CACHE_HOME/remuda`.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The store and private certificates: `$XDG_DATA_HOME/remuda`, or `~/.local/share/remuda`.
pub(crate) fn data_directory() -> Result<PathBuf> {
    directory("XDG_DATA_HOME", ".local/share")
}

/// Models, engines that were built, half-finished downloads: the setting of the provisioner, else the user's.
pub(crate) fn cache_directory() -> PathBuf {
    let set = env::var_os("ENGINE_PROVISIONER_CACHE_DIR").filter(|path| !path.is_empty());
    set.map_or_else(model_store::default_cache_dir, PathBuf::from)
}

fn directory(variable: &str, below_home: &str) -> Result<PathBuf> {
    let set = env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = match set {
        Some(path) => path,
        None => env::home_dir()
            .with_context(|| format!("neither {variable} nor HOME is set"))?
            .join(below_home),
    };
    Ok(base.join("remuda"))
}

/// The store's file in the data directory.
pub(crate) const STORE_FILE: &str = "remuda.db";

/// Where `remuda certs` keeps the private CA and its certificates.
pub(crate) fn certs_directory() -> Result<PathBuf> {
    Ok(data_directory()?.join("certs"))
}
