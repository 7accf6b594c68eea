"""The client against a running server: `TOWPATH_URL` and a credential are set.

Run by `it jobs::python`; by hand: `python3 -m unittest discover -s tests`.
"""

import os
import subprocess
import sys
import threading
import time
import unittest
import uuid

from towpath import Client, Dead, NotFound, Refused, Retry, Unavailable, Worker


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not become true in time")
        time.sleep(0.01)


class Case(unittest.TestCase):
    def setUp(self):
        self.client = Client()
        self.addCleanup(self.client.close)
        self.queue = self.client.queue(f"test-{uuid.uuid4().hex}")
        self.queue.create(attempts=3, first=0.01, max=0.02)

    def worker(self, handler, lease=30.0, grace=25.0, **options):
        """Starts a worker in a thread; returns it with its thread."""
        worker = Worker(lease=lease, grace=grace)
        worker.task(self.queue.name, **options)(handler)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()

        def stop():
            worker.stop()
            thread.join(30)
            self.assertFalse(thread.is_alive())

        self.addCleanup(stop)
        return worker, stop

    def stats(self, *names):
        stats = self.queue.stats()
        return tuple(stats[name] for name in names)


class Producer(Case):
    def test_payloads_arrive_as_they_were_sent(self):
        payloads = [b"\x00\xff", "text \u00e9", {"n": 1}, [1, 2], 7, None]
        for payload in payloads:
            self.queue.send(payload, headers={"tenant": "acme"})
        self.queue.send_many(payloads)
        jobs = self.queue.lease(100, wait=0)
        self.assertEqual(len(jobs), 12)
        for some in (jobs[:6], jobs[6:]):
            self.assertEqual(some[0].payload, b"\x00\xff")
            self.assertEqual(some[1].text, "text \u00e9")
            self.assertEqual([job.json for job in some[2:]], payloads[2:])
        self.assertEqual(jobs[0].headers["tenant"], "acme")
        self.assertEqual(jobs[2].headers["content-type"], "application/json")
        self.assertTrue(self.queue.ack(jobs[0]))
        self.assertFalse(self.queue.ack(jobs[0]))

    def test_keys_and_delays_reach_the_queue(self):
        first = self.queue.send("once", idempotency_key="k", key="ann")
        again = self.queue.send("once", idempotency_key="k", key="ann")
        self.assertEqual((first.id, True), (again.id, again.duplicate))
        self.queue.send("later", delay="1h")
        self.queue.send("soon gone", expires_in=0.01, delay=60)
        job = self.queue.lease(wait=0)[0]
        self.assertEqual((job.key, job.attempt), ("ann", 1))

    def test_refusals_are_exceptions_with_the_rule(self):
        with self.assertRaisesRegex(NotFound, "queue ls"):
            self.client.queue("nothing").lease(wait=0)
        with self.assertRaisesRegex(Refused, "1 to 1000"):
            self.queue.lease(0)
        self.queue.send("x")
        # 409, or 501 where the backend deletes no queues.
        with self.assertRaises(Refused):
            self.queue.delete()
        with self.assertRaises(Refused):
            Client(key="wrong").queues()
        with self.assertRaises(Unavailable):
            Client("http://127.0.0.1:1").queues()
        with self.assertRaises(ValueError):
            Client("127.0.0.1:7070").queues()


class Consumer(Case):
    def test_exceptions_decide_about_jobs(self):
        done = []

        def handler(job):
            if job.text == "dead":
                raise Dead("hopeless")
            if job.text == "value":
                raise ValueError("not a number")
            if job.text == "retry" and job.attempt < 3:
                raise Retry(after=0.01, reason="busy")
            if job.text == "fails":
                raise OSError("no route")
            done.append((job.text, job.attempt))

        self.worker(handler, concurrency=3, dead_on=(ValueError,))
        for text in ("fine", "dead", "value", "retry", "fails"):
            self.queue.send(text)
        wait_until(lambda: self.stats("acked", "dead") == (2, 3))
        self.assertEqual(sorted(done), [("fine", 1), ("retry", 3)])
        dead = {letter["payload"]: letter for letter in self.queue.dead_letters()}
        self.assertEqual(dead["dead"]["reason"], "hopeless")
        self.assertEqual(dead["value"]["reason"], "ValueError: not a number")
        self.assertEqual(dead["fails"]["reason"], "OSError: no route")
        self.assertEqual(dead["fails"]["attempts"], 3)
        self.assertEqual(self.queue.redrive([dead["dead"]["id"]]), 1)

    def test_leases_are_renewed_while_a_handler_runs(self):
        attempts = []

        def handler(job):
            attempts.append(job.attempt)
            time.sleep(1.5)

        self.worker(handler, lease=0.5, concurrency=2)
        self.queue.send("slow")
        wait_until(lambda: self.stats("acked") == (1,))
        self.assertEqual(attempts, [1])

    def test_a_stopped_worker_finishes_what_runs_and_releases_the_rest(self):
        started, finish = threading.Event(), threading.Event()

        def handler(job):
            started.set()
            finish.wait(20)

        worker, stop = self.worker(handler)
        self.queue.send("running")
        self.queue.send("waiting")
        started.wait(20)
        worker.stop()
        finish.set()
        stop()
        self.assertEqual(self.stats("acked", "ready", "leased", "retried"), (1, 1, 0, 0))

    def test_a_job_that_does_not_finish_is_released(self):
        started, finish = threading.Event(), threading.Event()
        self.addCleanup(finish.set)

        def handler(job):
            started.set()
            finish.wait(60)

        worker, stop = self.worker(handler, grace=0.1)
        self.queue.send("endless")
        started.wait(20)
        stop()
        job = self.queue.lease(wait=5)[0]
        self.assertEqual((job.text, job.attempt), ("endless", 1))

    def test_a_worker_that_is_killed_leaves_its_jobs_to_others(self):
        script = (
            "import sys, time; from towpath import Worker\n"
            "worker = Worker(lease=1.0)\n"
            "@worker.task(sys.argv[1])\n"
            "def handle(job):\n"
            "    print('started', flush=True); time.sleep(60)\n"
            "worker.run()\n"
        )
        command = [sys.executable, "-c", script, self.queue.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
        self.queue.send("work")
        self.assertEqual(process.stdout.readline(), b"started\n")
        process.kill()
        process.wait()
        process.stdout.close()
        done = []
        self.worker(lambda job: done.append((job.text, job.attempt, job.interrupted)))
        wait_until(lambda: done)
        self.assertEqual(done, [("work", 2, True)])


if __name__ == "__main__":
    unittest.main()
