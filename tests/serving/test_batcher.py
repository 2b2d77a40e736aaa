"""The batcher with a stand-in for the engine: what it takes, and what it survives."""

import os
import random
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest
import torch

from ptv2 import PromptConfig
from ptv2.pools import FoldedPrompt
from ptv2.serving.bank import Bank
from ptv2.serving.batcher import Batcher
from ptv2.serving.jobs import DeadlineError, Job, Limits, OverloadedError, UnavailableError
from ptv2.serving.served import Served
from tests.serving.work import PATIENCE

REQUESTS, CLIENTS = int(os.environ.get("PTV2_REQUESTS", "960")), 32
"""Under load, replacement and unloading; the published number is 100,000."""


def served(name, rows=2):
    config = PromptConfig("feature-extraction", prompt_length=rows)
    return Served.of(name, config, FoldedPrompt((0,), torch.zeros(1, 2, 1, rows, 4), None), None)


def texts(*numbers):
    """A sequence of as many tokens as its number says."""
    return [{"input_ids": [number] * number} for number in numbers]


class Machine:
    """Answers each sequence with its task's version and its first token; keeps what it was given.

    Args:
        fault: called with the batch's first tokens before it answers.
    """

    def __init__(self, fault=lambda numbers: None, paused=False):
        self.batches = []
        self.fault = fault
        self.go = threading.Event()
        if not paused:
            self.go.set()

    def __call__(self, tasks, inputs):
        assert self.go.wait(PATIENCE)
        numbers = [x["input_ids"][0] for x in inputs]
        self.batches.append([(task.name, n) for task, n in zip(tasks, numbers, strict=True)])
        self.fault(numbers)
        return [torch.tensor([task.version, n]) for task, n in zip(tasks, numbers, strict=True)]


def busy_batcher(machine, limits):
    """A batcher that has taken a batch which lasts until the machine goes."""
    batcher = Batcher(machine, limits)
    batcher.submit(Job(served("blocker"), texts(1)))
    end = time.monotonic() + PATIENCE
    while batcher.waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
    return batcher


def run_together(machine, jobs, limits=None):
    """Jobs that all wait before the first batch is taken."""
    batcher = busy_batcher(machine, limits or Limits())
    for job in jobs:
        batcher.submit(job)
    machine.go.set()
    assert batcher.close(PATIENCE)
    machine.batches.pop(0)


def answers(job):
    return [int(x[1]) for x in job.future.result(PATIENCE)]


def test_sequences_come_back_in_order():
    jobs = [Job(served(f"t{i}"), texts(*range(i + 1, i + 6))) for i in range(4)]
    run_together(Machine(paused=True), jobs, Limits(tokens=20))
    for i, job in enumerate(jobs):
        assert answers(job) == list(range(i + 1, i + 6))


def test_budgets_and_turns():
    """A task with much work waits for its turn like one with little."""
    machine = Machine(paused=True)
    jobs = [Job(served("many"), texts(*[4] * 6)), Job(served("few"), texts(3, 3))]
    run_together(machine, jobs, Limits(tokens=8))
    names = [[name for name, _ in batch] for batch in machine.batches]
    assert names == [["many", "few"], ["many", "few"], ["many"] * 2, ["many"] * 2]

    machine = Machine(paused=True)
    run_together(machine, [Job(served("long", 10), texts(*[1] * 4))], Limits(rows=25))
    assert [len(batch) for batch in machine.batches] == [2, 2]  # 11 rows each

    machine = Machine(paused=True)
    batcher_limits = Limits(bytes=5)
    jobs = [Job(served(name), texts(1)) for name in "abc"]
    batcher = Batcher(machine, batcher_limits, nbytes=lambda task: 2)
    for job in jobs:
        batcher.submit(job)
    machine.go.set()
    assert batcher.close(PATIENCE)
    assert max(map(len, machine.batches)) <= 2


def test_a_sequence_that_fits_nowhere_and_none_at_all():
    batcher = Batcher(Machine(), Limits(tokens=5))
    for inputs in ([], texts(2, 6)):
        with pytest.raises(ValueError, match="inputs: expected sequences of at most 5 tokens"):
            batcher.submit(Job(served("a"), inputs))
    alone = Job(served("a", 99), texts(5))
    batcher.submit(alone)
    assert answers(alone) == [5]
    assert batcher.close(PATIENCE)


