//! Server-sent events, read as they come in (the event stream of the WHATWG HTML standard, section 9.2).
//!
//! Lines end with LF, CR or CRLF; a byte order mark at the very beginning is dropped; chunks may be cut anywhere. A
//! line and an event are bounded by [`EVENT_LEN_MAX`]: an engine that sends more is refused and not buffered.

use memchr::memchr2;

/// The longest line and the longest event, in bytes: more than the longest answer that is put together.
pub const EVENT_LEN_MAX: usize = 32 * 1024 * 1024;

/// Buffers that grew beyond this are given back as soon as they are empty.
const BUFFER_KEPT_MAX: usize = 4 * 1024;

/// An event is longer than [`EVENT_LEN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {EVENT_LEN_MAX} bytes")]
pub struct SseError;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'e> {
    /// Its `event` field; empty when it has none.
    pub name: &'e [u8],
    /// Its `data` fields, joined by line feeds.
    pub data: &'e [u8],
    /// The last `id` field of the stream so far.
    pub id: &'e [u8],
}

/// Cuts a stream of bytes into lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// The last byte was a CR, so a LF that follows belongs to it.
    after_return: bool,
    /// Whether the byte order mark has been looked for.
    begun: bool,
    /// How many bytes of a line are kept.
    line_len_max: usize,
}

/// A line without its end.
pub(crate) struct Line<'l> {
    /// Its bytes; the first `line_len_max` of them when it is longer.
    pub(crate) bytes: &'l [u8],
    /// Where in the chunk the next line begins.
    pub(crate) next: usize,
}

impl Lines {
    /// Lines of which at most `line_len_max` bytes are kept.
    pub(crate) fn new(line_len_max: usize) -> Self {
        Self {
            line_len_max,
            ..Self::default()
        }
    }

    /// Calls `line` for each line that `chunk` completes. What comes after the last of them is kept.
    #[inline]
    pub(crate) fn feed(&mut self, chunk: &[u8], mut line: impl FnMut(Line<'_>)) {
        let mut from = 0;
        if self.after_return && !chunk.is_empty() {
            self.after_return = false;
            from = usize::from(chunk[0] == b'\n');
        }
        while let Some(len) = memchr2(b'\n', b'\r', &chunk[from..]) {
            let end = from + len;
            let next = match (chunk[end], chunk.get(end + 1)) {
                (b'\r', Some(b'\n')) => end + 2,
                _ => end + 1,
            };
            self.after_return = chunk[end] == b'\r' && next == chunk.len() && next == end + 1;
            let head = &chunk[from..end];
            if self.rest.is_empty() {
                line(Line {
                    bytes: self.without_mark(head),
                    next,
                });
            } else {
                self.keep(head);
                let rest = std::mem::take(&mut self.rest);
                line(Line {
                    bytes: self.without_mark(&rest),
                    next,
                });
                self.reuse(rest);
            }
            self.begun = true;
            from = next;
        }
        self.keep(&chunk[from..]);
    }

    /// The line that the stream ended in, if it ended in one.
    pub(crate) fn unfinished(&self) -> Option<Line<'_>> {
        (!self.rest.is_empty()).then(|| Line {
            bytes: self.without_mark(&self.rest),
            next: 0,
        })
    }

    /// How many bytes wait for the end of their line.
    pub(crate) fn waiting_len(&self) -> usize {
        self.rest.len()
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.line_len_max.saturating_sub(self.rest.len());
        self.rest.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn reuse(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_KEPT_MAX {
            buffer.clear();
            self.rest = buffer;
        }
    }

    #[inline]
    fn without_mark<'l>(&self, line: &'l [u8]) -> &'l [u8] {
        if self.begun {
            line
        } else {
            line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
        }
    }
}

