//! Whether the process that a handoff names still runs.
//!
//! A process is named for ever by its id, its start time and the boot it runs in; an id alone is given to another
//! process sooner or later.

use std::fs;
use std::io::ErrorKind;

use pool_registry_types::Handoff;

/// What is known of a handoff's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// The very process that the handoff names runs.
    Alive,
    /// That process is gone for ever.
    Gone,
    /// The handoff does not name a process, or it cannot be looked at.
    Unknown,
}

/// Looks for the handoff's process in `/proc`.
pub fn liveness(handoff: &Handoff) -> Liveness {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let stat = match handoff.pid {
        None => return Liveness::Unknown,
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => Some(stat),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(_) => return Liveness::Unknown,
        },
    };
    judge(handoff, boot.as_deref().map(str::trim), stat.as_deref())
}

/// `boot` is the boot that we are in, `stat` the content of `/proc/PID/stat` or nothing when there is no such process.
fn judge(handoff: &Handoff, boot: Option<&str>, stat: Option<&str>) -> Liveness {
    if let (Some(then), Some(now)) = (handoff.boot_id.as_deref(), boot)
        && then != now
    {
        return Liveness::Gone;
    }
    let Some(stat) = stat else { return Liveness::Gone };
    let Some((state, start_time_ticks)) = parse_stat(stat) else {
        return Liveness::Unknown;
    };
    if matches!(state, 'Z' | 'X') {
        return Liveness::Gone;
    }
    match handoff.start_time_ticks {
        Some(then) if then == start_time_ticks => Liveness::Alive,
        Some(_) => Liveness::Gone,
        None => Liveness::Unknown,
    }
}

/// The state and the start time. The name of a program may hold anything, so fields are counted from its last bracket.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3; the start time is field 22.
    let start_time_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, start_time_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handoff(pid: Option<u32>, ticks: Option<u64>, boot: Option<&str>) -> Handoff {
        let text = r#"{"pool_id":"p","replica_id":"r","engine":"e","url":"http://localhost:1"}"#;
        let bare: Handoff = serde_json::from_str(text).unwrap();
        Handoff {
            pid,
            start_time_ticks: ticks,
            boot_id: boot.map(str::to_owned),
            ..bare
        }
    }

    fn stat(state: char, ticks: u64) -> String {
        format!("7 (a ) b (c) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {ticks} 20 21")
    }

    #[test]
    fn a_process_is_its_id_its_start_and_its_boot() {
        let named = handoff(Some(7), Some(500), Some("boot"));
        let check = |handoff: &Handoff, boot: &str, stat: Option<String>, expect| {
            assert_eq!(
                judge(handoff, Some(boot), stat.as_deref()),
                expect,
                "{handoff:?} {stat:?}"
            );
        };
        check(&named, "boot", Some(stat('S', 500)), Liveness::Alive);
        check(&named, "boot", Some(stat('S', 501)), Liveness::Gone);
        check(&named, "boot", Some(stat('Z', 500)), Liveness::Gone);
        check(&named, "boot", None, Liveness::Gone);
        check(&named, "later", Some(stat('S', 500)), Liveness::Gone);
        check(
            &handoff(Some(7), None, None),
            "boot",
            Some(stat('S', 500)),
            Liveness::Unknown,
        );
        check(&named, "boot", Some("7 (cut".to_owned()), Liveness::Unknown);
    }

    #[test]
    fn this_process_is_alive() {
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let ticks = parse_stat(&own).unwrap().1;
        let me = std::process::id();
        assert_eq!(liveness(&handoff(Some(me), Some(ticks), None)), Liveness::Alive);
        assert_eq!(
            liveness(&handoff(Some(me), Some(ticks + 1), None)),
            Liveness::Gone
        );
        assert_eq!(liveness(&handoff(None, None, None)), Liveness::Unknown);
    }
}
