//! Archives in the one form in which they are kept: directories, files and links, each once, plain paths.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path};

use tar::{Builder, Entry, EntryType, Header};

/// How deep a tree may be, as in a sandbox.
const DEPTH_MAX: usize = 64;
/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// An archive ends with two blocks of zeros.
const END_ZEROS: usize = 512;
/// What may follow an archive's end: tar pads up to a record.
const PADDING_BYTES_MAX: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// How much a workspace may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All its files together.
    pub bytes_max: u64,
    /// Files, directories and links.
    pub entries_max: u64,
}

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is larger than is allowed.
    #[error("it holds more than {} MiB or {} files and directories", .0.bytes_max >> 20, .0.entries_max)]
    TooLarge(Limits),
    /// Something in it is not allowed.
    #[error("{path:?} in the archive {why}")]
    Entry {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is no archive, or not a whole one.
    #[error("the archive cannot be read: {0}")]
    Broken(String),
    /// It could not be kept.
    #[error("the workspace cannot be written")]
    Write(#[source] io::Error),
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Whether it can be run.
        executable: bool,
        /// Where its bytes begin in the archive.
        offset: u64,
        /// How many they are.
        len: u64,
    },
    /// A symbolic link.
    Link {
        /// Where it leads, unchecked.
        target: Vec<u8>,
    },
}

/// An archive in canonical form, and what is in it.
#[derive(Debug)]
pub struct Archive {
    file: File,
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Archive {
    /// Reads what is in an archive that [`canonical`] has written.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(mut file: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        let mut nodes = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let node = match entry.header().entry_type() {
                EntryType::Directory => Node::Directory,
                EntryType::Symlink => Node::Link {
                    target: entry.link_name_bytes().unwrap_or_default().into_owned(),
                },
                _ => Node::File {
                    executable: entry.header().mode()? & 0o111 != 0,
                    offset: entry.raw_file_position(),
                    len: entry.size(),
                },
            };
            let path = entry.path_bytes();
            nodes.insert(path.strip_suffix(b"/").unwrap_or(&path).to_vec(), node);
        }
        Ok(Self { file, nodes })
    }

    /// What is in it, by path.
    pub fn nodes(&self) -> &BTreeMap<Vec<u8>, Node> {
        &self.nodes
    }

    /// The bytes of all its files.
    pub fn bytes(&self) -> u64 {
        let lens = self.nodes.values().map(|node| match node {
            Node::File { len, .. } => *len,
            Node::Directory | Node::Link { .. } => 0,
        });
        lens.sum()
    }

    /// How many files and links it has.
    pub fn files(&self) -> u64 {
        let files = self.nodes.values().filter(|node| **node != Node::Directory);
        files.count() as u64
    }

    /// What a node says: a file's bytes, a link's target.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub fn content(&self, node: &Node) -> io::Result<Vec<u8>> {
        match node {
            Node::Directory => Ok(Vec::new()),
            Node::Link { target } => Ok(target.clone()),
            Node::File { offset, len, .. } => {
                let mut bytes = vec![0; usize::try_from(*len).map_err(io::Error::other)?];
                self.file.read_exact_at(&mut bytes, *offset)?;
                Ok(bytes)
            }
        }
    }

    /// Reads a piece of the archive.
    pub(crate) fn read_at(&self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(piece, offset)
    }
}

/// Writes what `input` holds into `out` in canonical form: hard links become files, modes are read and run alone, owners
/// and special entries do not exist.
///
/// # Errors
/// [`ArchiveError`]; what was written then is of no use.
pub fn canonical(input: impl Read, out: File, limits: Limits) -> Result<Archive, ArchiveError> {
    let broken = |error: io::Error| ArchiveError::Broken(error.to_string());
    let mut writing = Writing {
        builder: Builder::new(Counted {
            inner: BufWriter::with_capacity(64 * 1024, out),
            written: 0,
        }),
        nodes: BTreeMap::new(),
        bytes: 0,
        limits,
    };
    let mut archive = tar::Archive::new(Zeros {
        inner: input,
        trailing: 0,
    });
    for entry in archive.entries().map_err(broken)? {
        writing.take(&mut entry.map_err(broken)?)?;
    }
    let mut input = archive.into_inner();
    let rest = io::copy(&mut (&mut input).take(PADDING_BYTES_MAX + 1), &mut io::sink()).map_err(broken)?;
    if input.trailing < END_ZEROS || rest > PADDING_BYTES_MAX {
        return Err(ArchiveError::Broken(
            "it is cut off, or it is no tar archive".to_owned(),
        ));
    }
    writing.finish()
}

struct Writing {
    builder: Builder<Counted<BufWriter<File>>>,
    nodes: BTreeMap<Vec<u8>, Node>,
    bytes: u64,
    limits: Limits,
}