def test_too_much_waiting_is_refused_at_once():
    machine = Machine(paused=True)
    batcher = busy_batcher(machine, Limits(waiting=3))
    jobs = [Job(served("a"), texts(1)) for _ in range(10)]
    for job in jobs[:3]:
        batcher.submit(job)
    for job in jobs[3:]:
        with pytest.raises(OverloadedError, match="too much is waiting; try again in") as error:
            batcher.submit(job)
        assert 0 <= error.value.retry_after <= 3
    assert batcher.waiting == 3
    machine.go.set()
    assert batcher.close(PATIENCE)
    assert [job.future.done() for job in jobs] == [True] * 3 + [False] * 7


def test_cancelled_and_late_jobs_reach_no_batch():
    machine = Machine(paused=True)
    cancelled, late, good = (Job(served(x), texts(1, 2)) for x in "abc")
    late.deadline = time.monotonic() + 0.02
    assert cancelled.future.cancel()
    batcher = busy_batcher(machine, Limits())
    for job in (cancelled, late, good):
        batcher.submit(job)
    time.sleep(0.05)
    machine.go.set()
    assert batcher.close(PATIENCE)
    assert answers(good) == [1, 2]
    with pytest.raises(CancelledError):
        cancelled.future.result(0)
    assert not wait([job.future for job in (cancelled, late, good)], timeout=0).not_done
    with pytest.raises(DeadlineError):
        late.future.result(0)
    assert {name for batch in machine.batches for name, _ in batch} == {"blocker", "c"}


def test_one_bad_sequence_spoils_no_other():
    def fault(numbers):
        if 13 in numbers:
            raise ValueError("unlucky")

    jobs = [Job(served(f"t{n}"), texts(n)) for n in range(8, 18)]
    run_together(Machine(fault, paused=True), jobs)
    for number, job in zip(range(8, 18), jobs, strict=True):
        if number == 13:
            with pytest.raises(ValueError, match="unlucky"):
                job.future.result(PATIENCE)
        else:
            assert answers(job) == [number]


def test_batches_that_the_device_has_no_memory_for_are_split():
    draw = random.Random(0)

    def fault(numbers):
        if draw.random() < 0.1:
            raise torch.OutOfMemoryError("injected")

    jobs = [Job(served(f"t{i % 7}"), texts(*[i % 30 + 1] * 3)) for i in range(400)]
    run_together(Machine(fault, paused=True), jobs, Limits(tokens=200))
    assert sum(job.future.exception(PATIENCE) is None for job in jobs) == 400


def test_a_dead_engine_leaves_nobody_waiting():
    class DeadError(BaseException):
        pass

    def fault(numbers):
        raise DeadError

    machine = Machine(fault, paused=True)
    batcher = Batcher(machine, Limits(tokens=4))
    jobs = [Job(served("a"), texts(2, 3)) for _ in range(5)]
    for job in jobs:
        batcher.submit(job)
    assert batcher.alive
    machine.go.set()
    for job in jobs:
        with pytest.raises(UnavailableError, match="the engine is dead"):
            job.future.result(PATIENCE)
    assert not batcher.alive
    with pytest.raises(UnavailableError, match="the engine is dead"):
        batcher.submit(Job(served("a"), texts(1)))


def test_closing_answers_what_waits_and_takes_no_more():
    machine = Machine(paused=True)
    batcher = Batcher(machine, Limits(tokens=3))
    jobs = [Job(served("a"), texts(2)) for _ in range(6)]
    for job in jobs:
        batcher.submit(job)
    assert not batcher.close(timeout=0.01)  # it is not done yet
    with pytest.raises(UnavailableError, match="the engine is stopping"):
        batcher.submit(Job(served("a"), texts(2)))
    machine.go.set()
    assert batcher.close(PATIENCE)
    assert all(answers(job) == [2] for job in jobs)


class Names:
    """What `Bank` needs to know of a model when nothing is loaded from files."""


