"""An OpenAI-compatible server for tests, over real HTTP: a list says what it answers, in order."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(text, **changes):
    """The response of a chat as JSON."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **changes}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}})


class Stub(ThreadingHTTPServer):
    """Answers with (status, body, headers) or a function of the request; the last one repeats.

    A body of None closes the connection without an answer; a number waits so many seconds.
    """

    daemon_threads = True

    def __init__(self, *plan):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.requests, self.lock = list(plan), [], threading.Lock()
        self.models = (200, '{"data": []}', {})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self):
        return [body for _, body, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self._respond(*self.server.models)

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body, dict(self.headers)))
            step = self.server.plan[min(len(self.server.requests), len(self.server.plan)) - 1]
        if callable(step):
            step = step(body)
        if isinstance(step, str):
            step = (200, step, {})
        self._respond(*step)

    def _respond(self, status, body, headers):
        if isinstance(body, float):
            time.sleep(body)
            body = None
        if body is None:
            self.close_connection = True
            return
        raw = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*plan):
    stub = Stub(*plan)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()
