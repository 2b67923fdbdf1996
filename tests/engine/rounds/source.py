"""A file server that gives an image ever so slowly."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8090
ADDRESS = f'http://127.0.0.1:{PORT}/vhost.tar'


class Source:
    def __init__(self):
        self.asked, self.over = threading.Event(), threading.Event()
        self.over.set()
        source = self

        class Slow(BaseHTTPRequestHandler):
            def do_GET(self):
                if source.over.is_set():
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header('content-length', str(10 << 20))
                self.end_headers()
                source.asked.set()
                with contextlib.suppress(OSError):
                    while not source.over.wait(0.05):
                        self.wfile.write(b'x')

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(('127.0.0.1', PORT), Slow)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @contextlib.contextmanager
    def trickles(self):
        self.asked.clear()
        self.over.clear()
        try:
            yield
        finally:
            self.over.set()
