//! `cargo xtask demo-model`: trains the demo model, checks it through a real engine, and puts it into the repository.
//!
//! The work is done by the Python programs in `models/demo`; this finds or makes what they need. A model that fails its
//! check never replaces the one that is there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Train and check the demo model (models/demo/remuda-demo.gguf)
#[derive(Debug, clap::Args)]
pub(crate) struct DemoModel {
    /// Check the file in the repository, and train nothing
    #[arg(long)]
    check_only: bool,

    /// The llama-server to check with [default: the one in Remuda's cache, else the one on PATH]
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,

    /// The Python to make the virtual environment with; the check alone runs in it directly
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
}

impl DemoModel {
    pub(crate) fn run(&self) -> Result<()> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
            .with_file_name("models")
            .join("demo");
        let model = sources.join("remuda-demo.gguf");
        if self.check_only {
            return self.check(&self.python, &sources, &model);
        }

        let cache = cache_directory()?;
        let python = environment(&self.python, &cache.join("demo-model-venv"), &sources)?;
        let trained = cache.join("demo-model").join("remuda-demo.gguf");
        fs::create_dir_all(trained.parent().expect("the path was joined from parts"))?;
        run(Command::new(&python)
            .arg(sources.join("train.py"))
            .arg("--out")
            .arg(&trained))?;
        self.check(&python, &sources, &trained)?;
        fs::copy(&trained, &model).with_context(|| format!("copying the model to {}", model.display()))?;
        println!("the new model is in {}", model.display());
        Ok(())
    }

    fn check(&self, python: &Path, sources: &Path, model: &Path) -> Result<()> {
        let mut command = Command::new(python);
        command.arg(sources.join("check.py")).arg("--model").arg(model);
        if let Some(engine) = &self.engine {
            command.arg("--engine").arg(engine);
        }
        run(&mut command)
    }
}

/// The Python of a virtual environment that has exactly the pinned packages. Made once; later runs only look.
fn environment(python: &Path, directory: &Path, sources: &Path) -> Result<PathBuf> {
    let inside = directory.join("bin/python");
    if !inside.exists() {
        println!("making a Python environment in {}", directory.display());
        run(Command::new(python).args(["-m", "venv"]).arg(directory))?;
    }
    println!("installing PyTorch and gguf there (a few GB the first time, nothing later)");
    run(Command::new(&inside)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(sources.join("requirements.txt")))?;
    Ok(inside)
}

fn cache_directory() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("remuda"))
}

fn run(command: &mut Command) -> Result<()> {
    // Progress lines must come as they are written, and the source tree stays free of byte code.
    command
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let status = command
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(
        status.success(),
        "{} ended with {status}",
        command.get_program().display()
    );
    Ok(())
}
