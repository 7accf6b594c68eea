"""Sends welcome mails: `python3 worker.py`, until Ctrl-C."""

import logging

from towpath import Dead, Job, Retry, Worker

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
worker = Worker()


@worker.task("emails", concurrency=4, dead_on=(KeyError,))
def send_email(job: Job) -> None:
    to = job.json["to"]
    if "@" not in to:
        raise Dead(f"no address: {to}")
    if to.startswith("busy") and job.attempt == 1:
        raise Retry(after="100ms", reason="mail server busy")
    print(f"sent to {to}", flush=True)


@worker.task("thumbnails")
def resize(job: Job) -> None:
    print(f"resized {job.text}", flush=True)


worker.run()
