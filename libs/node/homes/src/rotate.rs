//! A new master key.

use crate::mark::Mark;
use crate::sealed::Sealed;
use crate::{HomeError, HomeStore, KeyRing, Part, Slot};

/// What a rotation did.
#[derive(Debug, Default)]
pub struct Rotated {
    /// Slots that are under the new key now.
    pub rewrapped: usize,
    /// Slots that were already.
    pub already: usize,
    /// Slots that could not be done, and stay as they were.
    pub failed: Vec<(Slot, HomeError)>,
}

/// Puts every home in `store` under the current key of `keys`; the former keys open what is there.
///
/// One slot after the other, each under its lock, each home and each mark at once: killed in the middle, it is simply
/// run again. Nodes that are running meanwhile need both keys. Once nothing failed, the former keys are not needed.
/// Contents are not encrypted anew, only their data keys.
pub fn rotate(store: &dyn HomeStore, keys: &KeyRing) -> Result<Rotated, crate::StoreError> {
    let mut rotated = Rotated::default();
    for slot in store.slots()? {
        match rotate_slot(store, keys, &slot) {
            Ok(true) => rotated.rewrapped += 1,
            Ok(false) => rotated.already += 1,
            Err(error) => rotated.failed.push((slot, error)),
        }
    }
    Ok(rotated)
}

fn rotate_slot(store: &dyn HomeStore, keys: &KeyRing, slot: &Slot) -> Result<bool, HomeError> {
    let mut locked = store.lock(slot)?;
    let mut changed = false;
    if let Some(bytes) = locked.read(Part::Home)? {
        let home = Sealed::parse(bytes)?;
        if home.key_id != keys.current().id() {
            locked.write(Part::Home, &home.rewrap(keys, keys.current())?)?;
            changed = true;
        }
    }
    if let Some(bytes) = locked.read(Part::Mark)? {
        let (mark, key_id) = Mark::decode(&bytes, slot, keys).map_err(HomeError::Mark)?;
        if key_id != keys.current().id() {
            locked.write(Part::Mark, &mark.encode(slot, keys.current()))?;
            changed = true;
        }
    }
    Ok(changed)
}
