//! One sandbox that is up, and what is its owner's in it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agents::{Level, Profile, Values, Variable};
use egress::{Denied, Egress, Traffic};
use sandbox::{AGENT_DIRECTORY, ArchiveLimits, ExecRequest, HOME, Sandbox, entrance_address};
use tokio::sync::{OnceCell, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::cli::Cli;
use super::home::{HomeTrouble, OpenedHome};
use super::parts::{NodeParts, PoolParts};
use super::workspaces::OpenWorkspaces;

/// Idle CLIs of one owner.
const IDLE_MAX: usize = 2;
/// Conversations of one owner that are remembered by name.
const THREADS_MAX: usize = 1024;
/// Denied attempts that wait for a run to tell them.
const DENIED_MAX: usize = 64;
/// A home is taken back so long after the last run has ended, and a login at once.
const SETTLE: Duration = Duration::from_secs(2);
/// The next try after a home could not be taken back.
const TAKE_BACK_RETRY: Duration = Duration::from_secs(5);

/// A sandbox that is up.
pub(super) struct Live {
    pub(super) number: warm_pool::SandboxId,
    pub(super) pool: Arc<PoolParts>,
    pub(super) node: Arc<NodeParts>,
    pub(super) sandbox: Sandbox,
    /// Cancelled when it is no more.
    pub(super) lost: CancellationToken,
    owned: OnceCell<Owned>,
}

/// What is its owner's.
pub(super) struct Owned {
    owner: String,
    home: Arc<OpenedHome>,
    pub(super) egress: Egress,
    denied: broadcast::Sender<Denied>,
    idle: Mutex<Vec<Cli>>,
    threads: Mutex<VecDeque<(String, String)>>,
    /// The workspaces that stand in the sandbox.
    pub(super) workspaces: OpenWorkspaces,
    counted: Mutex<Traffic>,
    settle: Arc<tokio::sync::Notify>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Why a sandbox could not become its owner's.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnError {
    /// A defect: warm-pool never hands it to somebody else.
    #[error("the sandbox is somebody else's")]
    NotYours,
    #[error(transparent)]
    Home(#[from] HomeTrouble),
}

impl Live {
    pub(super) fn new(
        number: warm_pool::SandboxId,
        pool: Arc<PoolParts>,
        node: Arc<NodeParts>,
        sandbox: Sandbox,
    ) -> Self {
        Self {
            number,
            pool,
            node,
            sandbox,
            lost: CancellationToken::new(),
            owned: OnceCell::new(),
        }
    }

    /// Makes it the owner's, once: opens the home and the way out. Everybody else is refused.
    pub(super) async fn own(&self, owner: &str) -> Result<&Owned, OwnError> {
        let owned = self.owned.get_or_try_init(|| Owned::new(self, owner)).await?;
        if owned.owner == owner {
            Ok(owned)
        } else {
            Err(OwnError::NotYours)
        }
    }

    /// What is its owner's, when it has one.
    pub(super) fn owned(&self) -> Option<&Owned> {
        self.owned.get()
    }

    /// Ends idle CLIs, so that their files are whole, and takes the home back.
    pub(super) async fn give_back(&self) -> Result<(), HomeTrouble> {
        let Some(owned) = self.owned() else { return Ok(()) };
        owned.end_idle(&self.pool).await;
        owned.count_traffic(&self.pool);
        if owned.home.take_back().await? {
            self.pool.metrics.take_backs.inc();
        }
        Ok(())
    }
}

impl Owned {
    async fn new(live: &Live, owner: &str) -> Result<Self, OwnError> {
        let pool = &live.pool;
        let home = OpenedHome::open(
            live.node.homes.clone(),
            live.sandbox.clone(),
            pool.agent.clone(),
            owner,
            &pool.profile.login.evidence,
            pool.label(),
        )
        .await?;
        let home = Arc::new(home);
        let (denied, _) = broadcast::channel(DENIED_MAX);
        let report = {
            let (denied, pool) = (denied.clone(), pool.clone());
            move |attempt: Denied| {
                pool.metrics.denied.inc();
                // Nobody listens between two runs.
                let _ = denied.send(attempt);
            }
        };
        let egress = Egress::new(live.node.egress.clone(), pool.egress.clone(), owner, report);
        let settle = Arc::new(tokio::sync::Notify::new());
        let serving = tokio::spawn(serve_connections(live.sandbox.clone(), egress.clone()));
        let following = tokio::spawn(follow_home(home.clone(), pool.clone(), settle.clone()));
        Ok(Self {
            owner: owner.to_owned(),
            home,
            egress,
            denied,
            idle: Mutex::default(),
            threads: Mutex::default(),
            workspaces: OpenWorkspaces::default(),
            counted: Mutex::default(),
            settle,
            _tasks: [AbortOnDropHandle::new(serving), AbortOnDropHandle::new(following)],
        })
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Cli>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Denied attempts from now on.
    pub(super) fn denied(&self) -> broadcast::Receiver<Denied> {
        self.denied.subscribe()
    }

    /// An idle CLI for which `fits` gives the highest number; None of those that get none.
    pub(super) fn take_idle(&self, fits: impl Fn(&Cli) -> Option<u32>) -> Option<Cli> {
        let mut idle = self.idle();
        loop {
            let rated = idle
                .iter()
                .enumerate()
                .filter_map(|(at, cli)| Some((fits(cli)?, at)));
            let (_, best) = rated.max_by_key(|(rate, _)| *rate)?;
            let mut cli = idle.swap_remove(best);
            if cli.can_go_on() {
                return Some(cli);
            }
        }
    }

    /// Keeps a CLI for the owner's next run. Gives back what is one too many.
    pub(super) fn keep_idle(&self, cli: Cli) -> Option<Cli> {
        let mut idle = self.idle();
        idle.push(cli);
        (idle.len() > IDLE_MAX).then(|| idle.remove(0))
    }

    /// Ends the idle CLIs, and waits until their files are whole.
    pub(super) async fn end_idle(&self, pool: &PoolParts) {
        let idle = std::mem::take(&mut *self.idle());
        end_all(pool, idle).await;
    }

    /// Ends the idle CLIs that were started in a directory.
    pub(super) async fn end_idle_in(&self, pool: &PoolParts, directory: &str) {
        let there = {
            let mut idle = self.idle();
            let all = std::mem::take(&mut *idle);
            let (there, others) = all.into_iter().partition(|cli| cli.wish.directory == directory);
            *idle = others;
            there
        };
        end_all(pool, there).await;
    }

    /// The CLI's own name of the conversation that the owner calls so.
    pub(super) fn thread(&self, name: &str) -> Option<String> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let known = threads.iter().rev().find(|(known, _)| known == name);
        known.map(|(_, thread)| thread.clone())
    }

    /// Remembers how a conversation is called.
    pub(super) fn name_thread(&self, name: &str, thread: &str) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(known, _)| known != name);
        if threads.len() >= THREADS_MAX {
            threads.pop_front();
        }
        threads.push_back((name.to_owned(), thread.to_owned()));
    }

    /// A run has ended: what it has written of the home is taken back soon.
    pub(super) fn run_ended(&self, pool: &PoolParts) {
        self.count_traffic(pool);
        self.settle.notify_one();
    }

    /// Takes the home back now.
    pub(super) async fn take_back(&self) -> Result<bool, HomeTrouble> {
        self.home.take_back().await
    }

    fn count_traffic(&self, pool: &PoolParts) {
        let now = self.egress.traffic();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        pool.metrics.sent.inc_by(now.sent_bytes - counted.sent_bytes);
        pool.metrics
            .received
            .inc_by(now.received_bytes - counted.received_bytes);
        *counted = now;
    }
}

