//! Bad requests: each is refused with a sentence that helps, and the server goes on.

use super::support::{Client, Setup};
use refrain_engine::SchedulingPolicy;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn base(path: &str) -> Value {
    match path {
        CHAT => json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
        _ => json!({"prompt": "Hi", "max_tokens": 2}),
    }
}

async fn refused(client: &Client, path: &str, fields: &Value) -> (u16, String, Option<String>) {
    let mut request = base(path);
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let reply = client.post(path, &request).await;
    assert!(!reply.status.is_success(), "{path} took {fields}");
    reply.error()
}

/// Every rule on both endpoints: fixes that miss a sibling are how such servers break.
#[tokio::test]
async fn both_endpoints_refuse_the_same() {
    let client = Setup::default().client();
    let cases = [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 1e300}), "temperature"),
        (json!({"temperature": true}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_p": -1e38}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"n": 2_000_000_000_i64}), "n"),
        (json!({"n": 1.0}), "n"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 5000}), "max_tokens"),
        (json!({"min_tokens": 3}), "min_tokens"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ["a", 1]}), "stop[1]"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["x".repeat(5000)]}), "stop"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": [9000]}), "stop_token_ids"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [1, 8192]}), "allowed_token_ids"),
        (json!({"bad_words": [""]}), "bad_words"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"8192": 1}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": -2}), "truncate_prompt_tokens"),
        (json!({"priority": 1}), "priority"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs"),
        (json!({"store": true}), "store"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"request_id": "two words"}), "request_id"),
        (json!({"temperatur": 1}), "temperatur"),
        (json!({"model": 3}), "model"),
    ];
    for (fields, param) in &cases {
        for path in [CHAT, COMPLETIONS] {
            let (status, message, found) = refused(&client, path, fields).await;
            assert_eq!((status, found.as_deref()), (400, Some(*param)), "{path} {fields}: {message}");
            assert!(message.contains(param.split(['[', '.']).next().unwrap()), "{path} {fields}: {message}");
        }
    }
    assert_eq!(client.text(&json!({"prompt": "still here"})).await, "still here");
}

