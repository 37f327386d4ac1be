//! `remuda doctor --capacity`: how many sandboxes of each agent a machine holds.

use agents::Profile;
use anyhow::Result;
use pool_managerd::{capacity, machine};
use serde::Serialize;

use crate::output::{dim, print_json, print_table, table};

/// A machine to reckon for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) memory_bytes: u64,
    pub(super) cores: u32,
}

impl Machine {
    /// This one, where nothing else is said.
    pub(super) fn new(memory_gib: Option<f64>, cores: Option<u32>) -> Self {
        let own = machine();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and far below 2^64"
        )]
        let bytes = |gib: f64| (gib.clamp(0.0, 1e6) * f64::from(1 << 30)) as u64;
        Self {
            memory_bytes: memory_gib.map_or(own.ram_total_bytes, bytes),
            cores: cores.unwrap_or(own.cpu_cores),
        }
    }
}

/// What a machine holds of one agent.
#[derive(Debug, Serialize)]
struct Row {
    agent: String,
    version: String,
    warm: u64,
    warm_docker: u64,
    hot: u64,
    busy: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    turns_per_second: Option<u64>,
}

/// Prints it for each agent that has a built-in profile.
pub(super) fn run(machine: Machine, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for profile in Profile::all(None)? {
        let holds = capacity(profile.cost.as_ref(), machine.memory_bytes, machine.cores);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some thousands at most"
        )]
        let whole = |number: f64| number as u64;
        rows.push(Row {
            agent: profile.name,
            version: profile.package.version,
            warm: holds.warm,
            warm_docker: holds.warm_docker,
            hot: holds.hot,
            busy: holds.busy,
            turns_per_second: holds.turns_per_second.map(whole),
        });
    }
    if json {
        return print_json(&rows);
    }
    let heading = [
        "AGENT",
        "WARM",
        "WARM (DOCKER)",
        "HOT",
        "ANSWERING AT ONCE",
        "SHORT TURNS/S",
    ];
    let mut printed = table(&heading);
    for row in &rows {
        let turns = row
            .turns_per_second
            .map_or_else(|| "?".to_owned(), |turns| turns.to_string());
        let counts = [row.warm, row.warm_docker, row.hot, row.busy].map(|count| count.to_string());
        let mut cells = vec![format!("{} {}", row.agent, row.version)];
        cells.extend(counts);
        cells.push(turns);
        printed.add_row(cells);
    }
    print_table(&printed, "no agent has a profile")?;
    anstream::println!(
        "{}",
        dim(format!(
            "A machine with {:.1} GiB and {} cores that does nothing else, each agent alone on it; three quarters of its memory\n\
             for sandboxes, half of that for those kept for owners. A node keeps 256 sandboxes at most, unless\n\
             POOL_MANAGERD_SANDBOXES_MAX says otherwise.",
            machine.memory_bytes as f64 / f64::from(1 << 30),
            machine.cores
        ))
    );
    Ok(())
}
