import ast
import copy
import operator
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

from forklight.verify import FunctionVerifier, MathVerifier
from forklight.verify.workers.pool import WorkerPool

HANGS = (r"\boxed{(10^{9})!}", "5")  # passes the caps, and SymPy never comes back from it
NEEDS_WORKER = (r"\boxed{(x+1)^2}", "x^2+2x+1")

SERVICE = """
import os, sys, time
from forklight.verify.workers.messages import Service

NURSERY = os.getpid()

def obedient(*arguments):
    if arguments == ("refuse",):
        raise RuntimeError("this service refuses to start")

    def serve(request):
        if request["do"] == "exit":
            os._exit(7)
        if request["do"] == "leave":
            sys.exit(3)
        if request["do"] == "compute":
            3 ** 10**9  # one call into C, which lets no signal handler run
        if request["do"] == "grow":
            kept = []
            while True:
                kept.append(bytes(bytearray(b"x" * 2**20)))
        if request["do"] == "print":
            print("to stdout", flush=True)
            print("to stderr", file=sys.stderr, flush=True)
            os.write(2, b"to the descriptor")
        time.sleep(request.get("sleep", 0))
        who = {"pid": os.getpid(), "nursery": NURSERY}
        return {"did": request["do"], **who, "hash": hash("forklight"), "arguments": arguments}

    def begin():
        if arguments == ("refuse", "later"):
            raise RuntimeError("this worker refuses to start")
        return serve

    return Service(begin, (lambda: time.sleep(2.0),) if arguments == ("warm",) else ())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the service's module is; the workers find it there too."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "forklight_test_service.py").write_text(SERVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def make_pool(folder):
    """Makes pools of workers that do as they are told; they are closed at the end."""
    pools = []

    def make(*arguments, size=1):
        pools.append(WorkerPool("forklight_test_service:obedient", *arguments, size=size, memory=200 * 2**20))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def pool(folder):
    """A pool of one worker, the same for all tests that ask for it: each has to leave it in working order."""
    pool = WorkerPool("forklight_test_service:obedient", size=1, memory=200 * 2**20)
    yield pool
    pool.close()


def do(what, **more):
    return {"do": what, **more}


def did(replies):
    return [reply.value and reply.value["did"] for reply in replies]


def started(pool):
    """The same pool with all of its workers ready, so that a test's times are those of requests."""
    pool.run([do("sleep", sleep=0.3)] * pool.size, timeout=30)
    assert len(pool.pids) == pool.size
    return pool


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


def processes(ancestor=None):
    """Process ids of the verifier's processes, workers and what they are forked from, below a process (this one)."""
    parents, ours = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(parent)
        if state != "Z" and b"forklight.verify.workers.worker" in command:
            ours.add(int(folder.name))

    def below(pid):
        return pid == (ancestor or os.getpid()) or (pid in parents and below(parents[pid]))

    return {pid for pid in ours if below(pid)}


def test_time_limit_kills_and_the_next_request_is_served(pool):
    assert did(pool.run([do("first")], timeout=5)) == ["first"]
    (first,) = pool.pids
    (late,) = pool.run([do("late", sleep=30)], timeout=0.3)
    assert (late.value, late.failure) == (None, "time limit 0.3 s")
    assert 0.3 <= late.seconds < 20
    assert gone(first, within=10)
    assert did(pool.run([do("next")], timeout=5)) == ["next"]


def test_a_worker_that_is_stopped_is_replaced(pool):
    (stopped,) = started(pool).pids
    os.kill(stopped, signal.SIGSTOP)
    first, second = pool.run([do("first"), do("second")], timeout=1.0)
    assert (first.failure, second.failure) == ("time limit 1.0 s", "")
    assert gone(stopped, within=10)


def test_memory_limit_and_crash(pool):
    replies = pool.run([do("grow"), do("exit"), do("next")], timeout=20)
    assert [reply.failure for reply in replies] == ["memory limit 0.2 GiB", "worker died (exit code 7)", ""]
    assert did(replies) == [None, None, "next"]


