//! Cargo's tools, each in one pinned version, built once into the user's cache directory.
//!
//! They are built without optimisation and without debug information: they run for a second, and building them
//! optimised takes minutes.

use std::path::PathBuf;

use anyhow::Result;

use super::{cache_directory, cargo, run};

pub(super) fn cargo_deny() -> Result<PathBuf> {
    install("cargo-deny", "0.20.2", &["--no-default-features"])
}

pub(super) fn cargo_machete() -> Result<PathBuf> {
    install("cargo-machete", "0.9.2", &[])
}

/// The tool's path. Builds it unless this very version is there.
fn install(name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    let directory = cache_directory()?.join("tools").join(format!("{name}-{version}"));
    let program = directory.join("bin").join(name);
    if !program.exists() {
        println!(
            "building {name} {version} into {}, once; it takes some minutes",
            directory.display()
        );
        run(cargo()
            .args(["install", "--quiet", "--locked", "--debug", "--root"])
            .arg(&directory)
            .args(options)
            .arg(format!("{name}@{version}"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "0"))?;
    }
    Ok(program)
}
