//! An archive into a directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use init_protocol::{Done, Failure, FailureCode, Unpack};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{DEPTH_MAX, DIRECTORY_MODE, OPEN_DIRECTORY, clear_name, failure, link_stays_inside, open_root};

/// Reads the whole archive from `input`. What was unpacked before a failure stays.
pub(crate) fn unpack(request: &Unpack, mut input: PipeReader) -> Result<Done, Failure> {
    let root = open_root(&request.path, true)?;
    let done = unpack_into(&root, request, &mut input)?;
    // Padding after the archive's end belongs to it.
    io::copy(&mut input, &mut io::sink()).map_err(|error| failure(&error, "cannot read the archive"))?;
    Ok(done)
}

fn unpack_into(root: &OwnedFd, request: &Unpack, input: &mut PipeReader) -> Result<Done, Failure> {
    let broken = |error: io::Error| {
        Failure::new(
            FailureCode::Invalid,
            format!("the archive cannot be read: {error}"),
        )
    };
    let mut done = Done::default();
    let mut archive = Archive::new(CountedEnd::new(input));
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        done.entries += 1;
        done.bytes = done.bytes.saturating_add(entry.size());
        if done.entries > request.limits.entries_max || done.bytes > request.limits.bytes_max {
            return Err(Failure::new(
                FailureCode::TooLarge,
                "the archive holds more than is allowed",
            ));
        }
        unpack_entry(root, &mut entry, request.any_links)?;
    }
    if !archive.into_inner().ended_well() {
        return Err(Failure::new(FailureCode::Invalid, "the archive is cut off"));
    }
    Ok(done)
}

fn unpack_entry(root: &OwnedFd, entry: &mut Entry<'_, impl Read>, any_links: bool) -> Result<(), Failure> {
    let path = entry
        .path()
        .map_err(|error| refused(&error.to_string()))?
        .into_owned();
    let names = names_of(&path)?;
    let kind = entry.header().entry_type();
    let Some((name, parents)) = names.split_last() else {
        // The directory itself.
        return if kind == EntryType::Directory {
            Ok(())
        } else {
            Err(refused("an entry without a name"))
        };
    };
    let what = |error: io::Error| failure(&error, "cannot unpack");
    let parent = walk(root, parents).map_err(what)?;
    match kind {
        EntryType::Directory => make_directory(&parent, name).map(drop).map_err(what),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            write_file(&parent, name, entry).map_err(what)
        }
        EntryType::Symlink => {
            let target = link_target(entry)?;
            if !any_links && !link_stays_inside(Path::new(&target), parents.len()) {
                return Err(refused("a link that leaves the directory"));
            }
            clear_name(&parent, name).map_err(what)?;
            rustix::fs::symlinkat(&target, &parent, name).map_err(|error| what(error.into()))
        }
        EntryType::Link => {
            let target = names_of(Path::new(&link_target(entry)?))?;
            let Some((target_name, target_parents)) = target.split_last() else {
                return Err(refused("a link without a target"));
            };
            let target_parent = walk(root, target_parents).map_err(what)?;
            clear_name(&parent, name).map_err(what)?;
            rustix::fs::linkat(&target_parent, target_name, &parent, name, AtFlags::empty())
                .map_err(|error| what(error.into()))
        }
        EntryType::XGlobalHeader => Ok(()),
        _ => Err(refused("an entry that is neither file, directory nor link")),
    }
}

fn refused(why: &str) -> Failure {
    Failure::new(FailureCode::Invalid, format!("the archive is refused: {why}"))
}

fn link_target(entry: &Entry<'_, impl Read>) -> Result<OsString, Failure> {
    entry
        .link_name()
        .ok()
        .flatten()
        .map(|target| target.into_owned().into_os_string())
        .ok_or_else(|| refused("a link without a target"))
}

/// The names of a path that goes down only.
fn names_of(path: &Path) -> Result<Vec<OsString>, Failure> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused("a path that leaves the directory"));
            }
        }
    }
    if names.len() > DEPTH_MAX {
        return Err(refused("a path that is too deep"));
    }
    Ok(names)
}

/// Opens directories down from `root`, made where they are missing. A link on the way is an error.
fn walk(root: &OwnedFd, names: &[OsString]) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone()?;
    for name in names {
        directory = make_directory(&directory, name)?;
    }
    Ok(directory)
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty())?)
}

fn write_file(parent: &OwnedFd, name: &OsStr, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
    let mode = if executable {
        Mode::RWXU
    } else {
        Mode::RUSR | Mode::WUSR
    };
    clear_name(parent, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(parent, name, flags, mode)?);
    // The mode of a new file is cut by the process's mask.
    rustix::fs::fchmod(&file, mode)?;
    io::copy(entry, &mut file)?;
    // Build tools and git compare times.
    if let Some(seconds) = entry
        .header()
        .mtime()
        .ok()
        .and_then(|seconds| seconds.try_into().ok())
    {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&file, &times)?;
    }
    Ok(())
}

/// Knows whether an archive had its end: a cut stream otherwise looks like a shorter archive.
struct CountedEnd<R> {
    inner: R,
    zeros: usize,
}

/// An archive ends with two blocks of zeros.
const END_ZEROS: usize = 512;

impl<R> CountedEnd<R> {
    fn new(inner: R) -> Self {
        Self { inner, zeros: 0 }
    }

    fn ended_well(&self) -> bool {
        self.zeros >= END_ZEROS
    }
}

impl<R: Read> Read for CountedEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let trailing = buffer[..count]
            .iter()
            .rev()
            .take_while(|byte| **byte == 0)
            .count();
        self.zeros = if trailing == count {
            self.zeros + count
        } else {
            trailing
        };
        Ok(count)
    }
}
