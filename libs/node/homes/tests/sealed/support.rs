//! What the tests have in common.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use homes::{
    AgentName, DirectoryStore, HomeStore, Homes, KeyRing, MasterKey, OpenHome, OwnedBy, OwnerHandle,
    PlainHome,
};
use tempfile::TempDir;

pub(crate) struct Sandbox(pub(crate) OwnerHandle);

impl OwnedBy for Sandbox {
    fn owner(&self) -> &OwnerHandle {
        &self.0
    }
}

pub(crate) fn owner(name: &str) -> OwnerHandle {
    OwnerHandle::authenticated(name).unwrap()
}

pub(crate) fn agent(name: &str) -> AgentName {
    AgentName::new(name).unwrap()
}

pub(crate) fn plain(text: &str) -> PlainHome {
    let mut home = PlainHome::new();
    home.extend(text.as_bytes()).unwrap();
    home
}

/// What is in a home, as its owner's sandbox gets it.
pub(crate) fn text(home: Option<OpenHome>, name: &str) -> Option<String> {
    home.map(|home| String::from_utf8(home.archive_for(&Sandbox(owner(name))).unwrap().to_vec()).unwrap())
}

/// A directory with homes, marks and keys, of which a new node can be made at any time.
pub(crate) struct Disk(pub(crate) TempDir);

impl Disk {
    pub(crate) fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    /// In memory where there is such a place: a process that is killed loses no more there than on a disk.
    pub(crate) fn in_memory() -> Self {
        Self::over(tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap()))
    }

    fn over(directory: TempDir) -> Self {
        let disk = Self(directory);
        disk.make_key("key");
        disk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn make_key(&self, name: &str) {
        MasterKey::generate()
            .unwrap()
            .write_new(&self.path(name))
            .unwrap();
    }

    pub(crate) fn key(&self, name: &str) -> MasterKey {
        MasterKey::from_file(&self.path(name)).unwrap()
    }

    pub(crate) fn store(&self) -> DirectoryStore {
        DirectoryStore::open(&self.path("homes"), &self.path("marks")).unwrap()
    }

    pub(crate) fn node(&self) -> Homes {
        self.node_over(Arc::new(self.store()))
    }

    pub(crate) fn node_over(&self, store: Arc<dyn HomeStore>) -> Homes {
        Homes::new(store, KeyRing::new(self.key("key")))
    }

    /// The one file of this kind.
    pub(crate) fn file(&self, kind: &str) -> PathBuf {
        let files = files(&self.path(&format!("{kind}s")), kind);
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

pub(crate) fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|one| one == extension))
        .collect();
    files.sort();
    files
}

/// Says that a test cannot run here and why; with `CI=true`, where nothing may be skipped, it fails.
pub(crate) fn skipped(test: &str, reason: &str) {
    let is_ci =
        std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    assert!(!is_ci, "{test} was skipped ({reason}), and in CI nothing may be");
    println!("skipped: {test}: {reason}");
}

/// Numbers that look random and are the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
