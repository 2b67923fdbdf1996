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
    def __init__(self, port=PORT):
        # What it answers, what it took by task, and what was no result.
        self.answer, self.took, self.wrong = 200, defaultdict(list), []
        self.port = port
        self.comes()

    def comes(self):
        answers = self.answers

        class Callbacks(BaseHTTPRequestHandler):
            def do_POST(self):
                answers(self, self.rfile.read(int(self.headers.get('content-length', 0))))

            def log_message(self, *_):
                pass

        self.server = Server(('127.0.0.1', self.port), Callbacks)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def goes(self):
        self.server.shutdown()
        self.server.server_close()

    def answers(self, request, body):
        self.says(request, self.hears(request.headers.get('taskuuid'), body))

    def says(self, request, status):
        request.send_response(status)
        request.send_header('content-length', '0')
        request.end_headers()

    def hears(self, task, body):
        answer = self.answer
        if answer == 200:
            self.takes(task, body)
        return answer

    def takes(self, task, body):
        try:
            result = json.loads(body.decode('ascii'))
            if task is None or not isinstance(result.get('success'), bool):
                raise ValueError('no task, or no success')
            self.took[task].append(result)
        except ValueError as e:
            self.wrong.append(f'the callback for the task {task} is none: {e}: {body!r}')
