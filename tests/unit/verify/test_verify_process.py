import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from forklight.verify import MathVerifier
from forklight.verify.process import WorkerFailed, WorkerProcess

HANGS = (r"\boxed{(10^{9})!}", "5")  # passes the caps, and SymPy never comes back from it
NEEDS_WORKER = (r"\boxed{(x+1)^2}", "x^2+2x+1")

WORKER = """
import json, os, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send_bytes(b"ready")
while True:
    request = json.loads(connection.recv_bytes())
    if request["do"] == "exit":
        os._exit(7)
    if request["do"] == "grow":
        kept = []
        while True:
            kept.append(bytes(bytearray(b"x" * 2**20)))
    time.sleep(request.get("sleep", 0))
    connection.send_bytes(json.dumps({"echo": request["do"]}).encode())
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "obedient_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = WorkerProcess(module="obedient_worker", memory=200 * 2**20)
    yield worker
    worker.close()


def gone(pid, within):
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_time_limit_kills_and_the_next_request_is_served(worker):
    assert worker.ask({"do": "first"}, timeout=5) == {"echo": "first"}
    first = worker.pid
    start = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"^time limit 0\.3 s$"):
        worker.ask({"do": "late", "sleep": 30}, timeout=0.3)
    assert time.monotonic() - start < 0.8
    assert gone(first, within=1)
    assert worker.pid is None
    assert worker.ask({"do": "next"}, timeout=5) == {"echo": "next"}


def test_memory_limit_and_crash(worker):
    with pytest.raises(WorkerFailed, match=r"^memory limit 0\.2 GiB$"):
        worker.ask({"do": "grow"}, timeout=20)
    with pytest.raises(WorkerFailed, match=r"^worker died \(exit code 7\)$"):
        worker.ask({"do": "exit"}, timeout=5)
    assert worker.ask({"do": "next"}, timeout=5) == {"echo": "next"}


def test_a_worker_killed_between_requests_is_noticed(worker):
    worker.ask({"do": "first"}, timeout=5)
    os.kill(worker.pid, signal.SIGKILL)
    assert gone(worker.pid, within=2)
    with pytest.raises(WorkerFailed, match=r"^worker died \(exit code -9\)$"):
        worker.ask({"do": "next"}, timeout=5)
    assert worker.ask({"do": "again"}, timeout=5) == {"echo": "again"}


def test_a_worker_that_cannot_start_is_an_error_of_the_installation():
    worker = WorkerProcess(module="no_such_module_of_forklight")
    with pytest.raises(RuntimeError, match="did not start"):
        worker.ask({}, timeout=1)


def test_an_answer_that_hangs_is_unjudged_and_the_next_is_judged():
    with MathVerifier(timeout=1.0) as verifier:
        verifier.verify_many([NEEDS_WORKER])
        verdicts = verifier.verify_many([HANGS, NEEDS_WORKER, HANGS])
    assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [
        ("unjudged", "time limit 1.0 s"),
        ("right", "equal"),
        ("unjudged", "time limit 1.0 s"),
    ]
    assert 1.0 <= verdicts[0].seconds < 1.5
    assert verdicts[2].seconds < 0.1  # judged once within a call


def test_threads_share_a_verifier():
    outcomes = {}
    verifier = MathVerifier(timeout=5)

    def judge(name):
        pairs = [(rf"\boxed{{(x+{name})^2 + {k}}}", f"x^2 + {2 * name}x + {name**2} + {k}") for k in range(10)]
        outcomes[name] = [verdict.outcome for verdict in verifier.verify_many(pairs)]

    threads = [threading.Thread(target=judge, args=(name,)) for name in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verifier.close()
    assert outcomes == {1: ["right"] * 10, 2: ["right"] * 10}


def test_copies_carry_settings_but_no_process():
    with MathVerifier(extraction="any", timeout=2, memory_limit=1) as verifier:
        assert verifier.verify_many([NEEDS_WORKER])[0].right
        for twin in (pickle.loads(pickle.dumps(verifier)), copy.deepcopy(verifier)):
            assert (twin.extraction, twin.timeout, twin.memory_limit) == ("any", 2.0, 1.0)
            assert twin.verify_many([(r"\boxed{5}", "5")])[0].right
            assert twin._worker.pid is None


def test_close_ends_the_process_but_not_the_verifier():
    verifier = MathVerifier()
    verifier.close()
    assert verifier.verify_many([NEEDS_WORKER])[0].right
    pid = verifier._worker.pid
    verifier.close()
    assert gone(pid, within=2)
    assert verifier.verify_many([NEEDS_WORKER])[0].right
    pid = verifier._worker.pid
    del verifier
    assert gone(pid, within=2)


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_a_killed_parent(busy):
    script = textwrap.dedent(
        f"""
        import os, signal, threading, time
        from forklight.verify import MathVerifier
        verifier = MathVerifier(timeout=0.7)
        verifier.verify_many([{NEEDS_WORKER!r}])
        print(verifier._worker.pid, flush=True)
        if {busy}:
            threading.Thread(target=verifier.verify_many, args=([{HANGS!r}],)).start()
            time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    assert gone(int(parent.stdout), within=4)  # the alarm of a request without a parent comes 1 s after its limit


def test_no_torch_and_no_sympy_in_the_parent_and_nothing_printed():
    script = textwrap.dedent(
        f"""
        import sys
        import forklight.verify
        from forklight.verify import CountdownVerifier, MathVerifier
        if __name__ != "__main__":
            raise SystemExit("the worker imported the main module of its parent")
        assert CountdownVerifier().verify_many([("1+2=3", "3 from 1, 2")])[0].right
        pairs = [{NEEDS_WORKER!r}, ("It is $5 6 {{$", "5"), ("It is 5", "5")]
        verdicts = MathVerifier(extraction="any").verify_many(pairs)
        assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "right"], verdicts
        heavy = {{"torch", "lightning", "transformers", "sympy", "math_verify", "numpy"}} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_worker_itself_imports_no_torch():
    script = "import sys, forklight.verify.worker; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"
