"""OpenAI-compatible servers: answers, retries, time-outs, and what a message may not contain."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from megatron_chimed.errors import ConfigError, ParallelError
from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry
from megatron_chimed.evaluation.models.endpoint import (
    EndpointClient,
    EndpointSettings,
    RequestFailure,
)
from megatron_chimed.evaluation.models.endpoint_model import EndpointModel
from megatron_chimed.evaluation.models.opening import check_models, open_model, source_identity
from megatron_chimed.evaluation.requests import Answer, AnswerRequest, Refused, TaskPrompt
from tests.unit.evaluation.stub_endpoint import chat, serving

SECRET = "sk-very-secret-0123"


def entry(stub, **changes):
    values = {"name": "api", "endpoint": stub.url, "model": "m", "max_retries": 0}
    return ModelEntry(**{**values, **changes})


def client(stub, **changes):
    values = {"url": stub.url, "max_retries": 3, "first_wait": 0.001, "timeout_seconds": 5.0}
    return EndpointClient(EndpointSettings(**{**values, **changes}))


def ask(text="发热怎么办？", **changes):
    prompt = changes.pop("prompt", TaskPrompt(question=text, is_chat=True))
    return AnswerRequest(prompt=prompt, max_new_tokens=9, **changes)


def test_a_conversation_is_sent_as_messages_and_answered():
    with serving(chat("多饮水。")) as stub:
        prompt = TaskPrompt(
            question="谢谢",
            shots=(("q", "a"),),
            history=(("早", "好"),),
            is_chat=True,
            system="医生",
        )
        (answer,) = EndpointModel(entry(stub)).answers([ask(prompt=prompt)])
    assert answer == Answer(text="多饮水。", finish_reason="stop", num_tokens=7, num_shots=1)
    ((path, body, headers),) = stub.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.0,
        "messages": [
            {"role": "system", "content": "医生"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "早"},
            {"role": "assistant", "content": "好"},
            {"role": "user", "content": "谢谢"},
        ],
    }
    assert "Authorization" not in headers


def test_a_text_prompt_goes_to_completions_where_the_entry_says_so():
    prompt = TaskPrompt(question="答案：", shots=(("问：", "答\n"),))
    request = ask(prompt=prompt, stop_strings=("\n",), temperature=0.5, top_p=0.9, seed=3)
    body = '{"choices": [{"text": "B\\nC", "finish_reason": "length"}]}'
    with serving(body, chat("B")) as stub:
        (completed,) = EndpointModel(entry(stub, completes_text=True)).answers([request])
        EndpointModel(entry(stub)).answers([request])
    assert (completed.text, completed.finish_reason) == ("B", "stop")  # cut at the stop string
    assert stub.requests[0][0] == "/v1/completions"
    sent = stub.bodies[0]
    assert sent["prompt"] == "问：答\n答案：" and sent["stop"] == ["\n"]
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (0.5, 0.9, 3)
    assert stub.bodies[1]["messages"] == [{"role": "user", "content": "问：答\n答案："}]


@pytest.mark.parametrize(
    "first",
    [
        (429, '{"error": {"message": "slow down"}}', {}),
        (500, "", {}),
        (503, "<html>busy</html>", {"Retry-After": "0.01"}),
        (503, "", {"Retry-After": formatdate(usegmt=True)}),
        (503, "", {"Retry-After": "soon"}),
        (200, None, {}),
        (200, '{"choices": ', {}),
        (200, "[]", {}),
    ],
    ids=["429", "500", "seconds", "date", "neither", "closed", "cut JSON", "no object"],
)
def test_what_may_pass_is_tried_again(first):
    with serving(first, chat("好")) as stub:
        assert client(stub).post("chat/completions", {})["choices"]
    assert len(stub.requests) == 2


def test_retry_after_is_waited_for_and_too_long_a_wait_is_a_failure():
    with serving((429, "", {"Retry-After": "0.2"}), chat("好")) as stub:
        started = time.monotonic()
        client(stub).post("chat/completions", {})
        assert time.monotonic() - started >= 0.2
    with serving((429, "", {"Retry-After": "86400"})) as stub:
        with pytest.raises(RequestFailure, match="HTTP 429"):
            client(stub).post("chat/completions", {})
    assert len(stub.requests) == 1


def test_retries_are_bounded_and_the_waits_grow(monkeypatch):
    waits = []
    with serving((500, "", {})) as stub:
        endpoint = client(stub, first_wait=1.0)
        monkeypatch.setattr(endpoint._closed, "wait", lambda seconds: waits.append(seconds))
        with pytest.raises(RequestFailure, match="HTTP 500"):
            endpoint.post("chat/completions", {})
    assert len(stub.requests) == 4
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)) and len(waits) == 3


SLOW = 3.0  # seconds until a response


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ((200, SLOW, {}), "the endpoint did not answer in time"),
        ((500, "", {}), "the endpoint answered with HTTP 500"),
        ((400, '{"error": {"message": "bad"}}', {}), "the endpoint answered with HTTP 400"),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), "the endpoint answered with HTTP 302"),
        ("not JSON", "the endpoint's response is not JSON"),
        ('{"choices": []}', "the endpoint's response has no choices"),
        ('{"choices": [{"message": "x"}]}', "the endpoint's response has no choices"),
        ('{"choices": [{"message": {"content": [1]}}]}', "the endpoint's response has no text"),
        ((200, None, {}), "the connection to the endpoint broke"),
    ],
)
def test_a_failure_is_a_counted_item_and_others_are_answered(response, reason):
    def step(body):
        return response if body["messages"][0]["content"] == "坏" else chat("好")

    timeout = SLOW / 3 if response == (200, SLOW, {}) else 60.0
    with serving(step) as stub:
        model = EndpointModel(entry(stub, timeout_seconds=timeout))
        answers = model.answers([ask("一"), ask("坏"), ask("二")])
    assert [type(answer) for answer in answers] == [Answer, Refused, Answer]
    assert answers[1] == Refused(reason=reason)


@pytest.mark.parametrize("content", [None, ""])
def test_no_content_is_an_empty_answer(content):
    with serving(chat(content)) as stub:
        (answer,) = EndpointModel(entry(stub)).answers([ask()])
    assert answer.text == ""


def test_shots_are_left_out_until_the_server_accepts_the_prompt():
    def step(body):
        if len(body["messages"]) > 3:
            return 400, '{"error": {"message": "maximum context length is 9 tokens"}}', {}
        return chat("好")

    prompt = TaskPrompt(question="q", shots=(("1", "a"), ("2", "b"), ("3", "c")), is_chat=True)
    with serving(step) as stub:
        (answer,) = EndpointModel(entry(stub)).answers([ask(prompt=prompt)])
    assert answer.num_shots == 1
    assert stub.bodies[-1]["messages"][0]["content"] == "3"


def test_requests_are_sent_at_once_and_answered_in_order():
    def step(body):
        text = body["messages"][0]["content"]
        time.sleep(0.1 if text == "0" else 0.0)
        return chat(text)

    with serving(step) as stub:
        answers = EndpointModel(entry(stub, concurrency=4)).answers([ask(str(n)) for n in range(8)])
    assert [answer.text for answer in answers] == [str(n) for n in range(8)]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_job_and_is_never_shown(status, monkeypatch):
    monkeypatch.setenv("API_KEY", f" {SECRET}\n")
    with serving((status, f'{{"error": "wrong key {SECRET}"}}', {})) as stub:
        model = EndpointModel(entry(stub, api_key_variable="API_KEY"))
        with pytest.raises(ConfigError, match="refused the key in API_KEY") as caught:
            model.answers([ask()])
    assert SECRET not in str(caught.value)
    assert stub.requests[0][2]["Authorization"] == f"Bearer {SECRET}"


def test_a_redirect_does_not_take_the_key_elsewhere(monkeypatch):
    monkeypatch.setenv("API_KEY", SECRET)
    with serving(chat("好")) as other, serving((307, "", {"Location": other.url})) as stub:
        with contextlib.suppress(RequestFailure):
            client(stub, api_key_variable="API_KEY", max_retries=0).post("chat/completions", {})
    assert not other.requests


@pytest.mark.parametrize("value", [None, "", "two words", "钥匙"])
def test_a_missing_or_odd_key_is_named_by_its_variable(value, monkeypatch):
    monkeypatch.delenv("API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("API_KEY", value)
    with pytest.raises(ConfigError, match="environment variable API_KEY"):
        EndpointClient(EndpointSettings(url="http://127.0.0.1:1/v1", api_key_variable="API_KEY"))


def test_an_unknown_model_stops_the_job():
    with serving((404, '{"error": {"message": "no model m"}}', {})) as stub:
        with pytest.raises(ConfigError, match="does not know the model 'm'.*no model m"):
            EndpointModel(entry(stub)).answers([ask()])


def test_an_endpoint_that_is_down_is_one_error_before_anything_runs():
    with serving(chat("好")) as stub:
        config = EvaluationConfig(output_dir="out", models=(entry(stub),), tasks=({},))
        check_models(config, 1)
        stub.models = (404, "", {})  # some servers have no list of models
        check_models(config, 1)
        stub.models = (401, "", {})
        with pytest.raises(ConfigError, match="api_key_variable"):
            check_models(config, 1)
    with pytest.raises(ConfigError, match="does not answer.*Start the server"):
        check_models(config, 1)


def test_a_server_that_dies_on_the_way_stops_the_job():
    with serving(chat("好")) as stub:
        model = EndpointModel(entry(stub))
    with pytest.raises(ParallelError, match="the same command resumes"):
        model.answers([ask("一"), ask("二")])


def test_several_ranks_are_refused():
    with serving(chat("好")) as stub:
        config = EvaluationConfig(output_dir="out", models=(entry(stub),), tasks=({},))
        with pytest.raises(ConfigError, match="api is an endpoint.*2 ranks"):
            check_models(config, 2)


def test_an_entry_opens_as_an_endpoint():
    with serving(chat("好")) as stub:
        config = EvaluationConfig(output_dir="out", models=(entry(stub),), tasks=({},))
        with open_model(config.models[0], config, None) as model:
            assert not model.gives_likelihoods
        found = source_identity(config.models[0], config)
    assert found == {"endpoint": stub.url, "model": "m", "completes_text": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "file:///etc/passwd"}, "not a base URL"),
        ({"endpoint": "127.0.0.1:8000"}, "not a base URL"),
        ({"endpoint": "http://h/v1?key=1"}, "not a base URL"),
        ({"endpoint": "http://me:secret@h/v1"}, "holds a name or password"),
        ({"model": None}, "no model"),
        ({"template": "ziya"}, "encodes prompts itself"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0"),
    ],
)
def test_a_wrong_entry_is_explained(changes, message):
    values = {"name": "api", "endpoint": "http://h/v1", "model": "m", **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        ModelEntry(**values)
    assert "secret" not in str(caught.value)


def test_closing_ends_the_waits():
    with serving((500, "", {})) as stub, ThreadPoolExecutor(1) as pool:
        endpoint = client(stub, first_wait=60.0)
        waiting = pool.submit(endpoint.post, "chat/completions", {})
        while not stub.requests:
            time.sleep(0.005)
        endpoint.close()
        with pytest.raises(RequestFailure):
            waiting.result(timeout=5)
