use serde_json::json;

use super::*;

fn input<'a>(messages: &'a Value, kwargs: &'a Map<String, Value>) -> ChatInput<'a> {
    ChatInput { messages, tools: None, add_generation_prompt: false, continue_final_message: false, kwargs }
}

/// Renders a template with these variables and no messages.
fn render(source: &str, variables: &Map<String, Value>) -> Result<String, TemplateError> {
    ChatTemplate::new(source, &SpecialTokens::default())?.render(&input(&json!([]), variables))
}

#[test]
fn tinytales_chats_render_as_in_transformers() {
    let source = String::from_utf8(crate::embedded::file("chat_template.jinja").unwrap().to_vec()).unwrap();
    let special = SpecialTokens { bos: Some("<s>".into()), eos: Some("<|im_end|>".into()), ..SpecialTokens::default() };
    let template = ChatTemplate::new(&source, &special).unwrap();
    let chats: Vec<Value> = serde_json::from_str(include_str!("fixtures/chats.json")).unwrap();
    for chat in &chats {
        let kwargs = chat.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
        let input = ChatInput {
            messages: &chat["messages"],
            tools: chat.get("tools"),
            add_generation_prompt: chat.get("add_generation_prompt").is_none_or(|flag| flag == true),
            continue_final_message: chat.get("continue_final_message").is_some(),
            kwargs: &kwargs,
        };
        assert_eq!(template.render(&input).unwrap(), chat["prompt"], "{}", chat["messages"]);
    }
}

/// The prompts that the model is measured by, and their lengths in tokens.
#[test]
fn the_prompts_of_the_evaluation_render_and_encode_as_in_transformers() {
    let model = crate::Model::open(&crate::ModelSource::Embedded).unwrap();
    let (template, tokenizer) = (model.template.unwrap(), model.tokenizer.unwrap());
    let evals = include_str!("../../../../goldens/tinytales_evals.jsonl");
    assert_eq!(evals.lines().count(), 240);
    for eval in evals.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let kwargs = Map::new();
        let tools = eval.get("tools").filter(|tools| !tools.is_null());
        let input = ChatInput { tools, add_generation_prompt: true, ..input(&eval["messages"], &kwargs) };
        let prompt = template.render(&input).unwrap();
        assert_eq!(prompt, eval["prompt"]);
        assert_eq!(tokenizer.encode(&prompt, false).unwrap().len(), eval["prompt_tokens"]);
        let ids: Vec<u32> = serde_json::from_value(eval["reference_ids"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).trim(), eval["reference"].as_str().unwrap().trim());
    }
}

