//! The stand-in for the providers, as a program of its own. `POST /fake/script` with a list of steps scripts it.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Parser;
use fake_provider::{FakeProvider, Step};

/// A stand-in for the providers' model endpoints: scripted answers for real agent CLIs
#[derive(Debug, Parser)]
struct Cli {
    /// Port on 127.0.0.1; 0 takes a free one, which is printed
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// What is answered when no step is scripted
    #[arg(long, default_value = "201")]
    text: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let provider = FakeProvider::start_at(cli.port, Step::text(cli.text))
        .with_context(|| format!("cannot listen on port {}", cli.port))?;
    let mut out = std::io::stdout();
    // Whoever started it with port 0 reads this line.
    writeln!(out, "{}", provider.url())?;
    out.flush()?;
    provider.wait();
    Ok(())
}
