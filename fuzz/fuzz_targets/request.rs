//! A request body by a stranger: an error that says what is wrong, or requests whose sampling values, once the engine
//! has accepted them, are in range.
#![no_main]

use libfuzzer_sys::fuzz_target;
use refrain_engine::SamplingParams;
use refrain_server::SamplingDefaults;
use refrain_server::api::{parse_chat, parse_completion};

fuzz_target!(|body: &[u8]| {
    let defaults = SamplingDefaults::default();
    for parsed in [parse_chat(body, &defaults), parse_completion(body, &defaults)] {
        match parsed {
            Ok(request) => request.requests.iter().for_each(|request| check(&request.sampling)),
            Err(error) => assert!(error.status == 400 && !error.message.is_empty(), "{error:?}"),
        }
    }
});

fn check(sampling: &SamplingParams) {
    if sampling.validate(8192, 4096).is_err() {
        return;
    }
    let finite = [sampling.temperature, sampling.presence_penalty, sampling.frequency_penalty];
    assert!(finite.iter().all(|value| value.is_finite()) && sampling.temperature >= 0.0, "{sampling:?}");
    assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0, "{sampling:?}");
    assert!((0.0..=1.0).contains(&sampling.min_p), "{sampling:?}");
    assert!(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite(), "{sampling:?}");
    assert!(sampling.logit_bias.values().all(|bias| (-100.0..=100.0).contains(bias)), "{sampling:?}");
}
