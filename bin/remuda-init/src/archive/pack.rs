//! A directory into an archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeWriter, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use init_protocol::{Done, Failure, FailureCode, Pack};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use tar::{Builder, EntryType, Header};

use super::{DEPTH_MAX, OPEN_DIRECTORY, failure, link_stays_inside, open_root};

/// Writes the archive into `out`, names in order.
pub(crate) fn pack(request: &Pack, out: PipeWriter) -> Result<Done, Failure> {
    let root = open_root(&request.path, false)?;
    let mut builder = Builder::new(io::BufWriter::with_capacity(32 * 1024, out));
    let mut packing = Packing {
        request,
        done: Done::default(),
    };
    packing.directory(&mut builder, &root, &mut PathBuf::new(), 0)?;
    builder
        .into_inner()
        .and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error))
        .map_err(|error| failure(&error, "cannot write the archive"))?;
    Ok(packing.done)
}

struct Packing<'a> {
    request: &'a Pack,
    done: Done,
}

impl Packing<'_> {
    fn directory(
        &mut self,
        builder: &mut Builder<impl io::Write>,
        directory: &OwnedFd,
        path: &mut PathBuf,
        depth: usize,
    ) -> Result<(), Failure> {
        if depth > DEPTH_MAX {
            self.done.skipped += 1;
            return Ok(());
        }
        for name in names(directory).map_err(|error| failure(&error, "cannot read a directory"))? {
            let name = OsStr::from_bytes(&name);
            path.push(name);
            if self.is_left_out(path) {
                self.done.skipped += 1;
            } else {
                self.entry(builder, directory, name, path, depth)?;
            }
            path.pop();
        }
        Ok(())
    }

    fn is_left_out(&self, path: &Path) -> bool {
        let only = &self.request.only;
        let is_near = |wanted: &String| path.starts_with(wanted) || Path::new(wanted).starts_with(path);
        self.request
            .exclude
            .iter()
            .any(|excluded| Path::new(excluded) == path)
            || !only.is_empty() && !only.iter().any(is_near)
    }

    fn entry(
        &mut self,
        builder: &mut Builder<impl io::Write>,
        directory: &OwnedFd,
        name: &OsStr,
        path: &mut PathBuf,
        depth: usize,
    ) -> Result<(), Failure> {
        let Ok(status) = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) else {
            // Gone since its name was read.
            return Ok(());
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                let Ok(opened) = rustix::fs::openat(directory, name, OPEN_DIRECTORY, Mode::empty()) else {
                    self.done.skipped += 1;
                    return Ok(());
                };
                self.count()?;
                let mut header = header(EntryType::Directory, 0o700, 0, mtime(status.st_mtime));
                builder
                    .append_data(&mut header, path.as_path(), io::empty())
                    .map_err(|error| failure(&error, "cannot write the archive"))?;
                self.directory(builder, &opened, path, depth + 1)
            }
            FileType::RegularFile => self.file(builder, directory, name, path),
            FileType::Symlink => self.link(builder, directory, name, path, depth),
            _ => {
                self.done.skipped += 1;
                Ok(())
            }
        }
    }

    fn file(
        &mut self,
        builder: &mut Builder<impl io::Write>,
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Failure> {
        // Not blocking: a name may have become a pipe since it was looked at.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(directory, name, flags, Mode::empty())
            .and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        let (status, file) = match opened {
            Ok(opened) if FileType::from_raw_mode(opened.0.st_mode) == FileType::RegularFile => opened,
            _ => {
                self.done.skipped += 1;
                return Ok(());
            }
        };
        let bytes = u64::try_from(status.st_size).unwrap_or(0);
        self.count()?;
        self.done.bytes = self.done.bytes.saturating_add(bytes);
        if self.done.bytes > self.request.limits.bytes_max {
            return Err(too_large());
        }
        let mode = if status.st_mode & 0o111 == 0 { 0o600 } else { 0o700 };
        let mut header = header(EntryType::Regular, mode, bytes, mtime(status.st_mtime));
        // Exactly as many bytes as the header says, also when the file is being written.
        let content = File::from(file).chain(io::repeat(0)).take(bytes);
        builder
            .append_data(&mut header, path, content)
            .map_err(|error| failure(&error, "cannot write the archive"))
    }

    fn link(
        &mut self,
        builder: &mut Builder<impl io::Write>,
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), Failure> {
        let target = rustix::fs::readlinkat(directory, name, Vec::new());
        let Some(target) = target
            .ok()
            .map(|target| PathBuf::from(OsStr::from_bytes(target.to_bytes())))
            .filter(|target| self.request.any_links || link_stays_inside(target, depth))
        else {
            self.done.skipped += 1;
            return Ok(());
        };
        self.count()?;
        let mut header = header(EntryType::Symlink, 0o777, 0, 0);
        builder
            .append_link(&mut header, path, &target)
            .map_err(|error| failure(&error, "cannot write the archive"))
    }

    fn count(&mut self) -> Result<(), Failure> {
        self.done.entries += 1;
        if self.done.entries > self.request.limits.entries_max {
            return Err(too_large());
        }
        Ok(())
    }
}

fn too_large() -> Failure {
    Failure::new(FailureCode::TooLarge, "the directory holds more than is allowed")
}

fn header(kind: EntryType, mode: u32, bytes: u64, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn mtime(seconds: impl TryInto<u64>) -> u64 {
    seconds.try_into().unwrap_or(0)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}
