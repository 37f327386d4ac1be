//! Writing and removing handoff files so that a reader sees all of one or nothing.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use pool_registry_types::{Handoff, PoolId, ReplicaId};

/// Why a handoff was not written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct WriteError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes a handoff, creating the directory when it is missing. On return the file is complete and on disk under its
/// final name, with the old content replaced in one step. Gives the file's path.
pub fn write(directory: &Path, handoff: &Handoff) -> Result<PathBuf, WriteError> {
    let path = directory.join(Handoff::file_name(&handoff.pool_id, &handoff.replica_id));
    let failed = |what: &'static str| {
        let path = path.clone();
        move |source: io::Error| WriteError { what, path, source }
    };
    fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    // The dot keeps the watcher from looking at it; the file disappears with this value unless it gets its name.
    let mut file = tempfile::Builder::new()
        .prefix(".handoff-")
        .suffix(".tmp")
        .tempfile_in(directory)
        .map_err(failed("write a file beside"))?;
    let mut text = serde_json::to_vec_pretty(handoff).map_err(|error| failed("write")(error.into()))?;
    text.push(b'\n');
    file.write_all(&text).map_err(failed("write"))?;
    file.as_file().sync_all().map_err(failed("write"))?;
    file.persist(&path)
        .map_err(|error| failed("rename the new file to")(error.error))?;
    Ok(path)
}

/// Removes a handoff. One that is not there is as good.
pub fn remove(directory: &Path, pool: &PoolId, replica: &ReplicaId) -> Result<(), WriteError> {
    let path = directory.join(Handoff::file_name(pool, replica));
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(WriteError {
            what: "remove",
            path,
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("not").join("yet");
        let text = r#"{"pool_id":"p","replica_id":"r","engine":"e","url":"http://localhost:1","later":1}"#;
        let handoff: Handoff = serde_json::from_str(text).unwrap();
        for _ in 0..2 {
            let path = write(&directory, &handoff).unwrap();
            assert_eq!(
                crate::parse("p_r.json", &fs::read(path).unwrap()).unwrap(),
                handoff
            );
        }
        let names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["p_r.json"]);
        for _ in 0..2 {
            remove(&directory, &handoff.pool_id, &handoff.replica_id).unwrap();
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let text = r#"{"pool_id":"p","replica_id":"r","engine":"e","url":"http://localhost:1"}"#;
        let error = write(&file, &serde_json::from_str(text).unwrap()).unwrap_err();
        assert!(error.to_string().contains("p_r.json"), "{error}");
    }
}