async fn end_all(pool: &PoolParts, clis: Vec<Cli>) {
    let grace = Duration::from_millis(pool.start().end.grace_ms);
    let ends: Vec<_> = clis.into_iter().map(|cli| tokio::spawn(cli.end(grace))).collect();
    for end in ends {
        // An error here is a panic, which the runtime has reported.
        let _ = end.await;
    }
}

/// Serves what the sandbox opens to the proxy. How many at once is the egress' limit.
async fn serve_connections(sandbox: Sandbox, egress: Egress) {
    let mut serving = tokio::task::JoinSet::new();
    while let Some(connection) = sandbox.next_connection().await {
        let egress = egress.clone();
        let entrance = connection.entrance();
        serving.spawn(async move {
            if let Err(error) = egress.serve(connection, entrance).await {
                tracing::debug!(
                    error = daemon::exit::chain(&error),
                    "a sandbox's connection ended early"
                );
            }
        });
        while serving.try_join_next().is_some() {}
    }
}

/// Takes the home back: the login as soon as it changes, the rest when runs have ended.
async fn follow_home(home: Arc<OpenedHome>, pool: Arc<PoolParts>, settle: Arc<tokio::sync::Notify>) {
    let Ok(watch) = home.watch().await else { return };
    let mut due: Option<tokio::time::Instant> = None;
    let mut login_due: Option<tokio::time::Instant> = None;
    loop {
        let at = |due: Option<tokio::time::Instant>| async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let (taken, is_login) = tokio::select! {
            changed = watch.changed() => match changed {
                Some(()) => (home.take_back_login().await, true),
                None => return,
            },
            () = at(login_due) => (home.take_back_login().await, true),
            () = settle.notified() => {
                due = Some(tokio::time::Instant::now() + SETTLE);
                continue;
            }
            () = at(due) => (home.take_back().await, false),
        };
        let retry = match taken {
            Ok(true) => {
                pool.metrics.take_backs.inc();
                None
            }
            Ok(false) => None,
            Err(error) => {
                tracing::error!(pool_id = %pool.id, error = daemon::exit::chain(&error), "a home could not be taken back; tried again");
                Some(tokio::time::Instant::now() + TAKE_BACK_RETRY)
            }
        };
        if is_login {
            login_due = retry;
        } else {
            due = retry;
        }
    }
}

