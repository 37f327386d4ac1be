//! The demo model: part of this program, so that the first command works without a network and from anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The name by which clients ask for it.
pub(crate) const NAME: &str = "demo";

/// What a person should know who might take it for more.
pub(crate) const NOTE: &str = "demo model: it multiplies (one digit by up to two) and counts, nothing else; \
    for a real one: remuda run --model hf:ORG/REPO/FILE.gguf";

static BYTES: &[u8] = include_bytes!("../../../models/demo/remuda-demo.gguf");

/// Writes the model into the directory unless it is there already, and gives its path.
pub(crate) fn install(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("remuda-demo.gguf");
    if fs::read(&path).is_ok_and(|present| present == BYTES) {
        return Ok(path);
    }
    let write = || {
        fs::create_dir_all(directory)?;
        // Another process may do the same now; each writes its own file, and the last rename wins.
        let beside = directory.join(format!(".remuda-demo.gguf.{}", std::process::id()));
        fs::write(&beside, BYTES)?;
        fs::rename(&beside, &path)
    };
    write().with_context(|| format!("writing the demo model to {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_is_written_once_and_mended() {
        let directory = tempfile::tempdir().unwrap();
        let path = install(directory.path()).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"GGUF"));
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        install(directory.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        fs::write(&path, b"GGUF, but cut off").unwrap();
        install(directory.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), BYTES);
    }
}
