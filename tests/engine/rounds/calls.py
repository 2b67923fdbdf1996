"""Calls in flight, and what their answers promise."""

import http.client
import json
import threading
import time
import uuid

from controller import CALLBACK
from node import COMPATIBLE, NATIVE, TARGET, call


class Volume:
    """A volume, and whether it was promised to be there or to be gone; None while nobody can know."""

    def __init__(self, number):
        self.number, self.name, self.promised = number, f'volume-{number}', False
        self.is_zbs = number % 2 == 1
        self.bdev = f'zbs-bdev-{number}' if self.is_zbs else self.name

    def wish(self):
        backing = {'kind': 'zbs', 'path': f'pool/{self.name}'} if self.is_zbs else {'kind': 'malloc', 'sizeMib': 1}
        return {'name': self.name, 'bdev': self.bdev, 'backing': backing}


class Call(threading.Thread):
    """One call; `promises` is what its success says of its volumes."""

    def __init__(self, delay, volumes, promises, request, task=None):
        super().__init__(daemon=True)
        self.delay, self.volumes, self.promises, self.request, self.task = delay, volumes, promises, request, task
        # A task that was answered 200 has to be called back.
        self.is_taken_in, self.told, self.end = False, 'it was not sent yet', 'was not sent'
        self.before = [volume.promised for volume in volumes]
        self.knows([None] * len(volumes))

    def run(self):
        time.sleep(self.delay)
        headers = {'taskuuid': self.task, 'callbackurl': CALLBACK} if self.task else {}
        try:
            # Longer than anyone waits for its end.
            status, answer = call(*self.request, headers, within=300)
        except ConnectionRefusedError:
            # The agent was not there, so nothing was asked.
            self.knows(self.before)
            self.told = self.end = 'found no agent'
        except (OSError, http.client.HTTPException, ValueError) as e:
            # Whether it was taken in nobody can know.
            self.told, self.end = f'broken off: {e!r}', 'was broken off'
        else:
            self.told, self.end = f'{status} {json.dumps(answer)[:400]}', f'failed ({answer.get("code")})'
            if status == 200 and self.task:
                self.is_taken_in = True
            elif status == 200:
                self.succeeded()

    def knows(self, promised):
        for volume, promised in zip(self.volumes, promised):
            volume.promised = promised

    def succeeded(self):
        self.end = 'succeeded'
        self.knows([self.promises] * len(self.volumes))

    def called_back(self, result):
        """A call that failed promises nothing: the agent may have been ended when it was done."""
        self.is_taken_in, self.told = False, f'called back with {json.dumps(result)[:400]}'
        self.end = f'failed ({result.get("code")})'
        if result['success']:
            self.succeeded()

    def __str__(self):
        names = ' '.join(volume.name for volume in self.volumes)
        return f'{self.request[0]} {self.request[1]} ({names}, task {self.task}): {self.told}'


def any_call(chance, free, delay):
    """One call by chance, on volumes out of `free`, which no other call of the round is about then."""
    kind = chance.choice(['ensure', 'activate', 'activate', 'deactivate', 'deactivate', 'put', 'put list', 'delete', 'delete'])
    volume, more = free.pop(), chance.randint(1, 5)
    task = uuid.UUID(int=chance.getrandbits(128), version=4).hex
    names = {'bdevName': volume.bdev, 'controllerName': volume.name}
    if kind == 'ensure':
        return Call(delay, [], None, ('POST', f'{COMPATIBLE}/target/ensure', {'containerName': TARGET}), task)
    if kind == 'activate' and volume.is_zbs:
        body = {'installPath': f'zbs://pool/{volume.name}', **names}
        return Call(delay, [volume], True, ('POST', f'{COMPATIBLE}/activate', body), task)
    if kind == 'deactivate':
        return Call(delay, [volume], False, ('POST', f'{COMPATIBLE}/deactivate', names), task)
    if kind == 'delete':
        return Call(delay, [volume], False, ('DELETE', f'{NATIVE}/volumes/{volume.name}', None))
    if kind == 'put list':
        volumes = [volume] + [free.pop() for _ in range(more)]
        body = {'volumes': [volume.wish() for volume in volumes]}
        return Call(delay, volumes, True, ('PUT', f'{NATIVE}/volumes', body))
    return Call(delay, [volume], True, ('PUT', f'{NATIVE}/volumes/{volume.name}', volume.wish()))
