//! From a spec to a command line.

use std::path::Path;
use std::process::Command;

use crate::recipe::Start;
use crate::spec::EngineSpec;

/// What the placeholders of a recipe stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values<'a> {
    pub(crate) port: u16,
    pub(crate) model_path: &'a Path,
    pub(crate) model_name: &'a str,
    /// None: the engine chooses.
    pub(crate) threads: Option<u32>,
}

/// The engine's command, without anything that is nobody's business but ours in its environment.
pub(crate) fn command(
    program: &Path,
    start: &Start,
    feature_args: &[String],
    spec: &EngineSpec,
    values: Values<'_>,
    gpu_mask: &str,
) -> Command {
    let mut command = Command::new(program);
    let threads_args = if values.threads.is_some() {
        start.threads_args.as_slice()
    } else {
        &[]
    };
    let none_args = if gpu_mask == "none" {
        start.gpu_none_args.as_slice()
    } else {
        &[]
    };
    for arg in start
        .args
        .iter()
        .chain(threads_args)
        .chain(none_args)
        .chain(feature_args)
    {
        command.arg(filled(arg, spec, values));
    }
    command.args(&spec.extra_args);
    without_secrets(&mut command);
    command.envs(&start.env);
    if gpu_mask != "all" {
        // An empty list hides every GPU.
        let mask = if gpu_mask == "none" { "" } else { gpu_mask };
        for name in &start.gpu_mask_env {
            command.env(name, mask);
        }
    }
    command
}

/// Takes what looks like a secret out of a child's environment: no engine and no compiler needs ours.
pub(crate) fn without_secrets(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_ascii_uppercase();
        if ["TOKEN", "SECRET", "PASSWORD", "API_KEY"]
            .iter()
            .any(|word| upper.contains(word))
        {
            command.env_remove(&name);
        }
    }
}

fn filled(arg: &str, spec: &EngineSpec, values: Values<'_>) -> String {
    // One pass from left to right, so that a brace within a value is never taken for a placeholder.
    let mut text = String::with_capacity(arg.len());
    let mut rest = arg;
    while let Some(open) = rest.find('{') {
        text.push_str(&rest[..open]);
        rest = &rest[open..];
        let close = rest.find('}').map_or(rest.len(), |close| close + 1);
        match placeholder(&rest[..close], spec, values) {
            Some(value) => text.push_str(&value),
            None => text.push_str(&rest[..close]),
        }
        rest = &rest[close..];
    }
    text.push_str(rest);
    text
}

fn placeholder(name: &str, spec: &EngineSpec, values: Values<'_>) -> Option<String> {
    Some(match name {
        "{port}" => values.port.to_string(),
        "{model_path}" => values.model_path.display().to_string(),
        "{model_name}" => values.model_name.to_owned(),
        "{slots}" => spec.slots.to_string(),
        "{context_length}" => spec.context_length.to_string(),
        "{context_total}" => spec.context_length.saturating_mul(spec.slots).to_string(),
        "{threads}" => values.threads.unwrap_or(0).to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use pool_registry_types::{PoolId, ReplicaId};

    use super::*;
    use crate::recipe::Recipe;

    fn check(change: impl FnOnce(&mut EngineSpec), gpu_mask: &str) -> (String, Vec<(String, String)>) {
        let recipe = Recipe::load("llamacpp", None).unwrap();
        let mut spec = EngineSpec::new(PoolId::new("p").unwrap(), ReplicaId::new("r").unwrap(), "m");
        change(&mut spec);
        let values = Values {
            port: 4711,
            model_path: Path::new("/models/{slots}.gguf"),
            model_name: "demo",
            threads: spec.threads,
        };
        let features: Vec<String> = spec
            .features
            .iter()
            .flat_map(|name| recipe.features[name].args.clone())
            .collect();
        let start = recipe.start.unwrap();
        let command = command(
            Path::new("llama-server"),
            &start,
            &features,
            &spec,
            values,
            gpu_mask,
        );
        let args: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let env = command
            .get_envs()
            .filter_map(|(name, value)| Some((text(name), text(value?))))
            .collect();
        (args.join(" "), env)
    }

    #[test]
    fn a_spec_becomes_a_command_line() {
        let (args, env) = check(
            |spec| {
                spec.slots = 4;
                spec.context_length = 1000;
            },
            "all",
        );
        assert!(
            args.starts_with("--host 127.0.0.1 --port 4711 --model /models/{slots}.gguf --alias demo"),
            "{args}"
        );
        assert!(args.contains("--parallel 4 --ctx-size 4000"), "{args}");
        assert!(
            !args.contains("--threads")
                && !args.contains("--device")
                && !env.iter().any(|(name, _)| name.contains("VISIBLE")),
            "{args}"
        );
        let (args, env) = check(
            |spec| {
                spec.threads = Some(2);
                spec.features = vec!["embeddings".to_owned()];
                spec.extra_args = vec!["--mlock".to_owned()];
            },
            "1,3",
        );
        assert!(
            args.ends_with("--threads 2 --embeddings --pooling mean --mlock"),
            "{args}"
        );
        assert!(
            env.contains(&("CUDA_VISIBLE_DEVICES".to_owned(), "1,3".to_owned())),
            "{env:?}"
        );
        let (args, env) = check(|_| (), "none");
        assert!(args.ends_with("--device none"), "{args}");
        assert!(
            env.contains(&("CUDA_VISIBLE_DEVICES".to_owned(), String::new())),
            "{env:?}"
        );
    }
}
