//! Changes as a patch that `git apply` takes: texts as lines, everything else as git's binary patches.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use similar::{Algorithm, DiffOp, DiffTag, capture_diff_slices_deadline, group_diff_ops};

use crate::archive::{Archive, Node};
use crate::changes::Change;

/// Lines around a change.
const CONTEXT_LINES: usize = 3;
/// Git looks at so many bytes to tell a text.
const LOOKED_AT_BYTES: usize = 8000;
/// A file that is larger is told as a binary one.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// How long the best way to tell a file's changes is looked for; after that, a way is good enough.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);
/// The name of what is not there.
const NO_OBJECT: &str = "0000000000000000000000000000000000000000";
const BASE_85: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
/// Bytes on a line of a binary patch.
const BINARY_LINE_BYTES: usize = 52;

/// Writes the patch that makes `now` out of `base`.
///
/// # Errors
/// An archive cannot be read, or `out` not written.
pub fn write_patch(
    base: &Archive,
    now: &Archive,
    changes: &[Change<'_>],
    out: &mut impl Write,
) -> io::Result<()> {
    for change in changes {
        let old = change.old.map(|node| Side::read(base, node)).transpose()?;
        let new = change.new.map(|node| Side::read(now, node)).transpose()?;
        match (&old, &new) {
            // A file that became a link, or the other way round, goes and comes.
            (Some(before), Some(after)) if before.is_link() != after.is_link() => {
                write_file(change.path, Some(before), None, out)?;
                write_file(change.path, None, Some(after), out)?;
            }
            _ => write_file(change.path, old.as_ref(), new.as_ref(), out)?,
        }
    }
    out.flush()
}

/// One side of a change, as git sees it.
struct Side {
    mode: &'static str,
    object: String,
    content: Vec<u8>,
}

impl Side {
    fn read(archive: &Archive, node: &Node) -> io::Result<Self> {
        let content = archive.content(node)?;
        let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        digest.update(format!("blob {}\0", content.len()).as_bytes());
        digest.update(&content);
        let object = digest
            .finish()
            .as_ref()
            .iter()
            .fold(String::with_capacity(40), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
        let mode = match node {
            Node::Link { .. } => "120000",
            Node::File { executable: true, .. } => "100755",
            Node::File { .. } | Node::Directory => "100644",
        };
        Ok(Self {
            mode,
            object,
            content,
        })
    }

    fn is_link(&self) -> bool {
        self.mode == "120000"
    }

    fn is_text(&self) -> bool {
        let looked_at = &self.content[..self.content.len().min(LOOKED_AT_BYTES)];
        self.content.len() <= TEXT_BYTES_MAX && !looked_at.contains(&0)
    }
}

fn write_file(path: &[u8], old: Option<&Side>, new: Option<&Side>, out: &mut impl Write) -> io::Result<()> {
    let (before, after) = (quoted(b"a/", path), quoted(b"b/", path));
    writeln!(out, "diff --git {before} {after}")?;
    let mut mode = "";
    match (old, new) {
        (Some(old), None) => writeln!(out, "deleted file mode {}", old.mode)?,
        (None, Some(new)) => writeln!(out, "new file mode {}", new.mode)?,
        (Some(old), Some(new)) if old.mode != new.mode => {
            writeln!(out, "old mode {}\nnew mode {}", old.mode, new.mode)?;
        }
        (_, Some(new)) => mode = new.mode,
        (None, None) => {}
    }
    let object = |side: Option<&Side>| side.map_or_else(|| NO_OBJECT.to_owned(), |side| side.object.clone());
    let content = |side: Option<&Side>| side.map(|side| side.content.clone()).unwrap_or_default();
    let (old_content, new_content) = (content(old), content(new));
    if old.is_some() && new.is_some() && old_content == new_content {
        return Ok(());
    }
    let space = if mode.is_empty() { "" } else { " " };
    writeln!(out, "index {}..{}{space}{mode}", object(old), object(new))?;
    if !old.is_none_or(Side::is_text) || !new.is_none_or(Side::is_text) {
        writeln!(out, "GIT binary patch")?;
        write_binary(&new_content, out)?;
        return write_binary(&old_content, out);
    }
    if old_content.is_empty() && new_content.is_empty() {
        return Ok(());
    }
    let nothing = "/dev/null".to_owned();
    writeln!(out, "--- {}", if old.is_some() { &before } else { &nothing })?;
    writeln!(out, "+++ {}", if new.is_some() { &after } else { &nothing })?;
    write_lines(&old_content, &new_content, out)
}

fn write_lines(old: &[u8], new: &[u8], out: &mut impl Write) -> io::Result<()> {
    let lines = |text| -> Vec<&[u8]> { <[u8]>::split_inclusive(text, |byte| *byte == b'\n').collect() };
    let (old, new): (Vec<&[u8]>, Vec<&[u8]>) = (lines(old), lines(new));
    let deadline = Some(Instant::now() + LOOK_TIME_MAX);
    let operations = capture_diff_slices_deadline(Algorithm::Myers, &old, &new, deadline);
    for group in group_diff_ops(operations, CONTEXT_LINES) {
        write_group(&group, &old, &new, out)?;
    }
    Ok(())
}

fn write_group(group: &[DiffOp], old: &[&[u8]], new: &[&[u8]], out: &mut impl Write) -> io::Result<()> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Ok(());
    };
    let olds = first.old_range().start..last.old_range().end;
    let news = first.new_range().start..last.new_range().end;
    // An empty side is named by the line before it.
    let place = |range: &std::ops::Range<usize>| match range.len() {
        0 => format!("{},0", range.start),
        len => format!("{},{len}", range.start + 1),
    };
    writeln!(out, "@@ -{} +{} @@", place(&olds), place(&news))?;
    for operation in group {
        if operation.tag() == DiffTag::Equal {
            write_with(b" ", &old[operation.old_range()], out)?;
        } else {
            write_with(b"-", &old[operation.old_range()], out)?;
            write_with(b"+", &new[operation.new_range()], out)?;
        }
    }
    Ok(())
}

