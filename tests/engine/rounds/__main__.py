"""Faults in rounds, run by the case `faults_come_in_rounds` inside a bare machine.

In each round a few calls are in flight, over the compatible routes with a callback and over /v1, when something is
killed, frozen, full or away. Who is not brought back by anybody is started again, as systemd does it, and then the node
has to converge: what is wanted, what the state folder says, what the target has and what was promised to callers are one.

VHOST_ROUNDS_SEED repeats the calls and faults of a run, though not its timing to the millisecond; VHOST_ROUNDS says how
many rounds there are.
"""

import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict

from calls import Call, Volume, any_call
from controller import Controller
from node import COMPATIBLE, FAULTS as FAULTS_OF_TARGET, FILLING, NATIVE, Astray, Node, call, fill_state, pages, same
from node import send, tried_until
from node import rpc
from promises import all_is_as_promised
from source import ADDRESS, Source

# Seconds within which the node has to converge once the fault is over.
BOUND = 30
# Each fault, and how often it comes of a hundred times. An engine takes seconds to come back.
FAULTS = {
    'the target is killed': 24,
    'the agent is killed': 20,
    'agent and target are killed': 10,
    'a new target is frozen': 7,
    'a method hangs': 7,
    'a method crashes the target': 3,
    'a recreate is broken off': 8,
    'the disk is full': 7,
    'the disk hangs': 4,
    'the log is not read': 4,
    'an image does not come': 3,
    'the controller is away': 8,
    'the engine is killed': 2,
    'engine and target are killed': 2,
    'all are killed': 3,
}


# What makes volumes, looks at them and takes them away.
METHODS = ['bdev_malloc_create', 'bdev_zbs_create', 'vhost_create_blk_controller', 'vhost_get_controllers',
           'bdev_get_bdevs', 'vhost_delete_controller', 'bdev_malloc_delete']


