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
    let name = Handoff::file_name(&handoff.pool_id, &handoff.replica_id);
    let path = directory.join(&name);
    let failed = |what: &'static str| {
        let path = path.clone();
        move |source: io::Error| WriteError { what, path, source }
    };
    fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    // The dot keeps the watcher from looking at it; the file disappears with this value unless it gets its name.
    let mut file = tempfile::Builder::new()
        .prefix(&temporary_prefix(&name))
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

/// Removes what writers of this replica's handoff that were killed in the middle of it have left. Only for whoever is
/// its one writer now.
pub fn remove_halves(directory: &Path, pool: &PoolId, replica: &ReplicaId) {
    let prefix = temporary_prefix(&Handoff::file_name(pool, replica));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
        {
            // What cannot be removed harms nobody: no reader looks at it.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Says whose it is, so that it can be told from one that is just being written.
fn temporary_prefix(name: &str) -> String {
    format!(".handoff-{name}-")
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
    fn halves_are_removed_and_those_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            ".handoff-p_r.json-aBc123.tmp",
            ".handoff-p_r2.json-aBc123.tmp",
            "p_r.json",
        ];
        for name in names {
            fs::write(directory.path().join(name), "{").unwrap();
        }
        remove_halves(
            directory.path(),
            &PoolId::new("p").unwrap(),
            &ReplicaId::new("r").unwrap(),
        );
        let left = names.map(|name| directory.path().join(name).exists());
        assert_eq!(left, [false, true, true]);
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
