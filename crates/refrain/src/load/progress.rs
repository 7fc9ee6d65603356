//! A progress bar over the kernels, then over the weights, then over the kinds of steps that are measured.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use refrain_model::{TensorView, WeightSource};

const KERNELS: &str = "Kernels {bar:40} {pos}/{len} {elapsed}";
const WEIGHTS: &str = "Loading weights {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}";

const STEPS: &str = "Measuring steps {bar:40} {pos}/{len} kinds {elapsed}";

/// Shows that so many kinds of steps of so many were looked at.
pub fn steps(bar: &ProgressBar, looked_at: usize, kinds: usize) {
    if bar.length() != Some(kinds as u64) {
        bar.set_style(style(STEPS));
        bar.set_length(kinds as u64);
        bar.reset_elapsed();
    }
    bar.set_position(looked_at as u64);
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right")
}

/// Shows that so many kernels of so many are ready; once all are, the bar is that of so many bytes of weights.
pub fn show(bar: &ProgressBar, (ready, kernels): (usize, usize), weight_bytes: u64) {
    if ready < kernels {
        if ready == 0 {
            bar.set_style(style(KERNELS));
            bar.set_length(kernels as u64);
        }
        bar.set_position(ready as u64);
    } else {
        bar.set_style(style(WEIGHTS));
        bar.set_length(weight_bytes);
        bar.set_position(0);
        // Rates are those of the weights.
        bar.reset_elapsed();
        bar.reset_eta();
    }
}

/// A source of weights that moves a progress bar by the bytes of each tensor when it has been read, once.
pub struct Counted<'a, S> {
    source: &'a S,
    bar: &'a ProgressBar,
    read: Mutex<HashSet<String>>,
}

impl<'a, S: WeightSource> Counted<'a, S> {
    /// Counts what is read from `source`.
    pub fn new(source: &'a S, bar: &'a ProgressBar) -> Self {
        Self { source, bar, read: Mutex::default() }
    }
}

impl<S: WeightSource> WeightSource for Counted<'_, S> {
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.source.tensor(name)
    }

    // That a tensor is looked up says nothing: on GPUs all are, before the first is copied.
    fn release(&self, name: &str) {
        if self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            self.bar.inc(self.source.tensor(name).map_or(0, |view| view.data.len() as u64));
        }
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
    fn kernels_come_before_weights_and_both_before_steps() {
        let bar = ProgressBar::hidden();
        show(&bar, (0, 3), 800);
        assert_eq!((bar.position(), bar.length()), (0, Some(3)));
        show(&bar, (2, 3), 800);
        assert_eq!((bar.position(), bar.length()), (2, Some(3)));
        show(&bar, (3, 3), 800);
        assert_eq!((bar.position(), bar.length()), (0, Some(800)));
        // The first of them may have been measured at an earlier start.
        steps(&bar, 2, 7);
        assert_eq!((bar.position(), bar.length()), (2, Some(7)));
        // A CPU has no kernels.
        show(&bar, (0, 0), 900);
        assert_eq!((bar.position(), bar.length()), (0, Some(900)));
    }

    #[test]
    fn each_tensor_counts_once_and_when_it_has_been_read() {
        let bar = ProgressBar::hidden();
        let counted = Counted::new(&OneTensor, &bar);
        assert!(counted.tensor("a").is_some() && counted.tensor("a").is_some() && counted.tensor("b").is_none());
        assert_eq!(bar.position(), 0);
        counted.release("a");
        counted.release("a");
        assert_eq!(bar.position(), 8);
    }
}