def test_the_exit_code_is_that_of_the_worker(pool):
    """Not the signal with which the parent clears away what is ending by itself: -9 looks like the system's killer."""
    replies = pool.run([do("leave")] * 5, timeout=5)
    assert [reply.failure for reply in replies] == ["worker died (exit code 3)"] * 5


def test_a_worker_killed_between_calls_costs_no_request(pool):
    (first,) = started(pool).pids
    os.kill(first, signal.SIGKILL)
    assert gone(first, within=10)
    (reply,) = pool.run([do("next")], timeout=5)
    assert reply.value is not None
    assert reply.value["pid"] != first


def test_a_nursery_that_warms_up_delays_no_reply(make_pool):
    pool = make_pool("warm", size=2)
    late, fine = pool.run([do("late", sleep=60), do("fine", sleep=0.6)], timeout=3.0)
    assert (late.failure, fine.failure) == ("time limit 3.0 s", "")
    assert late.seconds < 30


@pytest.mark.parametrize(
    ("service", "message"),
    [
        (("no_such_module_of_forklight:service",), "ModuleNotFoundError"),
        (("forklight_test_service:no_such_function",), "AttributeError"),
        (("forklight_test_service:obedient", "refuse"), "this service refuses to start"),
        (("forklight_test_service:obedient", "refuse", "later"), "this worker refuses to start"),
    ],
)
def test_workers_that_cannot_start_are_an_error_of_the_installation(folder, service, message, capfd):
    broken = WorkerPool(*service, size=2)
    with pytest.raises(ChildProcessError, match=r"did not start.* on stderr"):
        broken.run([do("first"), do("second")], timeout=1)
    assert broken.pids == []
    assert message in capfd.readouterr().err


def test_replies_keep_the_order_of_the_requests(make_pool):
    pool = started(make_pool(size=2))
    replies = pool.run([do("slow", sleep=0.6), do("a"), do("b"), do("c", sleep=0.1), do("d")], timeout=5)
    assert did(replies) == ["slow", "a", "b", "c", "d"]
    assert {reply.value["pid"] for reply in replies[1:]} == set(pool.pids) - {replies[0].value["pid"]}
    assert replies[0].seconds >= 0.6 > max(reply.seconds for reply in replies[1:])


def test_a_worker_that_ends_itself_passed_the_time_limit(pool, monkeypatch):
    """Where the parent is too busy to look in time, the worker's own alarm, a second later, comes first."""
    monkeypatch.setattr("forklight.verify.workers.process.Worker.over_limit", lambda worker: None)
    late, fine = pool.run([do("late", sleep=30), do("fine")], timeout=0.3)
    assert (late.value, late.failure) == (None, "time limit 0.3 s")
    assert did([fine]) == ["fine"]


def test_a_hanging_request_holds_up_no_other(make_pool):
    pool = started(make_pool(size=2))
    replies = pool.run([do("hang", sleep=60), do("a", sleep=0.1), do("b", sleep=0.1)], timeout=1.5)
    assert [reply.failure for reply in replies] == ["time limit 1.5 s", "", ""]
    assert {reply.value["pid"] for reply in replies[1:]} == set(pool.pids)  # one worker served both meanwhile


def test_the_limit_does_not_count_the_wait_for_a_worker(pool):
    replies = pool.run([do(str(number), sleep=0.3) for number in range(5)], timeout=1.2)
    assert did(replies) == [str(number) for number in range(5)]
    assert all(0.3 <= reply.seconds < 1.2 for reply in replies)


def test_no_more_workers_than_requests_and_none_for_no_request(make_pool):
    pool = make_pool(size=3)
    assert pool.run([], timeout=1) == []
    assert pool.pids == []
    pool.run([do("only")], timeout=5)
    assert len(pool.pids) == 1
    pool.run([do("sleep", sleep=0.3)] * 5, timeout=5)
    assert len(pool.pids) == 3


def test_large_requests_and_replies_pass(pool):
    text = "\ud800 é" * 2**20
    (reply,) = pool.run([do(text)], timeout=20)
    assert did([reply]) == [text]


