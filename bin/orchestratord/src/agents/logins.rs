//! Logins that go on now: whose each is, and where.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use scheduler::ReplicaInfo;
use task_api::{ApiError, ErrorCode};
use uuid::Uuid;

use super::home::Home;

/// How many may go on at once.
const LOGINS_MAX: usize = 256;

/// How long a client is asked to wait when that many go on, in milliseconds.
const RETRY_AFTER_MS: u64 = 30_000;

/// The table.
#[derive(Clone, Default)]
pub(crate) struct Logins {
    open: Arc<Mutex<HashMap<String, Open>>>,
}

struct Open {
    owner: Arc<str>,
    agent: String,
    info: Arc<ReplicaInfo>,
}

/// A login. Forgotten when this is dropped.
pub(crate) struct OpenLogin {
    logins: Logins,
    id: String,
}

impl OpenLogin {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for OpenLogin {
    fn drop(&mut self) {
        self.logins.lock().remove(&self.id);
    }
}

impl Logins {
    /// Makes room for one.
    pub(crate) fn open(&self, owner: &Arc<str>, agent: &str, home: &Home) -> Result<OpenLogin, ApiError> {
        let mut open = self.lock();
        if open.len() >= LOGINS_MAX {
            let message = format!("{LOGINS_MAX} logins go on already");
            return Err(
                ApiError::new(ErrorCode::AdmissionReject, message).with_retry_after_ms(RETRY_AFTER_MS)
            );
        }
        let id = Uuid::new_v4().simple().to_string();
        let login = Open {
            owner: owner.clone(),
            agent: agent.to_owned(),
            info: home.info.clone(),
        };
        open.insert(id.clone(), login);
        Ok(OpenLogin {
            logins: self.clone(),
            id,
        })
    }

    /// Where an owner's login goes on. Another owner's does not exist, as far as one can tell.
    pub(crate) fn find(&self, id: &str, owner: &str, agent: &str) -> Option<Arc<ReplicaInfo>> {
        let open = self.lock();
        let login = open.get(id)?;
        (*login.owner == *owner && login.agent == agent).then(|| login.info.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
