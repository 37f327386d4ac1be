//! `cargo xtask static-init`: a `remuda-init` that needs no library, for images and machines of any system.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Build remuda-init as a static program, and print its path
#[derive(Debug, clap::Args)]
pub(crate) struct StaticInit {
    /// The profile to build with
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

impl StaticInit {
    pub(crate) fn run(&self) -> Result<()> {
        let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // Naming the target keeps the flag away from build scripts and procedural macros, which cannot be static.
        let status = Command::new(cargo)
            .args([
                "build",
                "--locked",
                "--package",
                "remuda-init",
                "--target",
                &target,
            ])
            .args(["--profile", &self.profile])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(&root)
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "cargo failed: {status}");
        let directory = match self.profile.as_str() {
            "dev" => "debug",
            other => other,
        };
        let base = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
        println!(
            "{}",
            base.join(target).join(directory).join("remuda-init").display()
        );
        Ok(())
    }
}
