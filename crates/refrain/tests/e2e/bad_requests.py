"""Sends what no well-behaved client would. Usage: bad_requests.py URL

Everything must be refused with a 4xx and OpenAI's error object, and the server must go on serving.
"""
import json
import socket
import sys
from urllib.parse import urlsplit

from raw_http import get, metric, post, wait_until

URL = sys.argv[1]
GOOD = {"prompt": "Once", "max_tokens": 2, "temperature": 0}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def body(fields):
    """A body written by hand: values are JSON as text, possibly invalid."""
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


# What is wrong, path, body.
CASES = [
    ("no JSON", COMPLETIONS, b"Once upon a time"),
    ("nothing", COMPLETIONS, b""),
    ("half an object", COMPLETIONS, b'{"prompt": "Once"'),
    ("a list", COMPLETIONS, b"[1, 2, 3]"),
    ("null", COMPLETIONS, b"null"),
    ("invalid UTF-8", COMPLETIONS, b'{"prompt": "\xff\xfe"}'),
    ("invalid UTF-8 in a chat", CHAT, b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}'),
    ("a lone surrogate", COMPLETIONS, b'{"prompt": "\\ud800"}'),
    ("deep nesting", CHAT, b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("no prompt", COMPLETIONS, body({"max_tokens": 2})),
    ("no messages", CHAT, body({"max_tokens": 2})),
    ("messages as text", CHAT, body({"messages": '"hi"'})),
    ("a message without a role", CHAT, body({"messages": '[{"content": "hi"}]'})),
    ("content as a number", CHAT, body({"messages": '[{"role": "user", "content": 7}]'})),
    ("a negative token id", COMPLETIONS, body({"prompt": "[-1]"})),
    ("a token id beyond 32 bits", COMPLETIONS, body({"prompt": "[4294967296]"})),
    ("a token id beyond the vocabulary", COMPLETIONS, body({"prompt": "[4294967295]"})),
    ("fractional token ids", COMPLETIONS, body({"prompt": "[1.5]"})),
    ("mixed prompts", COMPLETIONS, body({"prompt": '["a", 1]'})),
    ("an empty list inside", COMPLETIONS, body({"prompt": "[[]]"})),
    ("an unknown field", COMPLETIONS, body({"prompt": '"a"', "max_token": "2"})),
    ("a number as text", COMPLETIONS, body({"prompt": '"a"', "temperature": '"hot"'})),
    ("text as a boolean", COMPLETIONS, body({"prompt": '"a"', "stream": '"yes"'})),
]
for name in ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]:
    for value in ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e39", "-5", "{}"]:
        CASES.append((f"{name} {value}", COMPLETIONS, body({"prompt": '"a"', name: value})))
for name in ["max_tokens", "n", "top_k", "min_tokens", "logprobs", "seed"]:
    for value in ["NaN", "1e400", "99999999999999999999999999", "1.5", "[]", '"3"']:
        CASES.append((f"{name} {value}", COMPLETIONS, body({"prompt": '"a"', name: value})))


def check_refused(what, status, answer):
    assert 400 <= status < 500, f"{what}: status {status}: {answer}"
    error = answer["error"]
    assert error["message"] and set(error) >= {"message", "type", "param", "code"}, f"{what}: {answer}"


def main():
    good = post(URL, COMPLETIONS, GOOD)
    assert good[0] == 200, good
    for what, path, data in CASES:
        status, answer = post(URL, path, data)
        check_refused(what, status, answer)
        print(f"{status} {what}: {answer['error']['message']}")
    too_large = b'{"prompt": "' + b"a" * (17 << 20) + b'"}'
    try:
        status, answer = post(URL, COMPLETIONS, too_large)
        check_refused("a body of 17 MiB", status, answer)
        assert status == 413, status
    except OSError:
        pass  # the server may close the connection before the body has been sent
    for path in ["/v1/nothing", "/", "/v1/completions/x"]:
        status, answer = get(URL, path)
        check_refused(path, status, json.loads(answer))
    assert get(URL, COMPLETIONS)[0] == 405
    # A client that goes away in the middle of its request, and one that doesn't wait for its answer.
    address = urlsplit(URL)
    request = json.dumps({**GOOD, "max_tokens": 5000, "ignore_eos": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    for length, then in [(len(request) + 10, None), (len(request), 1)]:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall((head % length).encode() + request)
            if then:
                wait_until(lambda: metric(URL, "vllm:num_requests_running") == then, "the request to run")
    wait_until(lambda: metric(URL, "vllm:num_requests_running") == 0, "the request to end with its client")
    again = post(URL, COMPLETIONS, GOOD)
    assert again[0] == 200 and again[1]["choices"] == good[1]["choices"], again


if __name__ == "__main__":
    main()
