"""A management node with bad days: it is away, refuses, resets, is silent, forgets, or does not wait any more."""

import json
import socket
import struct
import threading

from controller import Controller
from node import Astray

# Closes with a reset.
AT_ONCE = struct.pack('ii', 1, 0)


class Manager(Controller):
    """Takes callbacks and status reports, but for its bad days (`moods`)."""

    moods = ('is away', 'refuses', 'resets', 'is silent', 'forgets', 'does not wait')

    def __init__(self):
        # How it is, the last report that it took, and how many; callbacks that it did not wait for.
        self.mood, self.report, self.reports, self.not_waited_for = 'is well', None, 0, 0
        self.better = threading.Event()
        super().__init__()

    def becomes(self, mood):
        self.mood = mood
        self.better.clear()
        if mood == 'is away':
            self.goes()

    def gets_well(self):
        away, self.mood = self.mood == 'is away', 'is well'
        self.better.set()
        if away:
            self.comes()

    def answers(self, request, body):
        mood = self.mood
        if mood == 'is silent':
            self.better.wait(30)
            return
        if mood in ('is well', 'forgets', 'does not wait'):
            self.hears_of(request.headers, body)
        # One that came while it goes is not taken either.
        if mood in ('resets', 'forgets', 'is away'):
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            request.connection.close()
            return
        self.says(request, {'refuses': 500, 'does not wait': 404}.get(mood, 200))

    def hears_of(self, headers, body):
        if not headers.get('commandpath'):
            self.not_waited_for += self.mood == 'does not wait'
            self.takes(headers.get('taskuuid'), body)
            return
        try:
            self.report, self.reports = json.loads(body.decode('ascii')), self.reports + 1
        except ValueError as e:
            self.wrong.append(f'the report is none: {e}: {body!r}')

    def is_told(self, state):
        """By its last report."""
        told = [target['state'] for target in (self.report or {}).get('targets', [])]
        if told != [state]:
            raise Astray(f'the controller was told last that the targets are {told}, not {state}')
