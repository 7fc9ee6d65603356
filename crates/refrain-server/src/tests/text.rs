//! The text engine by itself.

use super::support::{Setup, tokenizer};
use crate::text::{GenerateRequest, Prompt, StopCause, StopMatcher, TextEngine, TextError};
use proptest::prelude::*;

/// Text and end of one answer.
fn run(text: &TextEngine, request: GenerateRequest) -> (String, StopCause, usize) {
    let mut stream = text.generate_blocking(request).unwrap();
    let mut answer = String::new();
    while let Some(event) = stream.blocking_next() {
        let event = event.unwrap();
        answer.push_str(&event.text);
        if let Some(finish) = event.finish {
            assert!(stream.blocking_next().is_none());
            return (answer, finish.reason, finish.completion_tokens);
        }
    }
    panic!("no end");
}

#[test]
fn works_without_an_async_runtime() {
    let text = Setup::default().text();
    let request = GenerateRequest::new(Prompt::Text("The hen sat.".to_owned()), text.default_sampling());
    let (answer, reason, tokens) = run(&text, request);
    assert_eq!((answer.as_str(), reason), ("The hen sat.", StopCause::EndOfSequence));
    let ids = tokenizer().encode("The hen sat.", true).unwrap();
    assert_eq!(tokens, ids.len() + 1);
}

#[test]
fn what_is_wrong_is_told_with_the_numbers() {
    let text = Setup::default().text();
    let request = |prompt| GenerateRequest::new(prompt, text.default_sampling());
    let error = |request| text.generate_blocking(request).err().unwrap();
    assert!(matches!(error(request(Prompt::Ids(vec![]))), TextError::EmptyPrompt));
    assert!(matches!(error(request(Prompt::Text(String::new()))), TextError::EmptyPrompt));
    let long = error(request(Prompt::Ids(vec![1; 1024])));
    assert!(matches!(long, TextError::PromptTooLong { prompt_tokens: 1024, exact: true, max_model_len: 1024 }));
    let much = error(GenerateRequest { max_tokens: Some(1000), ..request(Prompt::Ids(vec![1; 25])) });
    assert!(much.to_string().contains("(1000 > 1024 - 25)"), "{much}");
    // Far too long to tokenize for nothing.
    let huge = error(request(Prompt::Text("x".repeat(8 << 20))));
    assert!(matches!(huge, TextError::PromptTooLong { exact: false, .. }), "{huge}");
}

#[test]
fn a_limit_on_new_tokens_caps_every_request() {
    let setup = Setup::default();
    let defaults = crate::SamplingDefaults { temperature: 0.0, max_new_tokens: Some(5), ..Default::default() };
    let text = TextEngine::new(setup.engine(), Some(tokenizer()), None, defaults);
    let mut request = GenerateRequest::new(Prompt::Ids(vec![9; 40]), text.default_sampling());
    assert_eq!(run(&text, request.clone()).2, 5);
    request.max_tokens = Some(3);
    assert_eq!(run(&text, request.clone()).2, 3);
    request.max_tokens = Some(20);
    assert_eq!(run(&text, request).2, 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// The parrot repeats the text token by token; the answer must be what a matcher makes of the whole text at once.
    #[test]
    fn stop_strings_don_t_depend_on_tokens(
        words in prop::collection::vec(prop::sample::select(vec!["fox", " hen", "é", "日本", "🦊", ". ", "\n", " the"]), 1..12),
        stops in prop::collection::vec("[ a-z.é日\n]{1,4}", 0..4),
        include in any::<bool>(),
    ) {
        static TEXT: std::sync::OnceLock<TextEngine> = std::sync::OnceLock::new();
        let text = TEXT.get_or_init(|| Setup::default().text());
        let prompt = words.concat();
        let request = GenerateRequest {
            stop: stops.clone(),
            include_stop_str_in_output: include,
            ..GenerateRequest::new(Prompt::Text(prompt.clone()), text.default_sampling())
        };
        let (answer, reason, _) = run(text, request);
        let mut matcher = StopMatcher::new(&stops, include);
        // The end-of-sequence token is shown only when stops are included, and is special: it has no text.
        let mut step = matcher.push(&prompt, true);
        if step.matched.is_none() {
            step.text.push_str(&matcher.finish());
        }
        prop_assert_eq!(answer, step.text);
        let expected = step.matched.map_or(StopCause::EndOfSequence, |index| StopCause::Text(stops[index].clone()));
        prop_assert_eq!(reason, expected);
    }
}
