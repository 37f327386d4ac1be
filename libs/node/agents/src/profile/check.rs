//! What a profile must hold beyond its shape.

use std::io;
use std::path::{Component, Path};

use serde_json::Value;

use super::{HomeFile, LoginFlow, Profile, ProfileError, Start};
use crate::dialogue::Language;
use crate::template::{Template, Variable};

/// A turn may not be given more or less than this, in seconds.
const TURN_SECONDS: std::ops::RangeInclusive<u64> = 1..=86_400;

/// Where one is in a file, for errors.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    /// An error at the first line that says `words`, or at the file when none does.
    fn wrong(&self, words: &str, message: String) -> ProfileError {
        self.wrong_in("", words, message)
    }

    /// As `wrong`, with lines of a section before all others.
    fn wrong_in(&self, section: &str, words: &str, message: String) -> ProfileError {
        let says = |line: &str| !line.trim_start().starts_with('#') && line.contains(words);
        let header = format!("[{section}]");
        let begin = self
            .text
            .lines()
            .position(|line| line.trim() == header)
            .unwrap_or(0);
        let within = self.text.lines().skip(begin).position(says);
        let line = within
            .map(|line| line + begin)
            .or_else(|| self.text.lines().position(says));
        ProfileError::Content {
            place: match line {
                Some(line) => format!("{}:{}", self.file, line + 1),
                None => self.file.to_owned(),
            },
            message,
        }
    }
}

pub(super) fn check(
    profile: &mut Profile,
    file: &str,
    text: &str,
    beside: impl Fn(&str) -> io::Result<String>,
) -> Result<(), ProfileError> {
    let place = Place { file, text };
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str());
    if stem != Some(&profile.name) {
        return Err(place.wrong(
            "name =",
            format!("`name` is {:?}, but the file's name says otherwise", profile.name),
        ));
    }
    paths(profile, &place)?;
    variables(profile, &place)?;
    flags(profile, &place)?;
    timeouts(profile, &place)?;
    for code in profile.exit_codes.keys() {
        if !code.parse::<u8>().is_ok_and(|code| code > 0) {
            return Err(place.wrong(
                code,
                format!("{code:?} in `exit_codes` is no exit code: 1 to 255"),
            ));
        }
    }
    for host in profile.egress.hosts.iter().chain(&profile.egress.login_hosts) {
        let name = host.strip_prefix('.').unwrap_or(host);
        let ordinary = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || !name.bytes().all(ordinary) {
            return Err(place.wrong(host, format!("{host:?} is no host name in small letters")));
        }
    }
    let lock = beside(&profile.package.lock).map_err(|error| {
        place.wrong(
            "lock =",
            format!(
                "`package.lock` names {:?}, which cannot be read: {error}",
                profile.package.lock
            ),
        )
    })?;
    lock_file(profile, &place, &lock)?;
    profile.files.insert(profile.package.lock.clone(), lock);
    Ok(())
}

/// Nothing leads out of the directory that it is relative to.
fn paths(profile: &Profile, place: &Place<'_>) -> Result<(), ProfileError> {
    let login_files = profile.login.flows.iter().flat_map(|flow| match flow {
        LoginFlow::ApiKeyFiles { files } => &files[..],
        _ => &[],
    });
    let endpoint_files = profile.endpoint.iter().flat_map(|endpoint| &endpoint.files);
    let files = login_files
        .chain(endpoint_files)
        .map(|file: &HomeFile| &file.path);
    let relative = profile
        .package
        .programs
        .values()
        .chain([&profile.package.lock, &profile.login.evidence])
        .chain(&profile.login.keep)
        .chain(files);
    for path in relative {
        let inside = Path::new(path)
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        if !inside || path.is_empty() {
            return Err(place.wrong(
                path,
                format!("the path {path:?} must be relative and stay below its start"),
            ));
        }
    }
    let kept = |path: &str| {
        let within = |kept: &String| Path::new(path).starts_with(kept);
        profile.login.keep.iter().any(within)
    };
    if !kept(&profile.login.evidence) {
        return Err(place.wrong(
            "evidence",
            format!(
                "`login.evidence` {:?} is in nothing that `login.keep` names",
                profile.login.evidence
            ),
        ));
    }
    if profile.package.programs.is_empty() {
        return Err(place.wrong("programs", "`package.programs` names no program".to_owned()));
    }
    Ok(())
}

