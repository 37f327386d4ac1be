//! Who is asking: keys to owners and roles.
//!
//! Keys live in memory as hashes, so a request waits for nothing. Without any key the control plane listens on loopback
//! only (or was told `--insecure`), and whoever reaches it is its one owner.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::secret::Secret;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use store::{Role, Store};
use task_api::{ApiError, ErrorCode};

use crate::agents::keys::{TASK_KEY_PREFIX, TaskKeys};

/// The owner of everything where no key is needed.
const LOCAL_OWNER: &str = "local";

/// Where Anthropic's clients put the key.
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Where Google's clients put it.
const GOOGLE_KEY_HEADER: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) owner: Arc<str>,
    pub(crate) role: Role,
    /// The one model that an agent's task may ask for; everything else is closed to it.
    pub(crate) only_model: Option<Arc<str>>,
}

impl Identity {
    /// Whether this one may ask for a model.
    pub(crate) fn may_ask(&self, model: Option<&str>) -> Result<(), ApiError> {
        match &self.only_model {
            Some(only) if model != Some(&**only) => Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("this task's key is for the model {only} and nothing else"),
            )
            .with_param("model")),
            Some(_) | None => Ok(()),
        }
    }
}

/// The rules of the door.
pub(crate) struct Access {
    store: Store,
    token: Option<Secret>,
    required: bool,
    anonymous: Identity,
    token_holder: Identity,
    task_keys: TaskKeys,
}

impl Access {
    /// `required` is whether a request without a key is refused even while no key exists.
    pub(crate) fn new(store: Store, token: Option<Secret>, required: bool) -> Self {
        let identity = |owner: &str| Identity {
            owner: Arc::from(owner),
            role: Role::Admin,
            only_model: None,
        };
        Self {
            store,
            token,
            required,
            anonymous: identity(LOCAL_OWNER),
            token_holder: identity("token"),
            task_keys: TaskKeys::default(),
        }
    }

    /// Whether a key is needed at all.
    pub(crate) fn is_required(&self) -> bool {
        self.required || self.token.is_some() || !self.store.keys().is_empty()
    }

    /// Whose request this is.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        self.identify_by(presented_key(headers))
    }

    fn identify_by(&self, presented: Option<&[u8]>) -> Result<Identity, ApiError> {
        let Some(presented) = presented else {
            if self.is_required() {
                return Err(unauthenticated(
                    "a key is needed: send Authorization: Bearer KEY (or x-api-key: KEY)",
                ));
            }
            return Ok(self.anonymous.clone());
        };
        if self.token.as_ref().is_some_and(|token| token.matches(presented)) {
            return Ok(self.token_holder.clone());
        }
        if presented.starts_with(TASK_KEY_PREFIX.as_bytes()) {
            // Not even where no key is needed: whoever holds it is a sandbox.
            return Err(unauthenticated(
                "this is the key of an agent's task: it works for that task's model only, while the task runs",
            ));
        }
        let keys = self.store.keys();
        if let Some(key) = keys.find(presented, now_ms()) {
            return Ok(Identity {
                owner: key.owner.clone(),
                role: key.role,
                only_model: None,
            });
        }
        if self.is_required() {
            return Err(unauthenticated(
                "the key is not known, has expired or was revoked",
            ));
        }
        // Clients of these APIs insist on sending some key; where none is needed any will do.
        Ok(self.anonymous.clone())
    }

    /// The keys of tasks that run.
    pub(crate) fn task_keys(&self) -> &TaskKeys {
        &self.task_keys
    }

    /// The task whose key a request shows.
    pub(crate) fn task(&self, headers: &HeaderMap) -> Option<Identity> {
        self.task_keys.find(presented_key(headers)?)
    }

    /// Whose request to a dialect this is.
    pub(crate) fn asker(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        let presented = presented_key(headers);
        match presented.and_then(|key| self.task_keys.find(key)) {
            Some(task) => Ok(task),
            None => submitter(self.identify_by(presented)?),
        }
    }

    /// Whose request this is, if they may submit tasks.
    pub(crate) fn user(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        submitter(self.identify(headers)?)
    }

    /// Whose request this is, if they may run the fleet.
    pub(crate) fn admin(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        let identity = self.identify(headers)?;
        match identity.role {
            Role::Admin => Ok(identity),
            Role::User | Role::Node => Err(forbidden("an admin's key is needed")),
        }
    }

    /// Lets those through who may speak for a node: by a key, or by a certificate of our authority.
    pub(crate) fn node(&self, headers: &HeaderMap, certified: bool) -> Result<(), ApiError> {
        if certified {
            return Ok(());
        }
        match self.identify(headers)?.role {
            Role::Admin | Role::Node => Ok(()),
            Role::User => Err(forbidden("a node's or an admin's key is needed")),
        }
    }
}

/// Lets those through who may submit tasks.
fn submitter(identity: Identity) -> Result<Identity, ApiError> {
    match identity.role {
        Role::User | Role::Admin => Ok(identity),
        Role::Node => Err(forbidden("a node's key submits no tasks")),
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(authorization) = headers.get(AUTHORIZATION) {
        let value = authorization.as_bytes();
        let (scheme, key) = value.split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    let key = headers.get(KEY_HEADER).or_else(|| headers.get(GOOGLE_KEY_HEADER));
    key.map(|key| key.as_bytes().trim_ascii())
}

fn unauthenticated(message: &'static str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn forbidden(message: &'static str) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, message)
}

/// The wall clock, milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
