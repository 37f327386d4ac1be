//! Measures agent pools: real CLIs from npm on a local endpoint that answers at once, and a stand-in for a CLI where
//! what is measured is Remuda alone. Prints a part of `docs/benchmarks.md`.
//!
//! One module for each table. [`harness`] is the CLI alone, as the golden corpus is recorded; [`system`] is the CLI
//! through control plane, node and sandbox, as separate programs.

mod capacity;
mod claims;
mod cold;
mod figures;
mod harness;
mod memory;
mod processes;
mod profiles;
mod stdin;
mod streams;
mod system;
mod turns;

use anyhow::{Context as _, Result};
use clap::Parser;

use figures::{Bar, Part};

/// Measures agent pools, and prints what came of it
#[derive(Debug, Parser)]
pub(crate) struct Lab {
    /// What to measure; everything when not given
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
    /// The agents with real CLIs
    #[arg(long, value_delimiter = ',', default_value = "claude,codex,gemini,opencode")]
    agents: Vec<String>,
    /// Few rounds of everything, to see that it runs
    #[arg(long)]
    quick: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// Claims of warm sandboxes
    Claims,
    /// From a claim to the first byte on a CLI's standard input
    Stdin,
    /// From a prompt to its answer, real CLIs
    Turns,
    /// Sandboxes from nothing, by each driver
    Cold,
    /// A hundred runs at once, a megabyte each
    Streams,
    /// Memory of sandboxes without an owner
    Memory,
    /// What real CLIs take, and so how many of them this machine holds
    Capacity,
}

impl Lab {
    /// `usual`, or few when it is to be quick.
    fn rounds(&self, usual: usize) -> usize {
        if self.quick {
            usual.div_ceil(10).min(5)
        } else {
            usual
        }
    }

    fn measure(&self, figure: Figure) -> Result<Part> {
        match figure {
            Figure::Claims => claims::measure(self),
            Figure::Stdin => stdin::measure(self),
            Figure::Turns => turns::measure(self),
            Figure::Cold => cold::measure(self),
            Figure::Streams => streams::measure(self),
            Figure::Memory => memory::measure(self),
            Figure::Capacity => capacity::measure(self),
        }
    }
}

fn main() -> Result<()> {
    let lab = Lab::parse();
    let all = <Figure as clap::ValueEnum>::value_variants();
    let mut parts = Vec::new();
    for figure in all {
        if lab.only.is_empty() || lab.only.contains(figure) {
            eprintln!("{figure:?}");
            parts.push(lab.measure(*figure).with_context(|| format!("{figure:?}"))?);
        }
    }
    let bars: Vec<&Bar> = parts.iter().flat_map(|part| &part.bars).collect();
    println!("## What is promised of agents\n\n{}", figures::bars(&bars));
    for part in &parts {
        println!("## {}\n\n{}", part.title, part.text);
    }
    Ok(())
}
