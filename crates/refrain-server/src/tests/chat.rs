//! `/v1/chat/completions`, answers in one piece.

use super::parrot::EOS;
use super::support::{Client, Setup};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

async fn ask(client: &Client, json: &Value) -> Value {
    let reply = client.post(PATH, json).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.redacted()
}

/// The prompt's text, by way of the device that repeats it.
async fn prompt_text(client: &Client, mut json: Value) -> String {
    json["ignore_eos"] = json!(true);
    json["skip_special_tokens"] = json!(false);
    json["return_token_ids"] = json!(true);
    json["max_tokens"] = json!(1);
    let prompt = ask(client, &json).await["prompt_token_ids"].take();
    client.post("/detokenize", &json!({"tokens": prompt})).await.json()["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_chat_is_answered() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "Tell me about a cat."}]);
    insta::assert_json_snapshot!(ask(&client, &json!({"model": "tinytales", "messages": messages})).await);
}

#[tokio::test]
async fn log_probabilities_name_tokens_and_their_bytes() {
    let client = Setup::default().client();
    let answer = ask(
        &client,
        &json!({
            "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 3,
            "logprobs": true, "top_logprobs": 2, "skip_special_tokens": false,
        }),
    )
    .await;
    insta::assert_json_snapshot!(answer["choices"][0]["logprobs"]);
}

#[tokio::test]
async fn names_of_tokens_can_be_their_ids() {
    let client = Setup::default().client();
    let answer = ask(
        &client,
        &json!({
            "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "logprobs": true,
            "return_tokens_as_token_ids": true, "return_token_ids": true,
        }),
    )
    .await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"]["content"][0]["token"], format!("token_id:{}", choice["token_ids"][0]));
    assert_eq!(choice["logprobs"]["content"][0]["top_logprobs"], json!([]));
    assert_eq!(answer["prompt_token_ids"][0], choice["token_ids"][0], "a parrot");
}

#[tokio::test]
async fn parts_of_text_are_read_like_text() {
    let client = Setup::default().client();
    let parts = json!([{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]);
    let as_parts = prompt_text(&client, json!({"messages": [{"role": "user", "content": parts}]})).await;
    let as_text = prompt_text(&client, json!({"messages": [{"role": "user", "content": "One two"}]})).await;
    assert_eq!(as_parts, as_text);
}

#[tokio::test]
async fn parts_are_joined_for_templates_that_want_strings() {
    let template = Some("{% for m in messages %}[{{ m.content.strip() }}]{% endfor %}");
    let client = Setup { template, ..Setup::default() }.client();
    let parts = json!([{"type": "text", "text": " One"}, {"type": "text", "text": "two "}]);
    let prompt = prompt_text(&client, json!({"messages": [{"role": "user", "content": parts}]})).await;
    assert_eq!(prompt, "[One\ntwo]");
}

#[tokio::test]
async fn variables_of_the_template_are_passed_on() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let plain = prompt_text(&client, json!({"messages": messages})).await;
    assert!(plain.ends_with("<think>\n\n</think>\n\n"), "{plain}");
    let kwargs = json!({"enable_thinking": true});
    let thinking = prompt_text(&client, json!({"messages": messages, "chat_template_kwargs": kwargs})).await;
    assert!(thinking.ends_with("<think>\n"), "{thinking}");
    let none = json!({"messages": messages, "reasoning_effort": "none"});
    assert_eq!(prompt_text(&client, none).await, plain);
}

#[tokio::test]
async fn tools_reach_the_template_unless_they_are_not_wanted() {
    let client = Setup::default().client();
    let request = |choice: Value| {
        json!({
            "messages": [{"role": "user", "content": "Weather?"}], "tool_choice": choice,
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        })
    };
    for choice in [Value::Null, json!("auto")] {
        assert!(prompt_text(&client, request(choice)).await.contains("\"name\": \"weather\""));
    }
    assert!(!prompt_text(&client, request(json!("none"))).await.contains("weather"));
}

#[tokio::test]
async fn the_last_message_can_be_continued_and_echoed() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]);
    let request = json!({"messages": messages, "add_generation_prompt": false, "continue_final_message": true});
    assert!(prompt_text(&client, request.clone()).await.ends_with("Once upon"));
    let mut echo = request;
    echo["echo"] = json!(true);
    echo["max_tokens"] = json!(4);
    let answer = ask(&client, &echo).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with("Once upon"), "{content}");
}

#[tokio::test]
async fn without_max_tokens_the_answer_may_fill_the_context() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "On and on"}]);
    let answer = ask(&client, &json!({"messages": messages, "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["total_tokens"], 1024);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn answers_to_the_same_seed_are_the_same_and_n_of_them_differ() {
    let client = Setup::default().client();
    let request = json!({
        "messages": [{"role": "user", "content": "Let me hear something long and full of chance."}],
        "temperature": 1.8, "seed": 11, "n": 3, "max_tokens": 40, "ignore_eos": true, "skip_special_tokens": false,
    });
    let first = ask(&client, &request).await;
    let contents = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let three = contents(&first);
    assert_eq!(three, contents(&ask(&client, &request).await));
    assert!(three[0] != three[1] && three[1] != three[2] && three[0] != three[2], "{three:?}");
    // Answer i has the seed 11 + i.
    let mut alone = request;
    alone["seed"] = json!(12);
    alone["n"] = json!(1);
    assert_eq!(contents(&ask(&client, &alone).await)[0], three[1]);
    assert_eq!(first["usage"]["completion_tokens"], 120);
}

#[tokio::test]
async fn the_reason_of_the_end_is_told() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "A story. The end. More."}]);
    let ends = async |more: Value| {
        let mut request = json!({"messages": messages});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let choice = ask(&client, &request).await["choices"][0].take();
        (
            choice["finish_reason"].clone(),
            choice["stop_reason"].clone(),
            choice["message"]["content"].as_str().unwrap().to_owned(),
        )
    };
    let text = "user\nA story. The end. More.".to_owned();
    assert_eq!(ends(json!({})).await, (json!("stop"), Value::Null, text.clone()));
    let stopped = "user\nA story. ".to_owned();
    assert_eq!(ends(json!({"stop": "The end"})).await, (json!("stop"), json!("The end"), stopped));
    let included = json!({"stop": ["zzz", "he end"], "include_stop_str_in_output": true});
    assert_eq!(ends(included).await, (json!("stop"), json!("he end"), "user\nA story. The end".to_owned()));
    let token = json!({"stop_token_ids": [EOS], "ignore_eos": true});
    assert_eq!(ends(token).await, (json!("stop"), json!(EOS), text));
    assert_eq!(ends(json!({"max_tokens": 2})).await.0, json!("length"));
}
