//! The handoff parser: what it takes can be written and read again, under the name that it stands in.

#![no_main]

use handoff_watcher::parse;
use libfuzzer_sys::fuzz_target;
use pool_registry_types::Handoff;

fuzz_target!(|input: &[u8]| {
    let (name, bytes) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (
            String::from_utf8_lossy(&input[..end]).into_owned(),
            &input[end + 1..],
        ),
        None => ("pool-0_r0.json".to_owned(), input),
    };
    let Ok(handoff) = parse(&name, bytes) else { return };
    let written = serde_json::to_vec(&handoff).expect("a handoff can be written");
    let file_name = Handoff::file_name(&handoff.pool_id, &handoff.replica_id);
    assert_eq!(
        parse(&file_name, &written).expect("what was written can be read"),
        handoff
    );
});