class Rounds:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.node, self.controller, self.source = Node(), Controller(), Source()
        if not self.node.disk.can_hang:
            FAULTS.pop('the disk hangs')
        # Each one that is to replace the target differs from it.
        self.memory = 64
        self.volumes = [Volume(number) for number in range(40)]
        # One is always there: a target that hangs is killed for the sake of whom it harms.
        self.stays = Volume(40)
        self.calls, self.took, self.ends = [], defaultdict(list), Counter()
        # Tasks that were at work while the disk was full: a result that could not be written is told all the same, and
        # one who crashes then tells that he crashed.
        self.may_differ = set()

    def round(self, fault):
        free = self.volumes[:]
        self.chance.shuffle(free)
        # Some just before the fault, some while it lasts.
        at = self.chance.uniform(0, 0.06)
        self.calls = [any_call(self.chance, free, self.chance.uniform(0, 0.08)) for _ in range(self.chance.randint(2, 6))]
        for each in self.calls:
            each.start()
        time.sleep(at)
        getattr(self, fault.replace(' ', '_'))()
        began = time.monotonic()
        tried_until(began + BOUND, self.is_as_promised, pause=0.03)
        self.took[fault].append(time.monotonic() - began)
        self.ends.update(each.end for each in self.calls)

    # --- faults --------------------------------------------------------------------------------------------------------

    def the_target_is_killed(self):
        again, after = self.chance.random() < 0.2, self.chance.uniform(0, 0.6)
        self.node.kill_target()
        if again:
            time.sleep(after)
            self.node.kill_target()

    def the_agent_is_killed(self):
        again, pause = self.chance.random() < 0.25, self.chance.uniform(0, 0.3)
        self.node.kill_agent()
        self.node.start_agent()
        if again:
            time.sleep(pause)
            self.node.kill_agent()
            self.node.start_agent()

    def agent_and_target_are_killed(self):
        self.all_of(self.node.kill_agent, self.node.kill_target)
        self.node.start_agent()

    def the_engine_is_killed(self):
        """Nothing falls with it, so nobody misses it before the next one prepares the node."""
        self.node.kill_engine()
        call('POST', f'{COMPATIBLE}/target/prepareenv', {})

    def engine_and_target_are_killed(self):
        self.all_of(self.node.kill_engine, self.node.kill_target)

    def all_are_killed(self):
        self.all_of(self.node.kill_engine, self.node.kill_agent, self.node.kill_target)
        self.node.start_agent()

    def all_of(self, *kills):
        for kill in self.chance.sample(kills, len(kills)):
            kill()
            time.sleep(self.chance.uniform(0, 0.05))

    def a_new_target_is_frozen(self):
        """While its volumes are made; it goes on after a while, or the agent gives it up."""
        delay, goes_on, after = self.chance.uniform(0, 0.4), self.chance.random() < 0.5, self.chance.uniform(0.1, 1.5)
        self.node.kill_target()
        pid = self.node.next_target()
        time.sleep(delay)
        send(pid, signal.SIGSTOP)
        if goes_on:
            time.sleep(after)
            send(pid, signal.SIGCONT)

    def a_method_hangs(self):
        """For a while, or until its target is killed for that; with the making of all volumes, or of a few."""
        method, how = self.chance.choice(METHODS), self.chance.choice(['spin', 'sleep'])
        falls, lasts, ever = self.chance.random() < 0.5, self.chance.uniform(0.2, 1.5), self.chance.random() < 0.3
        FAULTS_OF_TARGET.write_text(f'{method} sleep forever\n' if ever else f'{method} {how} {lasts:.2f}\n')
        if falls:
            self.node.kill_target()
        time.sleep(lasts)
        FAULTS_OF_TARGET.unlink()

    def a_method_crashes_the_target(self):
        method, lasts = self.chance.choice(METHODS), self.chance.uniform(0.1, 0.8)
        FAULTS_OF_TARGET.write_text(f'{method} exit 139\n')
        time.sleep(lasts)
        FAULTS_OF_TARGET.unlink()

    def a_recreate_is_broken_off(self):
        """Or is not: the target serves as it was or as it is to be, and nothing is left of the other."""
        dies = self.chance.sample(['agent', 'target'], self.chance.randint(0, 2))
        pauses = [self.chance.uniform(0, 0.5) for _ in dies]
        self.memory += 1
        self.replaces({'kind': 'built-in', 'coreCount': 1, 'memoryMib': self.memory})
        for who, pause in zip(dies, pauses):
            time.sleep(pause)
            if who == 'target':
                self.node.kill_target()
            else:
                self.node.kill_agent()
                self.node.start_agent()

    def replaces(self, body):
        self.calls.append(Call(0, [], None, ('PUT', f'{NATIVE}?recreate=true&force=true', body)))
        self.calls[-1].start()

    def the_disk_hangs(self):
        """What serves is brought back without it."""
        falls, lasts = self.chance.random() < 0.6, self.chance.uniform(0.1, 1.5)
        with self.node.disk.hangs():
            if falls:
                self.node.kill_target()
                tried_until(time.monotonic() + BOUND, self.all_others_serve, pause=0.03)
            time.sleep(lasts)

    def the_log_is_not_read(self):
        with self.node.log.is_stuck():
            self.node.kill_target()
            tried_until(time.monotonic() + BOUND, self.is_as_promised, pause=0.03)

    def an_image_does_not_come(self):
        image = {'kind': 'zbs', 'image': 'storage/vhost:1', 'imageUrl': ADDRESS, 'imageSha256': '0' * 64}
        with self.source.trickles():
            self.replaces(image)
            self.source.asked.wait(5)
            self.node.kill_target()
            tried_until(time.monotonic() + BOUND, self.all_others_serve, pause=0.03)

    def the_disk_is_full(self):
        falls, lasts = self.chance.choice(['nobody', 'target', 'agent']), self.chance.uniform(0.1, 0.8)
        self.may_differ.update(each.task for each in self.calls)
        fill_state()
        if falls == 'target':
            self.node.kill_target()
        elif falls == 'agent':
            self.node.kill_agent()
            self.node.start_agent()
        time.sleep(lasts)
        FILLING.unlink()

    def the_controller_is_away(self):
        refuses, dies, lasts = self.chance.random() < 0.5, self.chance.random() < 0.5, self.chance.uniform(0.1, 0.8)
        if refuses:
            self.controller.goes()
        else:
            self.controller.answer = 500
        self.node.kill_target()
        if dies:
            self.node.kill_agent()
            self.node.start_agent()
        time.sleep(lasts)
        if refuses:
            self.controller.comes()
        self.controller.answer = 200

    # --- what has to be true then ----------------------------------------------------------------------------------------

    def begin(self):
        self.node.start_agent()
        self.node.deploy()
        wish = {'backing': self.stays.wish()['backing']}
        same('the first volume', call('PUT', f'{NATIVE}/volumes/{self.stays.name}', wish)[1].get('state'), 'serving')
        self.stays.promised = True

    def is_as_promised(self):
        self.node.agent_goes_on()
        self.tasks_were_called_back()
        all_is_as_promised([self.stays, *self.volumes])

    def all_others_serve(self):
        """Volumes that no call is about."""
        touched = {volume for each in self.calls for volume in each.volumes}
        wanted = {it.name for it in [self.stays, *self.volumes] if it.promised and it not in touched}
        same('volumes that do not serve', sorted(wanted - {it['ctrlr'] for it in rpc('vhost_get_controllers')[0]}), [])

    def tasks_were_called_back(self):
        if self.controller.wrong:
            raise Astray(self.controller.wrong[0])
        for each in self.calls:
            if each.is_alive():
                raise Astray(f'there is no answer to {each}')
            results = self.controller.took[each.task]
            if len({result['success'] for result in results}) > 1 and each.task not in self.may_differ:
                raise Astray(f'it was called back with one thing and the other: {each}: {results}')
            if each.is_taken_in:
                if not results:
                    raise Astray(f'it was not called back: {each}')
                each.called_back(results[0])


