//! Engine recipes: one TOML file per engine, saying how to get, start, probe and speak to it.
//!
//! The recipes of `engines/` are built in; a directory in the settings may replace them or add others. A key that a
//! recipe does not know is an error that names file, line and key: a typo never becomes a default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pool_registry_types::Dialect;
use serde::Deserialize;

/// The recipes that are built in: name and text.
const BUILT_IN: [(&str, &str); 4] = [
    ("llamacpp", include_str!("../../../engines/llamacpp.toml")),
    ("vllm", include_str!("../../../engines/vllm.toml")),
    ("ollama", include_str!("../../../engines/ollama.toml")),
    ("openai", include_str!("../../../engines/openai.toml")),
];

/// What arguments may hold in braces.
const PLACEHOLDERS: [&str; 7] = [
    "port",
    "model_path",
    "model_name",
    "slots",
    "context_length",
    "context_total",
    "threads",
];

/// A recipe file may not be larger than this.
const RECIPE_BYTES_MAX: u64 = 1024 * 1024;

/// How to get, start, probe and speak to one engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The recipe's name, by which pools ask for it.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// The dialects that the engine speaks by itself.
    pub dialects: Vec<Dialect>,
    /// Whether it notices a closed connection only on streams, so that it is asked for a stream even when the client
    /// asked for none.
    #[serde(default)]
    pub cancel_on_stream_only: bool,
    /// Whether its models take pictures and sound, where neither the engine nor the pool says so.
    #[serde(default)]
    pub media: bool,
    /// How to see whether it answers.
    pub probe: Probe,
    /// How to start it. None: it runs already, and a pool names it by URL.
    pub start: Option<Start>,
    /// What a pool may ask for beyond the plain engine, by name.
    #[serde(default)]
    pub features: BTreeMap<String, Feature>,
    /// How to get it. None: as for `start`.
    pub source: Option<Source>,
}

/// The paths at which an engine tells about itself, all by GET.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Answers 200 when the engine is ready.
    pub health: String,
    /// The models it serves, in OpenAI's shape.
    pub models: String,
    /// Its slots, in llama.cpp's shape: a list of objects with `is_processing`. None: it does not tell.
    pub slots: Option<String>,
    /// Its properties, in llama.cpp's shape: an object with `total_slots`. None: it does not tell.
    pub props: Option<String>,
}

/// How to start an engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The arguments, with placeholders.
    pub args: Vec<String>,
    /// Added when the pool says how many threads.
    #[serde(default)]
    pub threads_args: Vec<String>,
    /// A model smaller than this gets one thread unless the pool says how many. In megabytes.
    #[serde(default)]
    pub one_thread_below_mb: u64,
    /// The environment variables that keep the engine to some of the GPUs.
    #[serde(default)]
    pub gpu_mask_env: Vec<String>,
    /// Environment variables that it always gets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Added when it may use no GPU.
    #[serde(default)]
    pub gpu_none_args: Vec<String>,
    /// It must answer within this time.
    pub ready_timeout_s: u64,
    /// How long after SIGTERM it is killed.
    pub stop_timeout_s: u64,
}

/// Something that a pool may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Arguments to add.
    #[serde(default)]
    pub args: Vec<String>,
    /// Dialects that the engine speaks then.
    #[serde(default)]
    pub dialects: Vec<Dialect>,
}

/// How to get an engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The program's name, as it is looked for on PATH and kept in the cache.
    pub program: String,
    /// The version that archives and source packages give.
    pub version: String,
    /// The arguments that make the program print its version.
    pub version_args: Vec<String>,
    /// What stands before the version in that output.
    pub version_prefix: String,
    /// Release archives.
    #[serde(default)]
    pub archives: Vec<Archive>,
    /// The package with the source.
    pub python_package: Option<PythonPackage>,
    /// How the source is built.
    pub build: Option<Build>,
}

/// A release archive (`.tar.gz`) with a built engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// What it was built for, as in [`platform`].
    pub platform: String,
    /// Which build variant it is.
    pub variant: Variant,
    /// Where it is.
    pub url: String,
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// Where the program lies within.
    pub program: PathBuf,
}

/// A source package in the Python package index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PythonPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The source archive's SHA-256, in hex.
    pub sha256: String,
    /// The module that its build code lies in: the `build-backend` of its `pyproject.toml`.
    pub build_backend: String,
    /// The directory within, below the archive's first one, in which the engine's source lies.
    pub directory: PathBuf,
}

