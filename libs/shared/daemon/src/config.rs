//! Settings: flags over environment over `remuda.toml` over defaults.
//!
//! # How a setting is declared
//!
//! Once, as a field of a `clap::Args` struct. The field's name is the key in the file; `long` makes the flag, `env` the
//! environment's name, `default_value` the default, the field's type (or `value_parser`) what is accepted. A flag without
//! `env` is for one call: it is no setting, and the file cannot have it.
//!
//! ```
//! use std::net::SocketAddr;
//! use std::time::Duration;
//!
//! use daemon::config::{self, EnvAlias, Sources};
//! use daemon::secret::Secret;
//!
//! #[derive(Debug, clap::Args)]
//! struct Settings {
//!     /// Address to listen on
//!     #[arg(long, env = "POOL_MANAGERD_ADDR", value_name = "HOST:PORT", default_value = "127.0.0.1:9200")]
//!     addr: SocketAddr,
//!
//!     /// Work for a control plane on another machine
//!     #[arg(long, env = "POOL_MANAGERD_CLOUD_PROFILE")]
//!     cloud_profile: bool,
//!
//!     /// How often the handoff directory is scanned
//!     #[arg(long, env = "POOL_MANAGERD_WATCH_INTERVAL_MS", value_name = "MS", default_value = "1000",
//!           value_parser = config::milliseconds)]
//!     watch_interval_ms: Duration,
//!
//!     /// Token for the other side
//!     #[arg(long, env = "LLORCH_API_TOKEN", value_name = "TOKEN")]
//!     api_token: Option<Secret>,
//! }
//!
//! impl config::Settings for Settings {
//!     const SECTION: &'static str = "pool-managerd";
//!     const ABOUT: &'static str = "The node daemon";
//!     const ALIASES: &'static [EnvAlias] = &[EnvAlias::same("addr", "POOL_MANAGERD_BIND_ADDR")];
//!     const PREFIXES: &'static [&'static str] = &["POOL_MANAGERD_"];
//! }
//!
//! let sources = Sources::of(["--addr", "127.0.0.1:0"], [("POOL_MANAGERD_CLOUD_PROFILE", "true")]);
//! let settings = config::load::<Settings>(&sources)?.settings;
//! assert_eq!(settings.addr.port(), 0);
//! assert!(settings.cloud_profile);
//! assert_eq!(settings.watch_interval_ms, Duration::from_secs(1));
//! # Ok::<(), config::ConfigError>(())
//! ```
//!
//! # Rules
//!
//! - Every problem in the environment and the file is found and told at once, as a [`ConfigError`] that names the file
//!   and line, or the environment's name, or the flag, and what would be right. The exit code is 64.
//! - An empty environment variable counts as not set: compose files and unit files pass those for "nothing".
//! - A name in the environment that begins with one of [`Settings::PREFIXES`] and that nobody declares is an error, but
//!   for what Kubernetes puts there for services of that name (`ORCHESTRATORD_SERVICE_HOST`, `ORCHESTRATORD_PORT`, ...).
//! - A `bool` is a flag that may be given a value: `--cloud-profile`, `--cloud-profile=false`.
//! - A value of type [`Secret`](crate::secret::Secret) is never repeated in an error or in `--help`.
//! - One file may configure every daemon: a daemon reads its own section and leaves the others' alone.

mod error;
mod file;
mod layers;
mod reference;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};

pub use error::{ConfigError, Problem};
pub use file::ConfigFile;
pub use reference::{check_reference, reference};
pub use values::{
    bytes, http_address, milliseconds, milliseconds_or_zero, seconds, seconds_or_zero, some_bytes, whole,
};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "remuda.toml";

/// The sections that a `remuda.toml` may have. Anything else at the top is an unknown key.
pub const SECTIONS: &[&str] = &[
    "orchestratord",
    "pool-managerd",
    "engine-provisioner",
    "remuda",
    "pools",
];

/// Second names of settings that come with this crate.
const SHARED_ALIASES: &[EnvAlias] = &[EnvAlias::same("log", "RUST_LOG")];

/// The settings of one daemon: its `clap::Args` struct and what clap has no words for.
pub trait Settings: clap::Args {
    /// The section of `remuda.toml`, and the program's name.
    const SECTION: &'static str;
    /// What is typed before the flags, for `--help`: `engine-provisioner fetch`.
    const PROGRAM: &'static str = Self::SECTION;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Second names in the environment. The name given in `env = ".."` wins over these.
    const ALIASES: &'static [EnvAlias] = &[];
    /// What the names of this daemon's environment begin with: an unknown name beginning so is an error.
    const PREFIXES: &'static [&'static str] = &[];
    /// Names that begin with one of [`Settings::PREFIXES`] but are another daemon's.
    const FOREIGN: &'static [&'static str] = &[];
}

/// A second name for a setting in the environment ("also read as").
#[derive(Debug, Clone, Copy)]
pub struct EnvAlias {
    /// The field's name.
    pub setting: &'static str,
    /// The environment's second name for it.
    pub name: &'static str,
    /// What values of the second name mean for the setting, when they differ. Empty: they are the same.
    pub values: &'static [(&'static str, &'static str)],
}

impl EnvAlias {
    /// A second name that takes the same values.
    pub const fn same(setting: &'static str, name: &'static str) -> Self {
        Self {
            setting,
            name,
            values: &[],
        }
    }

