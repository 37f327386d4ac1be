//! How much the sandbox's processes use.

use std::fs;

use init_protocol::Health;

/// How many processes are looked at.
const PROCESSES_MAX: usize = 4096;

/// Counts all processes of this `/proc`, and their resident memory.
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
    let pages = |process: &str| -> Option<u64> {
        let line = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    health.memory_bytes = pages("1").unwrap_or(0) * page_bytes;
    for pid in processes.take(PROCESSES_MAX) {
        if let Some(pages) = pages(&pid.to_string()) {
            health.processes += 1;
            health.memory_bytes += pages * page_bytes;
        }
    }
    health
}
