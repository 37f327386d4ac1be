//! What the machine has besides GPUs.

use std::sync::OnceLock;

use pool_registry_types::Capabilities;

/// Processors and memory; looked up once, because reports are many and finding out reads several files.
pub fn machine() -> Capabilities {
    static MACHINE: OnceLock<Capabilities> = OnceLock::new();
    MACHINE.get_or_init(look_up).clone()
}

fn look_up() -> Capabilities {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Capabilities {
        cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
        ram_total_bytes: std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total(&text))
            .unwrap_or(0),
        ..Capabilities::default()
    }
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The machine's own name, made fit for an identifier.
pub fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name: String = name
        .trim()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || ".-_".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_start_matches(['.', '-', '_']).to_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        assert_eq!(
            total("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 * 1024 * 1024)
        );
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert_eq!(total("MemTotal: many kB\n"), None);
        let machine = machine();
        assert!(machine.cpu_cores > 0 && machine.ram_total_bytes > 0);
    }
}
