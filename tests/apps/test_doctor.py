"""The doctor: one line per finding, the remedy beside, exit code 1 on an error, and never a hang."""

import importlib.metadata
import json
import socket
import sys
import time

import pytest

from essential_sparsity.apps import checks, machine
from essential_sparsity.apps.doctor import Finding, diagnose, summary


def only(findings):
    (found,) = findings
    return found


def test_this_machine_is_told_line_by_line(command, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = command("doctor")
    *lines, last = out.strip().splitlines()
    assert code == 0 and not err
    assert {line.split()[1] for line in lines} >= {"python", "packages", "threads", "device", "outputs", "cache", "hub"}
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert last.startswith("ready")


def test_json_says_the_same_and_an_error_is_exit_code_1(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = command(f"doctor --json paths.data={tmp_path}/nothing")
    told = json.loads(out)
    assert code == 1 and told["errors"] == 1
    (wrong,) = [each for each in told["findings"] if each["state"] == "error"]
    assert wrong["check"] == "inputs" and "is no folder" in wrong["text"] and "paths.data=" in wrong["remedy"]


def test_a_check_that_breaks_does_not_take_the_others_down():
    def broken():
        raise RuntimeError("half a file")

    found = diagnose([("a", broken), ("b", lambda: [Finding("b", "ok", "fine")])])
    assert [each.state for each in found] == ["warning", "ok"] and "RuntimeError: half a file" in found[0].text


def test_the_last_line_says_what_to_do_next():
    fine, wrong = Finding("a", "ok", ""), Finding("b", "error", "")
    assert summary([fine]) == "ready: essential-sparsity train experiment=demo"
    assert summary([fine, wrong]).startswith("1 errors")


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Give a function that pretends which packages are installed, and what each asks for."""

    def pretend(**packages):
        known = {name.replace("_", "-"): told for name, told in packages.items()}

        def version(name):
            if name.lower() not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return known[name.lower()][0]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: known[name.lower()][1])

    return pretend


def test_a_package_that_is_too_old_or_missing_is_an_error_with_its_command(installed):
    installed(essential_sparsity=("1", ["torch>=2.11", "timm>=1", "numpy>=2"]), torch=("2.4.0", []), numpy=("2.1", []))
    old, missing, fine = checks.packages()
    assert old.state == "error" and old.text == "torch 2.4.0 is here, >=2.11 is needed"
    assert old.remedy == "pip install 'torch>=2.11'"
    assert missing.text == "timm is missing" and fine.state == "ok"


def test_two_packages_that_contradict_each_other_are_found_below_ours(installed):
    installed(
        essential_sparsity=("1", ["pyarrow>=20", 'mlflow; extra == "loggers"']),
        pyarrow=("26.0", []),
        mlflow=("3.1", ["pyarrow<26", 'nothing>3; extra == "gateway"']),
    )
    found = only(checks.conflicts())
    assert found.state == "warning" and found.text == "mlflow 3.1 asks for pyarrow<26, 26.0 is here"
    assert found.remedy == "pip install 'pyarrow<26'"


def test_extras_are_told_not_missed(installed):
    installed(essential_sparsity=("1", ['wandb; extra == "loggers"', 'ray; extra == "launchers"']), wandb=("1", []))
    assert "loggers (wandb); launchers (none)" in only(checks.extras()).text


# --- machine ----------------------------------------------------------------------------------------------------------


def test_a_containers_quota_counts_as_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    limit = tmp_path / "cpu.max"
    limit.write_text("150000 100000\n")
    assert machine.granted_cores(limit) == 1.5
    limit.write_text("max 100000\n")
    assert machine.granted_cores(limit) == 8


def test_more_threads_than_cores_and_spinning_ones_are_warned_of(monkeypatch):
    monkeypatch.setattr(machine, "granted_cores", lambda: 2.0)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    many, spinning = machine.threads()
    assert many.remedy == "export OMP_NUM_THREADS=2"
    assert spinning.remedy == "export OMP_WAIT_POLICY=PASSIVE"


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(machine, "granted_cores", lambda: 2.0)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (5.0, 0, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "load 5.0 on 2 cores" in list(machine.threads())[-1].text


def test_memory_is_the_containers_where_that_is_less(tmp_path):
    table, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    table.write_text("MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n")
    limit.write_text("max\n")
    assert only(machine.memory(table, limit)).text == "16.0 of 32.0 GiB are free"
    limit.write_text(str(1 << 30))
    found = only(machine.memory(table, limit))
    assert found.state == "warning" and found.text == "1.0 of 1.0 GiB are free"


def test_a_card_that_this_torch_has_no_kernels_for_is_an_error():
    class Cuda:
        @staticmethod
        def get_device_properties(index):
            return type("P", (), {"name": "Old", "total_memory": 8 << 30, "major": 6, "minor": 1})

        @staticmethod
        def get_arch_list():
            return ["sm_75", "sm_90a", "compute_90"]

    torch = type("T", (), {"cuda": Cuda, "__version__": "2.15"})
    assert machine._card(torch, 0).state == "error"
    Cuda.get_arch_list = staticmethod(lambda: ["sm_61"])
    assert machine._card(torch, 0).state == "warning", "no bfloat16"


# --- folders and hub --------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error_and_none_is_made(tmp_path):
    assert only(machine.folder("outputs", tmp_path / "a" / "b")).state == "ok"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    found = only(machine.folder("outputs", tmp_path / "file" / "outputs"))
    assert found.state == "error" and "paths.outputs=FOLDER" in found.remedy


def test_a_full_disk_is_an_error_and_a_nearly_full_one_a_warning(tmp_path, monkeypatch):
    for free, state in ((10, "error"), (1 << 30, "warning"), (1 << 40, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=free: type("U", (), {"free": free}))
        assert only(machine.folder("temporary", tmp_path)).state == state


def test_a_folders_size_counts_each_file_once_and_follows_no_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "blob").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    size, whole = machine.folder_size(tmp_path, seconds=5)
    assert whole and 1000 <= size < 1200
    assert machine.folder_size(tmp_path / "nothing", seconds=5) == (0, True)


def test_a_hub_that_never_answers_holds_nobody_up(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = machine.HubQuestion(0.3, f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        asked.start()
        found = only(asked.answer())
    assert found.state == "warning" and "paths.models=FOLDER" in found.remedy
    assert time.monotonic() - started < 30, "a name server may take minutes"


def test_a_hub_that_answers_is_ok_and_offline_asks_nobody(monkeypatch):
    import http.server
    import threading

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *args):
            print(format, file=sys.stderr)

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        asked = machine.HubQuestion(20, f"http://127.0.0.1:{server.server_port}")
        asked.start()
        assert only(asked.answer()).state == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in only(machine.HubQuestion(1).answer()).text


def test_configuration_names_the_folders_that_are_read(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/conf, then " in only(checks.configuration()).text