fn write_with(sign: &[u8], lines: &[&[u8]], out: &mut impl Write) -> io::Result<()> {
    for line in lines {
        out.write_all(sign)?;
        out.write_all(line)?;
        if !line.ends_with(b"\n") {
            out.write_all(b"\n\\ No newline at end of file\n")?;
        }
    }
    Ok(())
}

/// Git's own form: deflated, then five printable characters for four bytes, the length of each line in front of it.
fn write_binary(content: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content)?;
    let deflated = encoder.finish()?;
    writeln!(out, "literal {}", content.len())?;
    for line in deflated.chunks(BINARY_LINE_BYTES) {
        let mut text = Vec::with_capacity(1 + BINARY_LINE_BYTES / 4 * 5 + 1);
        let len = u8::try_from(line.len()).expect("a line has at most 52 bytes");
        text.push(if len <= 26 {
            b'A' + len - 1
        } else {
            b'a' + len - 27
        });
        for four in line.chunks(4) {
            let mut padded = [0; 4];
            padded[..four.len()].copy_from_slice(four);
            let mut number = u32::from_be_bytes(padded);
            let mut five = [0; 5];
            for digit in five.iter_mut().rev() {
                *digit = BASE_85[(number % 85) as usize];
                number /= 85;
            }
            text.extend_from_slice(&five);
        }
        text.push(b'\n');
        out.write_all(&text)?;
    }
    out.write_all(b"\n")
}

/// A path as git writes it: between quotes when it holds anything but plain characters.
fn quoted(prefix: &[u8], path: &[u8]) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    let whole = [prefix, path].concat();
    if whole.iter().all(is_plain) {
        return String::from_utf8_lossy(&whole).into_owned();
    }
    let mut text = String::from("\"");
    for byte in &whole {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            b' ' => text.push(' '),
            byte if byte.is_ascii_graphic() => text.push(char::from(*byte)),
            byte => {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests;
