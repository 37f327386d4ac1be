//! Logins: the CLI's own dialogue in its owner's sandbox, relayed to the person.
//!
//! ```text
//! begin ─▶ claim ─▶ own ─▶ the profile's flow: a process of the CLI ──lines──▶ Open, Code, Output
//!                                    ▲ stdin                                    Input
//!                                    └──────────── LoginInput ◀──────── the person
//!        ended ─▶ does the CLI say that it has a login? ─▶ home taken back ─▶ Ended
//! ```
//!
//! Invariants: what is entered goes to the CLI's standard input, or into the files that the profile names, and nowhere
//! else; a line that holds what was entered is not told.

mod said;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agents::dialogue::LineSplitter;
use agents::profile::LoginFlow;
use agents::{CommandLine, Variable};
use homes::OwnerHandle;
use pool_registry_types::{AgentLogin, LoginEvent, LoginFailure, LoginInput, LoginKind, LoginStatus};
use sandbox::{ByteReader, ByteWriter, Process, SandboxError, WORKSPACE};
use task_api::ErrorCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::cli::KillOnDrop;
use super::home::has_evidence;
use super::keeper::Held;
use super::live::{Live, Owned, exec_request, values, write_files};
use super::parts::{PoolParts, SlotLease};
use said::Told;

/// How long a login may take: a person is asked.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long asking the CLI for its login may take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);
/// Logins of a node at once.
const LOGINS_MAX: usize = 256;
/// Inputs that wait for a CLI.
const INPUTS_MAX: usize = 4;
const PIECE_BYTES: usize = 4096;

/// The logins that wait for input.
#[derive(Clone, Default)]
pub(super) struct Logins {
    open: Arc<Mutex<HashMap<String, Open>>>,
}

struct Open {
    owner: String,
    input: mpsc::Sender<Entered>,
}

/// What a person has entered; wiped when it is dropped.
type Entered = zeroize::Zeroizing<String>;

/// A login that waits for input. Dropping it closes it.
pub(super) struct OpenLogin {
    logins: Logins,
    id: String,
    input: mpsc::Receiver<Entered>,
}

impl Drop for OpenLogin {
    fn drop(&mut self) {
        self.logins.map().remove(&self.id);
    }
}

/// Why there is no such login, or no room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LoginRefusal {
    #[error("a login of this id is under way")]
    Taken,
    #[error("too many logins are under way")]
    TooMany,
    #[error("there is no such login of this owner")]
    Unknown,
    #[error("the login waits for nothing")]
    Full,
}

impl Logins {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a login.
    pub(super) fn open(&self, login: &AgentLogin) -> Result<OpenLogin, LoginRefusal> {
        let mut map = self.map();
        if map.contains_key(&login.login_id) {
            return Err(LoginRefusal::Taken);
        }
        if map.len() >= LOGINS_MAX {
            return Err(LoginRefusal::TooMany);
        }
        let (sender, input) = mpsc::channel(INPUTS_MAX);
        let open = Open {
            owner: login.owner.clone(),
            input: sender,
        };
        map.insert(login.login_id.clone(), open);
        Ok(OpenLogin {
            logins: self.clone(),
            id: login.login_id.clone(),
            input,
        })
    }

    /// Gives a login what its owner has entered.
    pub(super) fn enter(&self, id: &str, entered: LoginInput) -> Result<(), LoginRefusal> {
        let text = Entered::new(entered.text);
        let map = self.map();
        let open = map.get(id).filter(|open| open.owner == entered.owner);
        let open = open.ok_or(LoginRefusal::Unknown)?;
        open.input.try_send(text).map_err(|_| LoginRefusal::Full)
    }
}

/// The profile's flow of a kind, or its usual one.
pub(super) fn flow(pool: &PoolParts, kind: Option<LoginKind>) -> Option<&LoginFlow> {
    let flows = &pool.profile.login.flows;
    match kind {
        Some(kind) => flows.iter().find(|flow| kind_of(flow) == kind),
        None => flows.first(),
    }
}

