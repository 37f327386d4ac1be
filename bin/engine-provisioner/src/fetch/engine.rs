//! The engine's program, from the first source that has it.
//!
//! ```text
//! settings ─▶ PATH ─▶ cache ─▶ release archive ─▶ source package, built
//! ```
//! A program counts as there only if it runs and tells its version: a cached engine that was built on a machine with
//! other vector instructions does not. Archives and builds go into the cache by one rename, under a lock, so that two
//! processes never build the same engine and nobody sees half of one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::{Digest, DownloadError, Progress};
use process::LockFile;

use super::archive::get_archive;
use super::build::{Job, build};
use super::package::get_package;
use super::run::{ToolError, is_program, on_path};
use super::unpack::UnpackError;
use super::version::version_of;
use crate::recipe::{Recipe, Source, Variant, platform};
use crate::settings::Settings;

/// How often a build that another process does is looked at.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

/// An engine's program that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineProgram {
    /// Where it is.
    pub program: PathBuf,
    /// What it says about its version.
    pub version: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where an engine's program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The settings name it.
    Settings,
    /// It is on PATH.
    Path,
    /// It was in the cache.
    Cache,
    /// A release archive.
    Archive,
    /// It was built just now.
    Built,
}

/// Why an engine's program cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The recipe says nothing about it.
    #[error("its recipe is for engines that run already")]
    NoSource,
    /// A program does not run.
    #[error("{} does not run here: {message}", program.display())]
    DoesNotRun {
        /// Which program.
        program: PathBuf,
        /// Why.
        message: String,
    },
    /// No source has it.
    #[error("it is not on PATH and not in the cache, and its recipe names no other source")]
    Nowhere,
    /// An archive's address is none.
    #[error("the archive's address {0:?} is no address")]
    ArchiveUrl(String),
    /// A pinned digest is none.
    #[error("the recipe's sha256 {0:?} is no SHA-256")]
    Pin(String),
    /// An archive could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// An archive could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// There is no Python.
    #[error(
        "building it needs Python 3 with pip, and there is no python3 on PATH: install it, or put the engine on PATH"
    )]
    NoPython,
    /// There is no compiler.
    #[error(
        "building it needs a C++ compiler, and there is none on PATH: install one (g++ or clang), or put the engine on PATH"
    )]
    NoCompiler,
    /// The build tools are not where they should be.
    #[error("cmake and ninja were installed, but are not in {}", .0.display())]
    NoTools(PathBuf),
    /// pip left no source archive.
    #[error("pip downloaded no source archive of {0}")]
    NoPackage(String),
    /// The source package is another one.
    #[error(
        "the source package {package} is not what it should be: its SHA-256 is {found:?}, not {expected}"
    )]
    PackageDigest {
        /// Which package.
        package: String,
        /// The right digest.
        expected: Digest,
        /// The digest found.
        found: Option<Digest>,
    },
    /// The recipe cannot build this variant.
    #[error("its recipe has no build for {variant}; it has {known}")]
    Variant {
        /// The variant asked for.
        variant: &'static str,
        /// The variants that there are.
        known: String,
    },
    /// The build left no program.
    #[error("it was built, but {} is not there", .0.display())]
    NotBuilt(PathBuf),
    /// Something cannot be put into the cache.
    #[error("cannot write {}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Gets the engine's program. `program`, when given, is the only one that will do. Safe to cancel: tools that run are
/// killed, and a build goes on where it was next time.
pub async fn get_engine(
    recipe: &Recipe,
    settings: &Settings,
    program: Option<&Path>,
    variant: Option<Variant>,
    progress: &Progress,
) -> Result<EngineProgram, EngineError> {
    let source = recipe.source.as_ref().ok_or(EngineError::NoSource)?;
    if let Some(program) = program {
        let version = version_of(program, source).await?;
        return Ok(EngineProgram {
            program: program.to_owned(),
            version,
            origin: Origin::Settings,
        });
    }
    // One on PATH says nothing about what it was built for, so it will not do when a variant is asked for.
    let on_path = if variant.is_none() {
        on_path(&source.program)
    } else {
        None
    };
    let cache_dir = settings.cache_dir();
    let place = Place {
        cache_dir: &cache_dir,
        recipe,
        source,
        variant: variant.unwrap_or_else(|| suitable(source)),
    };
    let candidates = on_path.map(|program| (program, Origin::Path));
    for (program, origin) in candidates.into_iter().chain([(place.program(), Origin::Cache)]) {
        if let Some(engine) = usable(program, source, origin).await {
            return Ok(engine);
        }
    }
    let _lock = place.lock(progress).await?;
    // Another process may have got it while this one waited.
    if let Some(engine) = usable(place.program(), source, Origin::Cache).await {
        return Ok(engine);
    }
    let origin = place.fill(progress).await?;
    let version = version_of(&place.program(), source).await?;
    Ok(EngineProgram {
        program: place.program(),
        version,
        origin,
    })
}

/// The program, if it is there and runs.
async fn usable(program: PathBuf, source: &Source, origin: Origin) -> Option<EngineProgram> {
    if !is_program(&program) {
        return None;
    }
    match version_of(&program, source).await {
        Ok(version) => Some(EngineProgram {
            program,
            version,
            origin,
        }),
        Err(error) => {
            tracing::warn!(%error, "looking for another engine");
            None
        }
    }
}

