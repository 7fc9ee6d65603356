use super::{output_of, run, run_with_input, text};

const GREEDY: [&str; 5] = ["chat", "--temperature", "0", "--max-tokens", "24"];

#[test]
fn one_answer_and_nothing_else_comes_on_standard_output() {
    let arguments = [&GREEDY[..], &["--prompt", "Tell me a story about a fox."]].concat();
    let output = run(&arguments);
    let answer = output_of(&output);
    assert!(answer.split_whitespace().count() >= 8, "{answer:?}");
    assert!(answer.ends_with('\n') && !answer.contains("<|"), "{answer:?}");
    assert_eq!(text(&output.stderr), "");
    // The same, piped in.
    assert_eq!(output_of(&run_with_input(&GREEDY, "Tell me a story about a fox.\n")), answer);
}

#[test]
fn what_is_piped_in_follows_the_prompt() {
    let arguments = [&GREEDY[..], &["--prompt", "What is the capital of France?"]].concat();
    let alone = output_of(&run_with_input(&arguments, ""));
    let joined = output_of(&run_with_input(&arguments, "Tell me a story about a fox.\n"));
    assert_ne!(alone, joined);
    let by_hand = "What is the capital of France?\n\nTell me a story about a fox.";
    assert_eq!(output_of(&run_with_input(&GREEDY, by_hand)), joined);
}

#[test]
fn a_seed_makes_sampling_repeatable() {
    let say = |seed: &str| {
        let flags =
            ["chat", "--prompt", "Tell me a story.", "--temperature", "1.5", "--max-tokens", "16", "--seed", seed];
        output_of(&run(&flags))
    };
    assert_eq!(say("5"), say("5"));
    assert_ne!(say("5"), say("6"));
}

#[test]
fn impossible_sampling_is_refused() {
    for (flag, value) in [("--temperature", "-1"), ("--top-p", "7"), ("--top-k", "-3"), ("--min-p", "nan")] {
        let output = run(&["chat", "--prompt", "x", flag, value]);
        assert_eq!(output.status.code(), Some(1), "{flag} {value}");
        let name = flag.trim_start_matches('-');
        let message = text(&output.stderr).replace('_', "-");
        assert!(message.contains(name), "{flag} {value}: {message}");
    }
}

#[test]
fn nothing_to_answer_is_a_mistake() {
    let output = run(&["chat"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--prompt"), "{}", text(&output.stderr));
}