/// A template asks only for what can be known where it is used.
fn variables(profile: &Profile, place: &Place<'_>) -> Result<(), ProfileError> {
    use Variable::{BaseUrl, Effort, Home, Install, Key, Model, Session, Workspace};
    let always = [Install, Home, Workspace];
    let with = |more: &[Variable]| [&always[..], more].concat();
    let check = |key: &str, templates: Vec<&Template>, allowed: &[Variable]| {
        for variable in templates.into_iter().flat_map(Template::variables) {
            if !allowed.contains(&variable) {
                return Err(place.wrong_in(
                    key.split('.').next().unwrap_or_default(),
                    &format!("{{{{ {} }}}}", variable.name()),
                    format!(
                        "`{key}` cannot use {{{{ {} }}}}: it is not known there",
                        variable.name()
                    ),
                ));
            }
        }
        Ok(())
    };
    check("environment", profile.environment.values().collect(), &always)?;
    for (key, start) in [("hot", &profile.hot), ("one_shot", &profile.one_shot)] {
        let key = |rest: &str| format!("{key}.{rest}");
        check(&key("args"), start.args.iter().collect(), &always)?;
        let resume = start.resume_args.iter().flatten().collect();
        check(&key("resume_args"), resume, &with(&[Session]))?;
        check(&key("resume_id"), start.resume_id.iter().collect(), &[Session])?;
        let model = start.model_args.iter().flatten().collect();
        check(&key("model_args"), model, &with(&[Model]))?;
    }
    let model = profile.model.iter().flat_map(|model| &model.args).collect();
    check("model.args", model, &with(&[Model]))?;
    let effort = profile.effort.iter().flat_map(|effort| &effort.args).collect();
    check("effort.args", effort, &with(&[Effort]))?;
    if let Some(endpoint) = &profile.endpoint {
        let values = endpoint.environment.values().chain(&endpoint.args);
        let values = values.chain(endpoint.files.iter().map(|file| &file.content));
        let values = values.chain(endpoint.model_args.iter().flatten());
        check("endpoint", values.collect(), &with(&[BaseUrl, Key, Model]))?;
        check("endpoint.model_id", endpoint.model_id.iter().collect(), &[Model])?;
        if endpoint
            .args
            .iter()
            .flat_map(Template::variables)
            .any(|variable| variable == Key)
        {
            return Err(place.wrong(
                "{{ KEY }}",
                "`endpoint.args` cannot use {{ KEY }}: every process may read the arguments of another"
                    .to_owned(),
            ));
        }
    }
    for flow in &profile.login.flows {
        match flow {
            LoginFlow::DeviceCode { args }
            | LoginFlow::PasteCode { args }
            | LoginFlow::ApiKeyStdin { args } => {
                check("login.flows.args", args.iter().collect(), &always)?;
            }
            LoginFlow::ApiKeyFiles { files } => {
                let contents = files.iter().map(|file| &file.content).collect();
                check("login.flows.files", contents, &with(&[Key]))?;
            }
        }
    }
    Ok(())
}

/// Flags that its language needs or rules out.
fn flags(profile: &Profile, place: &Place<'_>) -> Result<(), ProfileError> {
    let has = |start: &Start, flag: &str| {
        let text = start
            .args
            .iter()
            .filter_map(|arg| arg.expand(&crate::Values::new()).ok());
        text.into_iter().any(|arg| arg == flag)
    };
    for (key, start) in [("hot", &profile.hot), ("one_shot", &profile.one_shot)] {
        let needed: &[&str] = match start.language {
            Language::ClaudeStreamJson => &["-p", "stream-json", "--verbose", "--include-partial-messages"],
            Language::CodexAppServer => &["app-server"],
            Language::CodexExecJson => &["exec", "--json"],
            Language::Acp | Language::GeminiStreamJson | Language::Lines => &[],
        };
        if let Some(flag) = needed.iter().find(|flag| !has(start, flag)) {
            return Err(place.wrong(
                &format!("[{key}]"),
                format!(
                    "`{key}.args` lacks {flag:?}, without which `language` cannot be {:?}",
                    start.language.name()
                ),
            ));
        }
        if key == "hot" && !start.language.can_stay_up() {
            return Err(place.wrong(
                &format!("[{key}]"),
                format!(
                    "`hot.language` cannot be {:?}: it takes one prompt only",
                    start.language.name()
                ),
            ));
        }
    }
    for (key, start) in [("hot", &profile.hot), ("one_shot", &profile.one_shot)] {
        if start.resume_args.is_some() && matches!(start.language, Language::CodexAppServer | Language::Acp) {
            return Err(place.wrong(
                "resume_args",
                format!(
                    "`{key}.resume_args` is impossible: {:?} continues in its dialogue",
                    start.language.name()
                ),
            ));
        }
        if start.resume_id.is_some() && start.language != Language::Acp {
            return Err(place.wrong(
                "resume_id",
                format!(
                    "`{key}.resume_id` is impossible: {:?} says it in no dialogue",
                    start.language.name()
                ),
            ));
        }
    }
    Ok(())
}

fn timeouts(profile: &Profile, place: &Place<'_>) -> Result<(), ProfileError> {
    let timeouts = profile.timeouts;
    for (key, seconds) in [
        ("ready_s", timeouts.ready_s),
        ("low_s", timeouts.low_s),
        ("medium_s", timeouts.medium_s),
        ("high_s", timeouts.high_s),
    ] {
        if !TURN_SECONDS.contains(&seconds) {
            return Err(place.wrong(
                key,
                format!("`timeouts.{key}` is {seconds}, allowed are 1 to 86400"),
            ));
        }
    }
    if timeouts.low_s > timeouts.medium_s || timeouts.medium_s > timeouts.high_s {
        return Err(place.wrong(
            "low_s",
            "`timeouts` must not fall from low over medium to high".to_owned(),
        ));
    }
    Ok(())
}

/// The lock file pins what the profile names, and everything in it by its digest.
fn lock_file(profile: &Profile, place: &Place<'_>, lock: &str) -> Result<(), ProfileError> {
    let package = &profile.package;
    let wrong = |reason: String| place.wrong("lock =", format!("{:?} {reason}", package.lock));
    let value: Value = serde_json::from_str(lock).map_err(|error| wrong(format!("is no JSON: {error}")))?;
    let Some(packages) = value["packages"].as_object() else {
        return Err(wrong("has no `packages`".to_owned()));
    };
    let pinned = packages.get(&format!("node_modules/{}", package.name));
    if pinned.and_then(|pinned| pinned["version"].as_str()) != Some(&package.version) {
        return Err(wrong(format!(
            "does not pin {} {}",
            package.name, package.version
        )));
    }
    for (name, entry) in packages {
        if !name.is_empty() && entry["integrity"].as_str().is_none() {
            return Err(wrong(format!("has no `integrity` for {name:?}")));
        }
    }
    Ok(())
}