/// What a line of an event stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'l> {
    /// The event is complete.
    Dispatch,
    Data(&'l [u8]),
    Event(&'l [u8]),
    Id(&'l [u8]),
    /// A comment, `retry`, or a field that does not exist.
    Other,
}

impl<'l> Field<'l> {
    #[inline]
    pub(crate) fn read(line: &'l [u8]) -> Self {
        if line.is_empty() {
            return Self::Dispatch;
        }
        let field = |name: &[u8]| match line.strip_prefix(name)? {
            [] => Some(&line[..0]),
            [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
            _ => None,
        };
        match line[0] {
            b'd' => field(b"data").map_or(Self::Other, Self::Data),
            b'e' => field(b"event").map_or(Self::Other, Self::Event),
            b'i' => field(b"id").map_or(Self::Other, Self::Id),
            _ => Self::Other,
        }
    }
}

/// Reads a stream of events.
#[derive(Clone, Debug)]
pub struct SseParser {
    lines: Lines,
    name: Vec<u8>,
    data: Vec<u8>,
    /// Whether a `data` field came since the last event; an event without one does not count.
    has_data: bool,
    id: Vec<u8>,
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new()
    }
}

impl SseParser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            lines: Lines::new(EVENT_LEN_MAX + 1),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            id: Vec::new(),
        }
    }

    /// Calls `event` for each event that `chunk` completes.
    pub fn feed(&mut self, chunk: &[u8], mut event: impl FnMut(SseEvent<'_>)) -> Result<(), SseError> {
        let Self {
            lines,
            name,
            data,
            has_data,
            id,
        } = self;
        let mut fits = true;
        lines.feed(chunk, |line| match Field::read(line.bytes) {
            Field::Data(value) => {
                if *has_data {
                    data.push(b'\n');
                }
                fits &= data.len() + value.len() <= EVENT_LEN_MAX;
                if fits {
                    data.extend_from_slice(value);
                }
                *has_data = true;
            }
            Field::Event(value) => value.clone_into(name),
            Field::Id(value) if !value.contains(&0) => value.clone_into(id),
            Field::Id(_) | Field::Other => {}
            Field::Dispatch => {
                if *has_data {
                    event(SseEvent { name, data, id });
                }
                *has_data = false;
                name.clear();
                data.clear();
                data.shrink_to(BUFFER_KEPT_MAX);
            }
        });
        fits &= self.lines.waiting_len() <= EVENT_LEN_MAX;
        if fits { Ok(()) } else { Err(SseError) }
    }

    /// Whether the stream stands in the middle of an event. At its end that means that it was cut.
    pub fn is_in_event(&self) -> bool {
        self.has_data || !self.name.is_empty() || self.lines.waiting_len() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (String, String, String);

    fn parse<'c>(chunks: impl IntoIterator<Item = &'c [u8]>) -> (Vec<Owned>, bool) {
        let mut parser = SseParser::new();
        let mut events = Vec::new();
        let owned = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for chunk in chunks {
            parser
                .feed(chunk, |event| {
                    events.push((owned(event.name), owned(event.data), owned(event.id)));
                })
                .unwrap();
        }
        (events, parser.is_in_event())
    }

    fn check(stream: &str, expect: &[(&str, &str, &str)]) {
        let (events, _) = parse([stream.as_bytes()]);
        let events: Vec<_> = events
            .iter()
            .map(|(n, d, i)| (n.as_str(), d.as_str(), i.as_str()))
            .collect();
        assert_eq!(events, expect, "{stream:?}");
    }

    #[test]
    fn reads_what_the_standard_says() {
        check("data: a\n\n", &[("", "a", "")]);
        check("data:a\r\rdata:  b\r\n\r\n", &[("", "a", ""), ("", " b", "")]);
        check("\u{feff}data: a\n\n", &[("", "a", "")]);
        check("\u{feff}\u{feff}data: a\n\n", &[]);
        check("data: a\n\n\u{feff}data: b\n\n", &[("", "a", "")]);
        check(": ping\n\nevent: x\n\ndata\ndata\n\n", &[("", "\n", "")]);
        check(
            "event: x\nid: 7\ndata: a\ndata: b\n\ndata: c\n\n",
            &[("x", "a\nb", "7"), ("", "c", "7")],
        );
        check(
            "retry: 10\nid: a\0b\nfoo: bar\ndataset: x\ndata: [DONE]\n\n",
            &[("", "[DONE]", "")],
        );
        check("data: never ended\n", &[]);
    }

    #[test]
    fn knows_when_it_stands_in_an_event() {
        for (stream, inside) in [
            ("", false),
            ("data: a\n\n", false),
            ("data: a\n", true),
            ("dat", true),
            ("event: x\n", true),
            (":\n\n", false),
        ] {
            assert_eq!(parse([stream.as_bytes()]).1, inside, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::new();
        let chunk = vec![b'x'; 1024 * 1024];
        let fed = (0..40)
            .map(|_| parser.feed(&chunk, |_| {}))
            .take_while(Result::is_ok)
            .count();
        assert_eq!(fed, EVENT_LEN_MAX / chunk.len());
        assert!(parser.lines.waiting_len() <= EVENT_LEN_MAX + 1);
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just("data: ".as_bytes().to_vec()),
            Just("event: x".as_bytes().to_vec()),
            Just("id: 1".as_bytes().to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"\xEF\xBB\xBF".to_vec()),
            Just(b":".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(stream in any_stream(), cuts in proptest::collection::vec(0usize..100, 0..12)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let cut = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
            let whole = parse([stream.as_slice()]);
            prop_assert_eq!(&parse(cut), &whole);
            prop_assert_eq!(&parse(stream.chunks(1)), &whole);
        }
    }
}