def course_of(chance, count):
    """Which faults come; each comes at least once where there are enough rounds."""
    more = chance.choices(list(FAULTS), FAULTS.values(), k=max(0, count - len(FAULTS)))
    course = (list(FAULTS) + more)[:count]
    chance.shuffle(course)
    return course


def main():
    seed = int(os.environ.get('VHOST_ROUNDS_SEED') or random.SystemRandom().getrandbits(32))
    count = int(os.environ.get('VHOST_ROUNDS') or 200)
    print(f'# seed {seed}', flush=True)
    before, rounds, doing = pages(), Rounds(seed), 'the first deploy'
    try:
        rounds.begin()
        began = time.monotonic()
        for number, fault in enumerate(course_of(rounds.chance, count), 1):
            doing = f'round {number}, {fault}'
            rounds.round(fault)
            print(f'# {doing}: {rounds.took[fault][-1]:.2f} s', flush=True)
        print(f'ok - the node converged after each of {count} rounds of seed {seed}, in {time.monotonic() - began:.0f} s')
        for fault, took in sorted(rounds.took.items(), key=lambda it: -len(it[1])):
            took.sort()
            print(f'ok - {fault}: {len(took)} rounds, median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s')
        ends = ', '.join(f'{count} {end}' for end, count in rounds.ends.most_common())
        print(f'ok - of {rounds.ends.total()} calls {ends}')
        doing = 'the end'
        rounds.node.leaves_nothing(before)
        print('ok - and then nothing was left of them')
    except Astray as astray:
        calls = '\n'.join(f'    {each}' for each in rounds.calls)
        sys.exit(f'seed {seed}, {doing}: {astray}\n  its calls:\n{calls}')


main()
