"""CPU-seconds of the tests by folder and file, with those of every process that they start.

    pytest -p tests.cpu_times tests/unit

Wall-clock times (`--durations`) say little on a busy machine; these barely depend on it. Linux.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MOST_FILES, MOST_TESTS = 40, 40
KEY = "cpu_seconds"


def _processes() -> dict[int, tuple[int, float]]:
    """Parent and CPU-seconds, those of its reaped children included, of each process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it has ended
                continue
            fields = text[text.rindex(")") + 2 :].split()
            found[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return {pid: (parent, ticks / TICKS_PER_SECOND) for pid, (parent, ticks) in found.items()}


def cpu_seconds() -> float:
    """CPU-seconds of this process and its descendants up to now."""
    processes = _processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    total, pending = 0.0, [os.getpid()]
    while pending:
        pid = pending.pop()
        total += processes[pid][1]
        pending += children.get(pid, [])
    return total


class _CpuTimes:
    def __init__(self) -> None:
        self._by_test: Counter[str] = Counter()
        self._last = cpu_seconds()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        yield
        now = cpu_seconds()
        self._by_test[item.nodeid] += now - self._last
        self._last = now

    def pytest_collection_finish(self) -> None:
        now = cpu_seconds()
        self._by_test["collection"] += now - self._last
        self._last = now

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A worker of pytest-xdist hands its table to the process that prints."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[KEY] = dict(self._by_test)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Adds the table of a worker."""
        self._by_test.update(getattr(node, "workeroutput", {}).get(KEY, {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        by_file: Counter[str] = Counter()
        by_folder: Counter[str] = Counter()
        for test, seconds in self._by_test.items():
            file = test.partition("::")[0]
            by_file[file] += seconds
            by_folder[
                "/".join(file.split("/")[:3]) if "/unit/" in file else file.split("/t")[0]
            ] += seconds
        terminalreporter.section("CPU-seconds")
        for title, table, most in (
            ("folder", by_folder, None),
            ("file", by_file, MOST_FILES),
            ("test", self._by_test, MOST_TESTS),
        ):
            terminalreporter.write_line(f"{title}:")
            for name, seconds in table.most_common(most):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
        terminalreporter.write_line(f"{by_file.total():8.1f}  in all")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin with a state of its own."""
    config.pluginmanager.register(_CpuTimes(), "cpu_times_of_tests")
