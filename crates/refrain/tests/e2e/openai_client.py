"""Talks to a running server with the official OpenAI package, as its users do. Usage: openai_client.py URL

Every function test_* is a test; all run, the failures are printed at the end and make the exit status 1. The server
serves the embedded model.
"""
import asyncio
import sys
import traceback

import openai
from raw_http import get, metric, post, wait_until

URL = sys.argv[1]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
FOX = [{"role": "user", "content": "Tell me a story about a fox."}]


def chat(messages=FOX, **options):
    options.setdefault("temperature", 0)
    options.setdefault("max_tokens", 24)
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def complete(prompt="Once upon a time", **options):
    options.setdefault("temperature", 0)
    options.setdefault("max_tokens", 24)
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def tokenize(text):
    return post(URL, "/tokenize", {"prompt": text})[1]["tokens"]


# ------------------------------------------------------------------ answers
def test_models():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    for find in (client.models.retrieve, lambda model: client.completions.create(model=model, prompt="x")):
        try:
            find("nobody")
        except openai.NotFoundError as error:
            assert "nobody" in error.message, error
        else:
            raise AssertionError("an unknown model was found")


def test_chat():
    answer = chat()
    choice, usage = answer.choices[0], answer.usage
    assert choice.message.role == "assistant" and choice.message.content.strip(), answer
    assert choice.finish_reason == "length" and usage.completion_tokens == 24, answer
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, answer
    assert chat().choices[0].message.content == choice.message.content


def test_chat_ends_by_itself():
    answer = chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=200)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens < 200, answer
    assert "<|im_end|>" not in answer.choices[0].message.content, answer


def test_chat_streaming_gives_the_same_text():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == chat().choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices
    assert len({c.id for c in chunks}) == 1
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 12, "the text came in few pieces"


def test_chat_logprobs():
    choice = chat(logprobs=True, top_logprobs=5).choices[0]
    assert len(choice.logprobs.content) == 24
    for token in choice.logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True) and token.logprob <= 0, token
        assert abs(token.logprob - values[0]) < 1e-6, "greedy takes the best"
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content


def test_thinking_is_a_template_variable():
    on, off = ({"chat_template_kwargs": {"enable_thinking": value}} for value in (True, False))
    assert chat(extra_body=on).usage.prompt_tokens != chat(extra_body=off).usage.prompt_tokens


def test_tools_reach_the_prompt():
    tool = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}
    assert chat(tools=[tool]).usage.prompt_tokens > chat().usage.prompt_tokens + 20


def test_completion_streaming_gives_the_same_text():
    whole = complete()
    assert whole.choices[0].text and whole.usage.completion_tokens == 24, whole
    chunks = list(complete(stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def test_completion_echo_and_logprobs():
    prompt = "Once upon a time, there was"
    answer = complete(prompt, echo=True, logprobs=3, max_tokens=4)
    choice, count = answer.choices[0], answer.usage.prompt_tokens
    assert choice.text.startswith(prompt), choice
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == count + 4, choice
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:]), choice
    assert "".join(logprobs.tokens) == choice.text, choice
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[0] == 0, choice
    # The prompt's values don't depend on what follows.
    alone = complete(prompt, echo=True, logprobs=3, max_tokens=0).choices[0]
    assert alone.text == prompt and alone.logprobs.token_logprobs == logprobs.token_logprobs[:count], alone


def test_token_ids_are_prompts():
    text = "Once upon a time"
    ids = tokenize(text)
    assert post(URL, "/detokenize", {"tokens": ids})[1]["prompt"] == text
    assert complete(ids).choices[0].text == complete(text).choices[0].text
    both = complete([ids, tokenize("The fox")])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == complete(text).choices[0].text


def test_several_prompts_and_answers():
    answer = complete(["Once upon a time", "The little fox"], n=2, temperature=1, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3], answer
    assert answer.choices[0].text != answer.choices[1].text, "two samples of one prompt"


# ------------------------------------------------------------------ sampling
def test_the_same_seed_gives_the_same_answer():
    answers = {seed: chat(temperature=1, seed=seed).choices[0].message.content for seed in range(4)}
    assert len(set(answers.values())) > 1, answers
    for seed, answer in answers.items():
        assert chat(temperature=1, seed=seed).choices[0].message.content == answer
    # n answers use the following seeds.
    several = chat(temperature=1, seed=0, n=4).choices
    assert {choice.index: choice.message.content for choice in several} == answers


