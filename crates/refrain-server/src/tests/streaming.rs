//! Answers as server-sent events.

use super::parrot::FAILS;
use super::support::{Client, Setup};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn events(client: &Client, path: &str, json: &Value) -> Vec<Value> {
    let reply = client.post(path, json).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    reply.events()
}

#[tokio::test]
async fn a_chat_comes_token_by_token() {
    let client = Setup::default().client();
    let request = json!({
        "messages": [{"role": "user", "content": "Hi, fox"}], "stream": true,
        "stream_options": {"include_usage": true},
    });
    insta::assert_json_snapshot!(events(&client, CHAT, &request).await);
}

#[tokio::test]
async fn a_completion_comes_token_by_token() {
    let client = Setup::default().client();
    let request = json!({
        "prompt": "Hi!", "stream": true, "echo": true, "logprobs": 0, "max_tokens": 2, "return_token_ids": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    insta::assert_json_snapshot!(events(&client, COMPLETIONS, &request).await);
}

#[tokio::test]
async fn the_pieces_are_the_whole() {
    let client = Setup::default().client();
    for (path, head, text) in [
        (CHAT, json!({"messages": [{"role": "user", "content": "Ein 🦊 – und Würmer; stop it!"}]}), "/message/content"),
        (COMPLETIONS, json!({"prompt": ["Ein 🦊 – und Würmer; stop it!", "日本語"]}), "/text"),
    ] {
        let mut request = head;
        request.as_object_mut().unwrap().extend(
            json!({"n": 2, "max_tokens": 60, "stop": [" it"], "temperature": 0.9, "seed": 3})
                .as_object()
                .unwrap()
                .clone(),
        );
        let whole = client.post(path, &request).await.json();
        request["stream"] = json!(true);
        let mut texts = vec![String::new(); whole["choices"].as_array().unwrap().len()];
        let mut reasons = vec![Value::Null; texts.len()];
        let events = events(&client, path, &request).await;
        assert_eq!(events.last().unwrap(), "[DONE]");
        for choice in events.iter().filter_map(|event| event.get("choices")?.get(0)) {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(reasons[index], Value::Null, "nothing comes after the finish reason");
            texts[index].push_str(choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default());
            reasons[index] = choice["finish_reason"].clone();
        }
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(choice.pointer(text).unwrap(), &texts[index]);
            assert_eq!(choice["finish_reason"], reasons[index]);
        }
    }
}

#[tokio::test]
async fn usage_is_null_until_the_end_and_absent_unless_asked_for() {
    let client = Setup::default().client();
    let mut request = json!({"prompt": "Hi there", "stream": true});
    let plain = events(&client, COMPLETIONS, &request).await;
    assert!(plain.iter().all(|event| event.get("usage").is_none()));
    request["stream_options"] = json!({"include_usage": true});
    let counted = events(&client, COMPLETIONS, &request).await;
    let (last, before) = counted[..counted.len() - 1].split_last().unwrap();
    assert!(before.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    let whole = client.post(COMPLETIONS, &json!({"prompt": "Hi there"})).await.json();
    assert_eq!(last["usage"], whole["usage"]);
}

#[tokio::test]
async fn a_failure_in_the_middle_ends_the_stream_with_an_error() {
    let client = Setup::default().client();
    // The parrot says 500, then may not say 600 and says what it chokes on.
    let request = json!({
        "prompt": [500, 600], "stream": true, "max_tokens": 9, "return_token_ids": true,
        "logit_bias": {(FAILS.to_string()): 11},
        "allowed_token_ids": [500, FAILS],
    });
    let events = events(&client, COMPLETIONS, &request).await;
    assert_eq!(events[0]["choices"][0]["token_ids"], json!([500]));
    let error = &events[events.len() - 2]["error"];
    assert_eq!(error["type"], "server_error");
    assert_eq!(error["code"], "device_failure");
    assert!(error["message"].as_str().unwrap().contains("out of order"));
    assert_eq!(events.last().unwrap(), "[DONE]");
    // The next request is served.
    assert_eq!(client.text(&json!({"prompt": "still here"})).await, "still here");
    let whole = client.post(COMPLETIONS, &json!({"prompt": [FAILS]})).await;
    assert_eq!(whole.status, 500);
}
