//! Frames between node and init: cuts make no difference, whatever is understood can be said again, and no more is held
//! than one frame.

#![no_main]

use init_protocol::{Decoder, FRAME_HEAD_BYTES, Frame, PAYLOAD_BYTES_MAX, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let (whole, failed) = decode(bytes, usize::MAX);
    let (pieces, also_failed) = decode(bytes, usize::from(*cut).max(1));
    assert_eq!((&whole, failed), (&pieces, also_failed));
    for frame in &whole {
        let mut again = Vec::new();
        encode(frame, &mut again).expect("what came in a frame fits into one");
        assert_eq!(decode(&again, usize::MAX), (vec![frame.clone()], false));
    }
});

fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(decoder.buffered_bytes() < FRAME_HEAD_BYTES + PAYLOAD_BYTES_MAX);
    }
    (frames, false)
}
