//! The parsers of requests on everything that could arrive.

use super::support::Setup;
use crate::SamplingDefaults;
use crate::api::{ApiError, parse_chat, parse_completion};
use crate::http::{parse_detokenize, parse_tokenize};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};
use std::cell::Cell;

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

/// Values for one field, most of them allowed.
fn field() -> impl Strategy<Value = (&'static str, Value)> {
    let field = |name: &'static str, values: &[Value]| (name, prop::sample::select(values.to_vec()));
    let numbers = [json!(0), json!(0.3), json!(1), json!(-2), json!(1e-30), json!(1e30), json!("x"), json!(null)];
    let counts = [json!(0), json!(1), json!(7), json!(40), json!(-1), json!(1e3), json!(10_000_000_000_u64)];
    let ids = [json!([]), json!([0]), json!([8185]), json!([300, 300, 8000]), json!([8192]), json!([-1]), json!(5)];
    let flags = [json!(true), json!(false), json!(1)];
    let texts = [json!("a"), json!("he"), json!(["e", " "]), json!(""), json!([]), json!("\u{1F98A}"), json!({})];
    let bias = [json!({"0": 100}), json!({"8185": -100, "5": 3.5}), json!({"9000": 1}), json!({"a": 1}), json!({})];
    let fields = [
        field("temperature", &numbers),
        field("top_p", &numbers),
        field("min_p", &numbers),
        field("top_k", &counts),
        field("presence_penalty", &numbers),
        field("frequency_penalty", &numbers),
        field("repetition_penalty", &numbers),
        field("seed", &counts),
        field("n", &counts),
        field("max_tokens", &counts),
        field("min_tokens", &counts),
        field("logprobs", &counts),
        field("prompt_logprobs", &counts),
        field("truncate_prompt_tokens", &counts),
        field("stop_token_ids", &ids),
        field("allowed_token_ids", &ids),
        field("ignore_eos", &flags),
        field("echo", &flags),
        field("stream", &flags),
        field("return_token_ids", &flags),
        field("skip_special_tokens", &flags),
        field("include_stop_str_in_output", &flags),
        field("return_tokens_as_token_ids", &flags),
        field("stop", &texts),
        field("bad_words", &texts),
        field("logit_bias", &bias),
    ];
    (0..fields.len()).prop_flat_map(move |index| {
        let (name, values) = fields[index].clone();
        values.prop_map(move |value| (name, value))
    })
}

/// Whatever a request says, it is answered or refused, and the next one is served.
#[test]
fn no_request_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Setup::default().client();
    let request = (prop::collection::vec(field(), 0..7), prop::sample::select(vec!["Hello there, fox", "", "é\n🦊"]));
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() });
    let answered = Cell::new(0);
    let result = runner.run(&request, |(fields, prompt)| {
        let mut request = json!({"prompt": prompt, "max_tokens": 9});
        for (name, value) in fields {
            request[name] = value;
        }
        let reply = runtime.block_on(client.post("/v1/completions", &request));
        prop_assert!([200, 400].contains(&reply.status.as_u16()), "{request}: {}", reply.body);
        let failed = reply.body.contains("\"error\"") && !reply.body.contains("no_token_allowed");
        prop_assert!(!failed || reply.status == 400, "{request}: {}", reply.body);
        answered.set(answered.get() + usize::from(reply.status == 200));
        Ok(())
    });
    result.unwrap();
    assert!(answered.get() > 40, "only {} requests were answered", answered.get());
    assert_eq!(runtime.block_on(client.text(&json!({"prompt": "still here"}))), "still here");
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
