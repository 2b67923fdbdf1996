"""What happens to the node while it is used. A method is a fault; it returns when the fault is over."""

import signal
import subprocess
import time

import floods
from node import COMPATIBLE, TARGET, call, send, target_pids

TARGET_FAULTS = ('the target is killed', 'the target is killed twice', 'its container is stopped', 'its container is removed',
                 'the target is frozen', 'a new target is frozen')
ENGINE_FAULTS = ('the engine is killed', 'engine and target are killed')
AGENT_FAULTS = ('the agent is killed', 'agent and target are killed', 'all are killed')
FLOODS = tuple(f'a flood of {kind}' for kind in floods.ALL) + ('a flood of tasks',)
# So many tasks at one time are more than the settings take.
TASKS = 60


class Trouble:
    def __init__(self, chance, node, controller, load):
        self.chance, self.node, self.controller, self.load = chance, node, controller, load

    def comes(self, fault):
        if fault.startswith('the controller '):
            self.the_controller(fault.removeprefix('the controller '))
        elif fault.startswith('a flood of ') and (flood := floods.ALL.get(fault.removeprefix('a flood of '))):
            flood(self.chance)
        else:
            getattr(self, fault.replace(' ', '_'))()

    def the_controller(self, mood):
        """And something falls meanwhile, now and then, so that it is owed more."""
        self.controller.becomes(mood)
        try:
            time.sleep(self.chance.uniform(1, 4))
            if self.chance.random() < 0.4:
                self.node.kill_target()
            time.sleep(self.chance.uniform(1, 4))
        finally:
            self.controller.gets_well()

    def a_flood_of_tasks(self):
        self.load.many_tasks(TASKS)

    def the_target_is_killed(self):
        self.node.kill_target()

    def the_target_is_killed_twice(self):
        self.node.kill_target()
        time.sleep(self.chance.uniform(0.2, 3))
        self.node.kill_target()

    def its_container_is_stopped(self):
        self.docker('stop', '-t', '1', TARGET)

    def its_container_is_removed(self):
        self.docker('rm', '-f', TARGET)

    def docker(self, *words):
        """Not there, or under other hands just then: that is no matter."""
        subprocess.run(['docker', *words], timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)

    def the_target_is_frozen(self):
        """It goes on by itself, or the agent has given it up by then."""
        frozen = target_pids()
        for pid in frozen:
            send(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.3, 5))
        for pid in frozen:
            send(pid, signal.SIGCONT)

    def a_new_target_is_frozen(self):
        self.node.kill_target()
        time.sleep(self.chance.uniform(0.3, 2))
        self.the_target_is_frozen()

    def the_engine_is_killed(self):
        """Nothing falls with it, so nobody misses it before the next one prepares the node, this one or one of the load."""
        self.node.kill_engine()
        time.sleep(self.chance.uniform(0, 2))
        call('POST', f'{COMPATIBLE}/target/prepareenv', {})

    def engine_and_target_are_killed(self):
        self.node.kill_engine()
        self.node.kill_target()

    def the_agent_is_killed(self):
        # Calls begin in one life or in the next.
        with self.load.lock:
            self.node.kill_agent()
            self.load.life += 1
        time.sleep(self.chance.uniform(0, 1))
        self.node.start_agent()

    def agent_and_target_are_killed(self):
        self.node.kill_target()
        self.the_agent_is_killed()

    def all_are_killed(self):
        self.node.kill_engine()
        self.agent_and_target_are_killed()