/// The variant that suits this machine, if the recipe has it: the one whose compiler is here.
fn suitable(source: &Source) -> Variant {
    let has = |variant: Variant| {
        let built = source
            .build
            .as_ref()
            .is_some_and(|build| build.variants.contains_key(&variant));
        built
            || source
                .archives
                .iter()
                .any(|archive| archive.variant == variant && archive.platform == platform())
    };
    let wanted = if cfg!(target_os = "macos") {
        Variant::Metal
    } else if Path::new("/dev/nvidiactl").exists() && on_path("nvcc").is_some() {
        Variant::Cuda
    } else if Path::new("/dev/kfd").exists() && on_path("hipcc").is_some() {
        Variant::Rocm
    } else {
        Variant::Cpu
    };
    if has(wanted) { wanted } else { Variant::Cpu }
}

/// Where the cache keeps one engine: `engines/<recipe>/<version>-<variant>/<program>`.
struct Place<'a> {
    cache_dir: &'a Path,
    recipe: &'a Recipe,
    source: &'a Source,
    variant: Variant,
}

impl Place<'_> {
    fn label(&self) -> String {
        format!("{}-{}", self.source.version, self.variant.name())
    }

    fn engines(&self) -> PathBuf {
        self.cache_dir.join("engines").join(&self.recipe.name)
    }

    fn directory(&self) -> PathBuf {
        self.engines().join(self.label())
    }

    fn program(&self) -> PathBuf {
        self.directory().join(&self.source.program)
    }

    async fn lock(&self, progress: &Progress) -> Result<LockFile, EngineError> {
        let path = self.engines().join(format!("{}.lock", self.label()));
        loop {
            match LockFile::try_acquire(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(source) => return Err(EngineError::Keep { path, source }),
            }
            let what = format!("waiting for another process that gets {}", self.recipe.name);
            progress.pieces(&what, 0, None);
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }

    /// Puts the engine into the cache from the first source that has it.
    async fn fill(&self, progress: &Progress) -> Result<Origin, EngineError> {
        let archive = self
            .source
            .archives
            .iter()
            .find(|a| a.platform == platform() && a.variant == self.variant);
        let buildable = self
            .source
            .python_package
            .as_ref()
            .zip(self.source.build.as_ref());
        if let Some(archive) = archive {
            match self.fill_from_archive(archive, progress).await {
                Ok(()) => return Ok(Origin::Archive),
                // A server that cannot be reached is no reason to do without. One that sends something else is.
                Err(EngineError::Download(error @ DownloadError::Network { .. })) if buildable.is_some() => {
                    tracing::warn!(error = %daemon::exit::chain(&error), "no archive: building the engine instead");
                }
                Err(error) => return Err(error),
            }
        }
        let (package, build_recipe) = buildable.ok_or(EngineError::Nowhere)?;
        let log = self
            .cache_dir
            .join("logs")
            .join(format!("{}-{}.log", self.recipe.name, self.label()));
        let staging = self.staging()?;
        let archive = get_package(package, self.cache_dir, staging.path(), &log, progress).await?;
        // Only now, because a build may be cut short, and what pip left would stay until the next one.
        drop(staging);
        let directory = self
            .cache_dir
            .join("build")
            .join(format!("{}-{}", self.recipe.name, self.label()));
        let kept = |path: &Path| {
            let path = path.to_owned();
            move |source| EngineError::Keep { path, source }
        };
        std::fs::create_dir_all(&directory).map_err(kept(&directory))?;
        let job = Job {
            build: build_recipe,
            package,
            variant: self.variant,
            archive: &archive,
            cache_dir: self.cache_dir,
            directory: &directory,
            log: &log,
            name: &self.recipe.name,
        };
        let program = build(&job, progress).await?;
        let staging = self.staging()?;
        std::fs::copy(&program, staging.path().join(&self.source.program)).map_err(kept(&program))?;
        self.publish(staging).await?;
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::warn!(path = %directory.display(), %error, "the build directory stays");
        }
        Ok(Origin::Built)
    }

    async fn fill_from_archive(
        &self,
        archive: &crate::recipe::Archive,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let staging = self.staging()?;
        let program = get_archive(archive, self.cache_dir, staging.path(), progress).await?;
        let expected = staging.path().join(&self.source.program);
        if program != expected {
            // A link keeps the program beside the libraries that it looks for there.
            let target = program.strip_prefix(staging.path()).unwrap_or(&program);
            std::os::unix::fs::symlink(target, &expected).map_err(|source| EngineError::Keep {
                path: expected,
                source,
            })?;
        }
        self.publish(staging).await
    }

    /// A directory for what is not complete yet. Only under the lock: what an earlier one left there is removed.
    fn staging(&self) -> Result<tempfile::TempDir, EngineError> {
        let (engines, prefix) = (self.engines(), format!(".staging-{}-", self.label()));
        let make = || {
            std::fs::create_dir_all(&engines)?;
            for entry in std::fs::read_dir(&engines)?.flatten() {
                if entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(prefix.as_bytes())
                {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            tempfile::Builder::new().prefix(&prefix).tempdir_in(&engines)
        };
        make().map_err(|source| EngineError::Keep {
            path: engines.clone(),
            source,
        })
    }

    /// Gives the engine its place, if it runs.
    async fn publish(&self, staging: tempfile::TempDir) -> Result<(), EngineError> {
        version_of(&staging.path().join(&self.source.program), self.source).await?;
        let directory = self.directory();
        let put = || {
            // What is there was found not to run.
            if directory.exists() {
                std::fs::remove_dir_all(&directory)?;
            }
            let path = staging.keep();
            std::fs::rename(&path, &directory)?;
            // The staging directory was for nobody else's eyes; an engine is no secret.
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))
        };
        put().map_err(|source| EngineError::Keep {
            path: directory.clone(),
            source,
        })
    }
}
