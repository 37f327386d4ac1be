//! An owner's home in a sandbox: opened into it, and taken back.
//!
//! ```text
//! open: label "opening" ─▶ unpack ─▶ label with ticket ─▶ CLIs may start ─▶ every change: pack, seal, put
//! ```
//!
//! Invariants: a home that is not wholly unpacked is never taken back, by no node (the label says so); puts of one
//! sandbox come one after the other; what is taken back is what the profile keeps and nothing else.

use std::sync::Arc;
use std::time::Duration;

use homes::{
    AgentName, HomeError, Homes, LendingRefused, NameError, OwnedBy, OwnerHandle, PlainHome, Ticket,
};
use sandbox::{ArchiveLimits, HOME, Sandbox, SandboxError, Watch};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::label::Label;

/// Files, directories and links of a home.
const ENTRIES_MAX: u64 = 20_000;
/// How long packing may take.
const PACK_TIMEOUT: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 64 * 1024;

/// Why a home was not opened or not taken back.
#[derive(Debug, thiserror::Error)]
pub(super) enum HomeTrouble {
    #[error("the owner's name cannot be used")]
    Name(#[from] NameError),
    #[error("the home cannot be used")]
    Homes(#[from] HomeError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Lending(#[from] LendingRefused),
    #[error("the home could not be read out of the sandbox")]
    Read(#[source] std::io::Error),
    #[error("the home was not packed in time")]
    Late,
    #[error("the node's work on a home was broken off")]
    BrokenOff,
}

/// The home that is open in one sandbox.
pub(super) struct OpenedHome {
    homes: Arc<Homes>,
    sandbox: Sandbox,
    agent: AgentName,
    owner: String,
    keep: Vec<String>,
    evidence: String,
    state: Mutex<State>,
}

struct State {
    ticket: Ticket,
    /// What was taken back last.
    whole: Option<[u8; 32]>,
    evidence: Option<[u8; 32]>,
}

struct Place<'a>(&'a OwnerHandle);

impl OwnedBy for Place<'_> {
    fn owner(&self) -> &OwnerHandle {
        self.0
    }
}

impl OpenedHome {
    /// Opens the owner's home into the sandbox, which must be fresh.
    pub(super) async fn open(
        homes: Arc<Homes>,
        sandbox: Sandbox,
        agent: AgentName,
        owner: &str,
        evidence: &str,
        label: Label,
    ) -> Result<Self, HomeTrouble> {
        let opening = Label {
            owner: Some(owner.to_owned()),
            ticket: None,
            ..label
        };
        sandbox.set_label(&opening.text())?;
        let handle = OwnerHandle::authenticated(owner)?;
        let opened = {
            let (homes, agent) = (homes.clone(), agent.clone());
            let handle = OwnerHandle::authenticated(owner)?;
            let opening = tokio::task::spawn_blocking(move || homes.open(&handle, &agent));
            opening.await.map_err(|_| HomeTrouble::BrokenOff)??
        };
        if let Some(home) = &opened.home {
            let archive = home.archive_for(&Place(&handle))?;
            sandbox.unpack(HOME, limits(), archive).await?;
        }
        let keep = opening.keep.clone();
        let done = Label {
            ticket: Some(opened.ticket.to_string()),
            ..opening
        };
        sandbox.set_label(&done.text())?;
        Ok(Self {
            homes,
            sandbox,
            agent,
            owner: owner.to_owned(),
            keep,
            evidence: evidence.to_owned(),
            state: Mutex::new(State {
                ticket: opened.ticket,
                whole: None,
                evidence: None,
            }),
        })
    }

    /// Watches the directory of the login.
    pub(super) async fn watch(&self) -> Result<Watch, SandboxError> {
        let directory = match self.evidence.rsplit_once('/') {
            Some((directory, _)) => format!("{HOME}/{directory}"),
            None => HOME.to_owned(),
        };
        self.sandbox.watch(&directory).await
    }

    /// Takes the home back when the login itself has changed. True: it has.
    pub(super) async fn take_back_login(&self) -> Result<bool, HomeTrouble> {
        let mut state = self.state.lock().await;
        let (_, digest) = pack(&self.sandbox, std::slice::from_ref(&self.evidence)).await?;
        if state.evidence == Some(digest) {
            return Ok(false);
        }
        let put = self.put(&mut state).await?;
        state.evidence = Some(digest);
        Ok(put)
    }

    /// Takes the home back when anything of it has changed. True: it has.
    pub(super) async fn take_back(&self) -> Result<bool, HomeTrouble> {
        self.put(&mut *self.state.lock().await).await
    }

