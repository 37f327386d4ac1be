//! Agent profiles: one TOML file per agent, saying how to install, log in, start, feed and read its CLI.
//!
//! The profiles of `agents/` are built in; a directory may replace them or add others. A key that a profile does not
//! know, a file that it names and that is not there, and a flag that cannot be are errors with file, line and reason: a
//! typo never becomes a default.

mod built_in;
mod check;
mod command;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use task_api::ErrorCode;

use crate::dialogue::{Dialogue, DialogueSettings, Language};
use crate::template::Template;

pub use command::{CommandError, CommandLine};

/// A profile file, or a file that it names, may not be larger than this.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How a CLI runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// It stays up and takes one prompt after the other.
    Hot,
    /// It is started for one prompt and ends after it.
    OneShot,
}

/// What is known about one agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The agent's name, by which tasks ask for it.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// Whose models it uses by default: how `/api/execute` names it.
    pub provider: String,
    /// What npm installs.
    pub package: Package,
    /// How it is started to stay up.
    pub hot: Start,
    /// How it is started for one prompt.
    pub one_shot: Start,
    /// Variables of the environment that it always gets.
    #[serde(default)]
    pub environment: BTreeMap<String, Template>,
    /// How a model is chosen. None: it cannot be.
    pub model: Option<Choice>,
    /// How hard it thinks. None: it cannot be said.
    pub effort: Option<Effort>,
    /// How it is pointed at an endpoint other than its provider's. None: it cannot be.
    pub endpoint: Option<Endpoint>,
    /// How a person logs in.
    pub login: Login,
    /// Where it may connect to.
    pub egress: Egress,
    /// How long a turn may take.
    pub timeouts: Timeouts,
    /// What its exit codes mean, other than 0.
    #[serde(default)]
    pub exit_codes: BTreeMap<String, ExitMeaning>,
    /// What it takes of a machine, as it was measured. None: nobody has.
    pub cost: Option<Cost>,
    /// The files that this profile names, by name.
    #[serde(skip)]
    files: BTreeMap<String, String>,
}

/// What npm installs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The `package-lock.json` with the digest of everything, relative to the profile's directory.
    pub lock: String,
    /// The program, relative to `node_modules`, for each platform (`linux-x86_64`, `macos-aarch64`, ...) or for `any`.
    pub programs: BTreeMap<String, String>,
    /// What runs the program, when it is a script.
    pub interpreter: Option<String>,
}

/// How a CLI is started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The arguments.
    pub args: Vec<Template>,
    /// What its lines are written in.
    pub language: Language,
    /// Arguments that continue a conversation. None: it cannot be said at the start.
    pub resume_args: Option<Vec<Template>>,
    /// How a conversation that is to be continued is named in a dialogue. None: by its id.
    pub resume_id: Option<Template>,
    /// Arguments for a model. None: those of `[model]`.
    pub model_args: Option<Vec<Template>>,
    /// How a process is ended.
    pub end: End,
}

/// How a process is ended that has nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// What it is told by.
    pub by: EndBy,
    /// How long it may take before it is killed, in milliseconds.
    pub grace_ms: u64,
}

/// What tells a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndBy {
    /// Its standard input is closed.
    CloseStdin,
    /// SIGTERM.
    Terminate,
}

/// How something is chosen at the start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The arguments.
    pub args: Vec<Template>,
    /// What is taken when nobody chooses. None: the CLI decides.
    pub default: Option<String>,
}

/// How hard it thinks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// The arguments at the start.
    pub args: Vec<Template>,
    /// The CLI's word for each of ours.
    pub values: BTreeMap<EffortLevel, String>,
}

/// How hard an agent shall think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffortLevel {
    /// Little.
    Low,
    /// As usual.
    Medium,
    /// Much.
    High,
}

/// How a CLI is pointed at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What it speaks there.
    pub dialect: EndpointDialect,
    /// Variables of the environment.
    #[serde(default)]
    pub environment: BTreeMap<String, Template>,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<Template>,
    /// Arguments for a model there. None: those of `[model]`.
    pub model_args: Option<Vec<Template>>,
    /// How a model there is named in a dialogue. None: by its name.
    pub model_id: Option<Template>,
    /// Files in the home directory.
    #[serde(default)]
    pub files: Vec<HomeFile>,
}

/// A wire format between a CLI and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointDialect {
    /// Anthropic's messages.
    Messages,
    /// OpenAI's responses.
    Responses,
    /// OpenAI's chat completions.
    ChatCompletions,
    /// Gemini's generateContent, which control planes translate.
    GenerateContent,
}

/// A file that must lie in the home directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HomeFile {
    /// Where, relative to the home directory.
    pub path: String,
    /// What stands in it.
    pub content: Template,
}

/// How a person logs in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// What is kept of the home directory, relative to it: directories and files.
    pub keep: Vec<String>,
    /// When the CLI reads its login.
    pub reads: LoginRead,
    /// A file that exists only with a login, relative to the home directory.
    pub evidence: String,
    /// Arguments that tell whether somebody is logged in, by exit code 0. None: the evidence decides.
    pub status_args: Option<Vec<Template>>,
    /// Arguments that log out. None: the home is removed.
    pub logout_args: Option<Vec<Template>>,
    /// The ways in, the usual one first.
    pub flows: Vec<LoginFlow>,
}

/// When a CLI reads its login: until then an owner's home may be put under a process that runs already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginRead {
    /// When it starts.
    AtStart,
    /// When it is said the first line.
    AtFirstLine,
    /// When it is said the first prompt.
    AtFirstPrompt,
    /// At each turn.
    AtEachTurn,
}

