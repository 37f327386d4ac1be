//! Secrets are in memory, so memory is not written to disk when a process dies.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Switches core dumps off for this process and its children. Where that is not allowed it says so in the log.
pub fn switch_off() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be switched off; a crash may write secrets to disk");
    }
}

/// Whether they are off.
pub fn are_off() -> bool {
    getrlimit(Resource::Core).current == Some(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn off_stays_off() {
        super::switch_off();
        assert!(super::are_off());
    }
}
