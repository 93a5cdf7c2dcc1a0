"""Programs that attack the machine: none gets through, and nothing stays behind. Every attack is bounded."""

import os
import pathlib
import socket
import tempfile
import threading

import pytest

pytestmark = pytest.mark.heavy

SECRET = "violet-otter-4711"

# name: (program, what it prints when it got through)
REFUSED = {
    "fork": "import os\nos.fork()\nprint('THROUGH')",
    "vfork_through_ctypes": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.syscall(58) >= 0 or libc.fork() >= 0: print('THROUGH')"
    ),
    "subprocess": "import subprocess\nprint('THROUGH' if subprocess.run(['/bin/true']).returncode == 0 else '')",
    "os_system": "import os\nif os.system('true') == 0: print('THROUGH')",
    "exec": "import os\nos.execv('/usr/bin/env', ['env', 'echo', 'THROUGH'])",
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})\nprint('THROUGH')",
    "multiprocessing": (
        "import multiprocessing as m\nif __name__ == '__main__':\n    p = m.Process(target=print)\n    p.start()\n"
        "    print('THROUGH')"
    ),
    "tcp_to_the_host": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)\nprint('THROUGH')",
    "udp": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\n"
        "print('THROUGH')"
    ),
    "unix_socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('UNIX')\nprint('THROUGH')",
    "listen": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\nprint('THROUGH')",
    "raw_socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint('THROUGH')",
    "write_tmp": "open('/tmp/prm_jax_attack', 'w').write('x')\nprint('THROUGH')",
    "write_usr": "open('/usr/prm_jax_attack', 'w').write('x')\nprint('THROUGH')",
    "write_shm": "open('/dev/shm/prm_jax_attack', 'w').write('x')\nprint('THROUGH')",
    "write_home": "import os\nopen(os.path.expanduser('~/prm_jax_attack'), 'w').write('x')\nprint('THROUGH')",
    "make_directory": "import os\nos.mkdir('/tmp/prm_jax_attack')\nprint('THROUGH')",
    "temporary_file": "import tempfile\ntempfile.TemporaryFile()\nprint('THROUGH')",
    "delete_a_file": "import os\nos.unlink('VICTIM')\nprint('THROUGH')",
    "rename_a_file": "import os\nos.rename('VICTIM', 'VICTIM2')\nprint('THROUGH')",
    "chmod_a_file": "import os\nos.chmod('VICTIM', 0o777)\nprint('THROUGH')",
    "truncate_a_file": "import os\nos.truncate('VICTIM', 0)\nprint('THROUGH')",
    "link": "import os\nos.link('VICTIM', '/tmp/prm_jax_attack')\nprint('THROUGH')",
    "symlink": "import os\nos.symlink('/etc', '/tmp/prm_jax_attack')\nprint('THROUGH')",
    "read_a_secret_file": "print('THROUGH' if 'violet' in open('VICTIM').read() else '')",
    "read_passwords": "open('/etc/passwd').read()\nprint('THROUGH')",
    "read_the_command_line": ("import os\nfor p in os.listdir('/proc'):\n    if p.isdigit(): print('THROUGH'); break"),
    "read_parent_memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nprint('THROUGH')",
    "kill_parent": "import os\nos.kill(os.getppid(), 9)\nprint('THROUGH')",
    "kill_everybody": "import os\nos.kill(-1, 9)\nprint('THROUGH')",
    "kill_group": "import os\nos.killpg(0, 9)\nprint('THROUGH')",
    "signal_through_ctypes": (
        "import ctypes, os\nif ctypes.CDLL(None).syscall(234, os.getppid(), os.getppid(), 9) == 0: print('THROUGH')"
    ),
    "ptrace_parent": ("import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0: print('THROUGH')"),
    "read_memory_of_parent": (
        "import ctypes, os\nb = ctypes.create_string_buffer(8)\nclass V(ctypes.Structure):\n"
        "    _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "v = V(ctypes.addressof(b), 8)\n"
        "if ctypes.CDLL(None).process_vm_readv(os.getppid(), ctypes.byref(v), 1, ctypes.byref(v), 1, 0) > 0:\n"
        "    print('THROUGH')"
    ),
    "new_namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('THROUGH')",
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0: print('THROUGH')",
    "chroot": "import os\nos.chroot('/usr')\nprint('THROUGH')",
    "become_root": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.setuid(0)\nos.chmod('/usr', 0o777)\nprint('THROUGH')"
    ),
    "shared_memory": "import ctypes\nif ctypes.CDLL(None).shmget(77, 4096, 0o1666) >= 0: print('THROUGH')",
    "message_queue": "import ctypes\nif ctypes.CDLL(None).msgget(77, 0o1666) >= 0: print('THROUGH')",
    "raise_own_limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\nprint('THROUGH')"
    ),
    "io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 4, 0) >= 0: print('THROUGH')",
    "install_a_key": (
        "import ctypes\nif ctypes.CDLL(None).syscall(248, b'user', b'a', b'b', 1, -3) > 0: print('THROUGH')"
    ),
    "call_32_bit_numbers": (
        "import ctypes\nif ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0) >= 0: print('THROUGH')"
    ),
    "environment_of_the_trainer": f"import os\nprint('THROUGH' if '{SECRET}' in str(os.environ) else '')",
    "descriptors_of_the_trainer": (
        "import os\nfor n in range(3, 64):\n    try: os.fstat(n)\n    except OSError: continue\n    print('THROUGH')"
    ),
}