/// One way to log in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum LoginFlow {
    /// The CLI shows an address and a code, and waits until the person has entered it there.
    DeviceCode {
        /// What starts it.
        args: Vec<Template>,
    },
    /// The CLI shows an address, and reads on its standard input what the person finds there.
    PasteCode {
        /// What starts it.
        args: Vec<Template>,
    },
    /// The CLI reads a key on its standard input.
    ApiKeyStdin {
        /// What starts it.
        args: Vec<Template>,
    },
    /// The key is written where the CLI looks for it.
    ApiKeyFiles {
        /// The files.
        files: Vec<HomeFile>,
    },
}

/// Where a CLI may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Host names; one that begins with a dot allows everything below it.
    pub hosts: Vec<String>,
    /// Further host names while somebody logs in.
    #[serde(default)]
    pub login_hosts: Vec<String>,
}

/// How long a turn may take, by effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Until the CLI takes prompts, in seconds.
    pub ready_s: u64,
    /// A turn of little effort, in seconds.
    pub low_s: u64,
    /// A turn of usual effort, in seconds.
    pub medium_s: u64,
    /// A turn of much effort, in seconds.
    pub high_s: u64,
}

impl Timeouts {
    /// How long a turn of this effort may take.
    pub fn turn(&self, effort: EffortLevel) -> Duration {
        Duration::from_secs(match effort {
            EffortLevel::Low => self.low_s,
            EffortLevel::Medium => self.medium_s,
            EffortLevel::High => self.high_s,
        })
    }
}

/// What an exit code means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitMeaning {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub meaning: String,
}

/// What a CLI takes of a machine: `cargo xtask bench --agents` measures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Memory of one that runs in its sandbox after some turns, beyond what all of them share, in MiB.
    pub hot_mib: u64,
    /// Processor time from its start to its first answer, in milliseconds.
    pub start_cpu_ms: u64,
    /// Processor time of a short turn, in milliseconds.
    pub turn_cpu_ms: u64,
}

/// Why there is no profile to be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nobody has a profile of this name.
    #[error("there is no agent profile named {name:?}; there are {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A profile, or a file that it names, cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A profile has something that it may not have.
    #[error("{place}: {message}")]
    Content {
        /// Which file, and which line when one line is to blame.
        place: String,
        /// What is wrong, naming the key.
        message: String,
    },
}

impl Profile {
    /// The profile `name`: from `directory` if it is there, else the one built in.
    pub fn find(name: &str, directory: Option<&Path>) -> Result<Self, ProfileError> {
        if let Some(path) = directory.map(|directory| directory.join(format!("{name}.toml")))
            && path.exists()
        {
            return Self::load(&path);
        }
        Self::builtin(name).unwrap_or_else(|| {
            Err(ProfileError::Unknown {
                name: name.to_owned(),
                known: names(directory).join(", "),
            })
        })
    }

    /// The profile that is built in. None: there is none of this name.
    pub fn builtin(name: &str) -> Option<Result<Self, ProfileError>> {
        let text = built_in::profile(name)?;
        Some(Self::parse(&format!("agents/{name}.toml"), text, |file| {
            built_in::file(file)
                .map(str::to_owned)
                .ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }))
    }

    /// Reads a profile file, and the files that it names beside it.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = read(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::parse(&path.display().to_string(), &text, |file| {
            read(&directory.join(file))
        })
    }

    /// Every profile that can be had, by name.
    pub fn all(directory: Option<&Path>) -> Result<Vec<Self>, ProfileError> {
        names(directory)
            .iter()
            .map(|name| Self::find(name, directory))
            .collect()
    }

    /// Reads the text of the profile file `file`; `beside` reads the files that it names.
    pub fn parse(
        file: &str,
        text: &str,
        beside: impl Fn(&str) -> std::io::Result<String>,
    ) -> Result<Self, ProfileError> {
        let mut profile: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text[..at].matches('\n').count();
            ProfileError::Content {
                place: format!("{file}:{line}"),
                message: error.message().to_owned(),
            }
        })?;
        check::check(&mut profile, file, text, beside)?;
        Ok(profile)
    }

    /// How the CLI is started at a level.
    pub fn start(&self, level: Level) -> &Start {
        match level {
            Level::Hot => &self.hot,
            Level::OneShot => &self.one_shot,
        }
    }

    /// A dialogue with the CLI that was started at this level.
    pub fn dialogue(&self, level: Level, settings: DialogueSettings) -> Dialogue {
        Dialogue::new(self, level, settings)
    }

    /// Whether the CLI is told its model when it is started by its provider's endpoint.
    pub(crate) fn tells_model(&self, level: Level) -> bool {
        let shared = self.model.as_ref().map(|model| &model.args);
        let args = self.start(level).model_args.as_ref().or(shared);
        args.is_some_and(|args| !args.is_empty())
    }

    /// The CLI's word for an effort. None: it has none.
    pub fn effort_word(&self, effort: EffortLevel) -> Option<&str> {
        self.effort.as_ref()?.values.get(&effort).map(String::as_str)
    }

    /// The `package-lock.json` that installs it.
    pub fn lock_file(&self) -> &str {
        self.files.get(&self.package.lock).map_or("", String::as_str)
    }
}

/// What this machine is called in profiles: `linux-x86_64`, `macos-aarch64`, ...
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

fn read(path: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "it has {length} bytes, {FILE_BYTES_MAX} are allowed"
        )));
    }
    std::fs::read_to_string(path)
}

fn names(directory: Option<&Path>) -> Vec<String> {
    let mut names: Vec<String> = built_in::NAMES.map(str::to_owned).to_vec();
    let files = directory
        .and_then(|directory| std::fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .flatten();
    for path in files.map(|file| file.path()) {
        if path.extension().is_some_and(|extension| extension == "toml")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(stem.to_owned());
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
