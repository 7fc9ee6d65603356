//! Flags and commands of vLLM that ask for what is not there yet: known, so that they are answered better than misspelt
//! ones. Those that have a value which means what is there are real flags, in [`super::engine::LaterArgs`].

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::server::NO_TLS;

/// What is not there, what to do instead, and what asks for it.
const LATER: &[(&str, &[&str])] = &[
    (
        "LoRA is not available yet; leave the flag out",
        &[
            "--enable-lora",
            "--lora-modules",
            "--max-loras",
            "--max-lora-rank",
            "--max-cpu-loras",
            "--lora-dtype",
            "--fully-sharded-loras",
        ],
    ),
    (
        "parsing of reasoning and tool calls is not available yet; they come in the text, as the model wrote them",
        &[
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "--tool-parser-plugin",
            "--reasoning-parser",
            "--reasoning-parser-plugin",
        ],
    ),
    ("structured output is not available yet; leave the flag out", &["--structured-outputs-config"]),
    (
        "images are not available yet; leave the flag out",
        &["--limit-mm-per-prompt", "--mm-processor-kwargs", "--mm-processor-cache-gb", "--allowed-local-media-path"],
    ),
    (
        "prefix caching is not available yet; leave the flag out",
        &[
            "--prefix-caching-hash-algo",
            "--prefix-match-unit",
            "--prefix-cache-retention-interval",
            "--mamba-cache-mode",
            "--mamba-block-size",
            "--enable-mamba-shared-prefix-checkpoint",
        ],
    ),
    (
        "other types for some of the caches are not available yet; --kv-cache-dtype is for all layers, and GDN states are in \
         float32",
        &["--kv-cache-dtype-skip-layers", "--mamba-cache-dtype"],
    ),
    (
        "caches outside the device are not available yet; leave the flag out",
        &["--kv-transfer-config", "--kv-events-config", "--kv-offloading-size", "--kv-offloading-backend"],
    ),
    ("sleeping is not available yet; leave the flag out", &["--enable-sleep-mode"]),
    (
        "a model on several devices is not available yet; leave the flag out",
        &[
            "--enable-expert-parallel",
            "--decode-context-parallel-size",
            "--prefill-context-parallel-size",
            "--enable-dbo",
            "--enable-eplb",
            "--all2all-backend",
            "--distributed-executor-backend",
            "--nnodes",
            "--node-rank",
            "--master-addr",
            "--master-port",
        ],
    ),
    ("several servers in one are not available yet; start several", &["--api-server-count", "--headless"]),
    (
        "setting this part of scheduling is not available yet; --max-num-seqs and --max-num-batched-tokens can",
        &[
            "--long-prefill-token-threshold",
            "--max-num-partial-prefills",
            "--max-long-partial-prefills",
            "--async-scheduling",
            "--no-async-scheduling",
            "--watermark",
            "--stream-interval",
        ],
    ),
    ("a table of it is not available yet; leave the flag out", &["--cudagraph-metrics"]),
    (
        "nothing is compiled once a server is ready, and to watch for it is not available yet; leave the flag out",
        &["--jit-monitor-mode"],
    ),
    (
        "other kernels to choose from are not available yet; leave the flag out",
        &["--gdn-prefill-backend", "--attention-backend"],
    ),
    ("changing a model's configuration is not available yet; edit its config.json", &["--hf-overrides"]),
    (NO_TLS, &["--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers", "--enable-ssl-refresh"]),
    (
        "more about other origins than --allowed-origins is not available yet; put a proxy in front of the server",
        &["--allowed-methods", "--allowed-headers", "--allow-credentials"],
    ),
    ("middleware is not available yet; put a proxy in front of the server", &["--middleware"]),
    (
        "setting this part of the HTTP server is not available yet; leave the flag out",
        &["--h11-max-incomplete-event-size", "--h11-max-header-count", "--sse-keep-alive-interval"],
    ),
    (
        "this for all requests is not available yet; requests can ask for usage by stream_options",
        &["--enable-force-include-usage", "--enable-prompt-tokens-details"],
    ),
    (
        "logging what requests say is not available yet; --log-level is for everything else",
        &["--enable-log-requests", "--no-enable-log-requests", "--disable-log-requests", "--max-log-len"],
    ),
    ("this command is not available yet; there are latency, throughput, serve, table and startup", &["sweep"]),
];

/// What to say instead of an error of clap, if it doesn't know what vLLM has.
pub(super) fn explain(error: &clap::Error) -> Option<String> {
    let kind = match error.kind() {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return None,
    };
    let Some(ContextValue::String(unknown)) = error.get(kind) else { return None };
    let (why, _) = LATER.iter().find(|(_, names)| names.contains(&unknown.as_str()))?;
    Some(format!("{unknown}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{command, parse};
    use std::collections::BTreeSet;

    fn refusal(line: &str) -> Option<String> {
        parse(line.split(' ').map(Into::into)).err().map(|error| error.to_string())
    }

    #[test]
    fn what_vllm_has_is_said_to_be_missing_and_nothing_else_is() {
        let mut seen = BTreeSet::new();
        for (why, names) in LATER {
            for name in *names {
                assert!(seen.insert(name), "{name} stands here twice");
                let command = if name.starts_with("--") { "serve " } else { "bench " };
                let refusal = refusal(&format!("refrain {command}{name}")).unwrap();
                assert!(refusal.contains(&format!("{name}: {why}")) && why.contains("not available yet"), "{refusal}");
                assert!(!refusal.contains("similar"), "{refusal}");
            }
        }
        assert!(refusal("refrain serve --enable-lora=true").unwrap().contains("LoRA"));
        assert!(refusal("refrain serve --enable-loras").unwrap().contains("unexpected"));
    }

    #[test]
    fn every_flag_of_vllm_that_is_to_come_first_is_known() {
        let serve = command().find_subcommand("serve").unwrap().clone();
        let real: BTreeSet<String> =
            serve.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect();
        for flags in [
            "--model --tokenizer --served-model-name --dtype --max-model-len --chat-template --generation-config",
            "--override-generation-config --revision --download-dir --load-format --language-model-only",
            "--skip-mm-profiling --skip-tokenizer-init --gpu-memory-utilization --kv-cache-memory-bytes",
            "--num-gpu-blocks-override --block-size --kv-cache-dtype --enable-prefix-caching",
            "--no-enable-prefix-caching --mamba-ssm-cache-dtype --max-num-seqs --max-num-batched-tokens",
            "--enable-chunked-prefill --no-enable-chunked-prefill --scheduling-policy --max-num-queued-reqs",
            "--max-num-queued-tokens --enforce-eager --compilation-config --performance-mode --policy --device",
            "--tensor-parallel-size --host --port --uds --api-key --ssl-certfile --ssl-keyfile --allowed-origins",
            "--root-path --shutdown-timeout --enable-request-id-headers --disable-access-log-for-endpoints",
            "--otlp-traces-endpoint --speculative-config --quantization --pipeline-parallel-size",
            "--data-parallel-size --cpu-offload-gb",
        ] {
            for flag in flags.split(' ') {
                let later = LATER.iter().any(|(_, names)| names.contains(&flag));
                assert!(real.contains(flag) != later, "{flag} must be a flag, or to come");
            }
        }
    }
}
