//! A configuration that follows its files.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::TlsError;
use crate::shutdown::Shutdown;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A configuration made from files, and made again when one of them changes.
pub struct Watched<C> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<C, TlsError> + Send + Sync>,
    state: Mutex<State<C>>,
}

struct State<C> {
    current: Arc<C>,
    stamps: Vec<Stamp>,
}

/// Enough to see that a file is another one: renewal tools rename a new file into place, or a link to it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(SystemTime, u64)>);

impl<C: Send + Sync + 'static> Watched<C> {
    /// Makes the configuration for the first time.
    ///
    /// # Errors
    /// What `make` says.
    pub fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Stamps first: a change while reading is then seen the next time.
        let stamps = stamps(&files);
        let state = Mutex::new(State {
            current: Arc::new(make()?),
            stamps,
        });
        Ok(Self {
            files,
            make: Box::new(make),
            state,
        })
    }

    /// The configuration to use for the next connection.
    pub fn current(&self) -> Arc<C> {
        Arc::clone(&self.lock().current)
    }

    /// Looks at the files and, when one has changed, makes the configuration again; true when there is a new one. On an
    /// error the old one stays, and the files are tried again the next time.
    ///
    /// # Errors
    /// What `make` says.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let seen = stamps(&self.files);
        if self.lock().stamps == seen {
            return Ok(false);
        }
        let made = Arc::new((self.make)()?);
        *self.lock() = State {
            current: made,
            stamps: seen,
        };
        Ok(true)
    }

    /// Looks at the files every minute, and when SIGHUP says so, until the shutdown begins. Spawn it as background.
    pub async fn follow(self: Arc<Self>, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = shutdown.stopped() => return,
                _ = ticks.tick() => {}
                () = shutdown.files_changed() => {}
            }
            match self.refresh() {
                Ok(true) => tracing::info!("the TLS files have changed; new connections use the new ones"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(
                        error = crate::exit::chain(&error),
                        "the TLS files have changed and cannot be used; the old ones stay in use"
                    );
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<C>> {
        // The state is replaced as a whole, so a panic elsewhere cannot leave half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> std::fmt::Debug for Watched<C> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watched")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files
        .iter()
        .map(|path| {
            Stamp(
                fs::metadata(path)
                    .ok()
                    .and_then(|about| Some((about.modified().ok()?, about.len()))),
            )
        })
        .collect()
}
