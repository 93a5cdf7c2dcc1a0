"""A small server of the completions API, for tests: what it answers is a function of the request."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """Status, body (sent as JSON unless it is bytes) and headers."""

    status: int
    body: Any
    headers: dict[str, str] = {}


@contextlib.contextmanager
def serving(
    answer: Callable[[dict[str, Any], int], Any], pages: Callable[[str], Any] | None = None, port: int = 0
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Runs a server that calls ``answer(request, number of the request)``; gives its address and the requests so far.

    A result that is no `Answer` is a list of choices. None hangs up. With ``pages(path)`` the server also has pages to
    get (None: 404), and requests have their path as "path".
    """
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                number = len(requests)
            self.reply(answer(body if pages is None else {**body, "path": self.path}, number))

        def do_GET(self) -> None:
            found = None if pages is None else pages(self.path)
            self.reply(Answer(404, {"error": "not found"}) if found is None else Answer(200, found))

        def reply(self, found: Any) -> None:
            if found is None:
                self.connection.close()
                return
            if not isinstance(found, Answer):
                found = Answer(200, {"choices": [{"index": i, **choice} for i, choice in enumerate(found)]})
            data = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
            with contextlib.suppress(OSError):  # whoever asked may have stopped waiting
                self.send_response(found.status)
                for name, value in {"Content-Length": str(len(data)), **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # a full queue costs a client a second

    server = Server(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
