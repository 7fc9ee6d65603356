//! `/v1/completions`, answers in one piece.

use super::support::{Client, Setup};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

async fn ask(client: &Client, json: &Value) -> Value {
    let reply = client.post(PATH, json).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.redacted()
}

async fn ids(client: &Client, text: &str) -> Vec<u32> {
    let reply = client.post("/tokenize", &json!({"prompt": text})).await;
    serde_json::from_value(reply.json()["tokens"].clone()).unwrap()
}

#[tokio::test]
async fn a_text_is_continued() {
    let client = Setup::default().client();
    let request = json!({"model": "tale/alias", "prompt": "Once upon a time", "max_tokens": 50});
    insta::assert_json_snapshot!(ask(&client, &request).await);
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let client = Setup::default().client();
    let request = json!({"prompt": "Once upon a time there was a fox", "ignore_eos": true});
    let answer = ask(&client, &request).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn prompts_are_texts_or_ids_or_lists_of_them() {
    let client = Setup::default().client();
    let (one, two) = ("A red hen.", "Two blue birds sang.");
    let (one_ids, two_ids) = (ids(&client, one).await, ids(&client, two).await);
    let texts = async |prompt: Value| {
        let answer = ask(&client, &json!({"prompt": prompt, "n": 2})).await;
        let choices = answer["choices"].as_array().unwrap().clone();
        let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..choices.len() as u64).collect::<Vec<_>>());
        let texts: Vec<String> = choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect();
        (texts, answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize)
    };
    assert_eq!(texts(json!(one)).await, (vec![one.into(), one.into()], one_ids.len()));
    assert_eq!(texts(json!(one_ids)).await, (vec![one.into(), one.into()], one_ids.len()));
    let both = (vec![one.into(), one.into(), two.into(), two.into()], one_ids.len() + two_ids.len());
    assert_eq!(texts(json!([one, two])).await, both);
    assert_eq!(texts(json!([one_ids, two_ids])).await, both);
}

#[tokio::test]
async fn an_echo_has_the_log_probabilities_of_the_prompt() {
    let client = Setup::default().client();
    // What lm-evaluation-harness sends to score a text.
    let request = json!({"prompt": "Ein Vögelchen sang.", "echo": true, "logprobs": 1, "max_tokens": 1});
    insta::assert_json_snapshot!(ask(&client, &request).await["choices"][0]);
}

#[tokio::test]
async fn no_tokens_at_all_give_the_echo_alone() {
    let client = Setup::default().client();
    let request = json!({"prompt": ["One.", "Two."], "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = ask(&client, &request).await;
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    for (index, text) in ["One.", "Two."].iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!(choice["text"], *text);
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().concat_strings(), *text);
        assert_eq!(choice["logprobs"]["token_logprobs"][0], Value::Null);
    }
}

trait ConcatStrings {
    fn concat_strings(&self) -> String;
}

impl ConcatStrings for Vec<Value> {
    fn concat_strings(&self) -> String {
        self.iter().map(|value| value.as_str().unwrap()).collect()
    }
}

#[tokio::test]
async fn offsets_count_characters_of_the_text() {
    let client = Setup::default().client();
    let text = "Größe – 日本 🦊 end";
    let request = json!({"prompt": text, "echo": true, "logprobs": 0, "max_tokens": 60});
    let choice = ask(&client, &request).await["choices"][0].take();
    let echoed: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    assert_eq!(tokens.len(), offsets.len());
    let mut whole = 0;
    for (token, offset) in tokens.iter().zip(offsets) {
        let token = token.as_str().unwrap();
        let offset = offset.as_u64().unwrap() as usize;
        if !token.starts_with("bytes:") && !token.starts_with("<|") {
            let there: String = echoed[offset..offset + token.chars().count()].iter().collect();
            assert_eq!(there, token);
            whole += 1;
        }
    }
    assert!(whole > 4);
}

#[tokio::test]
async fn prompt_log_probabilities_in_vllms_form() {
    let client = Setup::default().client();
    let request = json!({"prompt": "Red hen", "prompt_logprobs": 1, "max_tokens": 1, "return_token_ids": true});
    insta::assert_json_snapshot!(ask(&client, &request).await["choices"][0]);
}

#[tokio::test]
async fn one_log_probability_is_one_number_everywhere() {
    let client = Setup::default().client();
    let messages = json!([{"role": "user", "content": "Red hen"}]);
    let tokens = client.post("/tokenize", &json!({"messages": messages})).await.json()["tokens"].take();
    let prompt_tokens = tokens.as_array().unwrap().len();
    let scored = json!({"prompt": tokens, "echo": true, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 3, "ignore_eos": true});
    let choice = client.post(PATH, &scored).await.json()["choices"][0].take();
    let logprobs = &choice["logprobs"];
    let chosen = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(chosen.len(), prompt_tokens + 3);
    for (index, value) in chosen.iter().enumerate().skip(1) {
        let name = logprobs["tokens"][index].as_str().unwrap();
        assert_eq!(logprobs["top_logprobs"][index][name], *value, "{logprobs}");
        if index < prompt_tokens {
            assert_eq!(choice["prompt_logprobs"][index][tokens[index].to_string()]["logprob"], *value);
        }
    }
    let chat = json!({"messages": messages, "logprobs": true, "top_logprobs": 1, "max_tokens": 3, "ignore_eos": true});
    let answer = client.post("/v1/chat/completions", &chat).await.json();
    for (index, token) in answer["choices"][0]["logprobs"]["content"].as_array().unwrap().iter().enumerate() {
        assert_eq!(token["logprob"], chosen[prompt_tokens + index]);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }
}