def test_arguments_reach_the_service_and_sets_have_one_order_in_every_worker(make_pool):
    seen = [make_pool("a", "b c").run([do("look")], timeout=5)[0].value for _ in range(2)]
    assert seen[0]["arguments"] == ["a", "b c"]
    assert seen[0]["pid"] != seen[1]["pid"]
    assert seen[0]["hash"] == seen[1]["hash"]


def test_nothing_that_a_worker_prints_is_seen(pool, capfd):
    assert did(pool.run([do("print")], timeout=5)) == ["print"]
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_from_the_keyboard_is_not_the_workers(pool):
    (first,) = started(pool).pids
    os.kill(first, signal.SIGINT)
    assert did(pool.run([do("next")], timeout=5)) == ["next"]
    assert pool.pids == [first]


@pytest.mark.parametrize(
    ("processors", "ranks", "size"),
    [(16, None, 8), (16, "4", 4), (6, "1", 6), (6, "4", 1), (2, "8", 1), (1, None, 1)],
)
def test_the_size_follows_from_the_processors_of_this_rank(monkeypatch, processors, ranks, size):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    if ranks is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert WorkerPool("any:service").size == size
    assert WorkerPool("any:service", size=3).size == 3


def test_an_interrupted_call_leaves_no_late_reply(pool):
    started(pool)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.run([do("late", sleep=0.4), do("never")], timeout=5)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert did(pool.run([do("next", sleep=0.4)], timeout=5)) == ["next"]


def environment(folder):
    """Of a process that finds this checkout and the service."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[4])])}


def run_script(script, folder, *options):
    """Runs a script in another process, where a call that never returns can be ended."""
    return subprocess.run(
        [sys.executable, *options, "-c", script],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=10,
    )


FORKS = """
import os, sys
from forklight.verify.workers.pool import WorkerPool
pool = WorkerPool("forklight_test_service:obedient", size=1)
mine = pool.run([{"do": "first"}], 5)[0].value["pid"]
child = os.fork()
if child == 0:
    reply = pool.run([{"do": "child"}], 5)[0].value
    assert reply["did"] == "child" and reply["pid"] != mine, (reply, mine)
    pool.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
