//! Processes of a sandbox that is only being made, known by a mark in their environment.
//!
//! `bwrap` forks the process that becomes init and then says which it is. When it dies in between, its child waits for it
//! for ever, and nobody has its number. Both have the environment that `bwrap` was started with; init's own is another.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use process::Identity;

/// The variable that holds the path of the sandbox's record, which is no other sandbox's.
pub(super) const VARIABLE: &str = "REMUDA_BWRAP_OF";

/// How often what is still there is looked for. What is killed forks no more, so one round is mostly enough.
const ROUNDS_MAX: usize = 16;

/// Ends all processes with this mark, and waits until they are gone.
pub(super) fn end(record: &Path) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        let mut left = find(record)?;
        if left.is_empty() {
            return Ok(());
        }
        // The children first: their parent reaps them, which process 1 of a container mostly does not.
        left.sort_unstable_by_key(|pid| std::cmp::Reverse(*pid));
        for identity in left.into_iter().filter_map(Identity::of) {
            process::terminate(&identity, Duration::ZERO)?;
        }
    }
    Err(io::Error::other("it goes on starting processes"))
}

fn find(record: &Path) -> io::Result<Vec<u32>> {
    let mut mark = VARIABLE.as_bytes().to_vec();
    mark.push(b'=');
    mark.extend_from_slice(record.as_os_str().as_bytes());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Those of other users cannot be read, and are none of ours.
        let environment = std::fs::read(entry.path().join(OsStr::new("environ"))).unwrap_or_default();
        // The remains of a process have no environment.
        if environment.split(|byte| *byte == 0).any(|one| one == mark) {
            found.push(pid);
        }
    }
    Ok(found)
}
