//! How much the sandbox's processes use.

use std::fs;

use init_protocol::Health;

/// How many processes are looked at.
const PROCESSES_MAX: usize = 4096;

/// Counts all processes of this `/proc`, and their memory. What several share counts in parts, so that the sum over all
/// sandboxes is what they take of the machine; of a process that nobody may look into, all that is resident counts.
pub(crate) fn health(nonce: u64, channels: usize) -> Health {
    let page_bytes = rustix::param::page_size() as u64;
    let mut health = Health {
        nonce,
        channels: u32::try_from(channels).unwrap_or(u32::MAX),
        ..Health::default()
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return health;
    };
    let processes = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let pid: u32 = name.to_str()?.parse().ok()?;
        (pid != 1).then_some(pid)
    });
    let memory =
        |process: &str| proportional(process).or_else(|| Some(resident_pages(process)? * page_bytes));
    health.memory_bytes = memory("1").unwrap_or(0);
    for pid in processes.take(PROCESSES_MAX) {
        if let Some(bytes) = memory(&pid.to_string()) {
            health.processes += 1;
            health.memory_bytes += bytes;
        }
    }
    health
}

/// The proportional set size, in bytes.
fn proportional(process: &str) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn resident_pages(process: &str) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