reply = pool.run([{"do": "parent"}], 5)[0].value
assert reply["did"] == "parent" and reply["pid"] == mine, (reply, mine)
"""


def test_a_forked_process_starts_its_own_workers(folder):
    done = run_script(FORKS, folder, "-W", "error")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == ""


def test_a_nursery_killed_between_calls_costs_no_request(pool):
    (reply,) = pool.run([do("first")], timeout=5)
    os.kill(reply.value["nursery"], signal.SIGKILL)
    assert gone(reply.value["nursery"], within=10)
    (other,) = pool.run([do("next")], timeout=5)
    assert other.value["did"] == "next"
    assert other.value["nursery"] != reply.value["nursery"]
    assert gone(reply.value["pid"], within=10)


LOSES_ITS_NURSERY = """
import os, signal, threading
from forklight.verify.workers.pool import WorkerPool
pool = WorkerPool("forklight_test_service:obedient", size=2)
nursery = pool.run([{"do": "first"}], 5)[0].value["nursery"]
threading.Timer(0.3, os.kill, (nursery, signal.SIGKILL)).start()
requests = [{"do": "slow", "sleep": 1.5}, {"do": "wait", "sleep": 0.6}, {"do": "exit"}, {"do": "next"}]
replies = pool.run(requests, 5)
print([reply.value["did"] if reply.value else "failed" if reply.failure else "lost" for reply in replies])
"""


def test_a_nursery_killed_during_a_call_does_not_stop_it(folder):
    done = run_script(LOSES_ITS_NURSERY, folder)
    assert done.returncode == 0
    slow, *others = ast.literal_eval(done.stdout)
    assert others == ["wait", "failed", "next"]
    assert slow in ("slow", "failed")


def test_signals_and_timers_of_the_parent_are_left_alone(pool):
    """Also from a thread, where signals could not be used at all."""

    def handler(*_):
        raise AssertionError("the timer of the parent was shortened")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 300, 7)
    replies = {}

    def run(name):
        replies[name] = pool.run([do("hang", sleep=60), do(name)], timeout=1.0)

    try:
        run("main")
        thread = threading.Thread(target=run, args=("thread",))
        thread.start()
        thread.join()
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 200 < left < 300
        assert interval == 7
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [did(replies[name]) for name in ("main", "thread")] == [[None, "main"], [None, "thread"]]


def test_an_answer_that_hangs_is_unjudged_and_the_next_is_judged():
    with MathVerifier(timeout=1.5, workers=1) as verifier:
        verifier.verify_many([NEEDS_WORKER])
        verdicts = verifier.verify_many([HANGS, NEEDS_WORKER, HANGS])
    assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [
        ("unjudged", "time limit 1.5 s"),
        ("right", "equal expression"),
        ("unjudged", "time limit 1.5 s"),
    ]
    assert verdicts[0].seconds >= 1.5 > verdicts[2].seconds  # judged once within a call
    assert verdicts[0].extracted == verdicts[2].extracted == "(10^{9})!"


def test_threads_share_a_pool(pool):
    replies = {}

    def run(name):
        replies[name] = pool.run([do(f"{name} {number}", sleep=0.01) for number in range(20)], timeout=5)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "other"):
        assert did(replies[name]) == [f"{name} {number}" for number in range(20)]


def test_copies_carry_settings_but_no_process():
    with MathVerifier(extraction="any", timeout=20, memory_limit=1, workers=1) as verifier:
        assert verifier.verify_many([NEEDS_WORKER])[0].right
        running = processes()
        for twin in (pickle.loads(pickle.dumps(verifier)), copy.deepcopy(verifier)):
            assert (twin.extraction, twin.timeout, twin.memory_limit, twin.workers) == ("any", 20.0, 1.0, 1)
            assert twin.verify_many([(r"\boxed{5}", "5")])[0].right
            assert processes() == running


def test_close_ends_the_processes_but_not_the_pool(make_pool):
    pool = make_pool()
    others = processes()
    pool.close()
    pool.run([do("first")], timeout=5)
    first = processes() - others
    assert set(pool.pids) < first
    pool.close()
    assert pool.pids == []
    assert all(gone(pid, within=10) for pid in first)
    assert did(pool.run([do("next")], timeout=5)) == ["next"]


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_verifier_that_is_not_needed_any_more_has_no_processes(how):
    others = processes()
    verifier = FunctionVerifier(operator.eq, workers=1)
    assert verifier.verify_many([("5", "5")])[0].right
    running = processes() - others
    assert len(running) == 2
    if how == "closed":
        verifier.close()
    else:
        del verifier
    assert all(gone(pid, within=10) for pid in running)


def test_processes_can_be_started_early(make_pool):
    pool = make_pool()
    others = processes()
    pool.start()
    pool.start()
    nursery = processes() - others
    assert len(nursery) == 1
    assert pool.pids == []
    (reply,) = pool.run([do("first")], timeout=20)
    assert {reply.value["nursery"]} == nursery


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_a_killed_parent(folder, busy):
    script = textwrap.dedent(
        f"""
        import threading
        from forklight.verify.workers.pool import WorkerPool
        pool = WorkerPool("forklight_test_service:obedient", size=2)
        pool.run([{{"do": "sleep", "sleep": 0.3}}] * 2, 5)
        if {busy}:
            threading.Timer(0.2, print, ("ready",), {{"flush": True}}).start()
            pool.run([{{"do": "compute"}}, {{"do": "sleep", "sleep": 30}}], 0.7)
        else:
            print("ready", flush=True)
        input()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout.readline() == "ready\n"
        running = processes(parent.pid)
        assert len(running) == 3
        parent.kill()
    assert all(
        gone(pid, within=4) for pid in running
    )  # the alarm of a request without a parent comes 1 s after its limit


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
        verdicts = MathVerifier(extraction="any", workers=1).verify_many(pairs)
        assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "right"], verdicts
        heavy = {{"torch", "lightning", "transformers", "sympy", "math_verify", "numpy"}} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_workers_import_no_torch():
    script = (
        "import sys, forklight.verify.workers.worker; "
        "from forklight.verify.math.service import math_service; math_service(); "
        "print({'torch', 'lightning', 'transformers'} & set(sys.modules), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set() True"
