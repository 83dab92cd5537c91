"""What a process that meets untrusted bytes gives up before it looks at them, for good.

Any user of Linux can do this, without privileges: no new privileges; Landlock, so that only the paths
that it needs exist for it; seccomp, so that the kernel refuses networks, other programs and other
processes. An older kernel does less of it, and `acorn doctor` says what it lacks.

Written here because it is little: libraries for it need libseccomp, which small systems don't have, or
are not released yet. It must happen before any other thread starts, since Landlock holds for the calling
thread and for those that it starts later.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS = 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, on every architecture
ASK_FOR_VERSION = 1
PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_FOLDER, REMOVE_FILE, MAKE_FILE, TRUNCATE = (1 << n for n in (1, 2, 3, 5, 8, 14))
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE
READING = READ_FILE | READ_FOLDER
WRITING = READING | WRITE_FILE | REMOVE_FILE | MAKE_FILE | TRUNCATE
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version of Landlock: how many kinds of access it knows
TCP_BIND_AND_CONNECT, FROM_VERSION = 3, 4
ABSTRACT_SOCKETS_AND_SIGNALS, SCOPED_FROM_VERSION = 3, 6

# Beside Python and its packages: shared libraries, and what numerical ones ask about the processor.
SYSTEM = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/nix/store",
    "/etc/ld.so.cache", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm",
    "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage", "/dev/urandom",
)  # fmt: skip

# System calls as x86-64 and arm64 number them; arm64 lacks some.
REFUSED: dict[str, tuple[int, int | None]] = {
    # networks
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendto": (44, 206),
    "sendmsg": (46, 211), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    "accept4": (288, 242), "sendmmsg": (307, 269),
    # other programs and processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory and messages that processes share, which no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # what belongs to files, but not to Landlock
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the system itself
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "delete_module": (176, 106), "finit_module": (313, 273),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "iopl": (172, None), "ioperm": (173, None),
    "acct": (163, 89), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "personality": (135, 92), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
# An argument decides on these.
JUDGED = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122), "fcntl": (72, 25), "ioctl": (16, 29), "mmap": (9, 222),
}  # fmt: skip
CLONE3 = 435
NEWEST = 462  # what later kernels add is refused as if it weren't there
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, name in the kernel
CLONE_THREAD = 0x10000
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15  # which signal a file that is ready sends, and to whom
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902  # the same for sockets
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # typing on the terminal that the service was started from
SHARED, ANONYMOUS, GROWS_DOWN = 0x01, 0x20, 0x100  # mappings; one that grows counts as stack, not as data

SET_FILTER = 1
ON_ALL_THREADS = 1
SECCOMP = (317, 277)
LOAD, IF_EQUAL, IF_ABOVE, AND, RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT, ARGUMENT_BYTES = 0, 4, 16, 8
ALL_BITS = 0xFFFFFFFF
ALLOW, KILL_PROCESS, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE, ABSENT = FAIL | errno.EPERM, FAIL | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # operation, jumps when true and when false, operand

_libc = ctypes.CDLL(None, use_errno=True)


def confine(readable: Iterable[Path] = (), writable: Iterable[Path] = ()) -> None:
    """Keep Python, its packages and these paths, and no network, other program or other process.

    Args:
        readable: files, and folders with all that is in them.
        writable: folders in which files may be read, made, changed and removed.

    What the kernel lacks, or a container forbids, is left out; `holds` tells.
    """
    os.umask(0o077)
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    readable, writable = list(readable), list(writable)
    with contextlib.suppress(OSError):
        installation = _installation([*readable, *writable])
        _restrict_files([*installation, *map(str, readable)], list(map(str, writable)))
    with contextlib.suppress(OSError):
        _restrict_calls()


class Confinement(NamedTuple):
    """What is out of reach in the sandbox: other files; networks and other programs."""

    files: bool
    calls: bool


def holds() -> Confinement:
    """What the sandbox is worth on this machine: a process of its own goes in and tries to get out."""
    tried = subprocess.run([sys.executable, "-P", "-m", __name__], capture_output=True, text=True, check=True)
    return Confinement(**json.loads(tried.stdout))


def _try_to_get_out() -> Confinement:
    confine()
    parent = os.getppid()
    calls = (
        lambda: os.kill(parent, 0),
        lambda: fcntl.fcntl(0, F_SETOWN, parent),
        lambda: os.sched_setaffinity(parent, os.sched_getaffinity(parent)),
        lambda: mmap.mmap(-1, mmap.PAGESIZE),
    )
    return Confinement(files=_fails(lambda: os.listdir("/")), calls=all(map(_fails, calls)))


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return True
    return False


def _call(number: int, *arguments: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *map(_argument, arguments)))


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _installation(given: list[Path]) -> list[str]:
    """Where Python, its packages and shared libraries are; packages may be links to other folders.

    The data may lie below a folder that things are imported from, such as a checkout. Then that folder is
    left out: what is beside a given file belongs to somebody else.
    """
    prefixes = (sys.prefix, sys.base_prefix)
    places = [Path(place).resolve() for place in (*prefixes, *sys.path) if place]
    inhabited = {folder for path in given for folder in path.resolve().parents}
    needed = [Path(__file__).resolve().parents[1], *(Path(prefix, "lib") for prefix in prefixes)]
    packages = find_spec("numpy")
    if packages is not None and packages.origin is not None:
        needed.append(Path(packages.origin).resolve().parents[1])
    return [*SYSTEM, *map(str, needed), *(str(place) for place in places if place not in inhabited)]


def _restrict_files(readable: list[str], writable: list[str]) -> None:
    version = _checked(_call(CREATE_RULESET, None, 0, ASK_FOR_VERSION))
    known = (1 << FILE_RIGHTS.get(version, max(FILE_RIGHTS.values()))) - 1
    network = TCP_BIND_AND_CONNECT if version >= FROM_VERSION else 0
    scoped = ABSTRACT_SOCKETS_AND_SIGNALS if version >= SCOPED_FROM_VERSION else 0
    handled = struct.pack("QQQ", known, network, scoped)
    # older kernels take a longer structure too, as long as what they don't know is zero
    rules = _checked(_call(CREATE_RULESET, handled, len(handled), 0))
    try:
        for path in readable:
            _allow(rules, path, READING & known)
        for path in writable:
            _allow(rules, path, WRITING & known)
        _allow(rules, os.devnull, OF_FILES & known)
        _checked(_call(RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    """Nothing happens when there is no such path."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        access &= -1 if Path(path).is_dir() else OF_FILES
        _checked(_call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", access, place), 0))
    finally:
        os.close(place)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _restrict_calls() -> None:
    if platform.machine() not in MACHINES:
        return
    column, machine = MACHINES[platform.machine()]
    program = _filter(column, machine, os.getpid())
    pointer = ctypes.byref(_Program(len(program) // 8, program))
    _checked(_call(SECCOMP[column], SET_FILTER, ON_ALL_THREADS, pointer))


def _filter(column: int, machine: int, process: int) -> bytes:
    """The program that the kernel runs at every system call."""
    program = [
        (LOAD, 0, 0, MACHINE_AT), (IF_EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER_AT), (IF_ABOVE, 0, 1, NEWEST), (RETURN, 0, 0, ABSENT),
        (IF_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ABSENT),  # libraries use clone then, which can be judged
    ]  # fmt: skip
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for name, judgement in _judgements(process):
        program += [(LOAD, 0, 0, NUMBER_AT), (IF_EQUAL, 0, len(judgement), JUDGED[name][column]), *judgement]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _judgements(process: int) -> list[tuple[str, list[Instruction]]]:
    """By name of a call, what to do about it; where that says nothing, what stands below it counts."""
    return [
        ("clone", _allow_only(0, CLONE_THREAD, bits=CLONE_THREAD)),
        ("kill", _allow_only(0, process)),
        ("tgkill", _allow_only(0, process)),
        ("prlimit64", _allow_only(0, 0)),
        ("sched_setaffinity", _allow_only(0, 0, process)),
        ("fcntl", _refuse(1, F_SETOWN, F_SETSIG, F_SETOWN_EX)),
        ("ioctl", _refuse(1, FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX)),
        ("mmap", _refuse(3, SHARED | ANONYMOUS, bits=SHARED | ANONYMOUS)),
        ("mmap", _refuse(3, GROWS_DOWN, bits=GROWS_DOWN)),
    ]


def _allow_only(argument: int, *values: int, bits: int = ALL_BITS) -> list[Instruction]:
    """A call is allowed when these bits of an argument, counted from 0, have one of the values."""
    return [*_if_in(argument, values, bits, ALLOW), (RETURN, 0, 0, REFUSE)]


def _refuse(argument: int, *values: int, bits: int = ALL_BITS) -> list[Instruction]:
    return _if_in(argument, values, bits, REFUSE)


def _if_in(argument: int, values: tuple[int, ...], bits: int, verdict: int) -> list[Instruction]:
    # The lower half of the argument, which is all that the kernel looks at for those that are judged.
    instructions = [(LOAD, 0, 0, ARGUMENTS_AT + ARGUMENT_BYTES * argument), (AND, 0, 0, bits)]
    for value in values:
        instructions += [(IF_EQUAL, 0, 1, value), (RETURN, 0, 0, verdict)]
    return instructions


if __name__ == "__main__":
    print(json.dumps(_try_to_get_out()._asdict()))
