//! What the engine counts, under vLLM's names, so that its dashboards work; what vLLM lacks is under `refrain:`.

mod buckets;
mod modes;
mod preparation;

use crate::Load;
use crate::clock::Clock;
use crate::policy::Policy;
use buckets::{FIRST_TOKEN, REQUEST, STEP, TOKEN, one_two_five};
use modes::StepModes;
use preparation::Preparation;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use refrain_device::{BLOCK_TOKENS, Backend};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a request ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An end-of-sequence or stop token, or the caller had what it wanted.
    Stop,
    /// `max_tokens` or the context limit.
    Length,
    /// The client went away, or the engine was stopped.
    Abort,
    /// The device or the model failed.
    Error,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishedReason {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WaitingReason {
    reason: &'static str,
}

/// vLLM's `CacheConfig` as labels, in Python's spelling; those of its members that an engine here has, too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: usize,
    enable_prefix_caching: &'static str,
    num_gpu_blocks: usize,
}

/// Metrics of one engine. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: Family<WaitingReason, Gauge>,
    cache_config: Family<CacheConfig, Gauge>,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    kv_cache_usage: Gauge<f64, AtomicU64>,
    kv_blocks: Gauge,
    kv_blocks_total: Gauge,
    slots: Gauge,
    slots_total: Gauge,
    steps: Counter,
    failed_steps: Counter,
    rejections: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    success: Family<FinishedReason, Counter>,
    corrupted: Counter,
    step_tokens: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    end_to_end: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    request_prompt: Histogram,
    request_generation: Histogram,
    request_max_tokens: Histogram,
    request_preemptions: Histogram,
    modes: StepModes,
    preparation: Preparation,
}

