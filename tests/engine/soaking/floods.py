"""Peers that mean no good, or know no better; each keeps what it has for some seconds and goes."""

import socket
import time

from manager import AT_ONCE

AGENT = ('127.0.0.1', 7070)
HEAD = b'POST /zbs/primarystorage/vhost/target/health HTTP/1.1\r\nhost: a\r\n'
STATUS = b'GET /v1/status HTTP/1.1\r\nhost: a\r\n\r\n'


def connections(count, receive_buffer=None):
    """As many as come about: an agent that is dead takes none."""
    opened = []
    for _ in range(count):
        peer = socket.socket()
        if receive_buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.settimeout(5)
        try:
            peer.connect(AGENT)
            opened.append(peer)
        except OSError:
            peer.close()
    return opened


def sends(peers, data):
    for peer in peers:
        try:
            peer.sendall(data() if callable(data) else data)
        except OSError:
            pass


def go(peers, chance):
    """Some end in order, some with a reset."""
    for peer in peers:
        if chance.random() < 0.5:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        peer.close()


def silent_connections(chance):
    peers = connections(300)
    time.sleep(chance.uniform(1, 5))
    go(peers, chance)


def half_heads(chance):
    peers = connections(150)
    sends(peers, HEAD)
    for _ in range(5):
        time.sleep(0.5)
        sends(peers, b'x-more: yes\r\n')
    go(peers, chance)


def slow_bodies(chance):
    peers = connections(80)
    sends(peers, HEAD + b'content-type: application/json\r\ncontent-length: 5000\r\n\r\n{"a": "')
    for _ in range(12):
        time.sleep(0.4)
        sends(peers, b'x')
    go(peers, chance)


def slow_readers(chance):
    peers = connections(40, receive_buffer=4096)
    for peer in peers:
        peer.settimeout(0.05)
    sends(peers, STATUS * 400)
    time.sleep(chance.uniform(2, 5))
    go(peers, chance)


def garbage(chance):
    peers = connections(200)
    noise, hello = chance.randbytes(3000), b'\x16\x03\x01\x02\x00\x01' + chance.randbytes(90)
    kinds = [noise, noise[:7], hello, HEAD + b'content-length: -7\r\n\r\n', b'\r\n' * 3000, HEAD * 40, b'A' * 70000]
    sends(peers, lambda: chance.choice(kinds))
    time.sleep(0.5)
    go(peers, chance)


ALL = {'silent connections': silent_connections, 'half heads': half_heads, 'slow bodies': slow_bodies,
       'slow readers': slow_readers, 'garbage': garbage}
