//! What processes take, as the kernel tells it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The memory file systems of a sandbox.
const MEMORY_FILES: [&str; 4] = ["home/agent", "workspace", "tmp", "dev/shm"];

/// The sandboxes that a node's driver `bubblewrap` has written down: their outer process, and process 1 inside.
pub(crate) fn sandboxes(agents_directory: &Path) -> Result<Vec<Sandboxed>> {
    let mut found = Vec::new();
    for file in fs::read_dir(agents_directory.join("bubblewrap"))?.flatten() {
        if file
            .path()
            .extension()
            .is_none_or(|extension| extension != "json")
        {
            continue;
        }
        let record: Value = serde_json::from_slice(&fs::read(file.path())?)?;
        let pid = |which: &str| record[which]["pid"].as_u64()?.try_into().ok();
        if let (Some(outer), Some(init)) = (pid("outer"), pid("inner")) {
            found.push(Sandboxed { outer, init });
        }
    }
    Ok(found)
}

/// A sandbox's processes, by their ids out here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sandboxed {
    /// The driver's own.
    pub(crate) outer: u32,
    pub(crate) init: u32,
}

impl Sandboxed {
    /// Everything in it but its process 1.
    pub(crate) fn others(&self) -> Result<Vec<u32>> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init).context("the sandbox has ended")?;
        let all = fs::read_dir("/proc")?.flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        Ok(all
            .filter(|pid| *pid != self.init && namespace(*pid).as_ref() == Some(&own))
            .collect())
    }

    /// What files in its memory take.
    pub(crate) fn files_bytes(&self) -> u64 {
        let used = MEMORY_FILES.iter().filter_map(|path| {
            let stat = rustix::fs::statvfs(format!("/proc/{}/root/{path}", self.init)).ok()?;
            Some((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
        });
        used.sum()
    }
}

/// The proportional set size: memory that several processes share counts in parts.
pub(crate) fn proportional_bytes(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// The most memory that a process has ever had resident.
pub(crate) fn resident_bytes_max(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// Memory that is free for programs on this machine.
pub(crate) fn available_bytes() -> Result<u64> {
    kib("/proc/meminfo", "MemAvailable:")
}

/// Memory that a process shares with no other one.
pub(crate) fn private_bytes(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    Ok(kib(&file, "Private_Clean:")? + kib(&file, "Private_Dirty:")?)
}

/// Processor time of a process and of its children that have ended, in milliseconds: the kernel counts in hundredths of a
/// second.
pub(crate) fn processor_ms(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("a name")?;
    let ticks = rest
        .split(' ')
        .skip(11)
        .take(4)
        .map(|word| word.parse::<u64>().unwrap_or(0));
    Ok(ticks.sum::<u64>() * 10)
}

fn kib(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .context(file.to_owned())?;
    let number: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(number * 1024)
}