impl EngineMetrics {
    /// All at zero; the buckets for tokens go up to `max_model_len`. The engine has `blocks` KV blocks, and runs its steps
    /// as `policy` says.
    pub(crate) fn new(max_model_len: usize, blocks: usize, policy: Arc<Mutex<Policy>>) -> Self {
        let success = Family::<FinishedReason, Counter>::default();
        for outcome in Outcome::ALL {
            drop(success.get_or_create(&FinishedReason { finished_reason: outcome.name() }));
        }
        let waiting_by_reason = Family::<WaitingReason, Gauge>::default();
        // What vLLM calls deferred waits for something else than its turn, which nothing does here.
        drop(waiting_by_reason.get_or_create(&WaitingReason { reason: "deferred" }));
        let cache_config = Family::<CacheConfig, Gauge>::default();
        let labels = CacheConfig { block_size: BLOCK_TOKENS, enable_prefix_caching: "False", num_gpu_blocks: blocks };
        cache_config.get_or_create(&labels).set(1);
        Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            waiting_by_reason,
            cache_config,
            // Both stay 0, as in vLLM without prefix caching: nothing is looked up.
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            kv_cache_usage: Gauge::default(),
            kv_blocks: Gauge::default(),
            kv_blocks_total: Gauge::default(),
            slots: Gauge::default(),
            slots_total: Gauge::default(),
            steps: Counter::default(),
            failed_steps: Counter::default(),
            rejections: Counter::default(),
            preemptions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            success,
            corrupted: Counter::default(),
            step_tokens: Histogram::new(STEP),
            first_token: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(TOKEN),
            per_output_token: Histogram::new(TOKEN),
            end_to_end: Histogram::new(REQUEST),
            queue: Histogram::new(REQUEST),
            prefill: Histogram::new(REQUEST),
            decode: Histogram::new(REQUEST),
            inference: Histogram::new(REQUEST),
            request_prompt: Histogram::new(one_two_five(max_model_len)),
            request_generation: Histogram::new(one_two_five(max_model_len)),
            request_max_tokens: Histogram::new(one_two_five(max_model_len)),
            request_preemptions: Histogram::new([0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]),
            modes: StepModes(policy),
            preparation: Preparation::default(),
        }
    }

    /// What the backend reports of what was done before the first request.
    pub(crate) fn prepared(&mut self, backend: &dyn Backend) {
        self.preparation = Preparation::of(backend);
    }

    /// Adds every metric to `registry`, with the label `model_name`.
    pub fn register(&self, registry: &mut Registry, model_name: &str) {
        let label = ("model_name".into(), model_name.to_owned().into());
        let registry = registry.sub_registry_with_label(label);
        fn add(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
            registry.register(name, help, metric.clone());
        }
        let r = registry;
        add(r, "vllm:num_requests_running", "Requests that hold a state slot", &self.running);
        add(r, "vllm:num_requests_waiting", "Requests that wait for their turn", &self.waiting);
        let help = "Requests that wait, by what for: capacity is their turn";
        add(r, "vllm:num_requests_waiting_by_reason", help, &self.waiting_by_reason);
        add(r, "vllm:cache_config_info", "How the KV cache is made", &self.cache_config);
        add(r, "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache", &self.prefix_cache_queries);
        add(r, "vllm:prefix_cache_hits", "Tokens found in the prefix cache", &self.prefix_cache_hits);
        add(r, "vllm:kv_cache_usage_perc", "KV blocks in use, 1 is all", &self.kv_cache_usage);
        add(r, "vllm:num_preemptions", "Times a request was thrown back to be recomputed", &self.preemptions);
        add(r, "vllm:admission_rejections", "Requests refused because the queue was full", &self.rejections);
        add(r, "vllm:prompt_tokens", "Prompt tokens computed", &self.prompt_tokens);
        add(r, "vllm:generation_tokens", "Tokens generated", &self.generation_tokens);
        add(r, "vllm:request_success", "Requests that ended, by reason", &self.success);
        add(r, "vllm:corrupted_requests", "Requests whose logits were not finite", &self.corrupted);
        add(r, "vllm:iteration_tokens_total", "Tokens in one step", &self.step_tokens);
        add(r, "vllm:time_to_first_token_seconds", "From arrival to the first token", &self.first_token);
        add(r, "vllm:inter_token_latency_seconds", "From one token to the next", &self.inter_token);
        add(r, "vllm:time_per_output_token_seconds", "Old name of inter_token_latency_seconds", &self.inter_token);
        let help = "Mean time from one token to the next over a request";
        add(r, "vllm:request_time_per_output_token_seconds", help, &self.per_output_token);
        add(r, "vllm:e2e_request_latency_seconds", "From arrival to the last token", &self.end_to_end);
        add(r, "vllm:request_queue_time_seconds", "From arrival to the first step", &self.queue);
        add(r, "vllm:request_prefill_time_seconds", "From the first step to the first token", &self.prefill);
        add(r, "vllm:request_decode_time_seconds", "From the first token to the last", &self.decode);
        add(r, "vllm:request_inference_time_seconds", "From the first step to the last token", &self.inference);
        add(r, "vllm:request_prompt_tokens", "Prompt tokens of a request", &self.request_prompt);
        add(r, "vllm:request_generation_tokens", "Generated tokens of a request", &self.request_generation);
        add(r, "vllm:request_params_max_tokens", "max_tokens of a request", &self.request_max_tokens);
        add(r, "vllm:request_num_preemptions", "Preemptions of a request", &self.request_preemptions);
        add(r, "refrain:kv_blocks_used", "KV blocks in use", &self.kv_blocks);
        add(r, "refrain:kv_blocks", "KV blocks in the pool", &self.kv_blocks_total);
        add(r, "refrain:state_slots_used", "State slots in use", &self.slots);
        add(r, "refrain:state_slots", "State slots in the pool", &self.slots_total);
        add(r, "refrain:steps", "Steps executed", &self.steps);
        add(r, "refrain:failed_steps", "Steps in which the device failed", &self.failed_steps);
        self.preparation.register(r);
        r.register_collector(Box::new(self.modes.clone()));
    }

    pub(crate) fn set_load(&self, load: &Load) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(gauge(load.running));
        self.waiting.set(gauge(load.waiting));
        self.waiting_by_reason.get_or_create(&WaitingReason { reason: "capacity" }).set(gauge(load.waiting));
        self.kv_cache_usage.set(load.kv_blocks_used as f64 / load.kv_blocks_total.max(1) as f64);
        self.kv_blocks.set(gauge(load.kv_blocks_used));
        self.kv_blocks_total.set(gauge(load.kv_blocks_total));
        self.slots.set(gauge(load.slots_used));
        self.slots_total.set(gauge(load.slots_total));
    }

    pub(crate) fn rejected(&self) {
        self.rejections.inc();
    }

    pub(crate) fn preempted(&self, requests: usize) {
        self.preemptions.inc_by(requests as u64);
    }

    /// A step of that many tokens was executed.
    pub(crate) fn step(&self, tokens: usize, failed: bool) {
        self.steps.inc();
        if failed {
            self.failed_steps.inc();
        }
        self.step_tokens.observe(tokens as f64);
    }

    /// A request's prompt is computed and its first token is there.
    pub(crate) fn first_token(&self, prompt: usize, since_arrival: Duration) {
        self.prompt_tokens.inc_by(prompt as u64);
        self.generation_tokens.inc();
        self.first_token.observe(since_arrival.as_secs_f64());
    }

    /// A later token of a request.
    pub(crate) fn token(&self, since_last: Duration) {
        self.generation_tokens.inc();
        self.inter_token.observe(since_last.as_secs_f64());
    }

    pub(crate) fn corrupted(&self) {
        self.corrupted.inc();
    }

    /// A request ended.
    pub(crate) fn ended(&self, outcome: Outcome, request: &EndedRequest<'_>) {
        self.success.get_or_create(&FinishedReason { finished_reason: outcome.name() }).inc();
        let clock = request.clock;
        self.end_to_end.observe(clock.end_to_end().as_secs_f64());
        self.request_prompt.observe(request.prompt as f64);
        self.request_generation.observe(request.generated as f64);
        self.request_max_tokens.observe(request.max_tokens as f64);
        self.request_preemptions.observe(f64::from(clock.preemptions));
        let intervals = [
            (&self.queue, clock.queue()),
            (&self.prefill, clock.prefill()),
            (&self.decode, clock.decode()),
            (&self.inference, clock.inference()),
            (
                &self.per_output_token,
                clock.decode().filter(|_| request.generated > 1).map(|t| t / (request.generated as u32 - 1)),
            ),
        ];
        for (histogram, interval) in intervals {
            if let Some(interval) = interval {
                histogram.observe(interval.as_secs_f64());
            }
        }
    }
}

