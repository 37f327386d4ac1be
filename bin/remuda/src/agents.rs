//! What a run by an agent needs beside the node: the CLI installed where people can see it, and the logins of this machine.

use agents::Profile;
use agents::install::{self, InstallError, Progress};
use anyhow::{Context as _, Result};
use daemon::config::{self, Sources};
use homes::MasterKey;
use orchestratord::Settings;
use pool_managerd::{AgentsConfig, KeySource};

use crate::failure::{Exit, Failure};
use crate::local::Wanted;
use crate::progress::Shown;

/// Installs an agent's CLI unless it is there.
pub(crate) async fn install(agent: &str, wanted: &Wanted, shown: &Shown) -> Result<()> {
    let settings = config::load::<Settings>(&Sources::with_arguments(&wanted.flags))?.settings;
    let config = settings.agents.config(&[]);
    let profile = Profile::find(agent, config.profiles.as_deref())
        .map_err(|error| Failure::new(Exit::Usage, daemon::exit::chain(&error)))?;
    if wanted.model.is_some() && profile.endpoint.is_none() {
        let message = format!("{agent} cannot use a model of your own: its profile has no `endpoint`");
        return Err(Failure::new(Exit::Usage, message)
            .hint("claude, codex, gemini and opencode can")
            .into());
    }
    if install::installed(&profile, &config.installed).is_some() {
        return Ok(());
    }
    let sink = shown.sink();
    let what = format!("installing {} {}", profile.about, profile.package.version);
    let show = move |progress: Progress| {
        let (done, total) = match progress {
            Progress::Waiting => (0, None),
            Progress::Started { packages } => (0, Some(packages as u64)),
            Progress::Fetched { packages } => (packages as u64, None),
        };
        sink.pieces(&what, done, total);
    };
    let installing = tokio::task::spawn_blocking(move || {
        let mut show = show;
        install::install(&profile, &config.installed, &mut show)
    });
    let installed = tokio::select! {
        installed = installing => installed.context("installing the agent")?,
        () = crate::commands::told_to_end() => return Err(Failure::new(Exit::Interrupted, "interrupted").into()),
    };
    shown.clear();
    match installed {
        Ok(_) => Ok(()),
        Err(error @ InstallError::NoNpm) => {
            Err(Failure::new(Exit::Failed, daemon::exit::chain(&error)).into())
        }
        Err(error) => Err(Failure::new(Exit::TryLater, daemon::exit::chain(&error)).into()),
    }
}

/// Lets a run that has a directory of its own use what all runs of this user share: homes, their key, workspaces.
pub(crate) fn share_homes(config: &mut AgentsConfig) -> Result<()> {
    let shared = config.directory.clone();
    config.homes.get_or_insert_with(|| shared.join("homes"));
    let workspaces = &mut config.workspaces.directory;
    workspaces.get_or_insert_with(|| shared.join("workspaces"));
    if config.key == KeySource::Own {
        let file = shared.join("master.key");
        if !file.exists() {
            std::fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
            let written = MasterKey::generate()?.write_new(&file);
            // Another run may have made it just now, and then that is the one.
            if !file.exists() {
                written?;
            }
        }
        config.key = KeySource::File(file);
    }
    Ok(())
}
