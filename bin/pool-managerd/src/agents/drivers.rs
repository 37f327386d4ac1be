//! The drivers of a node's sandboxes: each pool names one.

use std::path::Path;
use std::sync::Arc;

use sandbox::{Bubblewrap, BubblewrapSettings, Docker, DockerSettings, Driver, DriverError};

use super::config::AgentsConfig;

/// What makes a pool's sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DriverKind {
    #[default]
    Bubblewrap,
    Docker,
}

impl DriverKind {
    const ALL: [Self; 2] = [Self::Bubblewrap, Self::Docker];

    /// Its name in the settings, and that of its directory.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bubblewrap => "bubblewrap",
            Self::Docker => "docker",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn open(self, directory: &Path, config: &AgentsConfig) -> Result<Arc<dyn Driver>, DriverError> {
        Ok(match self {
            Self::Bubblewrap => Arc::new(Bubblewrap::new(BubblewrapSettings::new(directory))?),
            Self::Docker => Arc::new(Docker::new(DockerSettings {
                socket: config.docker_socket.clone(),
                // One node at a time keeps a directory, so its path tells one node's containers from another's.
                node: directory.display().to_string(),
                image: None,
            })),
        })
    }
}

/// Those that pools name, and those that have left something in the directory of agents.
pub(super) struct Drivers(Vec<(DriverKind, Arc<dyn Driver>)>);

impl Drivers {
    /// Opens them. One that no pool names any more is left out when it cannot be opened.
    pub(super) fn open(wanted: &[DriverKind], config: &AgentsConfig) -> Result<Self, DriverError> {
        let mut open = Vec::new();
        for kind in DriverKind::ALL {
            let directory = config.directory.join(kind.name());
            let directory = std::path::absolute(&directory).unwrap_or(directory);
            let is_wanted = wanted.contains(&kind);
            if is_wanted {
                // A node of another time sees by it that there may be something of this driver.
                std::fs::create_dir_all(&directory).map_err(|source| DriverError::Io {
                    what: "make the directory of a driver",
                    source,
                })?;
            } else if !directory.is_dir() {
                continue;
            }
            match kind.open(&directory, config) {
                Ok(driver) => open.push((kind, driver)),
                Err(error) if is_wanted => return Err(error),
                Err(error) => {
                    let driver = kind.name();
                    tracing::warn!(
                        driver,
                        error = daemon::exit::chain(&error),
                        "what a driver that no pool names any more has left cannot be looked for"
                    );
                }
            }
        }
        Ok(Self(open))
    }

    pub(super) fn get(&self, kind: DriverKind) -> Option<&Arc<dyn Driver>> {
        self.0
            .iter()
            .find(|(open, _)| *open == kind)
            .map(|(_, driver)| driver)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        self.0.iter().map(|(_, driver)| driver)
    }
}
