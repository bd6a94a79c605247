"""A TCP gate between two processes, whose bytes it can hold, cut, corrupt and split."""

import contextlib
import socket
import threading


class TcpGate:
    """Listens on `port` and passes each connection on to `target`. `script(side, at, data)` sees the bytes of each connection
    on their way, `side` "up" or "down", `at` how many went before, and gives back pieces to send, one send() each; a None among
    them cuts both sides. `stall`: an Event that nothing passes before it is set."""

    def __init__(self, port, target, script=None, stall=None):
        self.port = port
        self.target = target
        self.script = script or (lambda side, at, data: [data])
        self.stall = stall
        self.open = 0  # connections with a living half
        self._lock = threading.Lock()
        self._sockets = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def cut(self):
        """Every connection, now."""
        if self.stall is not None:
            self.stall.set()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=30)
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
                self.open += 1
            ended = []
            for side, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._carry, args=(side, source, sink, ended), daemon=True).start()

    def _carry(self, side, source, sink, ended):
        at = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.stall is not None:
                    self.stall.wait(60)
                pieces = self.script(side, at, data)
                at += len(data)
                for piece in pieces:
                    if piece is None:
                        raise ConnectionAbortedError
                    sink.sendall(piece)
        # Where one side ends, the other does.
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            ended.append(side)
            if len(ended) == 2:
                self._sockets -= {source, sink}
                source.close()
                sink.close()
                self.open -= 1
