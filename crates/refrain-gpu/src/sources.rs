//! The kernel sources, inside the binary.

use crate::loader::Digest;

macro_rules! sources {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../../kernels/", $name)))),*] };
}

/// Files that kernels include.
pub(crate) const HEADERS: &[(&str, &str)] = sources!["kx.h" "kx_cuda.h" "kx_fp8.h" "kx_hip.h" "kx_sim.h" "step.h" "attention.h" "attention_decode.h" "attention_decode_mma.h" "attention_prefill.h" "elementwise.h" "gdn_chunk.h" "gdn_gates.h" "gdn_state.h" "gdn_window.h" "gemv_around.h" "gemv_prologue.h" "kv_append.h" "kv_cache.h" "rope.h" "sample.h" "sample_list.h"];

/// Files with kernels in them.
pub(crate) const SOURCES: &[(&str, &str)] = sources![
    "attention_decode.cu"
    "attention_decode_fp8_mma.cu"
    "attention_decode_mma.cu"
    "attention_prefill.cu"
    "attention_prefill_mma.cu"
    "elementwise.cu"
    "gdn_chunk_prepare.cu"
    "gdn_chunk_scan.cu"
    "gdn_chunk_scan_mma.cu"
    "gdn_conv.cu"
    "gdn_gates.cu"
    "gdn_norm.cu"
    "gdn_recurrence.cu"
    "gdn_step.cu"
    "gemm.cu"
    "gemm_mma.cu"
    "gemv.cu"
    "gemv_mma.cu"
    "kv_append.cu"
    "kv_append_fp8.cu"
    "measure.cu"
    "norm.cu"
    "qk_norm_rope.cu"
    "qk_norm_rope_append.cu"
    "sample_choose.cu"
    "sample_scan.cu"
    "sample_top.cu"
];

/// The text of a kernel file.
///
/// # Panics
/// When there is none: kernels are named in this crate only.
pub(crate) fn source(name: &str) -> &'static str {
    let found = SOURCES.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no kernel source {name}")).1
}

/// Of all kernel sources: what was measured with them says nothing about others.
pub fn sources_digest() -> Digest {
    Digest::of_texts(HEADERS.iter().chain(SOURCES).map(|(_, text)| *text))
}
