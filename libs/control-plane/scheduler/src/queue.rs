//! A pool's queue: interactive before batch, and each class in the order of arrival.

use std::collections::BTreeMap;

use task_api::Priority;

use crate::arena::Key;

/// A task's place in the order of all tasks: the class, then the order of arrival. A task that comes back has its old
/// ticket, and so goes before all that arrived after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(crate) priority: Priority,
    pub(crate) arrival: u64,
}

/// The waiting tasks of one pool.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<Ticket, Key>,
}

const FIRST_BATCH: Ticket = Ticket {
    priority: Priority::Batch,
    arrival: 0,
};

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn insert(&mut self, ticket: Ticket, task: Key) {
        self.waiting.insert(ticket, task);
    }

    pub(crate) fn remove(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// In the order in which they are to start.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ticket, Key)> {
        self.waiting.iter().map(|(ticket, task)| (*ticket, *task))
    }

    /// How many go before `ticket`.
    pub(crate) fn ahead_of(&self, ticket: Ticket) -> u32 {
        count(self.waiting.range(..ticket))
    }

    /// The batch task that has waited longest: the one to drop.
    pub(crate) fn oldest_batch(&self) -> Option<(Ticket, Key)> {
        self.waiting
            .range(FIRST_BATCH..)
            .next()
            .map(|(ticket, task)| (*ticket, *task))
    }

    /// How many wait, interactive and batch.
    pub(crate) fn counts(&self) -> (u32, u32) {
        (
            count(self.waiting.range(..FIRST_BATCH)),
            count(self.waiting.range(FIRST_BATCH..)),
        )
    }
}

fn count(tasks: impl Iterator) -> u32 {
    u32::try_from(tasks.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactive_goes_first_and_each_class_in_order() {
        let mut queue = Queue::default();
        let key = |index| Key { index, generation: 0 };
        let ticket = |priority, arrival| Ticket { priority, arrival };
        queue.insert(ticket(Priority::Batch, 1), key(1));
        queue.insert(ticket(Priority::Interactive, 5), key(5));
        queue.insert(ticket(Priority::Batch, 2), key(2));
        queue.insert(ticket(Priority::Interactive, 4), key(4));
        assert_eq!(
            queue.iter().map(|(_, task)| task.index).collect::<Vec<_>>(),
            [4, 5, 1, 2]
        );
        assert_eq!(queue.ahead_of(ticket(Priority::Batch, 1)), 2);
        assert_eq!(queue.oldest_batch().map(|(_, task)| task.index), Some(1));
        assert_eq!(queue.counts(), (2, 2));
        queue.remove(ticket(Priority::Batch, 1));
        assert_eq!(queue.oldest_batch().map(|(_, task)| task.index), Some(2));
    }
}
