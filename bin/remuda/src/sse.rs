//! Reads a stream of server-sent events (WHATWG HTML, section 9.2) piece by piece.
//!
//! Bounded: an event larger than [`EVENT_BYTES_MAX`] is an error and not a growing buffer.

use std::fmt;

/// The largest event that is taken.
pub(crate) const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    /// The `event:` field; empty when there was none.
    pub(crate) name: String,
    /// The `data:` lines, joined.
    pub(crate) data: String,
    /// The `id:` field.
    pub(crate) id: Option<String>,
}

/// The stream sent an event that is too large.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventTooLarge;

impl fmt::Display for EventTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event of more than {EVENT_BYTES_MAX} bytes")
    }
}

impl std::error::Error for EventTooLarge {}

/// Takes bytes as they come and gives events as they are complete.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
}

impl Reader {
    /// Takes the next bytes and appends the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<ServerEvent>) -> Result<(), EventTooLarge> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.take_line(&String::from_utf8_lossy(&line), events);
            } else if self.line.len() + self.event.data.len() >= EVENT_BYTES_MAX {
                return Err(EventTooLarge);
            } else {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: &str, events: &mut Vec<ServerEvent>) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // An empty field name is a comment; the rest is for later versions of the format.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expect: &[(&str, &str, Option<&str>)]) {
        // Any cut must give the same events.
        for cut in 0..=stream.len() {
            let mut events = Vec::new();
            let mut reader = Reader::default();
            reader.push(&stream.as_bytes()[..cut], &mut events).unwrap();
            reader.push(&stream.as_bytes()[cut..], &mut events).unwrap();
            let got: Vec<_> = events
                .iter()
                .map(|event| (event.name.as_str(), event.data.as_str(), event.id.as_deref()))
                .collect();
            assert_eq!(got, expect, "cut at {cut} of {stream:?}");
        }
    }

    #[test]
    fn events_come_whole_wherever_the_stream_is_cut() {
        check("data: 1\n\ndata: 2\n\n", &[("", "1", None), ("", "2", None)]);
        check(
            "event: token\r\nid: 7\r\ndata: {\"t\":\"ä\"}\r\n\r\n",
            &[("token", "{\"t\":\"ä\"}", Some("7"))],
        );
        check(": ping\n\ndata:a\ndata: b\n\n", &[("", "a\nb", None)]);
        check("event: x\n\ndata: y\n\n", &[("", "y", None)]);
        check("data: cut off", &[]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        let result = reader.push(&vec![b'x'; EVENT_BYTES_MAX + 1], &mut events);
        assert_eq!(result, Err(EventTooLarge));
    }
}
