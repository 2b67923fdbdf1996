"""A management node that waits for callbacks; it can be away, or answer 500."""

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
CALLBACK = f'http://127.0.0.1:{PORT}/zstack/asyncrest/callback'


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class Controller:
    def __init__(self):
        # What it answers, what it took by task, and what was no result.
        self.answer, self.took, self.wrong = 200, defaultdict(list), []
        self.comes()

    def comes(self):
        hears = self.hears

        class Callbacks(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get('content-length', 0)))
                self.send_response(hears(self.headers.get('taskuuid'), body))
                self.send_header('content-length', '0')
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = Server(('127.0.0.1', PORT), Callbacks)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def goes(self):
        self.server.shutdown()
        self.server.server_close()

    def hears(self, task, body):
        if self.answer != 200:
            return self.answer
        try:
            result = json.loads(body.decode('ascii'))
            if task is None or not isinstance(result.get('success'), bool):
                raise ValueError('no task, or no success')
            self.took[task].append(result)
        except ValueError as e:
            self.wrong.append(f'the callback for the task {task} is none: {e}: {body!r}')
        return 200
