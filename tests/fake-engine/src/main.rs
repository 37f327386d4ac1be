//! The stand-in for an engine, as a program of its own.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Parser;
use fake_engine::{Behaviour, FakeEngine, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A stand-in for an engine: answers fast, and fails on request
#[derive(Debug, Parser)]
#[command(after_help = "Example: fake-engine --port 9001 --slots 4 --behaviour 'chunks=50 interval_ms=20'")]
struct Cli {
    /// Port on loopback; 0 takes a free one, which is printed
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many answers may be given at a time; more wait
    #[arg(long, default_value_t = 4)]
    slots: u32,
    /// The name of the one model
    #[arg(long, default_value = "fake")]
    model: String,
    /// How answers come when the request says nothing else
    #[arg(long, default_value = "")]
    behaviour: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let behaviour: Behaviour = cli.behaviour.parse()?;
    raise_file_limit();
    let settings = Settings {
        port: cli.port,
        slots: cli.slots,
        model: cli.model,
        behaviour,
    };
    let engine =
        FakeEngine::start(settings).with_context(|| format!("cannot listen on port {}", cli.port))?;
    let mut out = std::io::stdout();
    // Whoever started it with port 0 reads this line.
    writeln!(out, "{}", engine.url())?;
    out.flush()?;
    engine.wait();
    Ok(())
}

/// Ten thousand streams need ten thousand files. A limit that cannot be raised shows when it is reached.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
