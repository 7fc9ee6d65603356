//! Which passes run.

use serde::{Deserialize, Serialize};

/// Makes [`PassConfig`] with its lists of names.
macro_rules! pass_config {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// A switch for each pass, all on by default. Written as JSON it is the `pass_config` of the command line; unknown
        /// names are errors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct PassConfig {
            $($(#[$meta])* pub $name: bool,)*
        }

        impl Default for PassConfig {
            fn default() -> PassConfig {
                PassConfig { $($name: true,)* }
            }
        }

        impl PassConfig {
            /// All off.
            pub fn none() -> PassConfig {
                PassConfig { $($name: false,)* }
            }

            /// Every pass with its switch.
            pub fn switches(&self) -> Vec<(&'static str, bool)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// Sets one switch; false when there is no pass of that name.
            pub fn set(&mut self, name: &str, on: bool) -> bool {
                match name {
                    $(stringify!($name) => self.$name = on,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

pass_config! {
    /// The addition to the residual stream with the norm that follows.
    fuse_add_rms_norm,
    /// A norm as the prologue of the product that follows, for few rows.
    fuse_norm_linear,
    /// The addition to the residual stream as the epilogue of the product before it, for few rows.
    fuse_linear_add,
    /// `silu(gate) * up` as the epilogue of the product before it, for few rows.
    fuse_silu_mul,
    /// The gated norm of GDN layers as the prologue of the product that follows, for few rows.
    fuse_gated_norm_linear,
    /// Norm and rotation of queries and keys with the append to the cache; vLLM's `enable_qk_norm_rope_fusion`.
    #[serde(alias = "enable_qk_norm_rope_fusion")]
    fuse_qk_norm_rope_append,
    /// Convolution, norm of queries and keys, and gates of GDN layers.
    fuse_gdn_prepare,
    /// The former with the scan, so that a step of generated tokens needs one kernel.
    fuse_gdn_decode,
    /// The gate of attention's result.
    fuse_sigmoid_gate,
    /// Chains of element-wise ops that nothing else has fused: their code is generated.
    fuse_elementwise,
    /// A norm with the quantisation of its result.
    fuse_norm_quant,
    /// An activation function with the quantisation of its result.
    fuse_act_quant,
}

impl PassConfig {
    /// Whether a pass runs.
    ///
    /// # Panics
    /// When there is no pass of that name.
    pub(super) fn runs(&self, name: &str) -> bool {
        let found = self.switches().into_iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no pass {name}")).1
    }
}
