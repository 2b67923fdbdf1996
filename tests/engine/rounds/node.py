"""The node from outside: its processes, its agent's door, its target's control socket, its files."""

import contextlib
import errno
import fcntl
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

TARGET = 'zbs-vhost'
NATIVE = f'/v1/targets/{TARGET}'
COMPATIBLE = '/zbs/primarystorage/vhost'
STATE, RUN = Path('/var/lib/vhost-agent'), Path('/run/vhost-agent')
SOCKETS, ZBS = Path('/var/tmp/vhost-sockets'), Path('/srv/zbs')
LOG = Path('/tmp/agent.err')
# What takes all the room of the state folder while its disk is full.
FILLING = STATE / 'filling'
# What the built-in target reads its faults from; see src/builtin/faults.rs.
FAULTS = ZBS / '.faults'
# QEMU's user, as it were.
OWNER, MODE = (4711, 4712), 0o660
# Beside the volumes' in their folder.
OWN_SOCKETS = {'vhost.sock', 'vhost.sock.lock'}
POOL = Path('/sys/kernel/mm/hugepages/hugepages-2048kB')
# Held by tests that change the kernel's pages, which put them back before they let go of it.
POOL_LOCK = Path('/run/pools.lock')
# Of Linux; Python has a name for it since 3.10.
F_SETPIPE_SZ = 1031

# Everything that the agent waits for is short here, so that a round takes about a second.
CONFIG = f"""
[pools]
default_pages = 0
[report]
enabled = false
[callbacks]
first_delay = "100ms"
max_delay = "500ms"
[target]
kind = "built-in"
core_count = 1
mounts = ["{ZBS}"]
allowed_images = ["storage/vhost"]
image_urls = ["http://127.0.0.1:8090"]
built_in_command = ["/vhost-agent", "target", "-m", "{{cores}}", "-S", "{{socketDir}}", "-r", "{{controlSock}}", "--zbs-dir", "{ZBS}",
  "--debug-faults", "{FAULTS}"]
[volume]
socket_uid = {OWNER[0]}
socket_gid = {OWNER[1]}
look_interval = "1s"
call_timeout = "3s"
[health]
interval = "200ms"
[heal]
first_delay = "100ms"
max_delay = "400ms"
min_ready = "200ms"
unresponsive_after = "1s"
kill_unresponsive_after = "2s"
grace_period = "100ms"
"""


class Astray(Exception):
    """What should be so and is not."""


def tried_until(deadline, check, pause, first=lambda: None):
    """What a check tells that has come true by then; what is done first each time has to be true at once."""
    while True:
        first()
        try:
            return check()
        except Astray:
            if time.monotonic() > deadline:
                raise
        except (OSError, http.client.HTTPException, LookupError, ValueError) as e:
            if time.monotonic() > deadline:
                raise Astray(f'who is asked does not answer: {e!r}') from e
        time.sleep(pause)


def same(what, seen, wanted):
    if seen != wanted:
        raise Astray(f'{what}: seen {seen}, wanted {wanted}')


# --- asking --------------------------------------------------------------------------------------------------------------


def answer_of(connection, method, path, body=None, headers=None):
    connection.request(method, path, None if body is None else json.dumps(body), headers or {})
    with connection.getresponse() as response:
        text = response.read()
        return response.status, json.loads(text) if text else {}


def call(method, path, body=None, headers=None, within=60):
    """A call of the agent: its status and what it answers."""
    connection = http.client.HTTPConnection('127.0.0.1', 7070, timeout=within)
    try:
        return answer_of(connection, method, path, body,
                         {'content-type': 'application/json', 'connection': 'close', **(headers or {})})
    finally:
        connection.close()