#[tokio::test]
async fn stop_strings_may_span_tokens() {
    let client = Setup::default().client();
    let text =
        async |stop: Value| client.text(&json!({"prompt": "The fox met a hen. \"Good morning!\"", "stop": stop})).await;
    assert_eq!(text(json!("met a")).await, "The fox ");
    assert_eq!(text(json!(["ood mor", "n. \"G"])).await, "The fox met a he");
    assert_eq!(text(json!(["Good evening"])).await, "The fox met a hen. \"Good morning!\"");
    assert_eq!(text(json!([])).await, "The fox met a hen. \"Good morning!\"");
}

#[tokio::test]
async fn nothing_stops_before_min_tokens() {
    let client = Setup::default().client();
    // The first four tokens are "a", " b", " a", " b".
    let request = json!({"prompt": "a b a b a b a b", "stop": "b", "min_tokens": 4, "max_tokens": 30});
    assert_eq!(client.text(&request).await, "a b a b a ");
    let past_the_end = json!({"prompt": "Hi", "min_tokens": 10, "max_tokens": 10});
    assert_eq!(ask(&client, &past_the_end).await["usage"]["completion_tokens"], 10);
}

#[tokio::test]
async fn a_long_prompt_can_be_cut_from_the_left() {
    let client = Setup::default().client();
    let text = "One two three four five six seven";
    let all = ids(&client, text).await;
    let request =
        json!({"prompt": text, "truncate_prompt_tokens": 3, "return_token_ids": true, "echo": true, "max_tokens": 0});
    let choice = ask(&client, &request).await["choices"][0].take();
    assert_eq!(choice["prompt_token_ids"], json!(all[all.len() - 3..]));
    assert!(text.ends_with(choice["text"].as_str().unwrap()), "{choice}");
    let endless = json!({"prompt": "word ".repeat(2000), "truncate_prompt_tokens": -1, "max_tokens": 24});
    let usage = ask(&client, &endless).await["usage"].take();
    assert_eq!(usage["prompt_tokens"], 1000);
}

#[tokio::test]
async fn bias_bans_and_allowances_reach_the_engine() {
    let client = Setup::default().client();
    let prompt = ids(&client, "red hen").await;
    let first = async |mut request: Value| {
        request["prompt"] = json!(prompt);
        request["max_tokens"] = json!(1);
        request["return_token_ids"] = json!(true);
        ask(&client, &request).await["choices"][0]["token_ids"][0].as_u64().unwrap() as u32
    };
    assert_eq!(first(json!({})).await, prompt[0]);
    assert_eq!(first(json!({"logit_bias": {"42": 100}})).await, 42);
    assert_eq!(first(json!({"allowed_token_ids": [77]})).await, 77);
    assert_ne!(first(json!({"bad_words": ["red"]})).await, prompt[0]);
}

#[tokio::test]
async fn ids_are_enough_for_a_model_without_a_tokenizer() {
    let client = Setup { tokenizer: false, ..Setup::default() }.client();
    let request = json!({"prompt": [5, 6, 7], "return_token_ids": true, "logprobs": 1, "max_tokens": 3});
    let choice = ask(&client, &request).await["choices"][0].take();
    assert_eq!(choice["token_ids"], json!([5, 6, 7]));
    assert_eq!(choice["text"], "");
    assert_eq!(choice["logprobs"]["tokens"], json!(["token_id:5", "token_id:6", "token_id:7"]));
    for (request, word) in [
        (json!({"prompt": "text"}), "needs a tokenizer"),
        (json!({"prompt": [5], "stop": "x"}), "needs a tokenizer"),
        (json!({"prompt": [5], "echo": true}), "needs a tokenizer"),
    ] {
        let (status, message, _) = client.post(PATH, &request).await.error();
        assert!(status == 400 && message.contains(word), "{message}");
    }
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let (status, message, _) = client.post("/v1/chat/completions", &chat).await.error();
    assert!(status == 400 && message.contains("no chat template"), "{message}");
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_become_texts() {
    let client = Setup::default().client();
    let request = json!({"prompt": "Once upon a time", "return_token_strs": true});
    let tokenized = client.post("/tokenize", &request).await.json();
    insta::assert_json_snapshot!(tokenized);
    let back = client.post("/detokenize", &json!({"tokens": tokenized["tokens"]})).await.json();
    assert_eq!(back, json!({"prompt": "Once upon a time"}));
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": false});
    let tokens = client.post("/tokenize", &chat).await.json()["tokens"].take();
    let text = client.post("/detokenize", &json!({"tokens": tokens})).await.json()["prompt"].take();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n");
    assert_eq!(client.post("/tokenize", &json!({"prompt": ""})).await.json()["count"], 0);
}
