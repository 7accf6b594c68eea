"""Runs handlers for the jobs of queues.

One thread leases for each queue, `concurrency` threads run its handler, one thread renews the leases of all jobs, and one
sends the settlements.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

from ._client import Client, Job, Queue, span
from ._errors import Dead, NotFound, Refused, Retry, Unavailable

log = logging.getLogger("towpath")

Handler = Callable[[Job], Any]

# The server keeps this much of a reason.
_REASON_BYTES = 1024

_MAX_SETTLEMENTS = 1000


@dataclass
class _Task:
    queue: Queue
    handler: Handler
    concurrency: int
    dead_on: Tuple[Type[BaseException], ...]
    jobs: "SimpleQueue[Optional[Job]]" = field(default_factory=SimpleQueue)
    free: threading.Semaphore = field(default_factory=threading.Semaphore)


class Worker:
    """Leases jobs and runs their handlers until it is stopped.

    - `client`: a client of its own by default, from the environment.
    - `lease`: seconds of a lease; a worker that dies keeps its jobs from others for this long.
    - `wait`: seconds for which a lease request waits for a job.
    - `grace`: seconds for running handlers when the worker stops.
    """

    def __init__(
        self,
        client: Optional[Client] = None,
        *,
        lease: float = 30.0,
        wait: float = 20.0,
        grace: float = 25.0,
    ) -> None:
        self._client = client or Client()
        self._is_own = client is None
        self._lease, self._wait, self._grace = lease, wait, grace
        self._tasks: List[_Task] = []
        self._held: Dict[str, Tuple[_Task, Job]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._ended = threading.Event()
        self._settlements: "SimpleQueue[Optional[Tuple[_Task, Job, Dict[str, Any]]]]" = (
            SimpleQueue()
        )
        # Cancelled to end waiting lease requests, while settlements go on.
        self._leasing = Client(self._client._url, self._client._key, self._client._timeout)

    def task(
        self,
        queue: str,
        *,
        concurrency: int = 1,
        dead_on: Tuple[Type[BaseException], ...] = (),
    ) -> Callable[[Handler], Handler]:
        """Declares a function as the handler of a queue.

        - `concurrency`: most jobs that run at once, each in a thread.
        - `dead_on`: exception types that make a job a dead letter.
        """
        if concurrency < 1:
            raise ValueError(f"`concurrency` is {concurrency}; it must be at least 1")
        if any(task.queue.name == queue for task in self._tasks):
            raise ValueError(f"queue `{queue}` has a handler already")

        def declare(handler: Handler) -> Handler:
            task = _Task(self._client.queue(queue), handler, concurrency, tuple(dead_on))
            task.free = threading.Semaphore(concurrency)
            self._tasks.append(task)
            return handler

        return declare

    def stop(self) -> None:
        """Stops leasing; running handlers may finish. From any thread."""
        self._stopping.set()

    def run(self, *, signals: bool = True) -> None:
        """Works until `stop`, SIGTERM or SIGINT; returns when every job is settled or released."""
        if not self._tasks:
            raise ValueError("the worker has no handlers; declare one with `@worker.task(QUEUE)`")
        if signals and threading.current_thread() is threading.main_thread():
            for caught in (signal.SIGTERM, signal.SIGINT):
                signal.signal(caught, self._on_signal)
        settler = self._start("settle", self._settle)
        self._start("renew", self._renew)
        leasing = []
        for task in self._tasks:
            leasing.append(self._start(f"lease-{task.queue.name}", self._fetch, task))
            for number in range(task.concurrency):
                self._start(f"{task.queue.name}-{number}", self._handle, task)
        names = ", ".join(task.queue.name for task in self._tasks)
        log.info("worker started; queues: %s", names)
        while not self._stopping.wait(0.5):
            if not all(thread.is_alive() for thread in leasing):
                log.error("a lease thread ended; stopping the worker")
                self._stopping.set()
        self._leasing.cancel()
        for thread in leasing:
            thread.join(timeout=5.0)
        self._leasing.close()
        deadline = time.monotonic() + self._grace
        while self._count() and time.monotonic() < deadline and not self._hurry.is_set():
            self._hurry.wait(0.02)
        with self._lock:
            rest = list(self._held.values())
        for task, job in rest:
            log.warning("job released; it did not finish: queue=%s id=%s", job.queue, job.id)
            self._finish(task, job, {"disposition": "release"})
        self._settlements.put(None)
        settler.join(timeout=self._lease)
        self._ended.set()
        for task in self._tasks:
            for _ in range(task.concurrency):
                task.jobs.put(None)
        if self._is_own:
            self._client.close()
        log.info("worker stopped; released: %d", len(rest))

    def _on_signal(self, number: int, _: Optional[FrameType]) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    @staticmethod
    def _start(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
        # Daemons: a handler that does not end must not keep the process.
        thread = threading.Thread(target=target, args=args, name=f"towpath-{name}", daemon=True)
        thread.start()
        return thread

    def _count(self) -> int:
        with self._lock:
            return len(self._held)

    def _fetch(self, task: _Task) -> None:
        leasing = self._leasing.queue(task.queue.name)
        pause, is_known = 0.1, True
        while not self._stopping.is_set():
            if not task.free.acquire(timeout=0.5):
                continue
            if self._stopping.is_set():
                task.free.release()
                return
            slots = 1
            while slots < task.concurrency and task.free.acquire(blocking=False):
                slots += 1
            jobs: List[Job] = []
            try:
                jobs = leasing.lease(slots, wait=self._wait, lease=self._lease)
                pause, is_known = 0.1, True
            except NotFound as error:
                if is_known:
                    log.warning("queue not found; waiting for it: %s", error)
                is_known = False
                self._stopping.wait(1.0)
            except Unavailable as error:
                if not self._stopping.is_set():
                    log.warning("lease failed; retrying: %s", error)
                    self._stopping.wait(error.retry_after or pause)
                    pause = min(pause * 2, 5.0)
            except Refused as error:
                log.error("lease refused; stopping the worker: %s", error)
                self._stopping.set()
            with self._lock:
                for job in jobs:
                    self._held[job.receipt] = (task, job)
            for job in jobs:
                task.jobs.put(job)
            for _ in range(slots - len(jobs)):
                task.free.release()

    def _handle(self, task: _Task) -> None:
        while True:
            job = task.jobs.get()
            if job is None:
                return
            if job.lost:
                continue
            if self._stopping.is_set():
                self._finish(task, job, {"disposition": "release"})
                continue
            self._finish(task, job, self._run(task, job))

    @staticmethod
    def _run(task: _Task, job: Job) -> Dict[str, Any]:
        try:
            task.handler(job)
            return {"disposition": "ack"}
        except Retry as retry:
            disposition = {"disposition": "retry", "reason": _cut(retry.reason or "retry")}
            if retry.after is not None:
                disposition["after"] = span(retry.after)
            return disposition
        except Dead as dead:
            return {"disposition": "dead_letter", "reason": _cut(dead.reason or "dead")}
        except BaseException as error:  # A handler must not end the worker's thread.
            reason = _cut(f"{type(error).__name__}: {error}")
            if isinstance(error, task.dead_on):
                return {"disposition": "dead_letter", "reason": reason}
            log.exception("job failed: queue=%s id=%s attempt=%d", job.queue, job.id, job.attempt)
            return {"disposition": "retry", "reason": reason}

    def _finish(self, task: _Task, job: Job, disposition: Dict[str, Any]) -> None:
        """Hands a settlement to its thread, unless the job was settled or lost before."""
        with self._lock:
            is_held = self._held.pop(job.receipt, None) is not None
        if is_held:
            self._settlements.put((task, job, {"receipt": job.receipt, **disposition}))
            task.free.release()

    def _settle(self) -> None:
        while True:
            first = self._settlements.get()
            if first is None:
                return
            batch, is_last = [first], False
            while len(batch) < _MAX_SETTLEMENTS:
                try:
                    one = self._settlements.get_nowait()
                except Empty:
                    break
                if one is None:
                    is_last = True
                    break
                batch.append(one)
            by_queue: Dict[str, List[Tuple[_Task, Job, Dict[str, Any]]]] = {}
            for settlement in batch:
                by_queue.setdefault(settlement[1].queue, []).append(settlement)
            for settlements in by_queue.values():
                self._settle_all(settlements)
            if is_last:
                return

    def _settle_all(self, settlements: List[Tuple[_Task, Job, Dict[str, Any]]]) -> None:
        """Repeats settlements whose outcome is unknown, until their leases end."""
        deadline, pause = time.monotonic() + self._lease, 0.1
        while settlements:
            task = settlements[0][0]
            rest = settlements
            try:
                results = task.queue.settle([body for _, _, body in settlements])
                rest = []
                for settlement, result in zip(settlements, results):
                    if result["outcome"] == "unavailable":
                        rest.append(settlement)
                    elif result["outcome"] != "ok":
                        job, detail = settlement[1], result.get("detail")
                        log.warning("lease lost; outcome discarded: id=%s %s", job.id, detail)
            except Refused as error:
                log.error("settlement refused; its jobs are delivered again: %s", error)
                return
            except Unavailable as error:
                log.warning("settlement failed; retrying: %s", error)
            settlements = rest
            if settlements and time.monotonic() > deadline:
                log.warning("settlement abandoned; %d jobs are delivered again", len(settlements))
                return
            if settlements:
                time.sleep(pause)
                pause = min(pause * 2, 2.0)

    def _renew(self) -> None:
        # At a third, so that two lost renewals leave time for another one.
        while not self._ended.wait(self._lease / 3):
            with self._lock:
                held = list(self._held.values())
            by_queue: Dict[str, Tuple[_Task, List[Job]]] = {}
            for task, job in held:
                by_queue.setdefault(job.queue, (task, []))[1].append(job)
            for task, jobs in by_queue.values():
                try:
                    results = task.queue.extend([job.receipt for job in jobs], self._lease)
                except (Unavailable, Refused) as error:
                    log.warning("renewal failed; retrying: %s", error)
                    continue
                for job, result in zip(jobs, results):
                    if result["outcome"] == "lease_lost":
                        self._lose(task, job)

    def _lose(self, task: _Task, job: Job) -> None:
        with self._lock:
            is_held = self._held.pop(job.receipt, None) is not None
        if is_held:
            job.lost = True
            task.free.release()
            log.warning("lease lost; outcome discarded: queue=%s id=%s", job.queue, job.id)


def _cut(reason: str) -> str:
    return reason.encode("utf-8", "replace")[:_REASON_BYTES].decode("utf-8", "ignore")