fn kind_of(flow: &LoginFlow) -> LoginKind {
    match flow {
        LoginFlow::DeviceCode { .. } => LoginKind::DeviceCode,
        LoginFlow::PasteCode { .. } => LoginKind::PasteCode,
        LoginFlow::ApiKeyStdin { .. } | LoginFlow::ApiKeyFiles { .. } => LoginKind::ApiKey,
    }
}

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the owner's home cannot be used: {0}")]
    Own(String),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Command(#[from] agents::profile::CommandError),
    #[error(transparent)]
    Policy(#[from] egress::PolicyError),
    #[error("the login was not taken back: {0}")]
    TakeBack(String),
    #[error("{agent} says that there is no login: {said}")]
    NotLoggedIn { agent: String, said: String },
    #[error("nobody entered anything any more")]
    NoInput,
    #[error("the login took longer than {} minutes", LOGIN_TIMEOUT.as_secs() / 60)]
    TooLong,
    #[error("the owner's sandbox is lost")]
    Lost,
}

impl Trouble {
    fn failure(&self) -> LoginFailure {
        let code = match self {
            Self::NotLoggedIn { .. } => ErrorCode::Unauthenticated,
            Self::NoInput | Self::TooLong => ErrorCode::DeadlineUnmet,
            Self::Lost => ErrorCode::WorkerReset,
            Self::Command(_) => ErrorCode::InvalidParams,
            Self::Own(_) | Self::Sandbox(_) | Self::Policy(_) | Self::TakeBack(_) => ErrorCode::Internal,
        };
        LoginFailure {
            code: code.as_str().to_owned(),
            message: self.to_string(),
        }
    }
}

/// Relays a login to its last event.
pub(super) async fn relay(
    mut held: Held,
    slot: SlotLease,
    asked: AgentLogin,
    mut open: OpenLogin,
    events: mpsc::Sender<LoginEvent>,
) {
    let live = held.live.clone();
    let stop = live.pool.stop_runs();
    let ended = tokio::select! {
        ended = tokio::time::timeout(LOGIN_TIMEOUT, log_in(&live, &asked, &mut open, &events)) => {
            ended.unwrap_or(Err(Trouble::TooLong))
        }
        () = live.lost.cancelled() => Err(Trouble::Lost),
        () = stop.cancelled() => Err(Trouble::Lost),
        () = events.closed() => Err(Trouble::NoInput),
    };
    if let Err(trouble) = &ended {
        tracing::warn!(pool_id = %live.pool.id, error = %trouble, "a login came to nothing");
    }
    if let Some(owned) = live.owned() {
        owned.egress.set_policy(live.pool.egress.clone());
    }
    held.keep = ended.is_ok();
    drop(open);
    drop(held);
    drop(slot);
    let failure = ended.err().map(|trouble| trouble.failure());
    // Nobody listens any more: the login is what it is.
    let _ = events.send(LoginEvent::Ended { failure }).await;
}

async fn log_in(
    live: &Live,
    asked: &AgentLogin,
    open: &mut OpenLogin,
    events: &mpsc::Sender<LoginEvent>,
) -> Result<(), Trouble> {
    let pool = &live.pool;
    let Some(flow) = flow(pool, asked.kind) else {
        return Err(Trouble::NoInput);
    };
    let owned = live.own(&asked.owner).await;
    let owned = owned.map_err(|error| Trouble::Own(daemon::exit::chain(&error)))?;
    let mut policy = pool.egress.clone();
    for host in &pool.profile.egress.login_hosts {
        policy = policy.allow(host)?;
    }
    owned.egress.set_policy(policy);
    let kind = kind_of(flow);
    let _ = events.send(LoginEvent::Started { kind }).await;
    let said = match flow {
        LoginFlow::ApiKeyFiles { .. } => {
            let _ = events.send(input("The API key", true)).await;
            let key = open.input.recv().await.ok_or(Trouble::NoInput)?;
            let values = values(WORKSPACE).with(Variable::Key, key.trim());
            let line = pool.profile.login_command(flow, &values)?;
            write_files(&live.sandbox, &line.files).await?;
            String::new()
        }
        LoginFlow::DeviceCode { .. } | LoginFlow::PasteCode { .. } | LoginFlow::ApiKeyStdin { .. } => {
            let line = pool.profile.login_command(flow, &values(WORKSPACE))?;
            dialogue(live, &line, kind, open, events).await?
        }
    };
    if !is_logged_in(live).await? {
        let agent = pool.agent.as_str().to_owned();
        return Err(Trouble::NotLoggedIn { agent, said });
    }
    // Those that run already may have read their login when they started.
    owned.end_idle(pool).await;
    take_back(owned, pool).await
}

async fn take_back(owned: &Owned, pool: &PoolParts) -> Result<(), Trouble> {
    let taken = owned.take_back().await;
    if taken.map_err(|error| Trouble::TakeBack(daemon::exit::chain(&error)))? {
        pool.metrics.take_backs.inc();
    }
    Ok(())
}

fn input(prompt: &str, secret: bool) -> LoginEvent {
    LoginEvent::Input {
        prompt: prompt.to_owned(),
        secret,
    }
}

/// Runs the CLI's own login to its end. What it said last.
async fn dialogue(
    live: &Live,
    line: &CommandLine,
    kind: LoginKind,
    open: &mut OpenLogin,
    events: &mpsc::Sender<LoginEvent>,
) -> Result<String, Trouble> {
    let Process {
        stdin,
        mut stdout,
        mut stderr,
        waiter,
    } = live.sandbox.exec(exec_request(line, WORKSPACE, 0)).await?;
    // However this ends, the process does.
    let mut process = KillOnDrop(waiter);
    let mut stdin = Some(stdin);
    let mut entered: Vec<Entered> = Vec::new();
    let mut told = Told::default();
    if kind == LoginKind::ApiKey {
        let _ = events.send(input("The API key", true)).await;
    }
    let mut splitters = [LineSplitter::default(), LineSplitter::default()];
    let (mut out_ended, mut err_ended) = (false, false);
    while !(out_ended && err_ended) {
        let mut lines: Vec<String> = Vec::new();
        tokio::select! {
            more = piece(&mut stdout), if !out_ended => take(&mut splitters[0], more, &mut lines, &mut out_ended),
            more = piece(&mut stderr), if !err_ended => take(&mut splitters[1], more, &mut lines, &mut err_ended),
            text = open.input.recv(), if stdin.is_some() => {
                let text = text.ok_or(Trouble::NoInput)?;
                enter(&mut stdin, &text, kind).await;
                entered.push(text);
            }
            // What a person is asked for may stand in a line that does not end.
            () = tokio::time::sleep(Duration::from_millis(300)), if kind == LoginKind::PasteCode && told.may_ask() => {
                let _ = events.send(input("The code that the page shows", true)).await;
                told.asked = true;
            }
        }
        for line in lines {
            let is_secret = entered.iter().any(|secret| line.contains(secret.trim()));
            if is_secret {
                continue;
            }
            for event in told.events(&line) {
                let _ = events.send(event).await;
            }
        }
    }
    let _ = process.0.wait().await;
    Ok(told.last)
}

/// Gives the CLI a line. A key is all that it reads; after a code it may ask again.
async fn enter(stdin: &mut Option<ByteWriter>, text: &str, kind: LoginKind) {
    if let Some(writer) = stdin.as_mut() {
        let line = zeroize::Zeroizing::new(format!("{}\n", text.trim()));
        // One that takes nothing has ended, which its output tells.
        let _ = writer.write_all(line.as_bytes()).await;
    }
    if kind == LoginKind::ApiKey {
        *stdin = None;
    }
}

async fn piece(reader: &mut ByteReader) -> Option<Vec<u8>> {
    let mut piece = vec![0; PIECE_BYTES];
    let count = reader.read(&mut piece).await.ok()?;
    piece.truncate(count);
    (count > 0).then_some(piece)
}

fn take(splitter: &mut LineSplitter, piece: Option<Vec<u8>>, lines: &mut Vec<String>, ended: &mut bool) {
    match piece {
        Some(piece) => splitter.push(&piece, |line| lines.push(line.to_owned())),
        None => {
            *ended = true;
            splitter.finish(|line| lines.push(line.to_owned()));
        }
    }
}

/// Asks the CLI in the sandbox, or looks for the file that only a login leaves.
async fn is_logged_in(live: &Live) -> Result<bool, SandboxError> {
    let pool = &live.pool;
    let asking = pool.profile.status_command(&values(WORKSPACE));
    let Some(Ok(line)) = asking else {
        return has_evidence(&live.sandbox, &pool.profile.login.evidence).await;
    };
    let Process {
        stdin,
        mut stdout,
        mut stderr,
        waiter,
    } = live.sandbox.exec(exec_request(&line, WORKSPACE, 0)).await?;
    drop(stdin);
    let mut process = KillOnDrop(waiter);
    let ending = async {
        // What it says may name the login; only how it ends counts.
        let (mut out, mut err) = (tokio::io::sink(), tokio::io::sink());
        let _ = tokio::join!(
            tokio::io::copy(&mut stdout, &mut out),
            tokio::io::copy(&mut stderr, &mut err)
        );
        process.0.wait().await
    };
    match tokio::time::timeout(STATUS_TIMEOUT, ending).await {
        Ok(exit) => Ok(exit?.code == Some(0)),
        Err(_) => Err(SandboxError::Silent),
    }
}

/// Whether the owner of the sandbox is logged in.
pub(super) async fn status(mut held: Held, slot: SlotLease, owner: &str) -> Result<LoginStatus, String> {
    let live = held.live.clone();
    let pool = &live.pool;
    let own = live.own(owner).await;
    own.map_err(|error| daemon::exit::chain(&error))?;
    let is_logged_in = is_logged_in(&live).await.map_err(|error| error.to_string())?;
    held.keep = true;
    drop(held);
    drop(slot);
    let (homes, agent) = (live.node.homes.clone(), pool.agent.clone());
    let handle = OwnerHandle::authenticated(owner).map_err(|error| error.to_string())?;
    let version = tokio::task::spawn_blocking(move || homes.status(&handle, &agent)).await;
    let version = version
        .ok()
        .and_then(Result::ok)
        .flatten()
        .map(|home| home.version);
    Ok(LoginStatus {
        agent: pool.agent.as_str().to_owned(),
        owner: owner.to_owned(),
        is_logged_in,
        version,
        kinds: pool.profile.login.flows.iter().map(kind_of).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_enters_anything() {
        let logins = Logins::default();
        let login = AgentLogin {
            login_id: "l".to_owned(),
            owner: "ann".to_owned(),
            kind: None,
        };
        let entered = |owner: &str| LoginInput {
            owner: owner.to_owned(),
            text: "secret".to_owned(),
        };
        let mut open = logins.open(&login).unwrap();
        assert_eq!(logins.open(&login).err(), Some(LoginRefusal::Taken));
        assert_eq!(logins.enter("l", entered("bob")), Err(LoginRefusal::Unknown));
        assert_eq!(logins.enter("l", entered("ann")), Ok(()));
        assert_eq!(open.input.try_recv().unwrap().as_str(), "secret");
        assert!(!format!("{:?}", entered("ann")).contains("secret"));
        drop(open);
        assert_eq!(logins.enter("l", entered("ann")), Err(LoginRefusal::Unknown));
    }
}
