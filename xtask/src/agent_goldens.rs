//! `cargo xtask agent-goldens`: what the real agent CLIs say, recorded again.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

/// Record again what the real agent CLIs say, or measure them alone
#[derive(Debug, Args)]
pub(crate) struct AgentGoldens {
    /// Keep the recorded lines, and only write anew what dialogues make of them
    #[arg(long, conflicts_with = "measure")]
    replay: bool,
    /// Measure how fast the CLIs answer without Remuda, against an endpoint that answers at once
    #[arg(long)]
    measure: bool,
    /// One agent only: claude, codex, gemini or opencode
    #[arg(long, conflicts_with_all = ["replay", "measure"])]
    agent: Option<String>,
}

impl AgentGoldens {
    pub(crate) fn run(&self) -> Result<()> {
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "test",
            "--quiet",
            "--package",
            "agents",
            "--test",
            "goldens",
            "--",
        ]);
        if self.measure {
            command
                .args(["measures", "--nocapture"])
                .env("REMUDA_MEASURE_AGENTS", "1");
        } else if self.replay {
            command.arg("corpus").env("REMUDA_RECORD_GOLDENS", "replay");
        } else {
            let agent = self.agent.as_deref().unwrap_or_default();
            command
                .arg(format!("real_{agent}"))
                .env("REMUDA_RECORD_GOLDENS", "real");
        }
        if !command.status()?.success() {
            bail!("the CLIs do not do what the tests in libs/node/agents expect of them");
        }
        Ok(())
    }
}
