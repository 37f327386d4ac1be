//! Counts the events of a stream without understanding them.

/// How much of a line is looked at.
const LINE_START_BYTES: usize = 16;

/// What has come so far. Bytes may be cut anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EventCounter {
    line: [u8; LINE_START_BYTES],
    line_bytes: usize,
    /// `data:` lines.
    pub(crate) events: u64,
    /// Whether OpenAI's `[DONE]` came.
    pub(crate) done: bool,
    /// Whether a task's `started` came.
    pub(crate) started: bool,
    /// Whether a task's `end` came.
    pub(crate) ended: bool,
    /// Whether a task's `error` came.
    pub(crate) failed: bool,
}

impl EventCounter {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            self.keep(&rest[..at]);
            self.line_end();
            rest = &rest[at + 1..];
        }
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let here = bytes.len().min(LINE_START_BYTES - self.line_bytes);
        self.line[self.line_bytes..self.line_bytes + here].copy_from_slice(&bytes[..here]);
        self.line_bytes += here;
    }

    fn line_end(&mut self) {
        let line = &self.line[..self.line_bytes];
        if line.starts_with(b"data:") {
            self.events += 1;
            self.done |= line.starts_with(b"data: [DONE]") || line.starts_with(b"data:[DONE]");
        } else if line.starts_with(b"event:") {
            let name = line[b"event:".len()..].trim_ascii();
            self.started |= name == b"started";
            self.ended |= name == b"end";
            self.failed |= name == b"error";
        }
        self.line_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_they_are_cut() {
        let wire =
            b": hello\n\nevent: started\ndata: {\"data: \":1}\n\nevent: end\r\ndata:{}\n\ndata: [DONE]\n\n";
        for size in 1..=wire.len() {
            let mut counter = EventCounter::default();
            wire.chunks(size).for_each(|piece| counter.feed(piece));
            let got = (
                counter.events,
                counter.done,
                counter.started,
                counter.ended,
                counter.failed,
            );
            assert_eq!(got, (3, true, true, true, false), "in pieces of {size}");
        }
    }
}
