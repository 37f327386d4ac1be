//! `cargo xtask bench --agents`: builds what is measured, lets `agentlab` measure, writes down what it says.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::document::{self, Half};
use super::{binary, report};
use crate::verify::{self, cargo};

/// The programs that take part. `xtask` makes the image of Docker's sandboxes.
const PACKAGES: [&str; 6] = [
    "agentlab",
    "fake-agent",
    "orchestratord",
    "pool-managerd",
    "remuda-init",
    "xtask",
];

pub(super) fn run(quick: bool, dry: bool, no_build: bool) -> Result<()> {
    if !no_build {
        build()?;
    }
    let mut lab = Command::new(binary("agentlab")?);
    if quick {
        lab.arg("--quick");
    }
    let output = lab
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("starting agentlab")?;
    if !output.status.success() {
        bail!("agentlab has failed; what it said stands above");
    }
    let measured = String::from_utf8(output.stdout)?;
    let text = format!(
        "{}\n\nWritten by `cargo xtask bench --agents`; do not edit.\n\n{}.\n\n{measured}",
        document::AGENTS,
        report::machine()?
    );
    println!("{text}");
    if quick || dry {
        println!("docs/benchmarks.md is left as it is");
        return Ok(());
    }
    document::write(Half::Agents, &text)
}

fn build() -> Result<()> {
    verify::run(
        cargo()
            .args(["build", "--release", "--locked"])
            .args(PACKAGES.iter().flat_map(|name| ["-p", name])),
    )
}