# name: (program, states that it may end in)
EXHAUSTING = {
    "endless_loop": ("while True: pass", {"timeout"}),
    "sleep": ("import time\ntime.sleep(60)", {"timeout"}),
    "ignore_signals_and_loop": (
        "import signal\nfor n in (2, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\nwhile True: pass", {"timeout"},
    ),
    "big_integer_in_c": ("print(len(str(9 ** 9 ** 7 % 7)))", {"timeout", "crash"}),
    "memory": ("x = bytearray(4 << 30)", {"crash"}),
    "memory_in_steps": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"crash"}),
    "recursion": ("def f(): f()\nf()", {"crash"}),
    "deep_stack": ("import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()", {"crash", "timeout"}),
    "threads": (
        "import threading, time\nfor _ in range(200):\n    threading.Thread(target=time.sleep, args=(5,)).start()",
        {"crash", "timeout"},
    ),
    "output": ("while True: print('x' * 10000)", {"crash"}),
    "errors": ("import sys\nfor _ in range(400): sys.stderr.write('x' * 10000)\nsys.exit(1)", {"crash"}),
    "close_streams_and_loop": ("import os\nfor n in range(3): os.close(n)\nwhile True: pass", {"timeout"}),
    "memory_files": (
        "import ctypes\nif ctypes.CDLL(None).memfd_create(b'x', 0) >= 0: print('THROUGH')", {"ok"},
    ),
    "descriptors": ("import os\nk = [os.pipe() for _ in range(1000)]", {"crash"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """A listening socket, a Unix socket and a file of this process's user, for programs to reach."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="prm_jax_targets_"))
    os.chmod(folder, 0o777)
    victim = folder / "victim"
    victim.write_text(SECRET)
    os.chmod(victim, 0o666)  # the sandbox and not the file's mode must refuse
    server, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    local.bind(str(folder / "socket"))
    local.listen()
    os.chmod(folder / "socket", 0o777)
    os.environ["PRM_JAX_TEST_SECRET"] = SECRET
    yield {"PORT": str(server.getsockname()[1]), "UNIX": str(folder / "socket"), "VICTIM": str(victim)}
    del os.environ["PRM_JAX_TEST_SECRET"]
    server.close()
    local.close()
    assert victim.read_text() == SECRET
    assert os.stat(victim).st_mode & 0o777 == 0o666
    for name in ("victim", "socket"):
        (folder / name).unlink()
    folder.rmdir()


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(sandbox, targets, name):
    code = REFUSED[name]
    for word, value in targets.items():
        code = code.replace(word, value)
    run = sandbox.run(code)
    assert "THROUGH" not in run.stdout, run
    assert run.state in ("ok", "crash"), run
    assert not pathlib.Path("/tmp/prm_jax_attack").exists()


@pytest.mark.parametrize("name", EXHAUSTING)
def test_is_limited(sandbox, name):
    code, states = EXHAUSTING[name]
    run = sandbox.run(code)
    assert run.state in states, run
    assert "THROUGH" not in run.stdout
    assert len(run.stdout) <= sandbox.limits.output_bytes
    assert sandbox.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("programs", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_stays_behind(sandbox, programs):
    def state():
        children = len(os.listdir(f"/proc/{os.getpid()}/task"))
        return len(os.listdir("/proc/self/fd")), children, len(sandbox.pids()), threading.active_count()

    sandbox.run_many([("print(1)", "")] * 8)
    before, files = state(), set(os.listdir("/tmp"))
    pids = sandbox.pids()
    hostile = [code for code, states in EXHAUSTING.values() if "timeout" not in states]
    plain = [("print(1)", "")] * (programs - 40)
    sandbox.run_many([(hostile[index % len(hostile)], "") for index in range(40)] + plain)
    assert state() == before
    assert sandbox.pids() == pids  # no sandbox had to be replaced
    assert sandbox.failures == 0
    assert not {name for name in set(os.listdir("/tmp")) - files if "attack" in name}


def test_a_program_leaves_no_trace_for_the_next(sandbox):
    sandbox.run("import builtins, sys, json\nbuiltins.print = None\nsys.modules['json'] = None\njson.dumps = None")
    assert sandbox.run("import json\nprint(json.dumps([1]))").stdout == "[1]\n"
