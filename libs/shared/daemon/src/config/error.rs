//! What can be wrong with settings, said so that it can be put right.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The start is stopped. Exit code 64; 0 when it is only the answer to `--help` or `--version`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line; also the text of `--help` and `--version`.
    #[error("{}", trimmed(.0))]
    Usage(clap::Error),
    /// The settings file cannot be read.
    #[error("cannot read the settings file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everything that is wrong in the environment and the file.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// Whether this is the answer to `--help` or `--version` and belongs on standard output.
    pub fn is_help(&self) -> bool {
        matches!(self, Self::Usage(error) if !error.use_stderr())
    }

    /// 64, or 0 for help.
    pub fn exit_code(&self) -> u8 {
        if self.is_help() { 0 } else { crate::exit::USAGE }
    }

    pub(crate) fn one(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Invalid(vec![Problem {
            place: place.into(),
            text: text.into(),
        }])
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `remuda.toml:12`, or the environment's name, or the flag.
    pub place: String,
    /// What is wrong there, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.text)
    }
}

/// The known name that was probably meant.
pub(crate) fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

fn trimmed(error: &clap::Error) -> String {
    let text = error.render().to_string();
    text.strip_prefix("error: ")
        .unwrap_or(&text)
        .trim_end()
        .to_owned()
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
