"""Plain HTTP without any client library, for what a library wouldn't send."""
import json
import time
import urllib.error
import urllib.request


def send(request):
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get(url, path):
    """(status, body)"""
    return send(url + path)


def post(url, path, body, content_type="application/json"):
    """(status, JSON of the answer); body is bytes as they are, or something to write as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = send(urllib.request.Request(url + path, data, {"Content-Type": content_type}))
    return status, json.loads(answer)


def metric(url, name):
    """The value of a metric, over all labels."""
    values = [line.rsplit(" ", 1)[1] for line in get(url, "/metrics")[1].decode().splitlines()
              if line.startswith((name + "{", name + " "))]
    assert values, f"no metric {name}"
    return sum(map(float, values))


def wait_until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
