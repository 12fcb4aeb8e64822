"""`./remit` sets up or refuses, each in a copy of its three files with stand-ins for python3 and uv on the PATH.

The stand-ins are small programs that do what the real one would be seen to do; the real ways take ten seconds each and
are what `.ci/run` and everybody's first command walk through.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 20

# A Python that makes an "environment" by copying itself into it; what it was asked is written down.
NEW_PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$ASKED"
case "$*" in
    *sys.version_info*) exit 0 ;;
    "--version") echo Python 3.12.1 ;;
    "-c import ensurepip") exit "${NO_ENSUREPIP:-0}" ;;
    "-c import pip") exit 0 ;;
    "-m pip --version") [ -z "${PIP:-}" ] || echo "pip $PIP from somewhere"; [ -n "${PIP:-}" ] ;;
    "-m venv "*) for d; do :; done; mkdir -p "$d/bin"; cp "$0" "$d/bin/python" ;;
    "-m pip "*" -e "*) exit "${INSTALL_FAILS:-0}" ;;
    "-m cli "*) echo "ran: $*"; echo "cwd: $PWD" ;;
esac
"""
SLOW_PYTHON = NEW_PYTHON.replace("case", "case $* in *enable-optimizations*) exit 1 ;; esac\ncase", 1)
OLD_PYTHON = """#!/bin/sh
case "$*" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac
"""
UV = """#!/bin/sh
printf 'uv %s\\n' "$*" >>"$ASKED"
case "$*" in
    "venv "*) for d; do :; done; mkdir -p "$d/bin"; cp "${0%/*}/python3" "$d/bin/python" ;;
    "pip install "*) exit "${UV_FAILS:-0}" ;;
esac
"""


