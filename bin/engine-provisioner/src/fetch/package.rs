//! Getting a source package from the Python package index, by pip.
//!
//! pip checks the pinned SHA-256 before it looks into the package. `pip download` would then install the package's build
//! tools and run its build code, only to learn the package's name, which takes most of a minute. Instead it finds a
//! stand-in for that build code that says what the recipe says: no code of the package runs, and it takes seconds.

use std::path::{Path, PathBuf};
use std::process::Command;

use model_store::{Digest, Progress};

use super::engine::EngineError;
use super::run::{on_path, run};
use crate::recipe::PythonPackage;

/// The package's source archive, from the cache or the index. `work` is an empty directory that is removed afterwards.
pub(super) async fn get_package(
    package: &PythonPackage,
    cache_dir: &Path,
    work: &Path,
    log: &Path,
    progress: &Progress,
) -> Result<PathBuf, EngineError> {
    let directory = cache_dir.join("sources");
    let wanted: Digest = package
        .sha256
        .parse()
        .map_err(|_| EngineError::Pin(package.sha256.clone()))?;
    if let Some(path) = find(&directory, package)
        && digest_of(&path).await == Some(wanted)
    {
        return Ok(path);
    }
    progress.pieces(
        &format!("downloading {} {}", package.name, package.version),
        0,
        None,
    );
    let python = on_path("python3").ok_or(EngineError::NoPython)?;
    let kept = |source| EngineError::Keep {
        path: work.to_owned(),
        source,
    };
    let requirements = write_requirements(work, package).map_err(kept)?;
    let download = work.join("download");
    let pip = |stand_in: bool| {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]);
        // What a pip that is killed leaves lies where the next one clears up.
        command.env("TMPDIR", work);
        command.args(["--disable-pip-version-check", "--no-cache-dir", "--no-input"]);
        command
            .arg("--dest")
            .arg(&download)
            .arg("--requirement")
            .arg(&requirements);
        if stand_in {
            command
                .arg("--no-build-isolation")
                .env("PYTHONPATH", work.join("stand-in"));
        }
        command
    };
    if let Err(error) = run(pip(true), log, None).await {
        // Another pip may go about it in another way; then it takes the long way, with the same check.
        tracing::debug!(%error, "pip did not take the short way");
        run(pip(false), log, None).await?;
    }
    let found = find(&download, package).ok_or_else(|| EngineError::NoPackage(package.name.clone()))?;
    let digest = digest_of(&found).await;
    if digest != Some(wanted) {
        return Err(EngineError::PackageDigest {
            package: package.name.clone(),
            expected: wanted,
            found: digest,
        });
    }
    keep(&found, &directory).map_err(|source| EngineError::Keep {
        path: directory,
        source,
    })
}

/// The requirement with its hash, and the stand-in for the package's build code.
fn write_requirements(work: &Path, package: &PythonPackage) -> std::io::Result<PathBuf> {
    let PythonPackage {
        name,
        version,
        sha256,
        ..
    } = package;
    let path = work.join("requirements.txt");
    std::fs::write(&path, format!("{name}=={version} --hash=sha256:{sha256}\n"))?;
    let mut module = work.join("stand-in");
    let parts: Vec<&str> = package.build_backend.split('.').collect();
    let (last, packages) = parts.split_last().unwrap_or((&"build", &[]));
    std::fs::create_dir_all(&module)?;
    for part in packages {
        module.push(part);
        std::fs::create_dir_all(&module)?;
        std::fs::write(module.join("__init__.py"), "")?;
    }
    let dist = name.replace('-', "_");
    let stand_in = format!(
        r#"import os


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "{dist}-{version}.dist-info"
    directory = os.path.join(metadata_directory, name)
    os.mkdir(directory)
    with open(os.path.join(directory, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    return name
"#
    );
    std::fs::write(module.join(format!("{last}.py")), stand_in)?;
    Ok(path)
}

/// The one source archive of the package in `directory`; its name is spelt with `-` or with `_`.
fn find(directory: &Path, package: &PythonPackage) -> Option<PathBuf> {
    let stem = |name: &str| format!("{name}-{}.tar.gz", package.version);
    [stem(&package.name), stem(&package.name.replace('-', "_"))]
        .into_iter()
        .map(|name| directory.join(name))
        .find(|path| path.is_file())
}

async fn digest_of(path: &Path) -> Option<Digest> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Digest::of_file(&path).ok())
        .await
        .ok()
        .flatten()
}

fn keep(found: &Path, directory: &Path) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let name = found.file_name().unwrap_or_default();
    let kept = directory.join(name);
    let temporary = tempfile::NamedTempFile::new_in(directory)?;
    std::fs::copy(found, temporary.path())?;
    temporary.persist(&kept).map_err(|error| error.error)?;
    Ok(kept)
}