#[tokio::test]
async fn each_endpoint_refuses_its_own() {
    let client = Setup::default().client();
    let cases = [
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, json!({"messages": null}), "messages"),
        (CHAT, json!({"prompt": "Hi"}), "prompt"),
        (CHAT, json!({"logprobs": 2}), "logprobs"),
        (CHAT, json!({"top_logprobs": 2}), "top_logprobs"),
        (CHAT, json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (CHAT, json!({"max_completion_tokens": 3}), "max_completion_tokens"),
        (CHAT, json!({"tools": {}}), "tools"),
        (CHAT, json!({"tools": [{"type": "function"}]}), "tools[0].function.name"),
        (CHAT, json!({"tools": [{"type": "magic"}]}), "tools[0].type"),
        (CHAT, json!({"tool_choice": "required"}), "tool_choice"),
        (CHAT, json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice"),
        (CHAT, json!({"tool_choice": "some"}), "tool_choice"),
        (CHAT, json!({"chat_template": "{{ x }}"}), "chat_template"),
        (CHAT, json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (CHAT, json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
        (CHAT, json!({"continue_final_message": true}), "continue_final_message"),
        (CHAT, json!({"reasoning_effort": "huge"}), "reasoning_effort"),
        (CHAT, json!({"modalities": ["text", "audio"]}), "modalities"),
        (CHAT, json!({"functions": []}), "functions"),
        (COMPLETIONS, json!({"prompt": null}), "prompt"),
        (COMPLETIONS, json!({"prompt": ""}), "prompt"),
        (COMPLETIONS, json!({"prompt": []}), "prompt"),
        (COMPLETIONS, json!({"prompt": [[]]}), "prompt[0]"),
        (COMPLETIONS, json!({"prompt": [1, "a"]}), "prompt[1]"),
        (COMPLETIONS, json!({"prompt": [8192]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [-1]}), "prompt[0]"),
        (COMPLETIONS, json!({"prompt": vec!["a"; 257]}), "prompt"),
        (COMPLETIONS, json!({"logprobs": 21}), "logprobs"),
        (COMPLETIONS, json!({"logprobs": true}), "logprobs"),
        (COMPLETIONS, json!({"best_of": 2}), "best_of"),
        (COMPLETIONS, json!({"suffix": "."}), "suffix"),
        (COMPLETIONS, json!({"messages": []}), "messages"),
    ];
    for (path, fields, param) in cases {
        let (status, message, found) = refused(&client, path, &fields).await;
        assert_eq!((status, found.as_deref()), (400, Some(param)), "{path} {fields}: {message}");
    }
    for (path, body, param) in [
        ("/tokenize", json!({}), Some("prompt")),
        ("/tokenize", json!({"prompt": 3}), Some("prompt")),
        ("/tokenize", json!({"prompt": "a", "promt": 1}), Some("promt")),
        ("/tokenize", json!({"prompt": "a", "messages": []}), Some("messages")),
        ("/detokenize", json!({}), Some("tokens")),
        ("/detokenize", json!({"tokens": [8192]}), Some("tokens[0]")),
        ("/detokenize", json!({"tokens": [1, -7]}), Some("tokens[1]")),
        ("/detokenize", json!({"tokens": "a"}), Some("tokens")),
    ] {
        let (status, message, found) = client.post(path, &body).await.error();
        assert_eq!((status, found.as_deref()), (400, param), "{path} {body}: {message}");
    }
    let both = json!({"prompt": "a", "messages": [{"role": "user", "content": "Hi"}]});
    let (_, message, _) = client.post("/tokenize", &both).await.error();
    assert!(message.contains("both given: give one of them"), "{message}");
    let one = json!({"prompt": "a", "messages": null});
    assert_eq!(client.post("/tokenize", &one).await.status, 200);
}

#[tokio::test]
async fn what_openai_clients_send_without_meaning_it_is_taken() {
    let client = Setup::default().client();
    let everything = json!({
        "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "prompt_cache_key": "k", "cache_salt": "x", "response_format": {"type": "text"}, "stop": null, "n": null,
        "temperature": null, "logit_bias": null, "stream_options": null, "seed": -5, "top_k": -1,
    });
    for path in [CHAT, COMPLETIONS] {
        let mut request = base(path);
        request.as_object_mut().unwrap().extend(everything.as_object().unwrap().clone());
        let reply = client.post(path, &request).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let mut chat = base(CHAT);
    let more = json!({"parallel_tool_calls": true, "modalities": ["text"], "tools": null, "tool_choice": "none"});
    chat.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(client.post(CHAT, &chat).await.status, 200);
}

#[tokio::test]
async fn errors_in_full() {
    let client = Setup::default().client();
    let long = json!({"prompt": vec![1; 1500]});
    let greedy = json!({"prompt": vec![1; 1000], "max_tokens": 100});
    let replies = [
        client.post(COMPLETIONS, &long).await,
        client.post(COMPLETIONS, &greedy).await,
        client.post(COMPLETIONS, &json!({"prompt": "a", "model": "gpt"})).await,
        client.post(COMPLETIONS, &json!({"prompt": "a", "max_token": 3})).await,
        client.post(CHAT, &json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})).await,
        client.post_bytes(CHAT, "{\"messages\": [\n  {\"role\": \"user\",}]}").await,
        client.get("/v1/models/gpt").await,
        client.get("/v1/embeddings").await,
        client.get(CHAT).await,
    ];
    let all: Vec<Value> =
        replies.iter().map(|reply| json!({"status": reply.status.as_u16(), "body": reply.json()})).collect();
    insta::assert_json_snapshot!(all);
}

#[tokio::test]
async fn what_the_template_says_reaches_the_client() {
    let cases = [
        ("{{ raise_exception('no cats here') }}", "no cats here"),
        ("{{ messages[7].content.upper() }}", "chat template fails"),
        // It ends on the greeting that templates are tried with when they are loaded, and on no other message.
        (
            "{% if messages[0].content != 'Hello' %}{% for i in range(99999) %}{% for k in range(99999) %}{{ k }}\
             {% endfor %}{% endfor %}{% endif %}",
            "does it end?",
        ),
        ("", "the prompt is empty"),
    ];
    for (template, words) in cases {
        let client = Setup { template: Some(template), ..Setup::default() }.client();
        let (status, message, param) = client.post(CHAT, &base(CHAT)).await.error();
        assert_eq!((status, param.as_deref()), (400, Some("messages")), "{message}");
        assert!(message.contains(words), "{template}: {message}");
        assert_eq!(client.text(&json!({"prompt": "still here"})).await, "still here");
    }
}

#[tokio::test]
async fn priorities_are_taken_where_they_mean_something() {
    let mut setup = Setup::default();
    setup.engine.scheduling_policy = SchedulingPolicy::Priority;
    assert_eq!(setup.client().text(&json!({"prompt": "Hi", "priority": -3})).await, "Hi");
}
