//! The mark beside a home: the highest version and fence that were seen, authenticated.

use ring::hmac;

use crate::keys::{KeyId, KeyRing, MasterKey};
use crate::sealed::{Reader, SealError};
use crate::store::Slot;

const MAGIC: &[u8; 4] = b"RMHM";
const FORMAT: u8 = 1;

/// The highest version and fence of a slot. All zero when there never was anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) version: u64,
    pub(crate) fence: u64,
}

impl Mark {
    /// `"RMHM" format key_id(8) version(8) fence(8) tag(32)`; the tag is over that and the slot's name.
    pub(crate) fn encode(self, slot: &Slot, master: &MasterKey) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&master.id().0);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.fence.to_be_bytes());
        let tag = hmac::sign(&master.mark_key(), &signed(&bytes, slot));
        bytes.extend_from_slice(tag.as_ref());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], slot: &Slot, keys: &KeyRing) -> Result<(Self, KeyId), SealError> {
        let mut reader = Reader(bytes);
        if reader.array::<4>()? != *MAGIC {
            return Err(SealError::NotSealed);
        }
        let [format] = reader.array()?;
        if format != FORMAT {
            return Err(SealError::Format(format));
        }
        let key_id = KeyId(reader.array()?);
        let version = u64::from_be_bytes(reader.array()?);
        let fence = u64::from_be_bytes(reader.array()?);
        let signed_end = bytes.len() - reader.0.len();
        let key = keys.find(key_id).ok_or(SealError::UnknownKey(key_id))?;
        hmac::verify(&key.mark_key(), &signed(&bytes[..signed_end], slot), reader.0)
            .map_err(|_| SealError::Tampered)?;
        Ok((Self { version, fence }, key_id))
    }
}

fn signed(bytes: &[u8], slot: &Slot) -> Vec<u8> {
    [bytes, slot.as_str().as_bytes()].concat()
}
