//! What the engine counts, under vLLM's names.

use prometheus_client::registry::Registry;

/// Metrics of one engine. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {}

impl EngineMetrics {
    /// Adds every metric to `registry`, with the label `model_name`.
    pub fn register(&self, registry: &mut Registry, model_name: &str) {
        let _ = (registry, model_name);
        todo!()
    }
}
