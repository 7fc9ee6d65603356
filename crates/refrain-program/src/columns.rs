//! Sets of columns of each tensor: what has been written, what is still needed.

use crate::View;

/// For each tensor, a set of its columns, kept as sorted disjoint ranges.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    ranges: Vec<Vec<(usize, usize)>>,
}

impl Columns {
    /// No columns of any of `tensors` tensors.
    pub fn new(tensors: usize) -> Columns {
        Columns { ranges: vec![Vec::new(); tensors] }
    }

    /// Adds the columns of a view.
    pub fn insert(&mut self, view: View) {
        let ranges = &mut self.ranges[view.tensor.0];
        let (mut start, mut end) = (view.column, view.end());
        ranges.retain(|&(from, to)| {
            let touches = from <= end && start <= to;
            if touches {
                start = start.min(from);
                end = end.max(to);
            }
            !touches
        });
        let at = ranges.partition_point(|&(from, _)| from < start);
        ranges.insert(at, (start, end));
    }

    /// Takes the columns of a view out.
    pub fn remove(&mut self, view: View) {
        let ranges = &mut self.ranges[view.tensor.0];
        *ranges = ranges
            .iter()
            .flat_map(|&(from, to)| [(from, to.min(view.column)), (from.max(view.end()), to)])
            .filter(|(from, to)| from < to)
            .collect();
    }

    /// Whether every column of the view is in the set.
    pub fn contain(&self, view: View) -> bool {
        self.ranges[view.tensor.0].iter().any(|&(from, to)| from <= view.column && view.end() <= to)
    }

    /// Whether any column of the view is in the set.
    pub fn intersect(&self, view: View) -> bool {
        self.ranges[view.tensor.0].iter().any(|&(from, to)| from < view.end() && view.column < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_ranges_behave_like_a_set(steps in prop::collection::vec((any::<bool>(), 0_usize..40, 1_usize..12), 0..30)) {
            let mut columns = Columns::new(1);
            let mut set = std::collections::BTreeSet::new();
            for (add, column, width) in steps {
                let view = View { tensor: TensorId(0), column, width };
                if add {
                    columns.insert(view);
                    set.extend(column..column + width);
                } else {
                    columns.remove(view);
                    set.retain(|element| !(column..column + width).contains(element));
                }
                for column in 0..52 {
                    for width in 1..4 {
                        let view = View { tensor: TensorId(0), column, width };
                        prop_assert_eq!(columns.contain(view), (column..column + width).all(|c| set.contains(&c)));
                        prop_assert_eq!(columns.intersect(view), (column..column + width).any(|c| set.contains(&c)));
                    }
                }
            }
        }
    }
}
