//! One compiled kernel as a file of the cache.
//!
//! ```text
//! magic         8 bytes
//! checksum     32 bytes, SHA-256 of all that follows
//! key          32 bytes
//! log length    8 bytes, little-endian
//! log          UTF-8
//! image        the rest
//! ```
//!
//! The key is in it, so that an entry under a wrong name is found out, too.

use super::Digest;
use refrain_device::CompiledKernel;

/// Names the format; another one means another format.
const MAGIC: &[u8; 8] = b"RFNKERN1";
const HEADER: usize = 8 + 32 + 32 + 8;

pub(super) fn encode(key: &Digest, compiled: &CompiledKernel) -> Vec<u8> {
    let mut checked = Vec::with_capacity(HEADER + compiled.log.len() + compiled.image.len());
    checked.extend_from_slice(&key.0);
    checked.extend_from_slice(&(compiled.log.len() as u64).to_le_bytes());
    checked.extend_from_slice(compiled.log.as_bytes());
    checked.extend_from_slice(&compiled.image);
    [MAGIC.as_slice(), &Digest::of(&checked).0, &checked].concat()
}

/// The kernel in an entry, or what is wrong with the entry.
pub(super) fn decode(key: &Digest, bytes: &[u8]) -> Result<CompiledKernel, &'static str> {
    if bytes.len() < HEADER {
        return Err("it ends within its header");
    }
    let (magic, rest) = bytes.split_at(8);
    let (checksum, checked) = rest.split_at(32);
    if magic != MAGIC {
        return Err("it is no entry of this version");
    }
    if Digest::of(checked).0 != checksum {
        return Err("its checksum is wrong");
    }
    let (stored_key, rest) = checked.split_at(32);
    let (log_length, payload) = rest.split_first_chunk::<8>().expect("within the header");
    if stored_key != key.0 {
        return Err("it is the entry of another kernel");
    }
    let log_length = usize::try_from(u64::from_le_bytes(*log_length)).map_err(|_| "its log is too long")?;
    let (log, image) = payload.split_at_checked(log_length).ok_or("its log is longer than the entry")?;
    let log = String::from_utf8(log.to_vec()).map_err(|_| "its log is no text")?;
    Ok(CompiledKernel { image: image.to_vec(), log })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_flipped_byte_and_each_cut_is_noticed() {
        let key = Digest::of(b"key");
        let compiled = CompiledKernel { image: vec![1, 2, 3], log: "fine".to_owned() };
        let whole = encode(&key, &compiled);
        assert_eq!(decode(&key, &whole), Ok(compiled));
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert!(decode(&key, &flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(decode(&key, &whole[..at]).is_err(), "cut after {at} bytes");
        }
        assert!(decode(&key, &[whole.as_slice(), b"x"].concat()).is_err());
        assert_eq!(decode(&Digest::of(b"other"), &whole), Err("it is the entry of another kernel"));
    }

    /// Checksums are not a defence against somebody who computes them; the lengths must still not be believed.
    #[test]
    fn a_well_signed_log_length_that_lies_is_refused() {
        let key = Digest::of(b"key");
        for length in [5_u64, u64::MAX] {
            let checked = [key.0.as_slice(), &length.to_le_bytes(), b"four"].concat();
            let bytes = [MAGIC.as_slice(), &Digest::of(&checked).0, &checked].concat();
            assert!(decode(&key, &bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(image: Vec<u8>, log: String, key: [u8; 32]) {
            let compiled = CompiledKernel { image, log };
            prop_assert_eq!(decode(&Digest(key), &encode(&Digest(key), &compiled)), Ok(compiled));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(decode(&Digest([0; 32]), &bytes).is_err());
        }
    }
}