#[test]
fn snippets_render_as_in_python() {
    let fixtures: Value = serde_json::from_str(include_str!("fixtures/snippets.json")).unwrap();
    let mut differences = Vec::new();
    for snippet in fixtures["snippets"].as_array().unwrap() {
        let template = snippet["template"].as_str().unwrap();
        let rendered = render(template, fixtures["values"].as_object().unwrap());
        match (&rendered, &snippet["text"]) {
            (Ok(text), expected) if text == expected => {}
            (Err(_), Value::Null) => {}
            _ => differences.push(format!("{template}\n  python: {}\n  here:   {rendered:?}", snippet["text"])),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn what_would_not_end_or_fill_the_memory_is_stopped() {
    let loops = [
        // Nested loops without end for all practical purposes.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
        "{% import 'chat_template' as x %}{{ x }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['x']) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=['x']) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s='x' * 1000) %}{% for i in range(9) %}{% set ns.s = [ns.s] * 99 %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = {'k': ns.s} %}{% endfor %}{{ ns.s | string }}",
        "{% for i in range(99999999) %}{% endfor %}",
        "{{ 'x' * 99999999999 }}",
        "{{ 'x'.replace('', 'y' * 9999) * 99999 }}",
        "{% set x = 'a,' * 99999 %}{% for i in range(9999) %}{% set y = x.rsplit(',') %}{% endfor %}",
        "{{ [1] | tojson(indent=9999999999) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
    ];
    for source in loops {
        let result = render(source, &Map::new());
        assert!(result.is_err(), "{source}: {} bytes", result.unwrap().len());
    }
    let long = "{% set x = 'x' * 1048576 %}{% for i in range(99) %}{{ x }}{% endfor %}";
    assert!(matches!(render(long, &Map::new()), Err(TemplateError::Limit { what: "bytes", .. })));
    let endless = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(endless, &Map::new()).unwrap_err().to_string();
    assert_eq!(error, "the chat template takes more than 4000000 steps: does it end?");
}

#[test]
fn a_long_conversation_stays_below_the_limits() {
    let source = String::from_utf8(crate::embedded::file("chat_template.jinja").unwrap().to_vec()).unwrap();
    let template = ChatTemplate::new(&source, &SpecialTokens::default()).unwrap();
    let text = "word ".repeat(2000);
    let message = |i: usize| json!({ "role": if i.is_multiple_of(2) { "user" } else { "assistant" }, "content": text });
    let messages: Value = (0..1000).map(message).collect();
    let prompt = template.render(&input(&messages, &Map::new())).unwrap();
    assert!(prompt.len() > 10_000_000, "{}", prompt.len());
}

#[test]
fn errors_say_what_and_where() {
    let mut messages = Vec::new();
    for source in [
        "line\n{% if %}",
        "{% for x in y %}",
        "{{ 'a' ",
        "{{ missing.attribute }}",
        "a\nb\n{{ 1 + 'a' }}",
        "{{ x | nofilter }}",
        "{{ 'a'.nomethod() }}",
        "{{ raise_exception('Conversation roles must alternate.') }}",
        "{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{{ m() }}",
        "{{ missing | tojson }}",
        "{{ 1 | tojson(colour='red') }}",
        "{{ strftime_now('%Q') }}",
    ] {
        messages.push(render(source, &Map::new()).unwrap_err().to_string());
    }
    insta::assert_snapshot!(messages.join("\n"));
    let raised = render("{{ raise_exception('no') }}", &Map::new()).unwrap_err();
    assert!(matches!(raised, TemplateError::Raised { message } if message == "no"));
}

#[test]
fn arguments_can_not_replace_the_messages() {
    for name in ["messages", "tools", "add_generation_prompt", "chat_template"] {
        let kwargs = Map::from_iter([(name.to_string(), json!([]))]);
        match render("x", &kwargs) {
            Err(TemplateError::Reserved { name: found }) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
    let kwargs = Map::from_iter([("bos_token".to_string(), json!("mine"))]);
    assert_eq!(render("{{ bos_token }}", &kwargs).unwrap(), "mine");
}

#[test]
fn messages_of_another_form_are_refused() {
    let template = ChatTemplate::new("{{ messages[0].role }}", &SpecialTokens::default()).unwrap();
    for messages in [json!({}), json!("hi"), json!(["hi"]), json!([null]), json!(null)] {
        assert!(matches!(template.render(&input(&messages, &Map::new())), Err(TemplateError::Failed { .. })));
    }
}

#[test]
fn a_final_message_that_can_not_be_continued_is_refused() {
    let render = |source: &str, messages: Value, add_generation_prompt| {
        let kwargs = Map::new();
        let input = ChatInput { continue_final_message: true, add_generation_prompt, ..input(&messages, &kwargs) };
        ChatTemplate::new(source, &SpecialTokens::default()).unwrap().render(&input)
    };
    let echo = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
    assert_eq!(render(echo, json!([{ "content": "a" }, { "content": "b " }]), false).unwrap(), "<a><b ");
    let strip = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";
    assert_eq!(render(strip, json!([{ "content": "b " }]), false).unwrap(), "<b");
    for (source, messages, add) in [
        (echo, json!([]), false),
        (echo, json!([{ "content": null }]), false),
        (echo, json!([{ "content": [{ "type": "image_url" }] }]), false),
        (echo, json!([{ "content": "b" }]), true),
        ("{{ messages[0].content }}", json!([{ "content": "a" }, { "content": "b" }]), false),
        ("{{ messages[-1].content | upper }}", json!([{ "content": "b" }]), false),
    ] {
        let result = render(source, messages, add);
        assert!(matches!(result, Err(TemplateError::Continue { .. })), "{source}: {result:?}");
    }
}

#[test]
fn generation_blocks_do_not_hide_other_tags() {
    assert_eq!(
        without_generation_blocks("{% if generation %}{%- generation -%}x{%+ endgeneration %}{%"),
        "{% if generation %}{%- with -%}x{%+ endwith %}{%"
    );
    assert_eq!(without_generation_blocks("no tags"), "no tags");
}

proptest::proptest! {
    #[test]
    fn any_template_is_answered(source in r"(\{%[- ]?(if|for|set|macro|endif|endfor|else|block|raw|generation) ?[a-z.\[\]()'|=1 ]{0,12}-?%\}|\{\{[a-z.\[\]()'|~+*1 ]{0,12}\}\}|.){0,12}") {
        let _ = render(&source, &Map::new());
    }
}

/// The thread that is given up here ends with the test process.
#[test]
fn a_list_that_grows_without_end_runs_out_of_steps() {
    for grow in [
        "{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% for i in range(60) %}{% set ns.l = (ns.l + ns.l) * 2 + [i] %}{% endfor %}",
        &"{% set ns.l = ns.l + ns.l + ns.l %}".repeat(50),
    ] {
        // The greeting that is tried at first has one message.
        let source = format!("{{% if messages|length > 1 %}}{{% set ns = namespace(l=[1]) %}}{grow}{{% endif %}}");
        let template = ChatTemplate::new(&source, &SpecialTokens::default()).unwrap();
        let message = json!({ "role": "user", "content": "Hello" });
        let error = template.render(&input(&json!([message, message]), &Map::new())).unwrap_err();
        assert!(matches!(error, TemplateError::Limit { what: "steps: does it end?", .. }), "{grow}: {error}");
    }
}

#[test]
fn a_chain_without_end_is_refused_before_it_is_compiled() {
    let chain = |sums: usize| format!("Hello\n{{{{ 1{} }}}}", " + 1".repeat(sums));
    assert_eq!(render(&chain(499), &Map::new()).unwrap(), "Hello\n500");
    let error = ChatTemplate::new(&chain(300_000), &SpecialTokens::default()).unwrap_err().to_string();
    let expected = "the chat template does not compile: line 2: a tag has more than 1000 tokens; write it as several";
    assert_eq!(error, expected);
}

#[test]
fn a_list_may_be_collected_message_by_message() {
    let source = "{% set ns = namespace(l=[], n=0) %}{% for m in messages %}{% set ns.l = ns.l + [m.role] %}\
                  {% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.l|length }} {{ ns.n }} {{ (ns.l + ['x'])[-1] }}";
    let template = ChatTemplate::new(source, &SpecialTokens::default()).unwrap();
    let messages: Value = (0..3000).map(|_| json!({ "role": "user", "content": "Hello" })).collect();
    assert_eq!(template.render(&input(&messages, &Map::new())).unwrap(), "3000 3000 x");
}

#[test]
fn what_takes_long_runs_into_the_clock() {
    let source = "{% for i in range(99999) %}{% for j in range(9) %}{{ i }}{% endfor %}{% endfor %}";
    let patience = std::time::Duration::from_millis(1);
    let error = ChatTemplate::with_patience(source, &SpecialTokens::default(), patience).unwrap_err();
    assert!(matches!(error, TemplateError::Limit { what: "seconds: does it end?", .. }), "{error}");
}
