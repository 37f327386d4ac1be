//! How many sandboxes a machine holds: the rules by which a node keeps them, on paper.

use agents::profile::Cost;

const MIB: u64 = 1 << 20;
/// Memory of a sandbox that nobody has, with its driver's own, until it was measured. By measurement, rounded up.
pub(super) const WARM_BYTES: u64 = 4 * MIB;
/// The same by Docker: containerd keeps a process for each.
const WARM_DOCKER_BYTES: u64 = 24 * MIB;
/// Memory of a CLI whose cost nobody has measured.
const CLI_BYTES: u64 = 400 * MIB;

/// How many sandboxes of one agent a machine holds, when it does nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Without an owner, by bubblewrap.
    pub warm: u64,
    /// Without an owner, by Docker.
    pub warm_docker: u64,
    /// Kept for owners with their CLI running.
    pub hot: u64,
    /// Answering at once.
    pub busy: u64,
    /// Short turns that its processors answer in a second. None: nobody has measured the agent.
    pub turns_per_second: Option<f64>,
}

/// What a machine of so much memory and so many cores holds of an agent.
pub fn capacity(cost: Option<&Cost>, memory_bytes: u64, cores: u32) -> Capacity {
    let memory = memory_for_sandboxes(memory_bytes);
    let owned = owned_bytes(cost);
    Capacity {
        warm: memory / WARM_BYTES,
        warm_docker: memory / WARM_DOCKER_BYTES,
        hot: memory_for_idle(memory) / owned,
        busy: memory / owned,
        turns_per_second: cost.map(|cost| f64::from(cores) * 1000.0 / cost.turn_cpu_ms.max(1) as f64),
    }
}

/// What of a machine's memory sandboxes may take.
pub(super) fn memory_for_sandboxes(memory_bytes: u64) -> u64 {
    memory_bytes / 4 * 3
}

/// What of that may be kept for owners who ask nothing now.
pub(super) fn memory_for_idle(sandboxes_bytes: u64) -> u64 {
    sandboxes_bytes / 2
}

/// Memory of a sandbox with its owner's CLI in it, until it was measured.
pub(super) fn owned_bytes(cost: Option<&Cost>) -> u64 {
    WARM_BYTES + cost.map_or(CLI_BYTES, |cost| cost.hot_mib * MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_holds_what_its_memory_and_cores_allow() {
        let cost = Cost {
            hot_mib: 124,
            start_cpu_ms: 500,
            turn_cpu_ms: 40,
        };
        let small = capacity(Some(&cost), 8 << 30, 4);
        assert_eq!((small.warm, small.warm_docker), (1536, 256));
        assert_eq!((small.hot, small.busy), (24, 48));
        assert_eq!(small.turns_per_second, Some(100.0));
        let unknown = capacity(None, 8 << 30, 4);
        assert_eq!((unknown.busy, unknown.turns_per_second), (15, None));
        assert_eq!(capacity(Some(&cost), 0, 1).busy, 0);
    }
}
