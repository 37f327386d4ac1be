//! `cargo xtask bench`: Remuda beside its peers, on pinned cores, with what came of it in `docs/benchmarks.md`.
//!
//! ```text
//! core B: one gateway under load (the others idle)      core A: load generator, stand-in for the engine
//! ```
//!
//! The gateways take turns, round after round, so that what else happens on the machine meets all of them; a figure is
//! the median of its rounds, a ratio the median of the ratios within each round. What counts is processor time per
//! request: it is read from the kernel's account of the gateway's processes, and unlike requests per second it hardly
//! depends on what the load generator costs.
//!
//! `--agents` measures agent pools instead, which another program does ([`agents`]).
//!
//! This file owns the order of things; [`lab`] the processes, [`peers`] who is measured, [`figures`] what is measured,
//! [`report`] what is said of it.

mod agents;
mod document;
mod figures;
mod lab;
mod peers;
mod report;
mod samples;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::verify::{cargo, root, run};
use document::Half;
use figures::Round;
use lab::Lab;
use peers::{Gateway, PeerKind};
use samples::{Metric, Samples};

/// Measure Remuda beside nginx and other gateways, and write docs/benchmarks.md
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cargo xtask bench --only plain,streams --peers nginx --rounds 3 --dry")]
pub(crate) struct Bench {
    /// Measure agent pools with real CLIs instead
    #[arg(long, conflicts_with_all = ["only", "peers", "peers_only", "rounds", "seconds"])]
    agents: bool,
    /// What to measure; everything when not given
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
    /// Whom to measure beside Remuda
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "remuda-two-hops,nginx,haproxy,vllm-router,smg"
    )]
    peers: Vec<PeerKind>,
    /// Leave Remuda out, and measure the peers alone
    #[arg(long)]
    peers_only: bool,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// How long a turn takes, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One short round of everything, to see that it runs; changes no file
    #[arg(long)]
    quick: bool,
    /// Print, and change no file
    #[arg(long)]
    dry: bool,
    /// Take the binaries in target/release as they are
    #[arg(long)]
    no_build: bool,
    /// The core for the gateway under load
    #[arg(long, default_value_t = 1)]
    gateway_core: u32,
    /// The core for the load generator and the engine
    #[arg(long, default_value_t = 0)]
    load_core: u32,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// Answers that are no streams, 64 connections
    Plain,
    /// The same with one connection
    Single,
    /// 200 streams
    Streams,
    /// 10,000 open streams
    Memory,
    /// /v2/tasks with events, 1,000 a second
    Tasks,
    /// Daemons that have nothing to do
    Idle,
    /// 1,000 nodes with heartbeats
    Nodes,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        if self.agents {
            return agents::run(self.quick, self.dry, self.no_build);
        }
        let cores = std::thread::available_parallelism()?.get();
        ensure!(
            cores >= 2,
            "two cores are needed, one for the gateway and one for the load; there is {cores}"
        );
        if !self.no_build {
            build()?;
        }
        let lab = Lab::new(self.gateway_core, self.load_core)?;
        let mut samples = Samples::default();
        let gateways = self.measure_gateways(&lab, &mut samples)?;
        if self.wants(Figure::Memory) {
            self.measure_memory(&lab, &mut samples)?;
        }
        if !self.peers_only {
            self.measure_remuda(&lab, &mut samples)?;
        }
        let text = report::markdown(&report::Run {
            samples: &samples,
            gateways: &gateways,
            rounds: self.rounds(),
            seconds: self.turn().as_secs_f64(),
        })?;
        println!("{text}");
        if self.dry || self.quick || self.peers_only || !self.only.is_empty() {
            println!("docs/benchmarks.md is left as it is");
            return Ok(());
        }
        document::write(Half::Engines, &text)
    }

    fn wants(&self, figure: Figure) -> bool {
        self.only.is_empty() || self.only.contains(&figure)
    }

    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds.max(1) }
    }

    fn turn(&self) -> Duration {
        Duration::from_secs_f64(if self.quick {
            1.0
        } else {
            self.seconds.clamp(0.5, 60.0)
        })
    }

    fn kinds(&self) -> Vec<PeerKind> {
        let remuda = [PeerKind::Remuda].into_iter().filter(|_| !self.peers_only);
        remuda
            .chain(
                self.peers
                    .iter()
                    .copied()
                    .filter(|kind| *kind != PeerKind::Remuda),
            )
            .collect()
    }

    /// Starts every gateway and lets them take turns. Returns who took part, with versions.
    fn measure_gateways(&self, lab: &Lab, samples: &mut Samples) -> Result<Vec<(PeerKind, String)>> {
        let engine = lab.engine()?;
        let mut gateways = Vec::new();
        for kind in self.kinds() {
            match kind.start(lab, &engine) {
                Ok(gateway) => gateways.push(gateway),
                // Without Remuda there is nothing to measure; a peer that cannot be had is left out.
                Err(error) if kind == PeerKind::Remuda => return Err(error.context("Remuda does not start")),
                Err(error) => eprintln!("{kind} is left out: {error:#}"),
            }
        }
        let direct = Gateway::direct(&engine);
        for gateway in &gateways {
            samples.add(
                Metric::StartSeconds,
                gateway.kind,
                gateway.start_time.as_secs_f64(),
            );
            figures::plain(lab, gateway, 64, Duration::from_millis(500))
                .with_context(|| format!("warming up {}", gateway.kind))?;
        }
        for round in 0..self.rounds() {
            println!("round {} of {}", round + 1, self.rounds());
            let mut order: Vec<&Gateway> = std::iter::once(&direct).chain(&gateways).collect();
            let first = round as usize % order.len();
            order.rotate_left(first);
            let mut results = Round::default();
            for gateway in order {
                match self.turn_of(lab, gateway, &mut results) {
                    // Without Remuda's figures there is nothing to say; a peer may fail at one.
                    Err(error) if gateway.kind == PeerKind::Remuda => return Err(error),
                    Err(error) => eprintln!("{} has no figure this round: {error:#}", gateway.kind),
                    Ok(()) => {}
                }
            }
            results.into_samples(samples);
        }
        for gateway in &gateways {
            samples.add(
                Metric::ResidentMib,
                gateway.kind,
                gateway.resident_kib()? as f64 / 1024.0,
            );
        }
        Ok(gateways
            .iter()
            .map(|gateway| (gateway.kind, gateway.version.clone()))
            .collect())
    }

    fn turn_of(&self, lab: &Lab, gateway: &Gateway, results: &mut Round) -> Result<()> {
        if self.wants(Figure::Plain) {
            results.plain(gateway.kind, figures::plain(lab, gateway, 64, self.turn())?);
        }
        if self.wants(Figure::Single) {
            results.single(gateway.kind, figures::plain(lab, gateway, 1, self.turn() / 3)?);
        }
        if self.wants(Figure::Streams) {
            results.streams(gateway.kind, figures::streams(lab, gateway, self.turn())?);
        }
        Ok(())
    }

    fn measure_memory(&self, lab: &Lab, samples: &mut Samples) -> Result<()> {
        let streams = if self.quick { 1_000 } else { 10_000 }.min(lab.streams_max());
        samples.add(Metric::OpenStreams, PeerKind::Remuda, f64::from(streams));
        for kind in self.kinds() {
            if !kind.holds_many_streams() {
                continue;
            }
            println!("{kind}: {streams} open streams");
            let engine = lab.engine()?;
            let gateway = match kind.start(lab, &engine) {
                Ok(gateway) => gateway,
                Err(error) => {
                    eprintln!("{kind} is left out: {error:#}");
                    continue;
                }
            };
            match figures::memory(lab, &gateway, streams) {
                Ok(kib) => samples.add(Metric::StreamKib, kind, kib),
                Err(error) if kind == PeerKind::Remuda => return Err(error),
                Err(error) => eprintln!("{kind} does not hold {streams} streams: {error:#}"),
            }
        }
        Ok(())
    }

    fn measure_remuda(&self, lab: &Lab, samples: &mut Samples) -> Result<()> {
        let whole = |seconds: u64| Duration::from_secs(if self.quick { 2 } else { seconds });
        if self.wants(Figure::Tasks) {
            println!("1,000 tasks a second");
            let engine = lab.engine()?;
            let gateway = PeerKind::Remuda.start(lab, &engine)?;
            for _ in 0..self.rounds().min(3) {
                figures::tasks(lab, &gateway, 1000, whole(5))?.into_samples(samples);
            }
        }
        if self.wants(Figure::Idle) {
            println!("idle daemons");
            for daemon in peers::daemons(lab)? {
                figures::idle(&daemon, whole(30))?.into_samples(samples);
            }
        }
        if self.wants(Figure::Nodes) {
            println!("1,000 nodes");
            let plane = peers::cloud_control_plane(lab)?;
            figures::nodes(lab, &plane, 1000, whole(20))?.into_samples(samples);
        }
        Ok(())
    }
}

fn build() -> Result<()> {
    let packages = ["orchestratord", "pool-managerd", "fake-engine", "loadgen"];
    run(cargo()
        .args(["build", "--release", "--locked"])
        .args(packages.iter().flat_map(|name| ["-p", name])))
}

/// A binary of this workspace, built for release.
fn binary(name: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("release").join(name);
    if !path.exists() {
        bail!("{name} is not built; leave --no-build out");
    }
    Ok(path)
}

/// The first line that `command` prints, wherever it prints it.
fn first_line(command: &mut Command) -> Result<String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {shown}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty());
    Ok(line
        .with_context(|| format!("{shown} printed nothing"))?
        .trim()
        .to_owned())
}
