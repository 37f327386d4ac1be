//! Where a task has failed, and how far it keeps away from there.

use pool_registry_types::NodeId;

use crate::arena::Key;

/// The replicas that failed a task, with their nodes.
#[derive(Debug, Default)]
pub(crate) struct Failed {
    replicas: Vec<(Key, NodeId)>,
    avoid: Avoid,
}

/// What the task keeps away from. When nothing else is left, it takes the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Avoid {
    /// The whole node: when an engine dies it is often its machine that died, with all its other replicas.
    #[default]
    Nodes,
    /// The replica itself.
    Replicas,
    /// Nothing any more.
    Nothing,
}

impl Failed {
    pub(crate) fn note(&mut self, replica: Key, node: NodeId) {
        if !self.replicas.iter().any(|(known, _)| *known == replica) {
            self.replicas.push((replica, node));
        }
        self.avoid = Avoid::Nodes;
    }

    pub(crate) fn rules_out(&self, replica: Key, node: &NodeId) -> bool {
        match self.avoid {
            Avoid::Nodes => self.replicas.iter().any(|(_, known)| known == node),
            Avoid::Replicas => self.replicas.iter().any(|(known, _)| *known == replica),
            Avoid::Nothing => false,
        }
    }

    /// Whether anything is ruled out.
    pub(crate) fn is_empty(&self) -> bool {
        self.replicas.is_empty() || self.avoid == Avoid::Nothing
    }

    /// Keeps away from less; false when there is nothing left to give up.
    pub(crate) fn relax(&mut self) -> bool {
        if self.is_empty() {
            return false;
        }
        self.avoid = match self.avoid {
            Avoid::Nodes => Avoid::Replicas,
            Avoid::Replicas | Avoid::Nothing => Avoid::Nothing,
        };
        true
    }

    /// The whole node is no longer avoided, only the replicas.
    pub(crate) fn relax_to_replicas(&mut self) -> bool {
        self.avoid == Avoid::Nodes && self.relax()
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = Key> {
        self.replicas.iter().map(|(replica, _)| *replica)
    }
}