/// How a source is built: CMake and Ninja.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// CMake's flags for every variant.
    pub flags: Vec<String>,
    /// What is built.
    pub target: String,
    /// Where the program lies afterwards, below the build directory.
    pub program: PathBuf,
    /// CMake's further flags for each variant that can be built.
    pub variants: BTreeMap<Variant, Vec<String>>,
}

/// What an engine computes on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Processors only.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
    /// AMD's GPUs.
    Rocm,
    /// Any GPU with a Vulkan driver.
    Vulkan,
    /// Apple's GPUs.
    Metal,
}

impl Variant {
    /// The name in recipes, settings and cache directories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }
}

/// Why there is no recipe to be had.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Nobody has a recipe of this name.
    #[error("there is no engine recipe named {name:?}; there are {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A recipe cannot be read.
    #[error("cannot read the engine recipe {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A recipe has something that it may not have.
    #[error("{place}: {message}")]
    Content {
        /// Which file, and which line when one line is to blame.
        place: String,
        /// What is wrong, naming the key.
        message: String,
    },
}

impl Recipe {
    /// The recipe `name`: from `directory` if it is there, else the one built in.
    pub fn load(name: &str, directory: Option<&Path>) -> Result<Self, RecipeError> {
        if let Some(path) = directory.map(|directory| directory.join(format!("{name}.toml")))
            && path.exists()
        {
            return Self::read(&path);
        }
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => Self::parse(&format!("engines/{name}.toml"), text),
            None => Err(RecipeError::Unknown {
                name: name.to_owned(),
                known: names(directory).join(", "),
            }),
        }
    }

    /// Every recipe that can be had, by name.
    pub fn all(directory: Option<&Path>) -> Result<Vec<Self>, RecipeError> {
        names(directory)
            .iter()
            .map(|name| Self::load(name, directory))
            .collect()
    }

    /// Reads the text of the recipe file `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self, RecipeError> {
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text[..at].matches('\n').count();
            RecipeError::Content {
                place: format!("{file}:{line}"),
                message: error.message().to_owned(),
            }
        })?;
        recipe.check(file)?;
        Ok(recipe)
    }

    /// The dialects that the engine speaks with `features`, without repetition.
    pub fn dialects_with(&self, features: &[String]) -> Vec<Dialect> {
        let added = features
            .iter()
            .filter_map(|name| self.features.get(name))
            .flat_map(|feature| &feature.dialects);
        let mut dialects: Vec<Dialect> = self.dialects.iter().chain(added).copied().collect();
        dialects.sort_unstable();
        dialects.dedup();
        dialects
    }

    fn read(path: &Path) -> Result<Self, RecipeError> {
        let read = || -> std::io::Result<String> {
            let length = std::fs::metadata(path)?.len();
            if length > RECIPE_BYTES_MAX {
                return Err(std::io::Error::other(format!(
                    "it has {length} bytes, {RECIPE_BYTES_MAX} are allowed"
                )));
            }
            std::fs::read_to_string(path)
        };
        let text = read().map_err(|source| RecipeError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn check(&self, file: &str) -> Result<(), RecipeError> {
        let wrong = |message: String| RecipeError::Content {
            place: file.to_owned(),
            message,
        };
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str());
        if stem != Some(&self.name) {
            return Err(wrong(format!(
                "`name` is {:?}, but the file's name says otherwise",
                self.name
            )));
        }
        if self.start.is_some() != self.source.is_some() {
            return Err(wrong(
                "`start` and `source` go together: either both are there or none".to_owned(),
            ));
        }
        for path in [
            Some(&self.probe.health),
            Some(&self.probe.models),
            self.probe.slots.as_ref(),
        ]
        .into_iter()
        .chain([self.probe.props.as_ref()])
        .flatten()
        {
            if !path.starts_with('/') {
                return Err(wrong(format!("the probe path {path:?} must begin with '/'")));
            }
        }
        let features = self.features.values().flat_map(|feature| &feature.args);
        let starts = self
            .start
            .iter()
            .flat_map(|start| start.args.iter().chain(&start.threads_args));
        for placeholder in starts.chain(features).flat_map(|arg| placeholders(arg)) {
            if !PLACEHOLDERS.contains(&placeholder) {
                let known = PLACEHOLDERS.join("}, {");
                return Err(wrong(format!(
                    "there is no placeholder {{{placeholder}}}; there are {{{known}}}"
                )));
            }
        }
        Ok(())
    }
}

