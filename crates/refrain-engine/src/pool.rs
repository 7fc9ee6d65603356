//! The free list behind both state pools: KV blocks, and GDN slots.

/// Ids `0..size`, each either free or held by exactly one sequence. The id freed last is given out first, because its
/// memory is the likeliest to be in a cache.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    free: Vec<u32>,
    held: Vec<bool>,
}

impl Pool {
    /// A pool of `size` free ids.
    pub fn new(size: usize) -> Self {
        let size = u32::try_from(size).expect("pool ids are 32-bit");
        Self { free: (0..size).rev().collect(), held: vec![false; size as usize] }
    }

    /// Ids in the pool, free or not.
    pub fn size(&self) -> usize {
        self.held.len()
    }

    /// Ids that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Ids that are held.
    pub fn used(&self) -> usize {
        self.size() - self.free()
    }

    /// Takes one id.
    pub fn take(&mut self) -> Option<u32> {
        let id = self.free.pop()?;
        self.held[id as usize] = true;
        Some(id)
    }

    /// Gives one id back. Giving back what is not held is a bug, and would let two sequences share a state.
    pub fn give(&mut self, id: u32) {
        assert!(std::mem::replace(&mut self.held[id as usize], false), "pool id {id} was given back twice");
        self.free.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_freed_id_is_the_next() {
        let mut pool = Pool::new(3);
        let ids: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(ids, [0, 1, 2]);
        assert_eq!(pool.take(), None);
        pool.give(1);
        assert_eq!(pool.take(), Some(1));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_a_bug() {
        let mut pool = Pool::new(2);
        let id = pool.take().unwrap();
        pool.give(id);
        pool.give(id);
    }

    proptest! {
        /// `true` takes, `false` gives back one of the held ids.
        #[test]
        fn ids_are_conserved(size in 0usize..20, moves in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200)) {
            let mut pool = Pool::new(size);
            let mut held: Vec<u32> = Vec::new();
            for (take, which) in moves {
                if take {
                    let id = pool.take();
                    prop_assert_eq!(id.is_some(), held.len() < size);
                    if let Some(id) = id {
                        prop_assert!((id as usize) < size && !held.contains(&id));
                        held.push(id);
                    }
                } else if !held.is_empty() {
                    pool.give(held.swap_remove(which.index(held.len())));
                }
                prop_assert_eq!(pool.used(), held.len());
                prop_assert_eq!(pool.free() + pool.used(), size);
            }
        }
    }
}
