//! Keys by which an agent's task may use a model of this control plane: in memory, for as long as the task runs.
//!
//! A key names itself in the open part before its dot, so that it is found without comparing secrets; the rest is
//! compared in constant time. Nothing of it is stored, listed or logged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::secret::Secret;
use store::Role;
use uuid::Uuid;

use crate::access::Identity;

/// What every such key begins with.
pub(crate) const TASK_KEY_PREFIX: &str = "rmd-task-";

/// The keys of the tasks that run now: no more than there are agents' slots.
#[derive(Clone, Default)]
pub(crate) struct TaskKeys {
    known: Arc<Mutex<HashMap<String, Known>>>,
}

struct Known {
    secret: Secret,
    owner: Arc<str>,
    model: Arc<str>,
}

/// A key. It works until this is dropped.
pub(crate) struct TaskKey {
    keys: TaskKeys,
    name: String,
    text: Secret,
}

impl TaskKey {
    /// What is to be shown.
    pub(crate) fn expose(&self) -> &str {
        self.text.expose()
    }
}

impl Drop for TaskKey {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.name);
    }
}

impl TaskKeys {
    /// A new key for one model, and nothing else.
    pub(crate) fn issue(&self, owner: &Arc<str>, model: &str) -> TaskKey {
        let name = Uuid::new_v4().simple().to_string();
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let text = Secret::new(format!("{TASK_KEY_PREFIX}{name}.{secret}"));
        let known = Known {
            secret: Secret::new(secret),
            owner: owner.clone(),
            model: Arc::from(model),
        };
        self.lock().insert(name.clone(), known);
        TaskKey {
            keys: self.clone(),
            name,
            text,
        }
    }

    /// Whose task shows this key; None when it is no key of a running task.
    pub(crate) fn find(&self, presented: &[u8]) -> Option<Identity> {
        let rest = presented.strip_prefix(TASK_KEY_PREFIX.as_bytes())?;
        let (name, secret) = std::str::from_utf8(rest).ok()?.split_once('.')?;
        let known = self.lock();
        let known = known.get(name)?;
        known.secret.matches(secret.as_bytes()).then(|| Identity {
            owner: known.owner.clone(),
            role: Role::User,
            only_model: Some(known.model.clone()),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_works_for_its_model_until_it_is_dropped() {
        let keys = TaskKeys::default();
        let key = keys.issue(&Arc::from("alice"), "demo");
        let identity = keys.find(key.expose().as_bytes()).unwrap();
        assert_eq!((&*identity.owner, identity.role), ("alice", Role::User));
        assert!(identity.may_ask(Some("demo")).is_ok());
        assert!(identity.may_ask(Some("other")).is_err());
        assert!(identity.may_ask(None).is_err());
        let another = keys.issue(&Arc::from("bob"), "demo");
        let (_, secret) = another.expose().split_once('.').unwrap();
        let (name, _) = key.expose().split_once('.').unwrap();
        for wrong in [
            format!("{name}.{secret}"),
            format!("{name}."),
            name.to_owned(),
            String::new(),
        ] {
            assert!(keys.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        let text = key.expose().to_owned();
        drop(key);
        assert!(keys.find(text.as_bytes()).is_none());
        assert_eq!(keys.lock().len(), 1);
    }
}
