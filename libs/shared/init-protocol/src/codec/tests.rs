use proptest::prelude::*;

use super::*;
use crate::message::{
    ArchiveLimits, Exec, Exit, FailureCode, Health, Hello, Open, Pack, Proof, Unpack, Welcome,
};

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect())
}

fn limits() -> impl Strategy<Value = ArchiveLimits> {
    (any::<u64>(), any::<u64>()).prop_map(|(bytes_max, entries_max)| ArchiveLimits {
        bytes_max,
        entries_max,
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    text().prop_map(|message| Failure::new(FailureCode::NoSpace, message))
}

fn open() -> impl Strategy<Value = Open> {
    prop_oneof![
        (
            prop::collection::vec(text(), 0..4),
            prop::collection::vec((text(), text()), 0..4),
            text(),
            any::<u32>()
        )
            .prop_map(
                |(command, environment, directory, stderr_channel)| Open::Exec(Exec {
                    command,
                    environment,
                    directory,
                    stderr_channel
                })
            ),
        (text(), limits(), any::<bool>()).prop_map(|(path, limits, any_links)| {
            Open::Unpack(Unpack {
                path,
                limits,
                any_links,
            })
        }),
        (
            text(),
            limits(),
            prop::collection::vec(text(), 0..3),
            prop::collection::vec(text(), 0..3),
            any::<bool>()
        )
            .prop_map(|(path, limits, exclude, only, any_links)| {
                Open::Pack(Pack {
                    path,
                    limits,
                    exclude,
                    only,
                    any_links,
                })
            }),
        text().prop_map(|path| Open::Watch { path }),
        any::<u16>().prop_map(|entrance| Open::Connection { entrance }),
    ]
}

fn messages() -> impl Strategy<Value = Message> {
    prop_oneof![
        (
            any::<u32>(),
            any::<u32>(),
            text(),
            text(),
            prop::option::of(text())
        )
            .prop_map(
                |(version_min, version_max, sandbox, token, label)| Message::Hello(Hello {
                    version_min,
                    version_max,
                    sandbox,
                    proof: Proof::Token(token),
                    label
                })
            ),
        (any::<u32>(), text(), any::<u64>()).prop_map(|(version, return_key, silence_max_ms)| {
            Message::Welcome(Welcome {
                version,
                return_key,
                silence_max_ms,
            })
        }),
        failure().prop_map(Message::Refuse),
        failure().prop_map(Message::Reject),
        text().prop_map(Message::SetLabel),
        open().prop_map(Message::Open),
        prop::collection::vec(any::<u8>(), 0..2_000).prop_map(Message::Data),
        any::<u32>().prop_map(Message::Credit),
        any::<i32>().prop_map(Message::Signal),
        any::<u64>().prop_map(Message::Ping),
        (prop::option::of(any::<i32>()), prop::option::of(any::<i32>()))
            .prop_map(|(code, signal)| Message::Exited(Exit { code, signal })),
        failure().prop_map(|failure| Message::Done(Err(failure))),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(entries, bytes, skipped)| Message::Done(Ok(
            Done {
                entries,
                bytes,
                skipped
            }
        ))),
        (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(nonce, memory_bytes, processes, channels)| Message::Pong(Health {
                nonce,
                memory_bytes,
                processes,
                channels
            })
        ),
        prop::sample::select(vec![
            Message::Accept,
            Message::Eof,
            Message::Stop,
            Message::Changed,
            Message::Close,
            Message::KillAll,
            Message::Killed,
            Message::End,
        ]),
    ]
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    prop::collection::vec(
        (any::<u32>(), messages()).prop_map(|(channel, message)| Frame { channel, message }),
        0..12,
    )
}

fn decode_all(pieces: &[&[u8]]) -> Result<Vec<Frame>, ProtocolError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_however_it_is_cut(frames in frames(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let mut bytes = Vec::new();
        for frame in &frames {
            encode(frame, &mut bytes).unwrap();
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(decode_all(&pieces).unwrap(), frames);
    }

    #[test]
    fn garbage_is_an_error_or_waits_and_never_grows(bytes in prop::collection::vec(any::<u8>(), 0..4_000), piece in 1_usize..500) {
        let mut decoder = Decoder::default();
        'bytes: for piece in bytes.chunks(piece) {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        // Whatever was understood can be said again.
                        let mut again = Vec::new();
                        encode(&frame, &mut again).unwrap();
                    }
                    Ok(None) => break,
                    Err(_) => break 'bytes,
                }
            }
            prop_assert!(decoder.buffered_bytes() < FRAME_HEAD_BYTES + PAYLOAD_BYTES_MAX);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(frames in frames(), position in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = Vec::new();
        for frame in &frames {
            encode(frame, &mut bytes).unwrap();
        }
        if !bytes.is_empty() {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        let _ = decode_all(&[&bytes]);
    }
}

#[test]
fn what_is_too_long_is_refused_on_both_sides() {
    let mut out = vec![7];
    let long = vec![0; PAYLOAD_BYTES_MAX + 1];
    assert!(matches!(
        encode_data(2, &long, &mut out),
        Err(ProtocolError::TooLong { bytes }) if bytes == long.len()
    ));
    assert_eq!(out, [7]);
    encode_data(2, &long[1..], &mut out).unwrap();
    let mut head = u32::try_from(PAYLOAD_BYTES_MAX + 1)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    head.extend([DATA, 0, 0, 0, 2]);
    assert!(matches!(decode_all(&[&head]), Err(ProtocolError::TooLong { .. })));
}

#[test]
fn kinds_of_another_version_and_payloads_of_another_kind_are_refused() {
    assert!(matches!(
        decode_all(&[&[0, 0, 0, 0, 0x7f, 0, 0, 0, 1]]),
        Err(ProtocolError::UnknownKind(0x7f))
    ));
    assert!(matches!(
        decode_all(&[&[0, 0, 0, 1, EOF, 0, 0, 0, 1, 9]]),
        Err(ProtocolError::Malformed { kind: EOF })
    ));
    assert!(matches!(
        decode_all(&[&[0, 0, 0, 1, CREDIT, 0, 0, 0, 1, 9]]),
        Err(ProtocolError::Malformed { kind: CREDIT })
    ));
    assert!(matches!(
        decode_all(&[b"\x00\x00\x00\x02\x10\x00\x00\x00\x02{}"]),
        Err(ProtocolError::Malformed { kind: OPEN })
    ));
}

#[test]
fn proofs_and_environments_are_not_printed() {
    let exec = Exec {
        command: vec!["claude".to_owned(), "canary-argument".to_owned()],
        environment: vec![("KEY".to_owned(), "canary-value".to_owned())],
        directory: "/".to_owned(),
        stderr_channel: 4,
    };
    let welcome = Welcome {
        version: 1,
        return_key: "canary-return".to_owned(),
        silence_max_ms: 0,
    };
    let printed = format!(
        "{:?} {:?} {:?} {exec:?} {welcome:?}",
        Proof::Token("canary-token".to_owned()),
        Proof::ReturnKey("canary-key".to_owned()),
        Message::Open(Open::Exec(exec.clone())),
    );
    assert!(!printed.contains("canary"), "{printed}");
    assert!(printed.contains("claude"));
}
