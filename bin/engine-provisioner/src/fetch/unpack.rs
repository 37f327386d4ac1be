//! Unpacking `.tar.gz` without trusting it.
//!
//! Nothing is written outside the target: names must be plain, and a link may only point to what lies beside or below
//! it. Links to anything else, devices and pipes are refused; so are archives beyond the bounds.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use model_store::Progress;
use tar::{Archive, Entry, EntryType};

/// An archive may not hold more entries.
const ENTRIES_MAX: u64 = 200_000;

/// An archive may not unpack to more.
const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It cannot be read, or what is in it not be written.
    #[error("cannot unpack {}", archive.display())]
    Io {
        /// Which archive.
        archive: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something that it must not.
    #[error("{} is refused: {message}", archive.display())]
    Refused {
        /// Which archive.
        archive: PathBuf,
        /// Why.
        message: String,
    },
}

/// Unpacks what lies in `within` into `target`. Blocks the thread.
pub(super) fn unpack(
    archive: &Path,
    within: &Within,
    target: &Path,
    progress: &Progress,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Io {
        archive: archive.to_owned(),
        source,
    };
    let refused = |message| UnpackError::Refused {
        archive: archive.to_owned(),
        message,
    };
    let what = format!(
        "unpacking {}",
        archive.file_name().unwrap_or_default().to_string_lossy()
    );
    let file = File::open(archive).map_err(failed)?;
    let mut reader = Archive::new(GzDecoder::new(io::BufReader::new(file)));
    let (mut count, mut bytes) = (0, 0_u64);
    for entry in reader.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        count += 1;
        bytes = bytes.saturating_add(entry.size());
        if count > ENTRIES_MAX || bytes > BYTES_MAX {
            return Err(refused(format!(
                "it holds more than {ENTRIES_MAX} files or {BYTES_MAX} bytes"
            )));
        }
        if let Some(path) = path_of(&entry, within).map_err(refused)? {
            unpack_entry(&mut entry, &target.join(path)).map_err(failed)?;
        }
        if count % 256 == 0 {
            progress.pieces(&what, count, None);
        }
    }
    Ok(())
}

/// Which part of an archive is unpacked.
#[derive(Clone, Debug)]
pub(super) enum Within {
    /// All of it.
    All,
    /// What lies in this directory below the archive's first one.
    Directory(PathBuf),
}

/// Where an entry goes, relative to the target. None: nowhere. The error says why it is refused.
fn path_of(entry: &Entry<'_, impl io::Read>, within: &Within) -> Result<Option<PathBuf>, String> {
    let path = entry.path().map_err(|error| error.to_string())?;
    let plain = plain_path(&path).ok_or_else(|| format!("it holds the path {}", path.display()))?;
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
        EntryType::Symlink => {
            let link = entry
                .link_name()
                .map_err(|error| error.to_string())?
                .unwrap_or_default();
            if plain_path(&link).is_none() {
                return Err(format!("{} is a link to {}", path.display(), link.display()));
            }
        }
        EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
            return Ok(None);
        }
        other => return Err(format!("{} is of type {other:?}", path.display())),
    }
    Ok(match within {
        Within::All => Some(plain),
        Within::Directory(directory) => {
            let mut parts = plain.components();
            parts.next();
            parts.as_path().strip_prefix(directory).ok().map(Path::to_owned)
        }
    })
}

/// The path without `.` parts. None when it has any other part that is no name, or no part at all.
fn plain_path(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

fn unpack_entry(entry: &mut Entry<'_, impl io::Read>, to: &Path) -> io::Result<()> {
    if entry.header().entry_type().is_dir() {
        return std::fs::create_dir_all(to);
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    entry.unpack(to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    /// An archive whose entries have exactly these names, however wicked.
    fn archive(directory: &Path, entries: &[(&str, EntryType, &str)]) -> PathBuf {
        let path = directory.join("a.tar.gz");
        let mut builder = Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::fast()));
        for (name, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            if kind.is_symlink() || kind.is_hard_link() {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap().finish().unwrap();
        path
    }

    fn check(entries: &[(&str, EntryType, &str)], expect: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = archive(directory.path(), entries);
        let target = directory.path().join("in/target");
        let error = unpack(&path, &Within::All, &target, &Progress::none()).unwrap_err();
        assert!(
            matches!(&error, UnpackError::Refused { message, .. } if message == expect),
            "{error:?}"
        );
        assert!(!directory.path().join("evil").exists() && !directory.path().join("in/evil").exists());
    }

    #[test]
    fn what_leads_outside_is_refused() {
        check(
            &[("../evil", EntryType::Regular, "x")],
            "it holds the path ../evil",
        );
        check(
            &[("a/../../evil", EntryType::Regular, "x")],
            "it holds the path a/../../evil",
        );
        check(
            &[("/tmp/evil", EntryType::Regular, "x")],
            "it holds the path /tmp/evil",
        );
        check(&[("a", EntryType::Symlink, "../evil")], "a is a link to ../evil");
        check(&[("a", EntryType::Symlink, "/etc")], "a is a link to /etc");
        check(&[("a", EntryType::Link, "b")], "a is of type Link");
        check(&[("a", EntryType::Fifo, "")], "a is of type Fifo");
    }

    #[test]
    fn one_directory_can_be_unpacked_without_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let entries = [
            ("p-1/setup.py", EntryType::Regular, "no"),
            ("p-1/vendor/l/CMakeLists.txt", EntryType::Regular, "yes"),
            ("p-1/vendor/l/lib.so.1", EntryType::Regular, "so"),
            ("p-1/vendor/l/lib.so", EntryType::Symlink, "lib.so.1"),
        ];
        let path = archive(directory.path(), &entries);
        let target = directory.path().join("target");
        unpack(
            &path,
            &Within::Directory("vendor/l".into()),
            &target,
            &Progress::none(),
        )
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(target.join("CMakeLists.txt")).unwrap(),
            "yes"
        );
        assert_eq!(std::fs::read_to_string(target.join("lib.so")).unwrap(), "so");
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 3);
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar.gz");
        std::fs::write(&path, "<html>").unwrap();
        let error = unpack(&path, &Within::All, directory.path(), &Progress::none()).unwrap_err();
        assert!(matches!(error, UnpackError::Io { .. }), "{error:?}");
    }
}
