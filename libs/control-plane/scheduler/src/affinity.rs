//! Which replicas have a session or a prefix warm: a bounded memory of where tasks were placed.
//!
//! Two generations of a hash map: what is used moves to the young one, and when that is full the old one is dropped
//! whole. So at most `entries_max` are remembered, the ones used lately among them, and no step costs more than a
//! look-up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::arena::Key;

/// How many replicas are remembered for one entry, the latest first. More than one, so that a prefix that everybody
/// shares spreads over several replicas and stays warm on each.
pub(crate) const WARM_REPLICAS_MAX: usize = 4;

type Replicas = [Option<Key>; WARM_REPLICAS_MAX];
type Generation = HashMap<u64, Replicas, BuildHasherDefault<Mixed>>;

/// The memory.
#[derive(Debug)]
pub(crate) struct Affinity {
    young: Generation,
    old: Generation,
    generation_max: usize,
}

impl Affinity {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            generation_max: (entries_max / 2).max(1),
        }
    }

    /// The replicas that have `key` warm, the latest first.
    pub(crate) fn warm(&self, key: u64) -> impl Iterator<Item = Key> {
        self.young
            .get(&key)
            .or_else(|| self.old.get(&key))
            .copied()
            .unwrap_or_default()
            .into_iter()
            .flatten()
    }

    /// From now on `replica` has `key` warm.
    pub(crate) fn note(&mut self, key: u64, replica: Key) {
        if let Some(replicas) = self.young.get_mut(&key) {
            put_first(replicas, replica);
            return;
        }
        if self.young.len() >= self.generation_max {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        let mut replicas = self.old.get(&key).copied().unwrap_or_default();
        put_first(&mut replicas, replica);
        self.young.insert(key, replicas);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

fn put_first(replicas: &mut Replicas, replica: Key) {
    let end = replicas
        .iter()
        .position(|known| *known == Some(replica))
        .unwrap_or(WARM_REPLICAS_MAX - 1);
    replicas.copy_within(0..end, 1);
    replicas[0] = Some(replica);
}

/// Spreads keys that are hashes already: they come from a keyed hash, so that clients cannot choose them.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn the_latest_replicas_come_first_and_only_four_stay() {
        let mut affinity = Affinity::new(100);
        for index in [1, 2, 3, 2, 4, 5] {
            affinity.note(7, replica(index));
        }
        assert_eq!(
            affinity.warm(7).map(|key| key.index).collect::<Vec<_>>(),
            [5, 4, 2, 3]
        );
        assert_eq!(affinity.warm(8).count(), 0);
    }

    #[test]
    fn what_is_used_stays_and_the_memory_is_bounded() {
        let mut affinity = Affinity::new(100);
        for key in 0..10_000 {
            affinity.note(key, replica(1));
            affinity.note(u64::MAX, replica(2));
            assert!(affinity.len() <= 101, "{} entries", affinity.len());
        }
        assert_eq!(affinity.warm(u64::MAX).collect::<Vec<_>>(), [replica(2)]);
        assert_eq!((affinity.warm(0).count(), affinity.warm(9_999).count()), (0, 1));
    }
}
