//! A progress bar over the weights.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use refrain_model::{TensorView, WeightSource};

/// A source of weights that moves a progress bar by the bytes of each tensor that is read for the first time.
pub struct Counted<'a, S> {
    source: &'a S,
    bar: &'a ProgressBar,
    seen: Mutex<HashSet<String>>,
}

impl<'a, S: WeightSource> Counted<'a, S> {
    /// Counts what is read from `source`.
    pub fn new(source: &'a S, bar: &'a ProgressBar) -> Self {
        Self { source, bar, seen: Mutex::default() }
    }
}

impl<S: WeightSource> WeightSource for Counted<'_, S> {
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let view = self.source.tensor(name)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(name) {
            seen.insert(name.to_owned());
            self.bar.inc(view.data.len() as u64);
        }
        Some(view)
    }

    fn release(&self, name: &str) {
        self.source.release(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_model::Dtype;

    struct OneTensor;

    impl WeightSource for OneTensor {
        fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
            (name == "a").then_some(TensorView { dtype: Dtype::F32, shape: &[2], data: &[0; 8] })
        }
    }

    #[test]
    fn each_tensor_counts_once() {
        let bar = ProgressBar::hidden();
        let counted = Counted::new(&OneTensor, &bar);
        assert!(counted.tensor("a").is_some() && counted.tensor("a").is_some() && counted.tensor("b").is_none());
        assert_eq!(bar.position(), 8);
    }
}
