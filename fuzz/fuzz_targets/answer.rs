//! Answers put together out of streams, and task events read from them: whatever comes out is JSON, and cuts make no
//! difference.

#![no_main]

use adapter_host::{Assembler, DIALECTS, TaskReader};
use libfuzzer_sys::fuzz_target;
use pool_registry_types::Dialect;

fn assembled(dialect: Dialect, stream: &[u8], chunk_len: usize) -> Option<Vec<u8>> {
    let mut assembler = Assembler::new(dialect)?;
    for chunk in stream.chunks(chunk_len) {
        assembler.feed(chunk).ok()?;
    }
    Some(assembler.finish().ok()?.0.to_vec())
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else {
        return;
    };
    let chunk_len = usize::from(cut % 64) + 1;
    for dialect in DIALECTS {
        let whole = assembled(dialect, stream, stream.len().max(1));
        assert_eq!(assembled(dialect, stream, chunk_len), whole);
        if let Some(body) = whole {
            serde_json::from_slice::<serde::de::IgnoredAny>(&body).expect("an answer is JSON");
        }
        let mut reader = TaskReader::new(dialect);
        let mut tokens = 0;
        for chunk in stream.chunks(chunk_len) {
            if reader.feed(chunk, |_| tokens += 1).is_err() {
                return;
            }
        }
        let _ = reader.finish(|_| tokens += 1);
        assert!(tokens <= stream.len());
    }
});
