//! Getting what an engine needs before it can be started: its program and its model.

mod archive;
mod build;
mod engine;
mod package;
mod run;
mod unpack;
mod version;

use std::path::{Path, PathBuf};

use model_store::{Progress, Source, SourceError, StoreError};

pub use engine::{EngineError, EngineProgram, Origin, get_engine};
pub use run::ToolError;
pub use unpack::UnpackError;

use crate::recipe::Recipe;
use crate::settings::Settings;
use crate::spec::EngineSpec;

/// Everything that is there now, so that the engine can be started.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    pub(crate) model_path: PathBuf,
    pub(crate) model_name: String,
}

/// Why the engine cannot be started yet.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The engine's program cannot be had.
    #[error("cannot get the engine {recipe}")]
    Engine {
        /// The recipe's name.
        recipe: String,
        /// Why.
        source: EngineError,
    },
    /// The model cannot be had.
    #[error("cannot get the model {model}")]
    Model {
        /// Which model.
        model: String,
        /// Why.
        source: StoreError,
    },
    /// There is no such model.
    #[error(
        "there is no model {0:?}: it is neither a file, nor a model in the store, nor an hf: or https: source"
    )]
    NoModel(String),
}

pub(crate) async fn fetch(
    spec: &EngineSpec,
    settings: &Settings,
    recipe: &Recipe,
    progress: &Progress,
) -> Result<Fetched, FetchError> {
    let program = spec.program.as_deref().or(settings.engine_program.as_deref());
    let engine = get_engine(recipe, settings, program, spec.variant, progress)
        .await
        .map_err(|source| FetchError::Engine {
            recipe: recipe.name.clone(),
            source,
        })?;
    let (model_path, name) = get_model(spec, settings, progress).await?;
    let model_name = spec.model_name.clone().unwrap_or(name);
    Ok(Fetched {
        program: engine.program,
        version: engine.version,
        model_path,
        model_name,
    })
}

/// The model's file and the name that clients use unless the pool gives another one.
async fn get_model(
    spec: &EngineSpec,
    settings: &Settings,
    progress: &Progress,
) -> Result<(PathBuf, String), FetchError> {
    let failed = |source: StoreError| FetchError::Model {
        model: spec.model.clone(),
        source,
    };
    if Source::is_remote(&spec.model) {
        let source: Source = spec
            .model
            .parse()
            .map_err(|error: SourceError| failed(error.into()))?;
        let model = settings.store().ensure(&source, progress).await.map_err(failed)?;
        return Ok((model.path, model.name));
    }
    local_model(&spec.model, settings).ok_or_else(|| FetchError::NoModel(spec.model.clone()))
}

/// The file and the name of a model that is on this machine: a path, or a name in the store.
pub fn local_model(model: &str, settings: &Settings) -> Option<(PathBuf, String)> {
    let path = Path::new(model);
    if path.is_file() {
        return Some((
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            stem(path),
        ));
    }
    // What cannot be a name was meant as a path.
    let stored = settings.store().get(model).unwrap_or(None)?;
    Some((stored.path, stored.name))
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
