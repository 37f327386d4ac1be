//! The layers below the command line: the environment, then the file. Each value is checked with its setting's own
//! parser and then becomes that setting's default, so that the order falls out of clap.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};

use super::error::{ConfigError, Problem, nearest};
use super::file::ConfigFile;
use super::values::{check, describe, is_secret};
use super::{Declared, EnvName, Settings, Sources};

/// Values by setting.
pub(super) type Values = BTreeMap<String, Vec<String>>;

/// The file that the command line or the environment names.
pub(super) fn chosen_file(command: &Command, sources: &Sources) -> Result<Option<PathBuf>, ConfigError> {
    // What is required may still come from the environment or the file.
    let relaxed = command.clone().mut_args(|arg| arg.required(false));
    let matches = match relaxed.clone().try_get_matches_from(&sources.arguments) {
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => relaxed
            .ignore_errors(true)
            .try_get_matches_from(&sources.arguments),
        result => result,
    }
    .map_err(|error| usage(command, error))?;
    let named = matches.get_one::<PathBuf>("config").cloned();
    let from_environment = || {
        sources
            .environment
            .get("REMUDA_CONFIG".as_ref() as &std::ffi::OsStr)
    };
    Ok(named.or_else(|| {
        from_environment()
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }))
}

/// The error as clap tells it, unless that would show a secret.
fn usage(command: &Command, error: clap::Error) -> ConfigError {
    let about = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(shown)) => shown
            .split([' ', '='])
            .next()
            .and_then(|flag| flag.strip_prefix("--")),
        _ => None,
    };
    let is_value = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
    match about.and_then(|long| command.get_arguments().find(|arg| arg.get_long() == Some(long))) {
        Some(arg) if is_value && is_secret(arg) => ConfigError::one(
            format!("--{}", arg.get_long().unwrap_or_default()),
            describe(arg, &[], &error),
        ),
        _ => ConfigError::Usage(error),
    }
}

/// What the environment and the file say, the environment first.
pub(super) fn values<T: Settings>(
    declared: &Declared,
    sources: &Sources,
    file: &ConfigFile,
) -> Result<Values, ConfigError> {
    let mut problems = Vec::new();
    let mut values = from_file::<T>(declared, file, &mut problems)?;
    values.extend(from_environment(declared, sources, &mut problems));
    problems.extend(unknown_names::<T>(declared, sources));
    if problems.is_empty() {
        Ok(values)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

/// The command with these values as its defaults.
pub(super) fn with_values(mut command: Command, values: Values) -> Command {
    for (setting, texts) in values {
        command = command.mut_arg(setting, |arg| {
            arg.required(false).default_values(texts).hide_default_value(true)
        });
    }
    command
}

fn from_file<T: Settings>(
    declared: &Declared,
    file: &ConfigFile,
    problems: &mut Vec<Problem>,
) -> Result<Values, ConfigError> {
    let mut values = Values::new();
    for entry in file.entries(T::SECTION)? {
        let setting = entry.key.replace('-', "_");
        let Some(arg) = declared.settings().find(|arg| arg.get_id() == setting.as_str()) else {
            let known = declared.settings().map(|arg| arg.get_id().as_str());
            let hint = match nearest(&setting, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("`{} --help` lists what there is", T::PROGRAM),
            };
            let text = format!("unknown key `{}` in [{}]; {hint}", entry.key, T::SECTION);
            problems.push(Problem {
                place: entry.place,
                text,
            });
            continue;
        };
        let is_list = matches!(arg.get_action(), ArgAction::Append);
        let read = match entry.value {
            Ok(texts) if texts.len() == 1 || is_list => check(arg, &texts).map(|()| texts),
            Ok(_) => Err("takes one value, not a list".to_owned()),
            Err(reason) => Err(reason.to_owned()),
        };
        match read {
            Ok(texts) if values.contains_key(&setting) || texts.is_empty() => {
                if !texts.is_empty() {
                    problems.push(Problem {
                        place: entry.place,
                        text: format!("`{}` is set twice", entry.key),
                    });
                }
            }
            Ok(texts) => {
                values.insert(setting, texts);
            }
            Err(reason) => problems.push(Problem {
                place: entry.place,
                text: format!("`{}` {reason}", entry.key),
            }),
        }
    }
    Ok(values)
}

fn from_environment(declared: &Declared, sources: &Sources, problems: &mut Vec<Problem>) -> Values {
    let mut values = Values::new();
    for arg in declared.settings() {
        let setting = arg.get_id().as_str();
        let set = declared.environment[setting].iter().find_map(|name| {
            let value = sources.environment.get(name.name.as_ref() as &std::ffi::OsStr)?;
            (!value.is_empty()).then_some((name, value))
        });
        let Some((name, value)) = set else { continue };
        let read = match value.to_str() {
            Some(text) => {
                translate(name, text).and_then(|text| check(arg, std::slice::from_ref(&text)).map(|()| text))
            }
            None => Err("is not UTF-8".to_owned()),
        };
        match read {
            Ok(text) => {
                values.insert(setting.to_owned(), vec![text]);
            }
            Err(reason) => problems.push(Problem {
                place: name.name.clone(),
                text: reason,
            }),
        }
    }
    values
}

/// What a second name's own word means.
fn translate(name: &EnvName, text: &str) -> Result<String, String> {
    if name.values.is_empty() {
        return Ok(text.to_owned());
    }
    match name.values.iter().find(|(word, _)| *word == text) {
        Some((_, meaning)) => Ok((*meaning).to_owned()),
        None => {
            let words: Vec<&str> = name.values.iter().map(|(word, _)| *word).collect();
            Err(format!("is {text:?}; right would be {}", words.join(" or ")))
        }
    }
}

/// Names in the environment that look like ours and are nobody's.
fn unknown_names<T: Settings>(declared: &Declared, sources: &Sources) -> Vec<Problem> {
    let known: Vec<&str> = declared
        .environment
        .values()
        .flatten()
        .map(|name| name.name.as_str())
        .chain(T::FOREIGN.iter().copied())
        .collect();
    let mut problems = Vec::new();
    for name in sources.environment.keys().filter_map(|name| name.to_str()) {
        let Some(prefix) = T::PREFIXES.iter().find(|prefix| name.starts_with(**prefix)) else {
            continue;
        };
        if known.contains(&name) || is_service_link(&name[prefix.len()..]) {
            continue;
        }
        let hint = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("`{} --help` lists what there is", T::PROGRAM),
        };
        problems.push(Problem {
            place: name.to_owned(),
            text: format!("no setting has this name; {hint}"),
        });
    }
    problems
}

/// Kubernetes sets these in every container for every service of its namespace, so a service that is called
/// `orchestratord` brings `ORCHESTRATORD_SERVICE_HOST`, `ORCHESTRATORD_PORT`, `ORCHESTRATORD_PORT_8080_TCP_ADDR`, ...
fn is_service_link(rest: &str) -> bool {
    let numbered = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    rest == "SERVICE_HOST"
        || rest == "PORT"
        || rest == "SERVICE_PORT"
        || rest.starts_with("SERVICE_PORT_")
        || rest.strip_prefix("PORT_").is_some_and(numbered)
}
