//! From bytes to lines, with a bound.

/// The longest line that is read, in bytes.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Puts lines together from pieces of output.
///
/// A line that is longer than [`LINE_BYTES_MAX`] is handed over once, cut, one byte longer than allowed, so that a
/// dialogue sees that it was too long; the rest of it is dropped.
#[derive(Debug, Default)]
pub struct LineSplitter {
    line: Vec<u8>,
}

impl LineSplitter {
    /// Takes a piece, and hands over every line that it completes. Bytes that are no UTF-8 are replaced.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            line(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
        self.keep(bytes);
    }

    /// The output has ended: what is left is a line, too.
    pub fn finish(&mut self, line: impl FnOnce(&str)) {
        if !self.line.is_empty() {
            line(&String::from_utf8_lossy(&std::mem::take(&mut self.line)));
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = (LINE_BYTES_MAX + 1).saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
