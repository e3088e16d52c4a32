"""Work that the training loop need not wait for: files to write, images to draw."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs calls one after the other in a thread; a call that failed raises at the next `submit` or `close`."""

    def __init__(self):
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="megasink-background")
        self.running: list[Future] = []

    def submit(self, call: Callable, *args) -> Future:
        self._raise_failures()
        self.running.append(self.executor.submit(call, *args))
        return self.running[-1]

    def close(self) -> None:
        """Wait for everything submitted."""
        self.executor.shutdown(wait=True)
        self._raise_failures()

    def _raise_failures(self) -> None:
        done = [future for future in self.running if future.done()]
        self.running = [future for future in self.running if not future.done()]
        for future in done:
            future.result()
