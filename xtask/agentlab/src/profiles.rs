//! The built-in profiles, pointed at a local endpoint as their own provider's.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use toml::{Table, Value};

/// Where the profiles are.
const PROFILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents");

/// The model that CLIs are told: one that they do not choose themselves.
pub(crate) const MODEL: &str = "remuda-test";

/// The model that a task for this agent names. None: what points it at the endpoint names one already, in words of its own.
pub(crate) fn model(agent: &str) -> Option<&'static str> {
    (agent != "opencode").then_some(MODEL)
}

/// Writes the profile of `agent` into `directory`: what points it at an endpoint is there from the start.
pub(crate) fn write(agent: &str, directory: &Path, base_url: &str) -> Result<()> {
    let text = fs::read_to_string(Path::new(PROFILES).join(format!("{agent}.toml")))?;
    let mut profile: Table = text.parse()?;
    let endpoint = profile
        .get("endpoint")
        .and_then(Value::as_table)
        .cloned()
        .context("an endpoint")?;
    let fill = |mut value: Value| {
        replace(
            &mut value,
            &[
                ("{{ BASE_URL }}", base_url),
                ("{{ KEY }}", "a-key"),
                ("{{ MODEL }}", MODEL),
            ],
        );
        value
    };
    if let Some(Value::Array(more)) = endpoint.get("args") {
        for level in ["hot", "one_shot"] {
            let args = profile.get_mut(level).and_then(|level| level.get_mut("args"));
            let args = args.and_then(Value::as_array_mut).context("arguments")?;
            args.extend(more.iter().cloned().map(fill));
        }
    }
    if let Some(Value::Table(more)) = endpoint.get("environment") {
        let environment = profile
            .entry("environment")
            .or_insert_with(|| Table::new().into());
        let environment = environment.as_table_mut().context("an environment")?;
        environment.extend(
            more.iter()
                .map(|(name, value)| (name.clone(), fill(value.clone()))),
        );
    }
    fs::create_dir_all(directory.join(agent))?;
    fs::write(directory.join(format!("{agent}.toml")), profile.to_string())?;
    let lock = format!("{agent}/package-lock.json");
    fs::copy(Path::new(PROFILES).join(&lock), directory.join(&lock))?;
    Ok(())
}

fn replace(value: &mut Value, words: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (from, to) in words {
                *text = text.replace(from, to);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, words)),
        Value::Table(members) => members.iter_mut().for_each(|(_, member)| replace(member, words)),
        _ => {}
    }
}