class Checkout:
    def __init__(self, where: Path) -> None:
        self.root = where / "a check out"  # people have spaces in their paths
        self.root.mkdir(parents=True)
        for name in ("remit", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, self.root / name)
        self.venv = self.root / ".venv"
        self.bin = where / "bin"
        self.bin.mkdir()
        for name in "cat cksum rm mv mkdir rmdir ln readlink sleep awk cp dirname kill true env sh".split():
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.asked_file = where / "asked"
        self.asked_file.touch()

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "HOME": str(self.root.parent), "ASKED": str(self.asked_file), **more}

    def call(self, *args: str, path: Path | None = None, cwd: Path | None = None, **more: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        done = subprocess.run(
            [str(path or self.root / "remit"), *args],
            env=self.environment(**more),
            cwd=cwd or self.root.parent,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout, done.stderr

    def asked(self) -> list[str]:
        lines = self.asked_file.read_text().splitlines()
        self.asked_file.write_text("")
        return lines

    def installs(self) -> list[str]:
        return [line for line in self.asked() if " install " in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    """A checkout on a machine with a plain new Python."""
    checkout.program("python3", NEW_PYTHON)
    return checkout


def test_no_python_at_all_gives_the_apt_line_and_2(checkout: Checkout) -> None:
    code, out, err = checkout.call("demo")
    assert (code, out) == (2, "")
    assert "needs Python 3.11 to 3.14" in err
    assert "apt-get install -y python3" in err


def test_a_python_that_is_too_old_is_named_and_refused(checkout: Checkout) -> None:
    checkout.program("python3", OLD_PYTHON)
    code, out, err = checkout.call("demo")
    assert (code, out) == (2, "")
    assert "here Python 3.9.2" in err
    assert not checkout.venv.exists()


def test_a_newer_python_beside_an_old_one_is_found(checkout: Checkout) -> None:
    checkout.program("python3", OLD_PYTHON)
    checkout.program("python3.13", OLD_PYTHON)  # a version manager's shim: there, but runs nothing
    checkout.program("python3.12", NEW_PYTHON)
    code, out, _ = checkout.call("plan", "check  logs")
    assert code == 0
    assert "ran: -m cli plan check  logs" in out


@pytest.mark.parametrize(("minor", "is_taken"), [(10, False), (11, True), (14, True), (15, False)])
def test_a_python_is_taken_for_which_all_dependencies_have_wheels(
    checkout: Checkout, minor: int, is_taken: bool
) -> None:
    as_if = f"import sys; sys.version_info = (3, {minor}, 2); exec(sys.argv[1])"
    checkout.program("python3", NEW_PYTHON.replace("exit 0 ;;", f"exec '{sys.executable}' -c '{as_if}' \"$2\" ;;", 1))
    code, out, err = checkout.call("runs")
    assert ("ran: -m cli runs" in out) == is_taken, err
    assert code == (0 if is_taken else 2)


def test_a_python_that_was_built_slow_is_passed_over_for_another(checkout: Checkout) -> None:
    checkout.program("python3", SLOW_PYTHON.replace("ran:", "slow:"))
    checkout.program("python3.12", NEW_PYTHON)
    assert "ran: -m cli runs" in checkout.call("runs")[1]


def test_a_slow_python_of_ones_own_choice_is_taken(ready: Checkout) -> None:
    ready.program("mine", SLOW_PYTHON.replace("ran:", "slow:"))
    assert "slow: -m cli runs" in ready.call("runs", REMIT_PYTHON=str(ready.bin / "mine"))[1]


def test_a_remit_python_that_is_no_good_is_not_passed_over(ready: Checkout) -> None:
    ready.program("mine", OLD_PYTHON)
    code, _, err = ready.call("demo", REMIT_PYTHON=str(ready.bin / "mine"))
    assert code == 2
    assert "REMIT_PYTHON=" in err


def test_neither_ensurepip_nor_pip_gives_the_apt_line_and_2(ready: Checkout) -> None:
    code, _, err = ready.call("demo", NO_ENSUREPIP="1")
    assert code == 2
    assert "apt-get install -y python3-venv" in err


@pytest.mark.parametrize("pip", ["22.2.2", "9.0.1"])
def test_a_pip_without_python_option_is_as_none(ready: Checkout, pip: str) -> None:
    assert ready.call("demo", NO_ENSUREPIP="1", PIP=pip)[0] == 2


@pytest.mark.parametrize(
    ("uv", "environment", "said"),
    [
        (True, {}, "uv pip install -q --python"),
        (False, {}, "-m pip install -q -c constraints.txt"),
        (False, {"NO_ENSUREPIP": "1", "PIP": "22.3"}, "-m pip --python"),
    ],
)
def test_each_way_installs_pinned_and_editable(
    ready: Checkout, uv: bool, environment: dict[str, str], said: str
) -> None:
    if uv:
        ready.program("uv", UV)
    code, out, err = ready.call("runs", **environment)
    assert code == 0
    (install,) = ready.installs()
    assert install.startswith(said)
    assert install.endswith("-c constraints.txt -e .")
    assert out.startswith("ran: -m cli runs\n")  # set-up talks on stderr only: stdout is data
    assert err.count("\n") == 1


def test_pip_takes_over_where_uv_cannot_install(ready: Checkout) -> None:
    ready.program("uv", UV)
    code, _, err = ready.call("runs", UV_FAILS="1")
    assert code == 0
    assert "trying again with venv" in err
    assert [line.split()[0] for line in ready.installs()] == ["uv", "-m"]


def test_a_second_call_is_quiet_and_installs_nothing(ready: Checkout) -> None:
    ready.call("runs")
    ready.asked()
    code, _, err = ready.call("runs")
    assert (code, err) == (0, "")
    assert ready.asked() == ["-m cli runs"]


def test_the_test_extra_comes_with_the_first_test_only(ready: Checkout) -> None:
    ready.call("runs")
    ready.asked()
    assert "cwd: " + str(ready.root) in ready.call("test")[1]
    assert ready.installs()[0].endswith("-e .[test]")
    ready.call("runs")
    ready.call("test")
    assert ready.installs() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_dependency_list_installs_again(ready: Checkout, name: str) -> None:
    ready.call("runs")
    ready.asked()
    with (ready.root / name).open("a") as file:
        file.write("# changed\n")
    ready.call("runs")
    assert len(ready.installs()) == 1


def test_a_moved_checkout_installs_again(ready: Checkout) -> None:
    ready.call("runs")
    ready.asked()
    ready.root.rename(ready.root.with_name("elsewhere"))
    ready.root = ready.root.with_name("elsewhere")
    ready.call("runs")
    assert len(ready.installs()) == 1


def test_a_failing_install_leaves_no_environment_and_no_lock(ready: Checkout) -> None:
    code, out, err = ready.call("demo", INSTALL_FAILS="1")
    assert (code, out) == (1, "")
    assert "could not set up" in err
    assert not ready.venv.exists()
    assert list((ready.root / ".remit").iterdir()) == []


def test_a_failing_update_keeps_what_was_whole_and_tries_again(ready: Checkout) -> None:
    ready.call("runs")
    with (ready.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert ready.call("runs", INSTALL_FAILS="1")[0] == 1
    assert ready.venv.exists()
    ready.asked()
    assert ready.call("runs")[0] == 0
    assert len(ready.installs()) == 1


def test_an_environment_without_a_stamp_is_made_anew(ready: Checkout) -> None:
    """What a kill -9 in the middle leaves is not built upon."""
    (ready.venv / "bin").mkdir(parents=True)
    (ready.venv / "left-over").touch()
    assert ready.call("runs")[0] == 0
    assert not (ready.venv / "left-over").exists()


def test_the_lock_of_a_killed_holder_is_taken_over(ready: Checkout) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (ready.root / ".remit").mkdir()
    (ready.root / ".remit" / "set-up.lock").symlink_to(str(dead.pid))
    assert ready.call("runs")[0] == 0
    assert list((ready.root / ".remit").iterdir()) == []


def test_many_first_calls_at_once_install_once(ready: Checkout) -> None:
    many = [
        subprocess.Popen(
            [str(ready.root / "remit"), "runs"],
            env=ready.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        for _ in range(6)
    ]
    answers = [one.communicate(timeout=WITHIN_S)[0] for one in many]
    assert [one.returncode for one in many] == [0] * 6
    assert all(answer.startswith(b"ran: -m cli runs") for answer in answers)
    assert len(ready.installs()) == 1


def link_beside(checkout: Checkout) -> Path:
    (checkout.bin / "to-remit").symlink_to("../a check out/remit")
    return checkout.bin / "to-remit"


def link_to_link(checkout: Checkout) -> Path:
    (checkout.bin / "again").symlink_to(link_beside(checkout))
    return checkout.bin / "again"


@pytest.mark.parametrize("made", [link_beside, link_to_link])
def test_it_is_found_through_links_from_anywhere(ready: Checkout, made: Callable[[Checkout], Path]) -> None:
    code, out, _ = ready.call("runs", path=made(ready), cwd=Path("/"))
    assert code == 0
    assert "cwd: /\n" in out  # files that a person names are relative to where they stand
    assert (ready.venv / ".remit-stamp").exists()


@pytest.mark.parametrize("shell", ["sh", "dash", "busybox"])
def test_the_script_is_plain_sh(shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not on this machine")
    argv = [path, "sh"] if shell == "busybox" else [path]
    done = subprocess.run([*argv, "-n", str(ROOT / "remit")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(ROOT / "remit", os.X_OK)
