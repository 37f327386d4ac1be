//! Directories as tar archives, in both directions.
//!
//! Nothing in an archive is trusted, and nothing in the sandbox is: every path is walked one name at a time from an open
//! directory, never through a link, so that nothing is read or written outside of the directory that was named.

mod pack;
mod unpack;

use std::io;
use std::path::{Component, Path};

use init_protocol::{Failure, FailureCode};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use pack::pack;
pub(crate) use unpack::unpack;

/// How deep a tree may be.
const DEPTH_MAX: usize = 64;

/// Directories are for their owner only.
const DIRECTORY_MODE: Mode = Mode::RWXU;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn failure(error: &io::Error, what: &str) -> Failure {
    let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => FailureCode::NoSpace,
        Some(Errno::NOENT) => FailureCode::NotFound,
        _ => FailureCode::Failed,
    };
    Failure::new(code, format!("{what}: {error}"))
}

/// Opens the directory itself; its own path may lead through links, which the node has named.
fn open_root(path: &str, make: bool) -> Result<std::os::fd::OwnedFd, Failure> {
    if make {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| failure(&error, "cannot make the directory"))?;
    }
    rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty())
        .map_err(|error| failure(&error.into(), "cannot open the directory"))
}

/// Whether a link at a depth (of its own directory below the root) stays inside.
///
/// Only leading `..`: after a name that may itself be a link, `..` would mean another directory than it seems to.
fn link_stays_inside(target: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut named = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if !named => up += 1,
            Component::Normal(_) => named = true,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth
}

/// Removes what stands at a name, if it is not a directory.
fn clear_name(directory: &impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