impl Writing {
    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = entry.path_bytes().into_owned();
        let names = names_of(&path)?;
        let Some((_, parents)) = names.split_last() else {
            return if kind == EntryType::Directory {
                Ok(())
            } else {
                Err(refused(&path, "has no name"))
            };
        };
        let clean = names.join(&b'/');
        self.make_parents(parents)?;
        match kind {
            EntryType::Directory => self.directory(clean),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(clean, entry),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.link(clean, target)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(clean, &target)
            }
            _ => Err(refused(&clean, "is neither file, directory nor link")),
        }
    }

    fn make_parents(&mut self, parents: &[&[u8]]) -> Result<(), ArchiveError> {
        for depth in 1..=parents.len() {
            let path = parents[..depth].join(&b'/');
            match self.nodes.get(&path) {
                Some(Node::Directory) => {}
                Some(_) => return Err(refused(&path, "is no directory, and something lies below it")),
                None => self.directory(path)?,
            }
        }
        Ok(())
    }

    /// Counts an entry; its path must be new.
    fn count(&mut self, path: &[u8], bytes: u64) -> Result<(), ArchiveError> {
        if self.nodes.contains_key(path) {
            return Err(refused(path, "is there twice"));
        }
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes_max || self.nodes.len() as u64 >= self.limits.entries_max {
            return Err(ArchiveError::TooLarge(self.limits));
        }
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>) -> Result<(), ArchiveError> {
        if self.nodes.get(&path) == Some(&Node::Directory) {
            return Ok(());
        }
        self.count(&path, 0)?;
        let mut header = header(EntryType::Directory, 0o700, 0, 0);
        self.append(&mut header, &path, io::empty())?;
        self.nodes.insert(path, Node::Directory);
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>, entry: &mut Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
        let mtime = entry.header().mtime().unwrap_or(0);
        let len = entry.size();
        self.count(&path, len)?;
        let mut header = header(EntryType::Regular, mode(executable), len, mtime);
        let mut content = Exactly {
            inner: entry,
            left: len,
        };
        self.append(&mut header, &path, &mut content)?;
        if content.left > 0 {
            return Err(ArchiveError::Broken(
                "it is cut off in the middle of a file".to_owned(),
            ));
        }
        self.note_file(path, executable, len);
        Ok(())
    }

    fn link(&mut self, path: Vec<u8>, target: Vec<u8>) -> Result<(), ArchiveError> {
        if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
            return Err(refused(&path, "is a link that leads nowhere"));
        }
        self.count(&path, target.len() as u64)?;
        let mut header = header(EntryType::Symlink, 0o777, 0, 0);
        let (at, to) = (as_path(&path), as_path(&target));
        let appended = self.builder.append_link(&mut header, at, to);
        appended.map_err(ArchiveError::Write)?;
        self.nodes.insert(path, Node::Link { target });
        Ok(())
    }

    /// The file that the link names, once more.
    fn hard_link(&mut self, path: Vec<u8>, target: &[u8]) -> Result<(), ArchiveError> {
        let target = names_of(target)?.join(&b'/');
        let Some(Node::File {
            executable,
            offset,
            len,
        }) = self.nodes.get(&target).cloned()
        else {
            return Err(refused(
                &path,
                "is a hard link to something that is not in the archive",
            ));
        };
        self.count(&path, len)?;
        self.builder.get_mut().flush().map_err(ArchiveError::Write)?;
        let source = self.builder.get_ref().inner.get_ref().try_clone();
        let source = FileAt {
            file: source.map_err(ArchiveError::Write)?,
            offset,
        };
        let mut header = header(EntryType::Regular, mode(executable), len, 0);
        self.append(&mut header, &path, source.take(len))?;
        self.note_file(path, executable, len);
        Ok(())
    }

    fn append(&mut self, header: &mut Header, path: &[u8], content: impl Read) -> Result<(), ArchiveError> {
        let appended = self.builder.append_data(header, as_path(path), content);
        appended.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Broken(error.to_string()),
            _ => ArchiveError::Write(error),
        })
    }

    fn note_file(&mut self, path: Vec<u8>, executable: bool, len: u64) {
        let offset = self.builder.get_ref().written - len.div_ceil(BLOCK) * BLOCK;
        self.nodes.insert(
            path,
            Node::File {
                executable,
                offset,
                len,
            },
        );
    }

    fn finish(self) -> Result<Archive, ArchiveError> {
        let counted = self.builder.into_inner().map_err(ArchiveError::Write)?;
        let flushed = counted.inner.into_inner();
        let file = flushed.map_err(|error| ArchiveError::Write(error.into_error()))?;
        Ok(Archive {
            file,
            nodes: self.nodes,
        })
    }
}

fn refused(path: &[u8], why: &'static str) -> ArchiveError {
    ArchiveError::Entry {
        path: String::from_utf8_lossy(path).into_owned(),
        why,
    }
}

pub(crate) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// The names of a path that goes down only.
fn names_of(path: &[u8]) -> Result<Vec<&[u8]>, ArchiveError> {
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(refused(
            &path[..path.len().min(80)],
            "is a path that is too long or holds a zero",
        ));
    }
    let mut names = Vec::new();
    for component in as_path(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) if name.len() <= 255 => names.push(name.as_bytes()),
            Component::Normal(_) => return Err(refused(path, "has a name of more than 255 bytes")),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused(path, "leads out of the directory"));
            }
        }
    }
    if names.len() > DEPTH_MAX {
        return Err(refused(path, "lies too deep"));
    }
    Ok(names)
}

fn mode(executable: bool) -> u32 {
    if executable { 0o700 } else { 0o600 }
}

pub(crate) fn header(kind: EntryType, mode: u32, len: u64, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Counts what is written.
struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Says how many zeros the bytes that were read end with.
struct Zeros<R> {
    inner: R,
    trailing: usize,
}

impl<R: Read> Read for Zeros<R> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(piece)?;
        let zeros = piece[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.trailing = if zeros == count {
            self.trailing + count
        } else {
            zeros
        };
        Ok(count)
    }
}

/// Reads no more than there is, and knows what is missing.
struct Exactly<'a, R> {
    inner: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
        let count = self.inner.read(&mut piece[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads a file from a place on, without moving what others read.
struct FileAt {
    file: File,
    offset: u64,
}

impl Read for FileAt {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(piece, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