    /// A second name that has words of its own: `("home", "false")` reads `home` as `false`.
    pub const fn words(
        setting: &'static str,
        name: &'static str,
        values: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            setting,
            name,
            values,
        }
    }
}

/// Where settings are read from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The command line without the program's name.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// Where [`DEFAULT_FILE`] is looked for.
    pub directory: PathBuf,
}

impl Sources {
    /// This process: its command line, environment and working directory.
    pub fn process() -> Self {
        Self {
            arguments: std::env::args_os().skip(1).collect(),
            environment: std::env::vars_os().collect(),
            directory: PathBuf::from("."),
        }
    }

    /// This process's environment and working directory, with another command line. For a program that holds daemons.
    pub fn with_arguments<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            ..Self::process()
        }
    }

    /// Exactly this, and no file unless one is named. For tests.
    pub fn of<A: Into<OsString>, N: Into<OsString>, V: Into<OsString>>(
        arguments: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            directory: PathBuf::from("/nonexistent"),
        }
    }

    /// The same, looking for [`DEFAULT_FILE`] in `directory`.
    pub fn in_directory(self, directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            ..self
        }
    }
}

/// What was read.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The daemon's settings.
    pub settings: T,
    /// The file, for what is structured: `loaded.file.section::<Vec<PoolSettings>>("pools")`.
    pub file: ConfigFile,
}

/// Reads the settings of one daemon.
///
/// # Errors
/// [`ConfigError`]; also for `--help` and `--version`, whose text is the error's `Display` and whose exit code is 0.
pub fn load<T: Settings>(sources: &Sources) -> Result<Loaded<T>, ConfigError> {
    let declared = Declared::of::<T>();
    let chosen = layers::chosen_file(&declared.command, sources)?;
    let file = ConfigFile::read(chosen, &sources.directory)?;
    let values = layers::values::<T>(&declared, sources, &file)?;
    let matches = layers::with_values(declared.command, values)
        .try_get_matches_from(&sources.arguments)
        .map_err(ConfigError::Usage)?;
    let settings = T::from_arg_matches(&matches).map_err(ConfigError::Usage)?;
    Ok(Loaded { settings, file })
}

/// The problem with a setting that only shows when it is seen beside others, as an error that names the setting fully.
///
/// # Panics
/// When `T` declares no such setting.
pub fn problem<T: Settings>(setting: &str, text: impl Into<String>) -> ConfigError {
    let declared = Declared::of::<T>();
    let arg = declared
        .command
        .get_arguments()
        .find(|arg| arg.get_id() == setting)
        .expect("the setting is declared");
    let flag = declared.flag(arg);
    let place = match declared.env_names(setting).first() {
        Some(name) => format!("{name}, {flag}, `{setting}` in [{}]", T::SECTION),
        None => flag,
    };
    ConfigError::one(place, text)
}

/// A daemon's settings as declared, made ready for reading: what clap would do with the environment is done here, so
/// that second names, errors and tests have one way.
struct Declared {
    command: Command,
    /// Each setting's names in the environment, the first one first.
    environment: BTreeMap<String, Vec<EnvName>>,
}

/// One name in the environment and what its values mean.
#[derive(Debug, Clone)]
struct EnvName {
    name: String,
    values: &'static [(&'static str, &'static str)],
}

impl Declared {
    fn of<T: Settings>() -> Self {
        let config = Arg::new("config")
            .long("config")
            .env("REMUDA_CONFIG")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!(
                "The settings file [default: {DEFAULT_FILE} in the working directory, if there]"
            ));
        let bare = Command::new(T::SECTION)
            .bin_name(T::PROGRAM)
            .no_binary_name(true)
            .about(T::ABOUT)
            .version(env!("CARGO_PKG_VERSION"));
        let command = T::augment_args(bare).about(T::ABOUT).long_about(None).arg(config);

        let mut environment = BTreeMap::new();
        for arg in command.get_arguments() {
            let setting = arg.get_id().to_string();
            let first = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            let names: Vec<EnvName> = first
                .map(|name| EnvName { name, values: &[] })
                .into_iter()
                .chain(
                    T::ALIASES
                        .iter()
                        .chain(SHARED_ALIASES)
                        .filter(|alias| alias.setting == setting)
                        .map(|alias| EnvName {
                            name: alias.name.to_owned(),
                            values: alias.values,
                        }),
                )
                .collect();
            environment.insert(setting, names);
        }
        for alias in T::ALIASES {
            debug_assert!(
                environment.contains_key(alias.setting),
                "{} stands for no setting",
                alias.name
            );
        }
        let command = command.mut_args(|arg| {
            let names = &environment[arg.get_id().as_str()];
            values::readable(arg, names)
        });
        Self { command, environment }
    }

    /// Everything that can be set: what has a name in the environment. Other arguments are for this one call.
    fn settings(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments().filter(|arg| {
            let setting = arg.get_id().as_str();
            arg.get_long().is_some() && setting != "config" && !self.env_names(setting).is_empty()
        })
    }

    fn env_names(&self, setting: &str) -> Vec<&str> {
        self.environment
            .get(setting)
            .into_iter()
            .flatten()
            .map(|name| name.name.as_str())
            .collect()
    }

    fn flag(&self, arg: &Arg) -> String {
        format!("--{}", arg.get_long().unwrap_or_else(|| arg.get_id().as_str()))
    }
}

#[cfg(test)]
mod tests;
