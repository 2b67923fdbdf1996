"""A node is used for minutes while things fall, run by tests/engine/soak inside a bare machine: `soaking SECONDS`.

A controller calls a handful of times each second, connections are kept and others come and go, and one fault follows the
other: targets, their engine and the agent are killed or frozen, peers flood the agent, the controller has bad days. After
each fault the node has to be whole again within a bound, no call may be lost, and what the agent takes of the machine may
not grow. The agent is killed only in the first third of the time; its last life is what growth is judged by.

VHOST_SOAK_SEED repeats the faults and calls of a run, though not its timing.
"""

import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

# Parts of the fault rounds, which lie beside this.
sys.path.append(str(Path(__file__).resolve().parent.parent / 'rounds'))

from calls import Volume
from controller import PORT
from node import COMPATIBLE, CONFIG, LOG, STATE, TARGET, Astray, Node, call, containers, rpc, same, tried_until
from promises import all_is_as_promised

import figures
from load import Load
from manager import Manager
from trouble import AGENT_FAULTS, ENGINE_FAULTS, FLOODS, TARGET_FAULTS, Trouble

# Seconds within which the node has to be whole after a fault, on a machine that has other work.
BOUND = 90
CONNECT = {'hostUuid': '5f0c', 'sendCommandUrl': f'http://127.0.0.1:{PORT}/zstack/asyncrest/sendcommand'}
# Beside those of the rounds: small bounds, so that they are reached.
SETTINGS = CONFIG.replace('[report]\nenabled = false', '[report]\ninterval = "2s"\ntimeout = "1s"\nfirst_delay = "200ms"\n'
                          'max_delay = "2s"\nunknown_delay = "3s"').replace(
    '[callbacks]', '[callbacks]\nattempt_timeout = "2s"') + """
[log]
format = "json"
[http]
max_tasks = 32
header_timeout = "3s"
body_timeout = "3s"
write_timeout = "3s"
"""


