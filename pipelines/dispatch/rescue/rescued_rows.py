"""Rows that failed in earlier runs and that a rung may request again, because the ladder of their step has changed.

The ledger records the ladder that every failed row of a sink has been through. While it is the job's, no failed row is
read again; otherwise all whose class a rung follows are: the answers of rungs that they have tried are in the ledger.
"""

import hashlib
from collections.abc import Iterator, Mapping

import orjson

from pipelines.dispatch.rescue.ladder import Ladder
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep


def rescued_classes(ready: PreparedJob, ledger: ReadableLedger) -> Mapping[str, frozenset[str]]:
    """Return step -> the error classes of failed rows that a rung may request again."""
    return {
        step.model.name: Ladder.of(step.model).rescued_classes()
        for step, key, digest in _ladders(ready)
        if step.rungs and ledger.query("select value from meta where key = ?", (key,)) != [(digest,)]
    }


def record_ladders(ready: PreparedJob, ledger: Ledger) -> None:
    """Record that every failed row of the sink has been through the ladder of its step."""
    for _, key, digest in _ladders(ready):
        if ledger.query("select value from meta where key = ?", (key,)) != [(digest,)]:
            ledger.write("insert or replace into meta (key, value) values (?, ?)", (key, digest))


def forget_other_ladders(ready: PreparedJob, ledger: Ledger) -> None:
    """Forget recorded ladders that are no longer the job's: rows may now fail that have not been through them."""
    for _, key, digest in _ladders(ready):
        if ledger.query("select 1 from meta where key = ? and value <> ?", (key, digest)):
            ledger.write("delete from meta where key = ?", (key,))


def _ladders(ready: PreparedJob) -> Iterator[tuple[PreparedStep, str, str]]:
    """Yield each step, the key of its ladder in the ledger, and the digest of the ladder."""
    for step in ready.steps:
        rungs = [
            [sorted(rung.on), one.provider.tag, one.model.model, dict(one.model.params)]
            for rung, one in zip(step.model.rescue, step.rungs, strict=True)
        ]
        facts = orjson.dumps(rungs, default=str, option=orjson.OPT_SORT_KEYS)
        key = orjson.dumps(["ladder", ready.job.name, ready.sink_name, step.model.name]).decode()
        yield step, key, hashlib.blake2b(facts, digest_size=16).hexdigest()
