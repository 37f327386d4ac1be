//! Secrets are in memory, so memory is not written to disk when a process dies, and not shown to other processes.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// One byte and not none: with a core pattern that pipes into a program, the kernel ignores 0 and takes 1 as "never".
const NOTHING: u64 = 1;

/// Switches core dumps off for this process and its children, and keeps others of the same user from looking into this
/// one (`/proc/PID/mem`, `/proc/PID/environ`, debuggers). Where that is not allowed it says so in the log.
pub fn switch_off() {
    let most = getrlimit(Resource::Core).maximum.unwrap_or(NOTHING).min(NOTHING);
    let none = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be switched off; a crash may write secrets to disk");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "this process cannot be made unreadable for others of its user");
    }
}

/// Whether they are off.
pub fn are_off() -> bool {
    getrlimit(Resource::Core)
        .current
        .is_some_and(|bytes| bytes <= NOTHING)
}

#[cfg(test)]
mod tests {
    #[test]
    fn off_stays_off() {
        super::switch_off();
        assert!(super::are_off());
        #[cfg(target_os = "linux")]
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            rustix::process::DumpableBehavior::NotDumpable
        );
    }
}
