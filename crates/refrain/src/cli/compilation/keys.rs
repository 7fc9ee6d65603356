//! Every key of vLLM's `compilation_config` and of its `pass_config`: what has an effect, and why the others have none.

/// A key.
pub(super) struct Key {
    /// Its name.
    pub name: &'static str,
    /// For a key without effect.
    pub other: Option<Other>,
}

/// Why a key has no effect, and with which values, as JSON, nobody misses it.
#[derive(Clone, Copy)]
pub(super) struct Other {
    /// A sentence.
    pub why: &'static str,
    /// Values that ask for what is done anyway.
    pub harmless: &'static [&'static str],
}

const fn ours(name: &'static str) -> Key {
    Key { name, other: None }
}

const fn other(name: &'static str, why: &'static str, harmless: &'static [&'static str]) -> Key {
    Key { name, other: Some(Other { why, harmless }) }
}

const NO_TORCH: &str = "it belongs to PyTorch's compiler, and there is no PyTorch here; leave it out";
const NO_OPS: &str = "which kernels run is decided by shapes and the device; leave it out";
const NO_IMAGES: &str = "there are no images here; leave it out";
const NO_LORA: &str = "LoRA is not available yet; leave it out";
const NO_EXPERTS: &str = "there are no experts in this family of models; leave it out";
const NO_SHARING: &str = "a model on several devices is not available yet; leave it out";
const NO_QUANTISED: &str = "attention has no quantised output here; leave it out";
const INTERNAL: &str = "vLLM sets it itself; leave it out";

/// The keys of `compilation_config`.
pub(super) const KEYS: &[Key] = &[
    ours("mode"),
    ours("level"),
    ours("cudagraph_mode"),
    ours("cudagraph_capture_sizes"),
    ours("max_cudagraph_capture_size"),
    ours("prefill_capture_sizes"),
    ours("compile_ranges_endpoints"),
    ours("compile_ranges_split_points"),
    ours("compile_sizes"),
    ours("pass_config"),
    other(
        "debug_dump_path",
        "the program before and after each pass is printed by `refrain explain`; leave it out",
        &[],
    ),
    other("cache_dir", "compiled kernels are kept in the folder of --kernel-cache-dir; use that", &["\"\""]),
    other("local_cache_dir", INTERNAL, &[]),
    other("compile_cache_save_format", "the cache of kernels has one format; leave it out", &[]),
    other("backend", NO_TORCH, &["\"\""]),
    other("custom_ops", NO_OPS, &["[]", "[\"none\"]", "[\"all\"]"]),
    other("splitting_ops", "graphs are broken at attention and the GDN scan, nowhere else; leave it out", &[]),
    other("compile_mm_encoder", NO_IMAGES, &["false"]),
    other("cudagraph_mm_encoder", NO_IMAGES, &["false"]),
    other("encoder_cudagraph_token_budgets", NO_IMAGES, &["[]"]),
    other("encoder_cudagraph_max_images_per_batch", NO_IMAGES, &["0"]),
    other("use_inductor", NO_TORCH, &["true", "false"]),
    other("inductor_compile_config", NO_TORCH, &["{}"]),
    other("inductor_passes", NO_TORCH, &["{}"]),
    other("use_inductor_graph_partition", NO_TORCH, &["false"]),
    other("dynamic_shapes_config", NO_TORCH, &["{}"]),
    other("ir_enable_torch_wrap", NO_TORCH, &[]),
    other("evaluate_guards", NO_TORCH, &["false"]),
    other("use_cudagraph", "it is gone from vLLM; use cudagraph_mode", &[]),
    other("full_cuda_graph", "it is gone from vLLM; use cudagraph_mode FULL", &["false"]),
    other("cudagraph_num_of_warmups", "each graph is launched once before the first step; leave it out", &["0", "1"]),
    other("cudagraph_copy_inputs", "inputs lie at the same addresses in every step; leave it out", &["false"]),
    other("cudagraph_specialize_lora", NO_LORA, &["true", "false"]),
    other("fast_moe_cold_start", NO_EXPERTS, &["true", "false"]),
    other("static_all_moe_layers", INTERNAL, &[]),
    other("static_forward_context", INTERNAL, &[]),
    other("bs_to_padded_graph_size", INTERNAL, &[]),
    other("enabled_custom_ops", INTERNAL, &[]),
    other("disabled_custom_ops", INTERNAL, &[]),
    other("traced_files", INTERNAL, &[]),
    other("compilation_time", INTERNAL, &[]),
];

/// The switches of `pass_config`.
pub(super) const PASSES: &[Key] = &[
    ours("fuse_add_rms_norm"),
    ours("fuse_norm_linear"),
    ours("fuse_linear_add"),
    ours("fuse_silu_mul"),
    ours("fuse_gated_norm_linear"),
    ours("fuse_qk_norm_rope_append"),
    ours("fuse_gdn_prepare"),
    ours("fuse_gdn_decode"),
    ours("fuse_sigmoid_gate"),
    ours("fuse_elementwise"),
    ours("fuse_norm_quant"),
    ours("fuse_act_quant"),
    other("fuse_attn_quant", NO_QUANTISED, &["false"]),
    other("eliminate_noops", "the program has no ops without effect; leave it out", &["true", "false"]),
    other("enable_sp", NO_SHARING, &["false"]),
    other("sp_min_token_num", NO_SHARING, &[]),
    other("fuse_gemm_comms", NO_SHARING, &["false"]),
    other("fuse_allreduce_rms", NO_SHARING, &["false"]),
    other("fi_allreduce_fusion_max_size_mb", NO_SHARING, &[]),
    other("fuse_act_padding", "nothing is padded here; leave it out", &["false"]),
    other("fuse_mla_dual_rms_norm", "there is no latent attention in this family of models; leave it out", &["false"]),
    other("fuse_rope_kvcache", "it is part of fuse_qk_norm_rope_append; use that", &["false"]),
    other("rope_kvcache_fusion_max_token_num", "fuse_qk_norm_rope_append has no such limit; leave it out", &[]),
];
