"""What the agent takes of the machine, sampled while it lives, and whether that grows."""

import os
import threading
import time
from pathlib import Path
from statistics import median

from node import Astray

# More than so much from one third of a long life to its last is a leak, or hides one.
RSS_FACTOR, RSS_KIB, MORE_DESCRIPTORS, MORE_THREADS = 1.1, 2048, 8, 4


class Sample:
    def __init__(self, pid):
        lines = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
        self.at = time.monotonic()
        self.rss, self.anon, self.threads = (int(lines[key].split()[0]) for key in ('VmRSS', 'RssAnon', 'Threads'))
        self.descriptors = len(os.listdir(f'/proc/{pid}/fd'))


class Sampler(threading.Thread):
    """Samples of each life of the agent."""

    def __init__(self, node, each):
        super().__init__(daemon=True)
        self.node, self.each, self.lives, self.ended = node, each, {}, threading.Event()

    def run(self):
        while not self.ended.wait(self.each):
            pid = self.node.agent.pid
            try:
                self.lives.setdefault(pid, []).append(Sample(pid))
            except (OSError, KeyError):
                # It is dead just now.
                pass

    def since(self, began):
        """Those of the life that goes on, from then on."""
        return [it for it in self.lives.get(self.node.agent.pid, []) if it.at >= began]


def middle(samples, what):
    return median(getattr(it, what) for it in samples)


def judge(samples):
    """Prints what was seen in the first and the last third, then says what grew."""
    third = len(samples) // 3
    if third < 3:
        raise Astray(f'{len(samples)} samples of the last life are too few to judge by')
    first, last = samples[:third], samples[-third:]
    course = ', '.join(str(it.anon) for it in samples[::max(1, len(samples) // 16)])
    print(f'# anon in the course of {samples[-1].at - samples[0].at:.0f} s: {course} KiB')
    limits = {
        'rss': lambda it: it * RSS_FACTOR + RSS_KIB, 'anon': lambda it: it * RSS_FACTOR + RSS_KIB,
        'descriptors': lambda it: it + MORE_DESCRIPTORS, 'threads': lambda it: it + MORE_THREADS}
    grown = []
    for what, limit in limits.items():
        before, after = middle(first, what), middle(last, what)
        most = max(getattr(it, what) for it in samples)
        unit = ' KiB' if what in ('rss', 'anon') else ''
        print(f'# {what}: {before:.0f}{unit} in the first third, {after:.0f}{unit} in the last, {most}{unit} at most')
        if after > limit(before):
            grown.append(f'{what} from {before:.0f}{unit} to {after:.0f}{unit}')
    if grown:
        raise Astray(f'the agent grows: {", ".join(grown)}')


def percentiles(answers):
    """Of pairs of seconds and what was the matter then."""
    ordered = sorted(answers)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))][0] * 1000 for part in (0.5, 0.99)]
    longest, matter = ordered[-1]
    return f'{len(ordered)} answers, p50 {at[0]:.1f} ms, p99 {at[1]:.1f} ms, longest {longest * 1000:.1f} ms ({matter})'
