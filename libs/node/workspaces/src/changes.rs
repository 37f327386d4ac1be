//! What has changed between two archives.

use std::io;

use tar::{Builder, EntryType};

use crate::archive::{Archive, Node, as_path, header};

/// Files are compared in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// What has happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was not there.
    Added,
    /// It says something else, or can be run now or not any more.
    Modified,
    /// It is not there any more.
    Deleted,
}

/// A file or link that has changed.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Its path, from the workspace on.
    pub path: &'a [u8],
    /// What stood there.
    pub old: Option<&'a Node>,
    /// What stands there now.
    pub new: Option<&'a Node>,
}

impl Change<'_> {
    /// What has happened.
    pub fn kind(&self) -> Kind {
        match (self.old, self.new) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Deleted,
            (Some(_), Some(_)) => Kind::Modified,
        }
    }

    /// How many bytes it has now, or had when it is gone.
    pub fn bytes(&self) -> u64 {
        match self.new.or(self.old) {
            Some(Node::File { len, .. }) => *len,
            Some(Node::Link { target }) => target.len() as u64,
            Some(Node::Directory) | None => 0,
        }
    }
}

/// The files and links that have changed, by path. Directories are what files lie in, and `.git` is not looked at.
///
/// # Errors
/// An archive cannot be read.
pub fn changes<'a>(base: &'a Archive, now: &'a Archive) -> io::Result<Vec<Change<'a>>> {
    let mut found = Vec::new();
    for (path, old) in shown(base) {
        let new = now.nodes().get(path).filter(|node| **node != Node::Directory);
        let is_same = match new {
            Some(new) => same(base, old, now, new)?,
            None => false,
        };
        if !is_same {
            found.push(Change {
                path,
                old: Some(old),
                new,
            });
        }
    }
    for (path, new) in shown(now) {
        if base.nodes().get(path).is_none_or(|node| *node == Node::Directory) {
            found.push(Change {
                path,
                old: None,
                new: Some(new),
            });
        }
    }
    found.sort_by_key(|change| change.path);
    Ok(found)
}

/// Writes an archive without what is never given out.
///
/// # Errors
/// It cannot be read or written.
pub fn export(archive: &Archive, out: impl io::Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    for (path, node) in archive.nodes() {
        if is_git(path) {
            continue;
        }
        match node {
            Node::Directory => {
                let mut header = header(EntryType::Directory, 0o755, 0, 0);
                builder.append_data(&mut header, as_path(path), io::empty())?;
            }
            Node::File { executable, len, .. } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                let mut header = header(EntryType::Regular, mode, *len, 0);
                let content = archive.content(node)?;
                builder.append_data(&mut header, as_path(path), content.as_slice())?;
            }
            Node::Link { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0, 0);
                builder.append_link(&mut header, as_path(path), as_path(target))?;
            }
        }
    }
    builder.into_inner()?.flush()
}

/// Whether a path is git's own, however it is written: some file systems do not care.
fn is_git(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/')
        .any(|name| name.eq_ignore_ascii_case(b".git"))
}

fn shown(archive: &Archive) -> impl Iterator<Item = (&Vec<u8>, &Node)> {
    let all = archive.nodes().iter();
    all.filter(|(path, node)| **node != Node::Directory && !is_git(path))
}

fn same(base: &Archive, old: &Node, now: &Archive, new: &Node) -> io::Result<bool> {
    let (
        Node::File {
            executable,
            offset,
            len,
        },
        Node::File {
            executable: new_executable,
            offset: new_offset,
            len: new_len,
        },
    ) = (old, new)
    else {
        return Ok(old == new);
    };
    if executable != new_executable || len != new_len {
        return Ok(false);
    }
    let mut pieces = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    while at < *len {
        let count = usize::try_from(len - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        base.read_at(&mut pieces.0[..count], offset + at)?;
        now.read_at(&mut pieces.1[..count], new_offset + at)?;
        if pieces.0[..count] != pieces.1[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}
