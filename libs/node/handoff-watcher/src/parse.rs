//! From the bytes of a file to a handoff. Pure.

use pool_registry_types::Handoff;
use serde::Deserialize;

/// The largest handoff file.
pub const FILE_BYTES_MAX: usize = 64 * 1024;

/// What is wrong with one file. The others are not touched by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// The file is larger than [`FILE_BYTES_MAX`].
    #[error("is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// The file ends too early: it is being written, or its writer died.
    #[error("ends in the middle (half-written?)")]
    HalfWritten,
    /// The file is not JSON.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// A field is missing or has the wrong type.
    #[error("is not a handoff: {0}")]
    NotAHandoff(String),
    /// The URL is none, or longer than any that is meant.
    #[error("has no usable url: {0}")]
    Url(&'static str),
    /// The name of the file is not the one that its ids ask for.
    #[error("must be called {expected}, after the ids in it")]
    Name {
        /// The right name.
        expected: String,
    },
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The engine's process is gone.
    #[error("is of a process that is gone")]
    ProcessGone,
    /// There are too many files.
    #[error("is one of more than {} files", crate::FILES_MAX)]
    TooMany,
}

/// Reads one handoff file. Fields of newer schemas are kept as they came.
pub fn parse(file_name: &str, bytes: &[u8]) -> Result<Handoff, FileProblem> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(FileProblem::TooLarge);
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| {
        if error.is_eof() {
            FileProblem::HalfWritten
        } else {
            FileProblem::NotJson(error.to_string())
        }
    })?;
    let handoff = Handoff::deserialize(value).map_err(|error| FileProblem::NotAHandoff(error.to_string()))?;
    check_url(&handoff.url).map_err(FileProblem::Url)?;
    let expected = Handoff::file_name(&handoff.pool_id, &handoff.replica_id);
    if file_name != expected {
        return Err(FileProblem::Name { expected });
    }
    Ok(handoff)
}

/// Only what can be told without knowing who may be addressed.
fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    match rest {
        _ if url.len() > 2048 => Err("it is longer than 2048 bytes"),
        None => Err("it must begin with http:// or https://"),
        Some("") => Err("it has no host"),
        Some(_) if url.chars().any(|c| c.is_control() || c.is_whitespace()) => Err("it holds a space"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool_registry_types::{PoolId, ReplicaId};
    use proptest::prelude::*;

    const ORIGINAL: &str = r#"{"pool_id":"pool-0","replica_id":"r0","engine":"llamacpp",
        "url":"http://localhost:8081","engine_version":"v1","slots":4}"#;

    fn check(name: &str, bytes: &[u8], expect: &Result<(), FileProblem>) {
        // The parser's own words are its own affair.
        let seen = parse(name, bytes).map(|_| ()).map_err(|problem| match problem {
            FileProblem::NotJson(_) => FileProblem::NotJson(String::new()),
            FileProblem::NotAHandoff(_) => FileProblem::NotAHandoff(String::new()),
            other => other,
        });
        assert_eq!(&seen, expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn the_original_shape_is_read_as_it_is() {
        let handoff = parse("pool-0_r0.json", ORIGINAL.as_bytes()).unwrap();
        assert_eq!(handoff.pool_id, PoolId::new("pool-0").unwrap());
        assert_eq!(handoff.replica_id, ReplicaId::new("r0").unwrap());
        assert_eq!(handoff.engine, "llamacpp");
        assert_eq!(handoff.url, "http://localhost:8081");
        assert_eq!(handoff.engine_version, "v1");
        assert_eq!(handoff.slots, Some(4));
        assert_eq!(handoff.schema, None);
    }

    #[test]
    fn a_bad_file_is_a_problem_of_its_own_kind() {
        let name = "pool-0_r0.json";
        let with = |from: &str, to: &str| ORIGINAL.replace(from, to).into_bytes();
        check(name, ORIGINAL.as_bytes(), &Ok(()));
        check(
            name,
            &with("\"slots\":4", "\"slots\":4,\"next_year\":{\"a\":[1]}"),
            &Ok(()),
        );
        check(name, b"", &Err(FileProblem::HalfWritten));
        check(name, &ORIGINAL.as_bytes()[..40], &Err(FileProblem::HalfWritten));
        check(name, b"hello", &Err(FileProblem::NotJson(String::new())));
        check(name, b"\xff\xfe\x00", &Err(FileProblem::NotJson(String::new())));
        check(name, b"[1,2]", &Err(FileProblem::NotAHandoff(String::new())));
        check(name, b"null", &Err(FileProblem::NotAHandoff(String::new())));
        check(
            name,
            &with("\"slots\":4", "\"slots\":\"four\""),
            &Err(FileProblem::NotAHandoff(String::new())),
        );
        check(
            name,
            &with("\"slots\":4", "\"slots\":-4"),
            &Err(FileProblem::NotAHandoff(String::new())),
        );
        check(
            name,
            &with("\"pool-0\"", "\"../etc\""),
            &Err(FileProblem::NotAHandoff(String::new())),
        );
        check(
            name,
            &with("\"engine\":\"llamacpp\",", ""),
            &Err(FileProblem::NotAHandoff(String::new())),
        );
        check(
            name,
            &with("http://", "ftp://"),
            &Err(FileProblem::Url("it must begin with http:// or https://")),
        );
        check(
            name,
            &with("localhost", "local host"),
            &Err(FileProblem::Url("it holds a space")),
        );
        check(
            "other.json",
            ORIGINAL.as_bytes(),
            &Err(FileProblem::Name {
                expected: name.to_owned(),
            }),
        );
        check(name, &vec![b' '; FILE_BYTES_MAX + 1], &Err(FileProblem::TooLarge));
        check(
            name,
            "[".repeat(FILE_BYTES_MAX).as_bytes(),
            &Err(FileProblem::NotJson(String::new())),
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse("pool-0_r0.json", &bytes);
        }

        #[test]
        fn a_cut_or_broken_file_is_never_taken_for_another_replica(
            cut in 0..ORIGINAL.len(), at in 0..ORIGINAL.len(), byte in any::<u8>()
        ) {
            prop_assert!(parse("pool-0_r0.json", &ORIGINAL.as_bytes()[..cut]).is_err());
            let mut broken = ORIGINAL.as_bytes().to_vec();
            broken[at] = byte;
            if let Ok(handoff) = parse("pool-0_r0.json", &broken) {
                prop_assert_eq!(handoff.pool_id.as_str(), "pool-0");
                prop_assert_eq!(handoff.replica_id.as_str(), "r0");
            }
        }
    }
}