/// A CLI's command line in its sandbox, with its entrance of the way out in its environment.
pub(super) fn exec_request(line: &agents::CommandLine, directory: &str, entrance: u16) -> ExecRequest {
    let mut request = ExecRequest::new(line.argv.iter().cloned());
    request.directory = directory.to_owned();
    request.environment = line
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    with_way_out(request, entrance)
}

/// The same, with an entrance of the way out in its environment.
pub(super) fn with_way_out(mut request: ExecRequest, entrance: u16) -> ExecRequest {
    let proxy = entrance_url(entrance);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        for name in [name.to_owned(), name.to_ascii_lowercase()] {
            request.environment.push((name, proxy.clone()));
        }
    }
    // What listens on the sandbox's own loopback is asked without a proxy, the way out among it.
    for name in ["NO_PROXY", "no_proxy"] {
        let own = entrance_address(entrance);
        let direct = format!("127.0.0.1,localhost,::1,{}", own.ip());
        request.environment.push((name.to_owned(), direct));
    }
    request
}

/// An entrance of the way out, as programs in the sandbox are told it.
pub(super) fn entrance_url(entrance: u16) -> String {
    format!("http://{}", entrance_address(entrance))
}

/// What templates get in every sandbox.
pub(super) fn values(directory: &str) -> Values {
    Values::new()
        .with(Variable::Install, AGENT_DIRECTORY)
        .with(Variable::Home, HOME)
        .with(Variable::Workspace, directory)
}

/// Writes files into the home directory.
pub(super) async fn write_files(
    sandbox: &Sandbox,
    files: &[(String, String)],
) -> Result<(), sandbox::SandboxError> {
    if files.is_empty() {
        return Ok(());
    }
    // As large as it can get, so that growing leaves no copy of a key behind.
    let sizes = files
        .iter()
        .map(|(path, content)| path.len() + content.len() + 4096);
    let mut archive = zeroize::Zeroizing::new(Vec::with_capacity(sizes.sum::<usize>() + 4096));
    {
        let mut builder = tar::Builder::new(&mut *archive);
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            header.set_size(content.len() as u64);
            let added = builder.append_data(&mut header, path, content.as_bytes());
            added.map_err(sandbox::SandboxError::Source)?;
        }
        builder.finish().map_err(sandbox::SandboxError::Source)?;
    }
    let limits = ArchiveLimits {
        bytes_max: archive.len() as u64,
        entries_max: 1024,
    };
    sandbox.unpack(HOME, limits, archive.as_slice()).await?;
    Ok(())
}

/// How a profile's CLI is kept: hot when it can be.
pub(super) fn level_of(profile: &Profile) -> Level {
    if profile.hot.language.can_stay_up() {
        Level::Hot
    } else {
        Level::OneShot
    }
}
