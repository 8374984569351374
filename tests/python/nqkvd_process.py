"""A nqkvd that a test starts, kills and starts again at the same address."""

import signal
import subprocess
import tempfile
import threading

START_SECONDS = 60
STOP_SECONDS = 30


class NqkvdProcess:
    """A context manager. `server` is the address of its Unix socket, the same after each restart."""

    def __init__(self, nqkvd, *flags):
        self._folder = tempfile.TemporaryDirectory(prefix="nqkv-")
        addresses = ["--listen=127.0.0.1:0", "--http_listen=", f"--socket_dir={self._folder.name}"]
        self._command = [str(nqkvd), *addresses, *flags]
        self._process = None
        self._lines = []
        self.server = f"unix:{self._folder.name}/nqkvd.sock"
        self.admin_server = f"unix:{self._folder.name}/nqkvd-admin.sock"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.stop()
        finally:
            self.kill()
            self._folder.cleanup()
            if kind is not None:
                print(self.log())

    def log(self):
        return "".join(self._lines)

    def start(self):
        """Returns when the server says that it is ready."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        settled = threading.Event()
        ready = []

        def read(stream):
            for line in stream:
                self._lines.append(line)
                if " ready: " in line:
                    ready.append(True)
                    settled.set()
            settled.set()
            stream.close()

        threading.Thread(target=read, args=(self._process.stdout,), daemon=True).start()
        settled.wait(START_SECONDS)
        if not ready:
            self.kill()
            raise RuntimeError(f"nqkvd did not start:\n{self.log()}")

    def kill(self):
        """As a crash."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self):
        """As an operator. RuntimeError when it does not end with exit code 0."""
        if self._process.poll() is None:
            self._process.terminate()
        if self._process.wait(STOP_SECONDS) not in (0, -signal.SIGKILL):
            raise RuntimeError(f"nqkvd ended with {self._process.returncode}:\n{self.log()}")

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)
