//! Which process is meant, beyond its number.

use std::fs;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Names one process for ever: process ids are used again, but never with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`). 0 where the system does not say.
    pub start_time_ticks: u64,
    /// The boot in which it runs (`/proc/sys/kernel/random/boot_id`). Empty where the system does not say.
    pub boot_id: String,
}

impl Identity {
    /// The identity of the process that has the id `pid` now. None when there is none, or only its remains.
    pub fn of(pid: u32) -> Option<Self> {
        let start_time_ticks = start_time_ticks(pid)?;
        Some(Self {
            pid,
            start_time_ticks,
            boot_id: boot_id().to_owned(),
        })
    }

    /// This process.
    pub fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self {
            pid,
            start_time_ticks: 0,
            boot_id: boot_id().to_owned(),
        })
    }

    /// Whether exactly this process still runs. One that has ended but was not reaped yet does not.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id() && start_time_ticks(self.pid) == Some(self.start_time_ticks)
    }
}

/// Waits until `identity` is gone, at most `timeout`. Answers whether it is.
pub fn wait_until_gone(identity: &Identity, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    loop {
        if !identity.is_alive() {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        wait_step(identity, left);
    }
}

/// Ends a process that is no child of this one: SIGTERM, and SIGKILL once `grace` is over. Answers whether it is gone.
pub fn terminate(identity: &Identity, grace: Duration) -> io::Result<bool> {
    send(identity, Signal::TERM)?;
    if wait_until_gone(identity, grace) {
        return Ok(true);
    }
    send(identity, Signal::KILL)?;
    // A killed process is gone as soon as the kernel has taken it apart; freeing much memory takes a moment.
    Ok(wait_until_gone(identity, Duration::from_secs(10)))
}

#[cfg(target_os = "linux")]
fn send(identity: &Identity, signal: Signal) -> io::Result<()> {
    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
    let Some(pid) = raw_pid(identity.pid) else {
        return Ok(());
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor now stands for whoever has the id; from here on the id cannot change hands unnoticed.
    if !identity.is_alive() {
        return Ok(());
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn send(identity: &Identity, signal: Signal) -> io::Result<()> {
    let Some(pid) = raw_pid(identity.pid) else {
        return Ok(());
    };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
fn wait_step(identity: &Identity, left: Duration) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};
    let process = raw_pid(identity.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(process) = process else {
        return std::thread::sleep(left.min(POLL_INTERVAL));
    };
    // The descriptor becomes readable when the process ends. The bound covers an id that changed hands in between.
    let timeout = Timespec::try_from(left.min(Duration::from_secs(1))).ok();
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], timeout.as_ref());
}

#[cfg(not(target_os = "linux"))]
fn wait_step(_identity: &Identity, left: Duration) {
    std::thread::sleep(left.min(POLL_INTERVAL));
}

/// How often a process is looked at where the system cannot tell of its end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) fn raw_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}

#[cfg(target_os = "linux")]
fn start_time_ticks(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

#[cfg(not(target_os = "linux"))]
fn start_time_ticks(pid: u32) -> Option<u64> {
    rustix::process::test_kill_process(raw_pid(pid)?).ok().map(|()| 0)
}

/// Field 22 of a line of `/proc/PID/stat`; None for a process that has ended (state `Z` or `X`).
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "only Linux has /proc/PID/stat")
)]
fn parse_stat(line: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let line = |name: &str, state: &str| format!("17 ({name}) {state} {rest}");
        assert_eq!(parse_stat(&line("cat", "S")), Some(4711));
        assert_eq!(parse_stat(&line("a) R (b", "R")), Some(4711));
        assert_eq!(parse_stat(&line("cat", "Z")), None);
        assert_eq!(parse_stat("17 (cat"), None);
        assert_eq!(parse_stat("17 (cat) S 1 2"), None);
    }

    #[test]
    fn this_process_is_alive_and_another_one_of_its_number_is_not() {
        let own = Identity::own();
        assert!(own.is_alive());
        let later = Identity {
            start_time_ticks: own.start_time_ticks + 1,
            ..own.clone()
        };
        let elsewhere = Identity {
            boot_id: String::new(),
            ..own
        };
        assert!(!later.is_alive() && !elsewhere.is_alive());
        assert!(!wait_until_gone(&own, Duration::from_millis(5)));
    }

    #[test]
    fn a_stranger_with_the_same_number_is_not_signalled() {
        let own = Identity::own();
        let gone = Identity {
            start_time_ticks: own.start_time_ticks + 1,
            ..own
        };
        assert!(terminate(&gone, Duration::from_millis(5)).unwrap());
    }
}