def test_stop_strings():
    text = complete(max_tokens=48).choices[0].text
    middle = text[11:19]  # cuts through tokens at both ends
    place = text.index(middle)
    choice = complete(max_tokens=48, stop=[middle]).choices[0]
    assert choice.text == text[:place] and choice.finish_reason == "stop", (choice, text)
    choice = complete(max_tokens=48, stop=middle, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert choice.text == text[:place] + middle, (choice, text)
    pieces = [c.choices[0].text for c in complete(max_tokens=48, stop=[middle], stream=True) if c.choices]
    assert "".join(pieces) == text[:place], pieces
    choice = complete(max_tokens=48, stop=["nothing like this"]).choices[0]
    assert choice.text == text, choice


def test_stop_ids_and_limits():
    first = complete(max_tokens=8, extra_body={"return_token_ids": True}).choices[0].token_ids
    stop = {"stop_token_ids": [first[3]], "return_token_ids": True}
    at = first.index(first[3])
    answer = complete(max_tokens=8, extra_body=stop)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == at + 1, answer
    longer = complete(max_tokens=8, extra_body={**stop, "min_tokens": at + 3})
    assert longer.usage.completion_tokens >= at + 3, longer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert chat(question, max_tokens=60, extra_body={"ignore_eos": True}).usage.completion_tokens == 60


def test_logit_bias_and_allowed_tokens():
    token = tokenize(" fox")[0]
    extra = {"return_token_ids": True}
    assert complete(max_tokens=3, logit_bias={str(token): 100}, extra_body=extra).choices[0].token_ids == [token] * 3
    extra["allowed_token_ids"] = [token]
    assert complete(max_tokens=3, temperature=1, extra_body=extra).choices[0].token_ids == [token] * 3


def test_penalties_change_the_answer():
    plain = complete(max_tokens=48).choices[0].text
    assert complete(max_tokens=48, frequency_penalty=2).choices[0].text != plain
    assert complete(max_tokens=48, extra_body={"repetition_penalty": 2}).choices[0].text != plain


# ------------------------------------------------------------------ many at once
def test_concurrent_requests_get_the_answers_they_get_alone():
    requests = []
    for i in range(16):
        messages = [{"role": "user", "content": "Tell me a story about " + "a very small " * i + "dog."}]
        requests.append(dict(messages=messages, seed=i, temperature=0 if i % 2 else 1, max_tokens=8 + 2 * i))
    alone = [chat(**request).choices[0].message.content for request in requests]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120) as other:
            calls = [other.chat.completions.create(model=MODEL, **request) for request in requests]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == alone


def test_a_client_that_leaves_frees_its_place():
    wait_until(lambda: metric(URL, "vllm:num_requests_running") == 0, "idle")
    stream = chat(stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(iter(stream))
    assert metric(URL, "vllm:num_requests_running") == 1
    stream.close()
    wait_until(lambda: metric(URL, "vllm:num_requests_running") == 0, "the request to end with its client")
    wait_until(lambda: metric(URL, "vllm:kv_cache_usage_perc") == 0, "the KV blocks to be freed")


def test_metrics_count():
    before = metric(URL, "vllm:generation_tokens_total")
    chat(max_tokens=5, extra_body={"ignore_eos": True})
    assert metric(URL, "vllm:generation_tokens_total") == before + 5
    assert metric(URL, "vllm:prompt_tokens_total") > 0


# ------------------------------------------------------------------ mistakes
def refused(param, call, *words):
    """The call is refused as the client's mistake, the field is named, and the server still answers."""
    try:
        call()
    except openai.BadRequestError as error:
        assert error.param == param, f"param {error.param!r} instead of {param!r}: {error.message}"
        for word in words:
            assert word in error.message, f"{word!r} is not in {error.message!r}"
    else:
        raise AssertionError(f"a wrong {param} was accepted")
    assert get(URL, "/health")[0] == 200


def test_impossible_sampling_values_name_the_field():
    cases = dict(temperature=[-1, 1e30], top_p=[0, -0.5, 1.5], presence_penalty=[3], frequency_penalty=[-3], n=[0, 17],
                 logit_bias=[{"999999": 1}, {"1": 1000}, {"fox": 1}], stop=[["a", "b", "c", "d", "e"]], seed=["x"])
    for param, values in cases.items():
        for value in values:
            try:
                refused(param, lambda: complete(**{param: value}))
            except AssertionError as error:  # logit_bias may name the entry: logit_bias.999999
                assert param == "logit_bias" and "logit_bias" in str(error), (param, value, error)
    refused("max_tokens", lambda: complete(max_tokens=0))
    refused("top_logprobs", lambda: chat(logprobs=True, top_logprobs=21))
    refused("logprobs", lambda: complete(logprobs=21))
    for param, value in {"min_p": 2, "top_k": -2, "repetition_penalty": 0, "min_tokens": -1}.items():
        refused(param, lambda: complete(extra_body={param: value}))


def test_impossible_prompts_name_the_field():
    refused("prompt", lambda: complete([]))
    refused("prompt", lambda: complete(""))
    refused("prompt", lambda: complete([1, 999999]), "999999")
    refused("messages", lambda: chat([]))
    refused("messages[0].role", lambda: chat([{"role": "nobody", "content": "x"}]), "role")
    refused("temprature", lambda: chat(extra_body={"temprature": 1}), "temperature")


def test_prompts_beyond_the_context_name_both_numbers():
    limit = client.models.list().data[0].max_model_len
    for call in (lambda: complete([5] * (limit + 7)), lambda: complete("fox " * 20000)):
        try:
            call()
        except openai.BadRequestError as error:
            assert str(limit) in error.message and error.code == "context_length_exceeded", error
        else:
            raise AssertionError("a prompt beyond the context was accepted")
    assert str(limit + 7) in refusal(lambda: complete([5] * (limit + 7)))


def refusal(call):
    try:
        call()
    except openai.BadRequestError as error:
        return error.message
    raise AssertionError("nothing was refused")


def main():
    failed = 0
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            try:
                test()
                print(f"ok     {name}", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