def containers():
    """All of the engine's, as `name state`."""
    connection = http.client.HTTPConnection('engine', timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect('/run/docker.sock')
        _, told = answer_of(connection, 'GET', '/containers/json?all=1')
        return [f'{" ".join(it["Names"])} {it["State"]}' for it in told]
    finally:
        connection.close()


def rpc(*methods):
    """Results of methods of the target's control socket that take no parameters."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(2)
        control.connect(str(SOCKETS / 'vhost.sock'))
        for number, method in enumerate(methods):
            control.sendall(json.dumps({'jsonrpc': '2.0', 'id': number, 'method': method}).encode())
        replies = control.makefile('rb')
        answers = [json.loads(replies.readline()) for _ in methods]
    return [answer['result'] for answer in sorted(answers, key=lambda it: it['id'])]


def wanted_volumes():
    """What the state folder says: each volume's name and wish."""
    files = (STATE / 'volumes' / TARGET).glob('*.json')
    specs = [json.loads(file.read_text())['spec'] for file in files]
    return {spec['name']: spec for spec in specs}


def volume_sockets():
    """The names of the volumes' sockets; each has to have its owner and mode, and nothing else may lie there."""
    names = set()
    for path in SOCKETS.iterdir():
        if path.name in OWN_SOCKETS:
            continue
        names.add(path.name)
        seen = path.lstat()
        if not stat.S_ISSOCK(seen.st_mode):
            raise Astray(f'{path} is no socket')
        same(f'owner and mode of {path}', (seen.st_uid, seen.st_gid, oct(stat.S_IMODE(seen.st_mode))), (*OWNER, oct(MODE)))
    return names


def pages():
    """How many there are while no other test has changed them."""
    with POOL_LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return int((POOL / 'nr_hugepages').read_text())


def page_files():
    mounts = [line.split()[1] for line in Path('/proc/mounts').read_text().splitlines() if line.split()[2] == 'hugetlbfs']
    return sorted({str(file) for mount in mounts for file in Path(mount).iterdir()})


def fill_state():
    """Not a byte is free in the state folder from here on."""
    with FILLING.open('ab', buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise


# --- processes -----------------------------------------------------------------------------------------------------------


def target_pids():
    pids = []
    for process in Path('/proc').glob('[0-9]*'):
        try:
            if (process / 'cmdline').read_bytes().startswith(b'/vhost-agent\0target\0'):
                pids.append(int(process.name))
        except OSError:
            pass
    return pids


def send(pid, which):
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        pass


class Disk:
    """That of the state folder; it can hang where the machine lets a file be one (a loop device)."""

    IMAGE, FREEZE, THAW = Path('/mnt/state.img'), 0xC0045877, 0xC0045878

    def __init__(self):
        STATE.mkdir(parents=True, exist_ok=True)
        subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', self.IMAGE.parent], check=True)
        self.IMAGE.touch()
        os.truncate(self.IMAGE, 8 << 20)
        loops = [(f'loop{number}', stat.S_IFBLK, (7, number)) for number in range(64)]
        for name, kind, device in [('loop-control', stat.S_IFCHR, (10, 237)), *loops]:
            if not (path := Path('/dev', name)).exists():
                os.mknod(path, kind | 0o600, os.makedev(*device))
        made = ['mke2fs', '-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0', '-N', '4096', self.IMAGE]
        mounted = ['mount', '-o', 'loop,nodelalloc', self.IMAGE, STATE]
        self.can_hang = all(subprocess.run(command, check=False).returncode == 0 for command in (made, mounted))
        if self.can_hang:
            (STATE / 'lost+found').rmdir()
        else:
            print('# SKIPPED: a disk that hangs, for no loop device can be had here', flush=True)
            subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', STATE], check=True)
        STATE.chmod(0o700)

    @contextlib.contextmanager
    def hangs(self):
        """Whatever writes waits."""
        folder = os.open(STATE, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, self.FREEZE, 0)
            yield
        finally:
            fcntl.ioctl(folder, self.THAW, 0)
            os.close(folder)


class Log:
    """What the agent prints goes through a pipe to a file, as fast as that is read."""

    def __init__(self):
        self.flows = threading.Event()
        self.flows.set()
        self.reader = None

    def begins(self):
        read, write = os.pipe()
        fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
        self.reader = threading.Thread(target=self.copies, args=(read,), daemon=True)
        self.reader.start()
        return write

    def copies(self, pipe):
        with open(pipe, 'rb', buffering=0) as pipe, LOG.open('ab', buffering=0) as log:
            while text := pipe.read(65536):
                self.flows.wait()
                log.write(text)

    @contextlib.contextmanager
    def is_stuck(self):
        self.flows.clear()
        try:
            yield
        finally:
            self.flows.set()


class Node:
    """What the faults happen to."""

    def __init__(self, config=CONFIG):
        self.agent = None
        # How often the agent ended and nobody had killed it.
        self.ended = 0
        self.disk, self.log = Disk(), Log()
        ZBS.mkdir()
        Path('/tmp/rounds.toml').write_text(config)

    def start_agent(self):
        log = self.log.begins()
        self.agent = subprocess.Popen(['vhost-agent', '--config', '/tmp/rounds.toml', 'serve', '--listen', '127.0.0.1:7070'],
                                      stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(log)

    def kill_agent(self):
        self.agent.kill()
        self.agent.wait()
        # What it starts does not print there, but for an engine that it started itself.
        self.log.reader.join(1)

    def agent_goes_on(self):
        """One that ended by itself is started again, as systemd does it."""
        if self.agent.poll() is not None:
            self.ended += 1
            self.start_agent()
            time.sleep(0.2)

    def kill_target(self):
        killed = target_pids()
        for pid in killed:
            send(pid, signal.SIGKILL)
        while set(killed) & set(target_pids()):
            time.sleep(0.001)

    def next_target(self, within=20):
        """The process that comes after one that was killed, once it has its control socket."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for pid in target_pids():
                if (SOCKETS / 'vhost.sock').exists():
                    return pid
            time.sleep(0.002)
        raise Astray(f'no new target within {within} s')

    def kill_engine(self):
        pid = int(Path('/run/docker.pid').read_text())
        send(pid, signal.SIGKILL)
        while Path(f'/proc/{pid}').exists():
            time.sleep(0.005)

    def deploy(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                status, told = call('POST', f'{COMPATIBLE}/target/ensure', {})
                if told.get('success'):
                    return
            except ConnectionRefusedError:
                told = 'the agent does not listen'
            if time.monotonic() > deadline:
                raise Astray(f'the target cannot be deployed: {told}')
            time.sleep(0.1)

    def leaves_nothing(self, pages_before=None):
        """Once the last volume and the target are gone, no file speaks of what the faults broke off.

        The pages are the kernel's, and are counted where their number before is given.
        """
        status, told = call('DELETE', NATIVE, {})
        same('the end of the target', (status, told.get('outcome')), (200, 'changed'))
        same('containers', containers(), [])
        same('targets', target_pids(), [])
        same('sockets', sorted(path.name for path in SOCKETS.glob('*')), [])
        same('files on hugetlbfs', page_files(), [])
        if pages_before is not None:
            same('pages', pages(), pages_before)
        # The evidence of one exit, and not of all before it.
        # The field `error` has what the message has.
        messages = [line.partition('"error":')[0] for line in LOG.read_text().splitlines()]
        long = [message for message in messages if message.count('exits again and again') > 1]
        same('evidence within evidence', long[:1], [])
        deadline = time.monotonic() + 10
        while (left := self.left_in_state()) and time.monotonic() < deadline:
            time.sleep(0.1)
        same('files in the state folder', left, [])

    def left_in_state(self):
        files = [path for folder in (STATE, RUN) for path in folder.rglob('*') if path.is_file()]
        # The books of the pools and the locks stay, who this host is to its controller, and what has come of an image.
        stay = ('lock', 'ledger.json', 'controller.json')
        return sorted(str(path) for path in files if path.name not in stay and path.parent.name != 'images')
