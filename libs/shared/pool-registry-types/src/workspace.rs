//! Workspaces, as a node tells of them and a control plane passes on.
//!
//! A directory is uploaded by a POST of a tar archive to `{AGENTS_PREFIX}/{pool}/workspaces`, and removed by a DELETE of
//! `.../workspaces/{id}`. What a task has made of one is asked for by a GET of `{AGENTS_PREFIX}/{pool}/tasks/{task}/` and
//! `files`, `diff` or `archive`. Each names the owner in its query, and finds nothing that is somebody else's.

use serde::{Deserialize, Serialize};

/// A workspace that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceMade {
    /// Its name.
    pub workspace_id: String,
    /// How many files it has.
    pub files: u64,
    /// How large they are together.
    pub bytes: u64,
    /// How long it is kept without being used.
    pub idle_max_ms: u64,
}

/// What has happened to a file since the workspace was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// It was not there.
    Added,
    /// It says something else, or can be run now or not any more.
    Modified,
    /// It is not there any more.
    Deleted,
}

/// A file or link that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChangedFile {
    /// Its path in the workspace; what is no text in it is replaced.
    pub path: String,
    /// What has happened to it.
    pub change: FileChange,
    /// How large it is, or was.
    pub bytes: u64,
}

/// What has changed in a workspace since it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceChanges {
    /// Its name.
    pub workspace_id: String,
    /// The files, by path. Git's own are not looked at.
    pub files: Vec<ChangedFile>,
}

/// What of a workspace is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkspaceView {
    /// [`WorkspaceChanges`] as JSON.
    Files,
    /// The changes as a patch for `git apply`.
    Diff,
    /// Everything in it but git's own, as a tar archive.
    Archive,
}

impl WorkspaceView {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Files, Self::Diff, Self::Archive];

    /// Its name in a path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Diff => "diff",
            Self::Archive => "archive",
        }
    }

    /// What it is written in.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Files => "application/json",
            Self::Diff => "text/x-diff",
            Self::Archive => "application/x-tar",
        }
    }
}
