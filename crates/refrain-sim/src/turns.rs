//! In which order waves, lanes and blocks take their turns.

use crate::Order;

/// The order of up to 64 waves or lanes.
pub(crate) fn turns(order: Order, count: usize, random: &mut Random) -> [u8; 64] {
    let mut turns = [0; 64];
    for (turn, place) in turns.iter_mut().take(count).enumerate() {
        *place = if order == Order::Reverse { count - 1 - turn } else { turn } as u8;
    }
    if let Order::Shuffled(_) = order {
        for last in (1..count).rev() {
            turns.swap(last, random.below(last as u64 + 1) as usize);
        }
    }
    turns
}

/// The order of the blocks of a grid, without a list of them.
pub(crate) struct Walk {
    blocks: u64,
    stride: u64,
    start: u64,
}

impl Walk {
    pub(crate) fn new(order: Order, blocks: u64) -> Walk {
        match order {
            Order::Forward => Walk { blocks, stride: 1, start: 0 },
            Order::Reverse => Walk { blocks, stride: blocks - 1, start: blocks - 1 },
            Order::Shuffled(seed) => {
                let mut random = Random(seed);
                let (mut stride, start) = (1 + random.below(blocks), random.below(blocks));
                while greatest_common_divisor(stride, blocks) != 1 {
                    stride += 1;
                }
                Walk { blocks, stride, start }
            }
        }
    }

    /// Every index below `blocks` once, as `step` goes from 0 to `blocks`: the stride shares no divisor with it.
    pub(crate) fn at(&self, step: u64) -> u64 {
        ((u128::from(step) * u128::from(self.stride) + u128::from(self.start)) % u128::from(self.blocks)) as u64
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Coordinates of a block.
pub(crate) fn unpack(index: u64, blocks: [u32; 3]) -> [u32; 3] {
    let (x, y) = (u64::from(blocks[0]), u64::from(blocks[1]));
    [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_turn_in_every_order() {
        for order in [Order::Forward, Order::Reverse, Order::Shuffled(7), Order::Shuffled(8)] {
            for blocks in [1, 2, 3, 12, 97, 360] {
                let walk = Walk::new(order, blocks);
                let mut seen: Vec<u64> = (0..blocks).map(|step| walk.at(step)).collect();
                if order == Order::Reverse {
                    assert_eq!(seen[0], blocks - 1);
                }
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..blocks), "{order:?} of {blocks}: {seen:?}");
            }
        }
    }
}
