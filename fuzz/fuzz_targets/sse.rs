//! The parser of event streams: cuts make no difference, and it never reads more than a stream holds.

#![no_main]

use adapter_host::{DIALECTS, SseParser, StreamWatch};
use libfuzzer_sys::fuzz_target;

type Event = (Vec<u8>, Vec<u8>, Vec<u8>);

fn events<'c>(chunks: impl Iterator<Item = &'c [u8]>) -> (Vec<Event>, bool) {
    let mut parser = SseParser::new();
    let mut events = Vec::new();
    for chunk in chunks {
        let fed = parser.feed(chunk, |event| {
            events.push((event.name.to_vec(), event.data.to_vec(), event.id.to_vec()));
        });
        fed.expect("a short stream has no event that is too long");
    }
    (events, parser.is_in_event())
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else {
        return;
    };
    let chunk_len = usize::from(cut % 64) + 1;
    let whole = events(std::iter::once(stream));
    assert_eq!(events(stream.chunks(chunk_len)), whole);
    assert_eq!(events(stream.chunks(1)), whole);
    let read: usize = whole.0.iter().map(|(_, data, _)| data.len()).sum();
    assert!(read <= stream.len());
    for dialect in DIALECTS {
        let mut one = StreamWatch::new(dialect);
        let mut other = StreamWatch::new(dialect);
        let mut relayed = StreamWatch::new(dialect);
        let mut passed = Vec::new();
        assert!(one.feed(stream) <= stream.len());
        for chunk in stream.chunks(chunk_len) {
            assert!(other.feed(chunk) <= chunk.len());
            passed.extend_from_slice(&relayed.relay(bytes::Bytes::copy_from_slice(chunk)));
        }
        passed.extend_from_slice(&relayed.held_back());
        assert_eq!(passed, stream, "nothing is lost on the way to the client");
        assert_eq!(
            (one.has_data(), one.has_ended()),
            (other.has_data(), other.has_ended())
        );
        assert_eq!(one.finish(), other.finish());
        assert_eq!(one.usage(), other.usage());
    }
});
