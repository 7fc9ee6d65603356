//! Names for requests that came without one.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// 32 hexadecimal digits that nobody else has. Not a secret.
pub(super) fn new_id() -> String {
    // Each RandomState has keys of its own, which come from the system's random numbers.
    let half = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", half(), half())
}