/// What the metrics want to know of a request that has ended.
pub(crate) struct EndedRequest<'a> {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer.
    pub generated: usize,
    /// What it asked for at most.
    pub max_tokens: usize,
    /// When what happened.
    pub clock: &'a Clock,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Phase, PolicyMode};
    use refrain_device::{
        Cell, DeviceError, DeviceInfo, GraphReport, KernelReport, Part, RefusedCell, Replay, Step, StepLimits,
        StepOutput, StepShape,
    };

    /// A policy of eager steps and a graph of 4 rows, after a step of each and one on its way.
    fn policy() -> Arc<Mutex<Policy>> {
        let graph = Cell { compiled: true, replay: Replay::Full, part: Part::Decode, rows: 4 };
        let limits = StepLimits { max_tokens: 68, max_segments: 4, max_logit_rows: 68, max_model_len: 100 };
        let mut policy = Policy::new(PolicyMode::Graph, &[Cell::EAGER, graph], &limits, 1);
        let decode = |rows| StepShape { rows, sequences: rows, decodes: rows, context: 9, ..StepShape::default() };
        assert_eq!(policy.begin(&decode(3), 1.0), graph);
        policy.finish(1.5);
        policy.set_mode(PolicyMode::Eager);
        assert_eq!(policy.begin(&decode(3), 2.0), Cell::EAGER);
        policy.finish(2.25);
        policy.begin(&StepShape { rows: 64, decodes: 0, one_prefill: true, ..decode(1) }, 3.0);
        policy.tell(Phase::Decode, 0.25);
        Arc::new(Mutex::new(policy))
    }

    /// A device that reports what it has done, and does nothing.
    struct Prepared(DeviceInfo, GraphReport);

    fn graphs() -> GraphReport {
        let refused = RefusedCell { cell: Cell::EAGER, why: "a test".to_owned(), over_budget: false };
        GraphReport { refused: vec![refused], bytes: 4096, seconds: 0.5, ..GraphReport::default() }
    }

    impl Backend for Prepared {
        fn device(&self) -> &DeviceInfo {
            &self.0
        }

        fn graphs(&self) -> Option<&GraphReport> {
            Some(&self.1)
        }

        fn kernels(&self) -> Option<KernelReport> {
            Some(KernelReport { from_packs: 1, from_cache: 2, compiled: 3, seconds: 1.5 })
        }

        fn begin(&mut self, _: &Step, _: Cell) -> Result<(), DeviceError> {
            unreachable!("nothing is executed")
        }

        fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
            unreachable!("nothing is executed")
        }
    }

    #[test]
    fn names_and_labels_are_vllms() {
        let mut metrics = EngineMetrics::new(100, 4, policy());
        metrics.prepared(&Prepared(DeviceInfo::default(), graphs()));
        let mut registry = Registry::default();
        metrics.register(&mut registry, "tiny");
        metrics.preempted(2);
        metrics.set_load(&Load { waiting: 3, kv_blocks_used: 1, kv_blocks_total: 4, ..Load::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let names: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        insta::assert_snapshot!("names", names.join("\n"));
        for line in [
            "vllm:num_preemptions_total{model_name=\"tiny\"} 2",
            "vllm:num_requests_waiting_by_reason{model_name=\"tiny\",reason=\"capacity\"} 3",
            "vllm:num_requests_waiting_by_reason{model_name=\"tiny\",reason=\"deferred\"} 0",
            "vllm:cache_config_info{model_name=\"tiny\",block_size=\"16\",enable_prefix_caching=\"False\",\
             num_gpu_blocks=\"4\"} 1",
            "vllm:prefix_cache_queries_total{model_name=\"tiny\"} 0",
            "vllm:prefix_cache_hits_total{model_name=\"tiny\"} 0",
            "vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.25",
            "vllm:request_success_total{model_name=\"tiny\",finished_reason=\"abort\"} 0",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.001\"} 0",
            "refrain:kernels{model_name=\"tiny\",from=\"compiler\"} 3",
            "refrain:compile_seconds{model_name=\"tiny\"} 1.5",
            "refrain:graph_memory_bytes{model_name=\"tiny\"} 4096",
            "refrain:graph_cells{model_name=\"tiny\",state=\"refused\"} 1",
            "refrain:graph_cell_refused{model_name=\"tiny\",cell=\"eager\",reason=\"a test\"} 1",
            "refrain:step_mode_total{model_name=\"tiny\",phase=\"decode\",mode=\"compiled+graph\",bucket=\"4\"} 1",
            "refrain:step_mode_total{model_name=\"tiny\",phase=\"prefill\",mode=\"eager\",bucket=\"none\"} 1",
            "refrain:step_padding_rows_total{model_name=\"tiny\",phase=\"decode\",mode=\"compiled+graph\",\
             bucket=\"4\"} 1",
            "refrain:policy_step_seconds{model_name=\"tiny\",phase=\"decode\",rows=\"3\",\
             context=\"1-100\",mode=\"eager\",bucket=\"none\"} 0.25",
            "refrain:policy_samples{model_name=\"tiny\",phase=\"decode\",rows=\"3\",\
             context=\"1-100\",mode=\"compiled+graph\",bucket=\"4\"} 8.0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in\n{text}");
        }
    }
}