    async fn put(&self, state: &mut State) -> Result<bool, HomeTrouble> {
        let (home, digest) = pack_within_bound(&self.sandbox, &self.keep, &self.evidence).await?;
        if state.whole == Some(digest) {
            return Ok(false);
        }
        match put(&self.homes, &self.owner, &self.agent, state.ticket, home, false).await {
            Ok(ticket) => state.ticket = ticket,
            // The login was removed, or opened anew: what is here counts no more.
            Err(HomeTrouble::Homes(HomeError::Fenced { .. })) => {
                tracing::info!(
                    agent = self.agent.as_str(),
                    "nothing is taken from a sandbox whose owner's login was removed"
                );
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        state.whole = Some(digest);
        Ok(true)
    }
}

/// Takes the home of a sandbox back that outlived its node. False: there is nothing that may be taken.
pub(super) async fn salvage(
    homes: &Arc<Homes>,
    sandbox: &Sandbox,
    label: &Label,
    evidence: Option<&str>,
) -> Result<bool, HomeTrouble> {
    let (Some(owner), Some(ticket)) = (&label.owner, label.ticket()) else {
        return Ok(false);
    };
    let agent = AgentName::new(&label.agent)?;
    let evidence = evidence
        .or(label.keep.first().map(String::as_str))
        .unwrap_or_default();
    let (home, _) = pack_within_bound(sandbox, &label.keep, evidence).await?;
    match put(homes, owner, &agent, ticket, home, true).await {
        Ok(_) => Ok(true),
        // The owner has opened it anew or removed it since: what is here counts no more.
        Err(HomeTrouble::Homes(HomeError::Fenced { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn put(
    homes: &Arc<Homes>,
    owner: &str,
    agent: &AgentName,
    ticket: Ticket,
    home: PlainHome,
    whatever_version: bool,
) -> Result<Ticket, HomeTrouble> {
    let owner = OwnerHandle::authenticated(owner)?;
    let (homes, agent) = (homes.clone(), agent.clone());
    let putting = tokio::task::spawn_blocking(move || {
        let saved = if whatever_version {
            homes.salvage(&owner, &agent, ticket, &home)
        } else {
            homes.put(&owner, &agent, ticket, &home)
        };
        match saved {
            // An earlier put of this sandbox arrived though its end was not known.
            Err(HomeError::Conflict { .. }) => homes.salvage(&owner, &agent, ticket, &home),
            saved => saved,
        }
    });
    Ok(putting.await.map_err(|_| HomeTrouble::BrokenOff)??.ticket)
}

/// All that is kept, or the login alone when all of it is more than a home may be: the login must never be lost for
/// the sake of what lies beside it.
async fn pack_within_bound(
    sandbox: &Sandbox,
    keep: &[String],
    evidence: &str,
) -> Result<(PlainHome, [u8; 32]), HomeTrouble> {
    match pack(sandbox, keep).await {
        Err(HomeTrouble::Read(error)) if !sandbox.is_gone() && !evidence.is_empty() => {
            tracing::warn!(%error, "a home is larger than one may be; only the login is kept");
            pack(sandbox, &[evidence.to_owned()]).await
        }
        packed => packed,
    }
}

async fn pack(sandbox: &Sandbox, only: &[String]) -> Result<(PlainHome, [u8; 32]), HomeTrouble> {
    let only: Vec<&str> = only.iter().map(String::as_str).collect();
    let packing = async {
        let mut archive = sandbox.pack_only(HOME, limits(), &only).await?;
        let mut home = PlainHome::new();
        let mut digest = Sha256::new();
        let mut piece = Zeroizing::new(vec![0_u8; PIECE_BYTES]);
        loop {
            let read = archive.read(&mut piece).await.map_err(HomeTrouble::Read)?;
            if read == 0 {
                return Ok((home, digest.finalize().into()));
            }
            digest.update(&piece[..read]);
            let extended = home.extend(&piece[..read]);
            extended.map_err(|error| HomeTrouble::Read(std::io::Error::other(error)))?;
        }
    };
    tokio::time::timeout(PACK_TIMEOUT, packing)
        .await
        .map_err(|_| HomeTrouble::Late)?
}

/// Whether the file is there that only a login leaves.
pub(super) async fn has_evidence(sandbox: &Sandbox, evidence: &str) -> Result<bool, SandboxError> {
    let mut archive = sandbox.pack_only(HOME, limits(), &[evidence]).await?;
    let mut bytes = Zeroizing::new(Vec::new());
    let read = archive.read_to_end(&mut bytes).await;
    read.map_err(SandboxError::Source)?;
    // A name, and then zeros up to the end of its field.
    let is_it = |header: &[u8]| {
        header.starts_with(evidence.as_bytes()) && header[evidence.len()..100].iter().all(|byte| *byte == 0)
    };
    Ok(evidence.len() < 100 && bytes.as_chunks::<512>().0.iter().any(|block| is_it(block)))
}

fn limits() -> ArchiveLimits {
    ArchiveLimits {
        bytes_max: homes::HOME_BYTES_MAX as u64,
        entries_max: ENTRIES_MAX,
    }
}
