"""What a controller, an operator and a Prometheus ask of an agent day by day, a handful each second."""

import http.client
import json
import subprocess
import threading
import time
import uuid
from collections import Counter

from calls import Call, any_call
from controller import CALLBACK
from node import COMPATIBLE, NATIVE, STATE, Astray, call

# What changes nothing: the compatible routes with how often they are called, and what is read over a kept connection.
HARMLESS = {'/host/ping': 3, f'{COMPATIBLE}/target/health': 4, f'{COMPATIBLE}/target/prepareenv': 2}
HEALTH = f'{COMPATIBLE}/target/health'
# Calls whose tasks are kept in memory alone: what they tell is old when another agent could tell it.
UNKEPT = ('/host/ping', HEALTH)
READ = ('/v1/status', '/metrics', '/v1/node', f'{NATIVE}/volumes', '/healthz')
CONFIG_FILE = '/tmp/rounds.toml'
# So long an answer is waited for, and so long health may take at most beside a flood, in seconds.
PATIENCE, FLOODED = 20, 5


class Twice(Call):
    """The same task comes again, while it is at work or just when it was called back."""

    def run(self):
        super().run()
        if self.is_taken_in:
            try:
                call(*self.request, {'taskuuid': self.task, 'callbackurl': CALLBACK})
            except (OSError, http.client.HTTPException, ValueError):
                pass


class Flight:
    """A call from its start until nobody is owed anything for it."""

    def __init__(self, call, volumes, life):
        self.call, self.volumes, self.life, self.began = call, volumes, life, time.monotonic()

    def has_landed(self, controller, life):
        """The file of a task goes after its result was taken, so it is looked for first."""
        each = self.call
        if each.is_alive() or each.task and (STATE / 'outbox' / f'{each.task}.json').exists():
            return False
        results = controller.took.get(each.task, [])
        if not each.is_taken_in:
            return True
        if results:
            each.called_back(results[-1])
        is_lost = self.life != life and each.request[1] in UNKEPT and time.monotonic() - self.began > PATIENCE
        return bool(results) or is_lost


class Load:
    def __init__(self, chance, controller, volumes):
        self.chance, self.controller, self.volumes = chance, controller, volumes
        # Held by who begins calls, so that who holds it sees volumes that nobody is about to change.
        self.lock, self.flights = threading.RLock(), []
        # Which agent it is by now; a call that was broken off in one life is a wrong.
        self.life, self.ends, self.wrong = 0, Counter(), []
        # How long health took, and what was the matter just then; resizes grow.
        self.answers, self.matter, self.size = [], '', 1024
        self.others, self.stopping = Counter(), threading.Event()
        self.threads = [threading.Thread(target=it, daemon=True) for it in (self.calls, self.commands, *[self.kept] * 3)]

    def begins(self):
        for thread in self.threads:
            thread.start()

    def ends_now(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def calls(self):
        while not self.stopping.wait(self.chance.uniform(0.05, 0.35)):
            with self.lock:
                self.lands()
                self.one()

    # --- one call after the other ------------------------------------------------------------------------------------------

    def one(self):
        free = self.untouched()
        kind = self.chance.choice(['harmless', 'harmless', 'volumes', 'volumes', 'volumes', 'resize'])
        if kind == 'volumes' and len(free) >= 6:
            each = any_call(self.chance, free, 0)
            if each.task and self.chance.random() < 0.3:
                each = Twice(0, each.volumes, each.promises, each.request, each.task)
            self.takes_off(each, each.volumes)
        elif kind == 'resize' and (there := [it for it in free if it.promised and it.is_zbs]):
            volume = self.chance.choice(there)
            self.size += 1
            body = {'bdevName': volume.bdev, 'sizeMib': self.size}
            self.takes_off(self.asked('/resize', body), [volume])
        else:
            self.harmless()

    def harmless(self):
        path = self.chance.choices(list(HARMLESS), HARMLESS.values())[0]
        self.takes_off(Call(0, [], None, ('POST', path, {}), self.task_or_none()), [])

    def asked(self, path, body):
        return Call(0, [], None, ('POST', f'{COMPATIBLE}{path}', body), self.task_or_none())

    def task_or_none(self):
        return uuid.UUID(int=self.chance.getrandbits(128), version=4).hex if self.chance.random() < 0.6 else None

    def many_tasks(self, count):
        """More than are taken at one time."""
        with self.lock:
            for _ in range(count):
                task = uuid.UUID(int=self.chance.getrandbits(128), version=4).hex
                self.takes_off(Call(0, [], None, ('POST', f'{COMPATIBLE}/target/prepareenv', {}), task), [])

    def takes_off(self, each, volumes):
        self.flights.append(Flight(each, volumes, self.life))
        each.start()

    def untouched(self):
        """Volumes that no call is about, in some order."""
        touched = {volume.number for flight in self.flights for volume in flight.volumes}
        free = [volume for volume in self.volumes if volume.number not in touched]
        self.chance.shuffle(free)
        return free

    def lands(self):
        landed = [flight for flight in self.flights if flight.has_landed(self.controller, self.life)]
        self.flights = [flight for flight in self.flights if flight not in landed]
        for flight in landed:
            self.ends[flight.call.end] += 1
            if flight.call.end == 'was broken off' and flight.life == self.life:
                self.wrong.append(f'the agent lived, and broke off {flight.call}')
            if '(internal)' in flight.call.end:
                self.wrong.append(f'the agent broke on {flight.call}')

    def all_landed(self, begun_before):
        with self.lock:
            self.lands()
            late = [str(flight.call) for flight in self.flights if flight.began < begun_before]
        if late:
            raise Astray(f'{len(late)} calls are owed a result, the first: {late[0]}')

    # --- beside them -------------------------------------------------------------------------------------------------------

    def kept(self):
        """Many requests on one connection; one that ends is made again."""
        connection = http.client.HTTPConnection('127.0.0.1', 7070, timeout=PATIENCE)
        count = 0
        while not self.stopping.wait(0.05 + 0.3 * (count % 7 == 0)):
            count, life = count + 1, self.life
            try:
                if count % 2:
                    self.health(connection)
                else:
                    self.read(connection, READ[count // 2 % len(READ)])
            except (OSError, http.client.HTTPException) as e:
                # A connection that rests may be closed at any time; an answer that never comes is another matter.
                if isinstance(e, TimeoutError) and life == self.life and not self.matter.startswith('the agent'):
                    self.wrong.append(f'no answer within {PATIENCE} s beside {self.matter}')
                self.others[f'a kept connection ended: {type(e).__name__}'] += 1
                connection.close()
                self.stopping.wait(0.2)
        connection.close()

    def health(self, connection):
        began = time.monotonic()
        connection.request('POST', HEALTH, '{}', {'content-type': 'application/json'})
        with connection.getresponse() as response:
            told = json.loads(response.read())
        if response.status != 200 or not isinstance(told.get('targetRunning'), bool):
            self.wrong.append(f'health is answered {response.status} {told}')
        took = time.monotonic() - began
        self.answers.append((took, self.matter))
        if took > FLOODED and self.matter.startswith('a flood'):
            self.wrong.append(f'health took {took:.1f} s beside {self.matter}')

    def read(self, connection, path):
        connection.request('GET', path)
        with connection.getresponse() as response:
            response.read()
        self.others[f'{path} {response.status}'] += 1

    def commands(self):
        """The command line, which comes over the node's own socket."""
        while not self.stopping.wait(8):
            ended = subprocess.run(['vhost-agent', '--config', CONFIG_FILE, 'status', '--output', 'json'], timeout=60,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            self.others[f'vhost-agent status {ended.returncode}'] += 1
