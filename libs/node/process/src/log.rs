//! A log file that never grows beyond its bound.
//!
//! Two files of half the bound each: when `x.log` is full it becomes `x.log.old`, so at least the last half of what is
//! allowed is always there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How much of a log's end [`tail`] looks at.
const TAIL_BYTES: u64 = 64 * 1024;

/// Writes to a log file of bounded size.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    half_bytes_max: u64,
}

impl BoundedLog {
    /// Opens the log at `path` to write at its end. Both files together hold `bytes_max` bytes at most.
    pub fn open(path: impl AsRef<Path>, bytes_max: u64) -> io::Result<Self> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            half_bytes_max: (bytes_max / 2).max(1),
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, old_path(&self.path))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.bytes >= self.half_bytes_max {
            self.rotate()?;
        }
        let room =
            usize::try_from(self.half_bytes_max - self.bytes.min(self.half_bytes_max)).unwrap_or(usize::MAX);
        let written = self.file.write(&buffer[..buffer.len().min(room.max(1))])?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The last `lines` lines of the log at `path`; fewer when it is short, none when it cannot be read.
pub fn tail(path: impl AsRef<Path>, lines: usize) -> Vec<String> {
    let path = path.as_ref();
    let mut text = end_of(path);
    if text.lines().count() < lines {
        text.insert_str(0, &end_of(&old_path(path)));
    }
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

fn old_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    PathBuf::from(name)
}

fn end_of(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_end_within_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/engine.log");
        let mut log = BoundedLog::open(&path, 1000).unwrap();
        for number in 0..1000 {
            writeln!(log, "line {number}").unwrap();
        }
        log.flush().unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&old_path(&path)) <= 1000);
        assert_eq!(tail(&path, 2), ["line 998", "line 999"]);
        assert!(tail(&path, 1000).len() >= 49, "half of the bound is always there");
    }

    #[test]
    fn a_missing_log_has_no_lines() {
        assert!(tail("/nowhere/at/all", 3).is_empty());
    }
}