def test_every_answer_is_of_the_version_that_was_admitted():
    """Requests from many threads while tasks are loaded, replaced and unloaded."""
    bank = Bank(Names())
    batcher = Batcher(Machine(), Limits(tokens=64), between=bank.retired)
    names = [f"t{i}" for i in range(5)]
    for name in names:
        bank.publish(served(name))
    stop = threading.Event()
    wrong, answered, unknown = [], [], []

    def change():
        draw = random.Random(1)
        while not stop.is_set():
            name = draw.choice(names)
            if draw.random() < 0.3 and name in bank.tasks():
                bank.unload(name)
            bank.publish(served(name))
            time.sleep(0.001)

    def ask(seed):
        draw = random.Random(seed)
        for _ in range(REQUESTS // CLIENTS):
            try:
                with bank.lease(draw.choice(names)) as task:
                    job = Job(task, texts(draw.randint(1, 20)))
                    batcher.submit(job)
                    (got,) = job.future.result(PATIENCE)
                    same = (int(got[0]), int(got[1])) == (task.version, job.lengths[0])
                    (answered if same else wrong).append(got)
            except KeyError:
                unknown.append(seed)

    changing = threading.Thread(target=change)
    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(CLIENTS)]
    changing.start()
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    stop.set()
    changing.join(PATIENCE)
    assert batcher.close(PATIENCE)
    assert not wrong
    assert len(answered) + len(unknown) == REQUESTS // CLIENTS * CLIENTS
    assert len(answered) > REQUESTS / 2
    assert all(bank.readers(task) == 0 for task in bank.tasks().values())


def test_a_job_that_is_cancelled_halfway_is_worked_for_no_more():
    job = Job(served("a"), texts(1, 2, 3))
    machine = Machine(lambda numbers: job.future.cancel())
    batcher = Batcher(machine, Limits(tokens=3))
    batcher.submit(job)
    batcher.submit(after := Job(served("b"), texts(3)))
    assert answers(after) == [3]
    assert batcher.close(PATIENCE)
    assert wait([job.future], timeout=PATIENCE).done
    assert ("a", 3) not in [entry for batch in machine.batches for entry in batch]
    with pytest.raises(CancelledError):
        job.future.result(0)


def test_one_task_cannot_take_all_places():
    machine = Machine(paused=True)
    batcher = busy_batcher(machine, Limits(waiting=100))
    for _ in range(80):
        batcher.submit(Job(served("many"), texts(1)))
    with pytest.raises(OverloadedError):
        batcher.submit(Job(served("many"), texts(1)))
    for _ in range(10):
        batcher.submit(Job(served("few"), texts(1)))
    assert batcher.waiting == 90
    machine.go.set()
    assert batcher.close(PATIENCE)


def test_places_are_kept_while_sequences_are_made():
    machine = Machine(paused=True)
    batcher = busy_batcher(machine, Limits(waiting=3))
    with batcher.reserved(2, "a"):
        with pytest.raises(OverloadedError), batcher.reserved(2, "b"):
            pass
        with pytest.raises(OverloadedError):
            batcher.submit(Job(served("b"), texts(1, 1)))
        batcher.submit(Job(served("b"), texts(1)))
        with pytest.raises(OverloadedError):
            batcher.submit(Job(served("a"), texts(1, 1, 1)), kept=2)
        batcher.submit(kept := Job(served("a"), texts(1, 1)), kept=2)
    assert batcher.waiting == 3
    machine.go.set()
    assert batcher.close(PATIENCE)
    assert answers(kept) == [1, 1]
    with pytest.raises(UnavailableError), batcher.reserved(1, "a"):
        pass


@pytest.mark.parametrize("name", ["tokens", "rows", "bytes", "waiting"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"limits: expected {name} of at least 1, got 0"):
        Limits(**{name: 0})


def test_the_tokens_of_a_batch_suit_the_device_and_the_longest_sequence() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert Limits().suited(cpu, 512).tokens == 2048
    assert Limits().suited(cpu, 8192).tokens == 8192
    assert Limits(waiting=7).suited(gpu, 512) == Limits(tokens=16384, waiting=7)
    assert Limits(tokens=600).suited(cpu, 512).tokens == 600
    for limits, longest in ((Limits(tokens=511), 512), (Limits(), 10**30)):
        with pytest.raises(ValueError, match=f"limits: expected tokens of at least {longest}"):
            limits.suited(cpu, longest)


def test_what_can_never_wait_is_no_overload():
    batcher = Batcher(Machine(), Limits(waiting=3))
    message = "inputs: expected at most 3 sequences, got 4"
    with pytest.raises(ValueError, match=message), batcher.reserved(4, "a"):
        pass
    with pytest.raises(ValueError, match=message):
        batcher.submit(Job(served("a"), texts(1, 1, 1, 1)))
    assert batcher.close(PATIENCE)