/// What this machine is called in recipes: `linux-x86_64`, `macos-aarch64`, ...
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The words in braces. Braces around anything else, as in JSON, are left alone.
fn placeholders(arg: &str) -> impl Iterator<Item = &str> {
    let word =
        |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    arg.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(word, _)| word))
        .filter(word)
}

fn names(directory: Option<&Path>) -> Vec<String> {
    let mut names: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
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
mod tests {
    use super::*;

    #[test]
    fn every_recipe_that_is_built_in_is_right() {
        let recipes = Recipe::all(None).unwrap();
        assert_eq!(recipes.len(), BUILT_IN.len());
        let llamacpp = Recipe::load("llamacpp", None).unwrap();
        assert!(llamacpp.cancel_on_stream_only);
        assert!(!llamacpp.dialects.contains(&Dialect::Embeddings));
        assert!(
            llamacpp
                .dialects_with(&["embeddings".to_owned()])
                .contains(&Dialect::Embeddings)
        );
        let build = llamacpp.source.unwrap().build.unwrap();
        assert_eq!(build.variants.len(), 5);
        assert!(Recipe::load("vllm", None).unwrap().start.is_none());
    }

    fn check(change: impl FnOnce(&str) -> String, expect: &str) {
        let text = change(BUILT_IN[2].1);
        let error = Recipe::parse("engines/ollama.toml", &text).unwrap_err();
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        check(
            |text| text.replace("[probe]", "[probe]\nheatlh = \"/\""),
            "engines/ollama.toml:8: unknown field `heatlh`, expected one of `health`, `models`, `slots`, `props`",
        );
        check(
            |text| text.replace("health = \"/api/version\"\n", ""),
            "engines/ollama.toml:7: missing field `health`",
        );
        check(
            |text| text.replace("\"embeddings\"", "\"embedings\""),
            "engines/ollama.toml:5: unknown variant `embedings`, expected one of `chat_completions`, `completions`, \
             `embeddings`, `rerank`, `responses`, `messages`, `count_tokens`",
        );
        check(
            |text| text.replace("name = \"ollama\"", "name = \"other\""),
            "engines/ollama.toml: `name` is \"other\", but the file's name says otherwise",
        );
        check(
            |text| text.replace("\"/v1/models\"", "\"v1/models\""),
            "engines/ollama.toml: the probe path \"v1/models\" must begin with '/'",
        );
        check(
            |text| format!("{text}\n[start]\nargs = []\nready_timeout_s = 1\nstop_timeout_s = 1\n"),
            "engines/ollama.toml: `start` and `source` go together: either both are there or none",
        );
    }

    #[test]
    fn a_placeholder_that_nobody_knows_is_refused() {
        let text = BUILT_IN[0].1.replace("{port}", "{prot}");
        let error = Recipe::parse("engines/llamacpp.toml", &text)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("engines/llamacpp.toml: there is no placeholder {prot}; there are {port}"),
            "{error}"
        );
        assert_eq!(
            placeholders(r#"a{port}b{"json":1}{}{slots}"#).collect::<Vec<_>>(),
            ["port", "slots"]
        );
    }

    #[test]
    fn a_directory_replaces_and_adds_recipes() {
        let directory = tempfile::tempdir().unwrap();
        let own = BUILT_IN[2].1.replace("ollama", "own");
        std::fs::write(directory.path().join("own.toml"), own).unwrap();
        let changed = BUILT_IN[2].1.replace("/api/version", "/");
        std::fs::write(directory.path().join("ollama.toml"), changed).unwrap();
        assert_eq!(Recipe::load("own", Some(directory.path())).unwrap().name, "own");
        assert_eq!(
            Recipe::load("ollama", Some(directory.path()))
                .unwrap()
                .probe
                .health,
            "/"
        );
        assert_eq!(Recipe::all(Some(directory.path())).unwrap().len(), 5);
        let error = Recipe::load("olama", Some(directory.path()))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "there is no engine recipe named \"olama\"; there are llamacpp, ollama, openai, own, vllm"
        );
    }
}
