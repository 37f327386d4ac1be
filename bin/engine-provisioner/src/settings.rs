//! The settings of whoever keeps engines: the `engine-provisioner` binary, the node daemon, `remuda up`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::spec::check_device_mask;
use daemon::secret::Secret;
use model_store::{Store, StoreOptions};

/// Where things are, and what engines may use.
// No group: whoever flattens this may have settings of the same name.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// Directory in which engines announce themselves
    #[arg(
        long,
        env = "ENGINE_PROVISIONER_HANDOFF_DIR",
        value_name = "DIR",
        default_value = ".runtime/engines"
    )]
    pub handoff_dir: PathBuf,

    /// Directory for models and built engines [default: the user's cache directory]
    #[arg(long, env = "ENGINE_PROVISIONER_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// GPUs that engines may use: "all", "none", or numbers between commas
    #[arg(
        long,
        env = "ENGINE_PROVISIONER_GPU_MASK",
        value_name = "MASK",
        default_value = "all",
        value_parser = gpu_mask
    )]
    pub gpu_mask: String,

    /// Directory with further engine recipes, which replace built-in ones of the same name
    #[arg(long, env = "ENGINE_PROVISIONER_RECIPES_DIR", value_name = "DIR")]
    pub recipes_dir: Option<PathBuf>,

    /// The engine's program, instead of one from PATH, the cache, an archive or a build
    #[arg(long, env = "ENGINE_PROVISIONER_PROGRAM", value_name = "PATH")]
    pub engine_program: Option<PathBuf>,

    /// Address of the model hub, for models named hf:ORG/REPO/FILE
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = model_store::HUB_ENDPOINT,
          value_parser = daemon::config::http_address)]
    pub hub_endpoint: String,

    /// Token for the model hub
    #[arg(long, env = "HF_TOKEN", value_name = "TOKEN")]
    pub hub_token: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handoff_dir: PathBuf::from(".runtime/engines"),
            cache_dir: None,
            gpu_mask: "all".to_owned(),
            recipes_dir: None,
            engine_program: None,
            hub_endpoint: model_store::HUB_ENDPOINT.to_owned(),
            hub_token: None,
        }
    }
}

impl Settings {
    /// The directory for models and engines: the setting, else `remuda` in the user's cache directory. Absolute, because
    /// build tools work in other directories.
    pub fn cache_dir(&self) -> PathBuf {
        let directory = self
            .cache_dir
            .clone()
            .unwrap_or_else(model_store::default_cache_dir);
        std::path::absolute(&directory).unwrap_or(directory)
    }

    /// The model store of these settings.
    pub fn store(&self) -> Store {
        let mut options = StoreOptions::new(self.cache_dir());
        options.hub_endpoint.clone_from(&self.hub_endpoint);
        options.hub_token = self.hub_token.as_ref().map(|token| token.expose().to_owned());
        Store::new(options)
    }

    /// Gives a child the same settings: what is no secret as flags, the token in its environment.
    pub(crate) fn pass_on(&self, command: &mut Command) {
        // The child may run in another directory.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        command.arg("--handoff-dir").arg(absolute(&self.handoff_dir));
        command.arg("--cache-dir").arg(absolute(&self.cache_dir()));
        command.arg("--gpu-mask").arg(&self.gpu_mask);
        command.arg("--hub-endpoint").arg(&self.hub_endpoint);
        if let Some(directory) = &self.recipes_dir {
            command.arg("--recipes-dir").arg(absolute(directory));
        }
        if let Some(program) = &self.engine_program {
            command.arg("--engine-program").arg(absolute(program));
        }
        if let Some(token) = &self.hub_token {
            command.env("HF_TOKEN", token.expose());
        }
    }
}

fn gpu_mask(text: &str) -> Result<String, String> {
    match check_device_mask(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(_) => {
            Err("right would be \"all\", \"none\", or numbers between commas such as \"0,1\"".to_owned())
        }
    }
}

/// Beside the handoffs, in a directory of its own, because every `.json` there is taken for a handoff.
pub(crate) fn state_dir(handoff_dir: &Path) -> PathBuf {
    handoff_dir.join("provisioner")
}
