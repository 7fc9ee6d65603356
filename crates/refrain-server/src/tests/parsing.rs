//! The parsers of requests on everything that could arrive.

use crate::SamplingDefaults;
use crate::api::{ApiError, parse_chat, parse_completion};
use crate::http::{parse_detokenize, parse_tokenize};
use proptest::prelude::*;
use serde_json::{Map, Value};

/// Field names that exist, some that don't, and values of all kinds.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "system", "text", "auto", "none", "function", "", "é🦊", "{}"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..10)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => prop::sample::select(vec![
            "messages", "prompt", "role", "content", "type", "text", "tools", "tool_choice", "tool_calls", "function",
            "arguments", "name", "n", "stop", "temperature", "top_k", "seed", "logit_bias", "max_tokens", "logprobs",
            "top_logprobs", "stream", "stream_options", "include_usage", "echo", "response_format", "tokens",
            "chat_template_kwargs", "truncate_prompt_tokens", "min_tokens", "stop_token_ids", "allowed_token_ids",
        ]).prop_map(str::to_owned),
        1 => "[a-z_]{1,12}",
    ]
}

/// Whatever is refused is refused with 400 and a sentence.
fn check<T>(result: Result<T, ApiError>) {
    if let Err(error) = result {
        assert_eq!(error.status, 400);
        assert!(!error.message.is_empty());
        let json: Value = serde_json::from_str(&error.to_json()).unwrap();
        assert!(json["error"]["message"].is_string());
    }
}

fn parse_all(body: &[u8]) {
    let defaults = SamplingDefaults::default();
    check(parse_chat(body, &defaults));
    check(parse_completion(body, &defaults));
    check(parse_tokenize(body));
    check(parse_detokenize(body));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn no_json_makes_a_parser_panic(fields in prop::collection::vec((name(), json()), 0..12)) {
        let object = Value::Object(fields.into_iter().collect());
        parse_all(object.to_string().as_bytes());
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse_all(&bytes);
    }

    #[test]
    fn no_damage_to_a_good_request_makes_a_parser_panic(position in 0usize..400, byte in any::<u8>()) {
        let mut body = br#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a\u00e9\n"}]}],
            "temperature": 0.5, "stop": ["a", "b"], "logit_bias": {"12": -3.5}, "tools": [{"type": "function",
            "function": {"name": "f", "parameters": {}}}], "prompt": [[1, 2], [3]], "max_tokens": 12}"#.to_vec();
        let position = position % body.len();
        body[position] = byte;
        parse_all(&body);
    }
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        for field in ["messages", "prompt", "tools", "response_format", "stop", "logit_bias", "metadata"] {
            parse_all(format!("{{\"{field}\": {deep}}}").as_bytes());
        }
        parse_all(deep.as_bytes());
    }
}
