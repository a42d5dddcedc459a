"""Who gives no sign of life, who is behind, and when a process ends itself."""

import threading
import time

from swa_jax.training.watch import FAILED, HUNG, Watch, missing_of


def sign(beat, points=5, doing="step 6"):
    return {
        "host": "node1",
        "pid": 7,
        "beat": beat,
        "points": points,
        "doing": doing,
        "seconds": 12,
    }


def test_silent_processes_come_before_those_that_are_behind():
    before = {0: sign(1), 1: sign(1), 2: sign(1)}
    all_well = {0: sign(2), 1: sign(2), 2: sign(2)}
    assert missing_of(before, all_well, processes=3) is None
    behind = all_well | {2: sign(2, points=4, doing="reading")}
    words = "behind the others: process 2 on node1 (pid 7, in: reading, for 12 s)"
    assert missing_of(before, behind, processes=3) == words
    silent = behind | {1: sign(1)}
    words = "no sign of life from process 1 on node1 (pid 7, in: step 6, for 12 s)"
    assert missing_of(before, silent, processes=3) == words
    found = missing_of(before, all_well, processes=4)
    assert found == "no sign of life from process 3, which was never heard of"


class Service:
    """A coordination service in memory, which may stop answering."""

    def __init__(self):
        self.values, self.answers = {}, True

    def key_value_set(self, key, value, allow_overwrite=False):
        if not self.answers:
            raise RuntimeError("no answer")
        self.values[key] = value

    def key_value_dir_get(self, folder):
        if not self.answers:
            raise RuntimeError("no answer")
        return [(k, v) for k, v in self.values.items() if k.startswith(folder)]


class Ends:
    """Takes the place of the end of the process."""

    def __init__(self):
        self.code, self.happened = None, threading.Event()

    def __call__(self, code):
        self.code = code
        self.happened.set()


def watches(service, count, ends):
    return [
        Watch(service, process=i, processes=count, beat=0.02, leave=ends)
        for i in range(count)
    ]


def test_a_process_that_passes_no_point_ends_with_the_name_of_another(capfd):
    service, ends = Service(), Ends()
    first, second = watches(service, 2, ends)
    with first, second:
        time.sleep(0.1)
        first.sign("step 2")
        second.sign("step 2")
        first.sign("step 3")  # the other one hangs in step 2
        first.limit(0.3)
        assert ends.happened.wait(10)
    assert ends.code == HUNG
    words = capfd.readouterr().err
    assert "process 0 of 2 on " in words
    assert "no end of: step 3" in words
    assert "behind the others: process 1 on " in words


def test_a_coordinator_that_does_not_answer_is_named(capfd):
    service, ends = Service(), Ends()
    with watches(service, 2, ends)[1] as watch:
        watch.limit(0.1)
        service.answers = False
        assert ends.happened.wait(10)
    assert (
        "process 0, the coordinator of all, does not answer" in capfd.readouterr().err
    )


def test_signs_and_no_limit_end_nothing(capfd):
    service, ends = Service(), Ends()
    first, second = watches(service, 2, ends)
    with first, second:
        second.limit(0)
        first.limit(0.5)
        for step in range(20):
            first.sign(f"step {step}")
            time.sleep(0.05)
        assert not ends.happened.is_set()
    assert capfd.readouterr().err == ""


def test_the_failure_of_a_process_ends_the_others(capfd):
    service, ends = Service(), Ends()
    first, second = watches(service, 2, ends)
    with first, second:
        second.announce("ValueError: no such text")
        assert ends.happened.wait(10)
    assert ends.code == HUNG
    assert service.values[f"{FAILED}1"] == "ValueError: no such text"
    words = capfd.readouterr().err
    assert "process 0 of 2" in words
    assert "process 1 has failed: ValueError: no such text" in words