class Soak:
    def __init__(self, seed, seconds):
        self.seconds, self.chance = seconds, random.Random(seed)
        self.node, self.controller = Node(SETTINGS), Manager()
        self.volumes = [Volume(number) for number in range(24)]
        self.load = Load(random.Random(seed + 1), self.controller, self.volumes)
        self.trouble = Trouble(random.Random(seed + 2), self.node, self.controller, self.load)
        self.sampler = figures.Sampler(self.node, max(1, seconds / 120))
        self.came, self.longest, self.doing, self.began = Counter(), 0, 'the first deploy', 0

    def run(self):
        self.node.start_agent()
        self.answers('POST', f'{COMPATIBLE}/target/prepareenv', {})
        self.node.deploy()
        self.answers('POST', '/host/connect', CONNECT)
        self.load.begins()
        self.sampler.start()
        self.began = began = time.monotonic()
        moods = tuple(f'the controller {mood}' for mood in self.controller.moods)
        always = TARGET_FAULTS + ENGINE_FAULTS + FLOODS + moods
        self.faults(AGENT_FAULTS + always + AGENT_FAULTS, until=began + self.seconds / 3)
        # From here on it lives, and all that warms it up comes once before growth is judged.
        self.fault('the agent is killed')
        for flood in FLOODS:
            self.fault(flood)
        warm = time.monotonic()
        self.faults(always, until=began + self.seconds)
        self.ends(warm)

    def answers(self, *request):
        """Tried until the agent listens."""
        deadline = time.monotonic() + BOUND
        while True:
            try:
                return call(*request)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    # --- faults ------------------------------------------------------------------------------------------------------------

    def faults(self, kinds, until):
        """Each once, in some order, and then again."""
        while True:
            for fault in self.chance.sample(kinds, len(kinds)):
                if time.monotonic() > until:
                    return
                self.fault(fault)
                time.sleep(self.chance.uniform(0, 3))

    def fault(self, fault):
        self.doing = self.load.matter = fault
        self.came[fault] += 1
        begins = time.monotonic()
        self.trouble.comes(fault)
        over = time.monotonic()
        self.within(BOUND, lambda: self.is_whole(over))
        took = time.monotonic() - over
        self.longest = max(self.longest, took)
        print(f'# {begins - self.began:.0f} s: {fault}, {over - begins:.1f} s; whole after {took:.1f} s', flush=True)

    def within(self, seconds, check):
        return tried_until(time.monotonic() + seconds, check, pause=0.1, first=self.nothing_is_wrong)

    def nothing_is_wrong(self):
        if self.node.agent.poll() is not None:
            raise Astray(f'the agent ended by itself: {self.node.agent.returncode}')
        for wrong in self.load.wrong + self.controller.wrong:
            raise Astray(wrong)
        if not self.load.stopping.is_set() and not all(thread.is_alive() for thread in self.load.threads):
            raise Astray('a part of the load has ended by itself')

    def is_whole(self, since):
        """The target serves with what was promised and is not about to change, and nobody is owed anything from before."""
        self.load.all_landed(since)
        with self.load.lock:
            wanted = {it.name for it in self.load.untouched() if it.promised}
            gone = {it.name for it in self.load.untouched() if it.promised is False}
            controllers = {it['ctrlr'] for it in rpc('vhost_get_controllers')[0]}
        same('volumes that were promised and do not serve', sorted(wanted - controllers), [])
        same('volumes that were promised to be gone', sorted(gone & controllers), [])
        same('containers', containers(), [f'/{TARGET} running'])
        same('health', call('POST', f'{COMPATIBLE}/target/health', {})[1]['targetRunning'], True)

    # --- the end -----------------------------------------------------------------------------------------------------------

    def ends(self, warm):
        self.doing = 'the end'
        samples = self.sampler.since(warm)
        self.sampler.ended.set()
        self.load.ends_now()
        self.within(BOUND, lambda: self.load.all_landed(time.monotonic()))
        self.within(BOUND, lambda: all_is_as_promised(self.volumes))
        self.within(BOUND, self.nobody_waits)
        told = self.controller.reports
        self.within(BOUND, lambda: self.is_reported(told))
        self.tells()
        self.within(30, self.no_process_is_left)
        print('ok - no process is left that has ended or was to end')
        log_is_clean()
        print('ok - its log has JSON lines and no panic')
        figures.judge(samples)
        print('ok - what it takes of the machine does not grow')
        self.node.leaves_nothing()
        print('ok - and then nothing was left of them')

    def nobody_waits(self):
        same('the outbox', sorted(path.name for path in (STATE / 'outbox').glob('*')), [])

    def is_reported(self, told):
        if self.controller.reports == told:
            raise Astray('no report comes')
        self.controller.is_told('serving')

    def tells(self):
        load, took = self.load, self.controller.took
        kinds = f'{self.came.total()} faults of {len(self.came)} kinds'
        print(f'ok - {kinds}; the node was whole after {self.longest:.1f} s at most')
        print('#  ', ', '.join(f'{count} × {fault}' for fault, count in self.came.most_common()))
        ends = ', '.join(f'{count} {end}' for end, count in load.ends.most_common())
        print(f'ok - no call was lost of {load.ends.total()}: {ends}')
        print(f'#   {len(took)} tasks were called back, {sum(map(len, took.values())) - len(took)} times more than once, '
              f'{self.controller.not_waited_for} times not waited for; {self.controller.reports} reports were taken')
        print('#  ', ', '.join(f'{count} × {what}' for what, count in sorted(load.others.items())))
        there = sum(1 for volume in self.volumes if volume.promised)
        print(f'ok - {there} volumes that were promised serve, and nothing else does')
        print(f'# health: {figures.percentiles(load.answers)}')

    def no_process_is_left(self):
        """What the agent starts has ended and was waited for, but for the engine, which goes on without it too."""
        threads = Path(f'/proc/{self.node.agent.pid}/task').iterdir()
        children = [child for thread in threads for child in (thread / 'children').read_text().split()]
        names = {Path(f'/proc/{child}/comm').read_text().strip() for child in children}
        same("the agent's children", sorted(names - {'dockerd'}), [])
        same('processes that nobody waited for', list(zombies()), [])


def zombies():
    for process in Path('/proc').glob('[0-9]*'):
        try:
            name, _, rest = (process / 'stat').read_text().partition(') ')
        except OSError:
            continue
        if rest.startswith('Z'):
            yield name


def log_is_clean():
    for line in LOG.read_text(errors='replace').splitlines():
        try:
            told = json.loads(line)
        except ValueError as e:
            raise Astray(f'a line of the log is no JSON: {line[:300]}') from e
        # Its words for a panic.
        if 'the agent panicked' in json.dumps(told):
            raise Astray(f'the log tells of a panic: {line[:600]}')


def main():
    seed = int(os.environ.get('VHOST_SOAK_SEED') or random.SystemRandom().getrandbits(32))
    print(f'# seed {seed}', flush=True)
    soak = Soak(seed, float(sys.argv[1]))
    began = time.monotonic()
    try:
        soak.run()
        print(f'ok - the soak of seed {seed} took {time.monotonic() - began:.0f} s')
    except Exception as e:
        for line in LOG.read_text(errors='replace').splitlines()[-60:]:
            print(line)
        if not isinstance(e, Astray):
            traceback.print_exc(file=sys.stdout)
        sys.exit(f'not ok - seed {seed}, {time.monotonic() - began:.0f} s, {soak.doing}: {e}')


main()
