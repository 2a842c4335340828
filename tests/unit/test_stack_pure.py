"""The local stack's pure parts: ports, backoff, what is written down, and what is said when something is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.local import broker, objects, services
from deploy.local.parts import Part, StackError
from deploy.local.ports import PortBook
from deploy.local.probes import public
from deploy.local.state import StackFiles, StackState, find_process, read_env, render_env, start_time
from deploy.local.supervisor import Backoff, describe_end
from flywheel.cli.main import describe, main
from flywheel.settings import Connections, LocalSettings
from flywheel.topics import MAX_MESSAGE_BYTES

# ---- backoff -----------------------------------------------------------------------------------------------------


def test_waits_double_up_to_the_cap_while_runs_are_short() -> None:
    backoff = Backoff(first=0.5, cap=4.0, stable=60.0)
    assert [backoff.after(uptime=1.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_long_run_makes_the_next_wait_short_again() -> None:
    backoff = Backoff(first=0.5, cap=30.0, stable=60.0)
    for _ in range(5):
        backoff.after(uptime=0.1)
    assert [backoff.after(uptime=61.0), backoff.after(uptime=0.1)] == [0.5, 1.0]


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_no_wait_is_ever_outside_its_bounds(uptimes: list[float]) -> None:
    backoff = Backoff(first=0.5, cap=30.0, stable=60.0)
    assert all(0.5 <= backoff.after(uptime) <= 30.0 for uptime in uptimes)


def test_how_a_process_ended_is_said_in_words() -> None:
    assert describe_end(70) == "ended with status 70"
    assert describe_end(-9) == "was ended by SIGKILL"


# ---- ports -------------------------------------------------------------------------------------------------------


def test_a_stack_gets_the_ports_it_had_before(tmp_path: Path) -> None:
    first = PortBook(folder=tmp_path)
    had = {name: first.choose(name) for name in ("kafka", "postgres")}
    first.release()
    again = PortBook(had, folder=tmp_path)
    assert {name: again.choose(name, preferred=9092) for name in had} == had


def test_a_port_that_is_in_use_is_passed_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        book = PortBook({"kafka": used}, folder=tmp_path)
        assert book.choose("kafka", preferred=used) != used


def test_two_stacks_that_start_together_share_no_port(tmp_path: Path) -> None:
    one, other = PortBook(folder=tmp_path), PortBook(folder=tmp_path)
    port = one.choose("kafka")
    assert PortBook({"kafka": port}, folder=tmp_path).choose("kafka") != port
    with pytest.raises(StackError):
        other.fixed("kafka", port, "FLYWHEEL_LOCAL_KAFKA_PORT")
    one.release()
    assert other.fixed("kafka", port, "FLYWHEEL_LOCAL_KAFKA_PORT") == port


def test_a_fixed_port_that_is_taken_is_named_with_its_holder_and_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        with pytest.raises(StackError) as raised:
            PortBook(folder=tmp_path).fixed("postgres", used, "FLYWHEEL_LOCAL_POSTGRES_PORT")
    assert f"port {used} for postgres" in str(raised.value)
    assert f"pid {os.getpid()}" in str(raised.value)
    assert "unset FLYWHEEL_LOCAL_POSTGRES_PORT" in str(raised.value)


@pytest.mark.parametrize("value", ["http", "-1", "0", "70000"])
def test_a_service_port_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(StackError, match="FLYWHEEL_GATEWAY_PORT"):
        services.fixed_port({"FLYWHEEL_GATEWAY_PORT": value}, "FLYWHEEL_GATEWAY_PORT")


# ---- what is written down ----------------------------------------------------------------------------------------


def test_the_state_file_gives_back_what_was_written(tmp_path: Path) -> None:
    files = StackFiles(tmp_path)
    part = Part("kafka", "127.0.0.1:9092", "running", 7, 12.5, "ok", 3, tmp_path / "kafka.log")
    state = StackState(1, 2.0, True, None, {"kafka": 9092}, [part, Part("s3", "http://elsewhere", "external")])
    assert files.read_state() is None
    files.write_state(state)
    assert files.read_state() == state
    assert files.state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": []}', '{"pid": 1, "parts": [{"nonsense": 1}]}'])
def test_a_damaged_state_file_is_said_to_be_one(text: str) -> None:
    with pytest.raises(StackError, match="damaged"):
        StackState.from_json(text)


def test_a_process_is_only_found_by_its_pid_and_its_start() -> None:
    pid = os.getpid()
    started = start_time(pid)
    assert started is not None
    assert find_process(pid, started) is not None
    assert find_process(pid, started - 60) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    began = start_time(ended.pid)
    ended.wait()
    assert find_process(ended.pid, began) is None


_names = st.from_regex(r"FLYWHEEL_[A-Z0-9_]{1,20}", fullmatch=True)
_values = st.text(
    st.characters(codec="ascii", min_codepoint=32, max_codepoint=126, exclude_characters="'\\"), max_size=40
)


@given(st.dictionaries(_names, _values, max_size=5))
def test_the_env_file_reads_back_the_same(env: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(render_env(env))
        file.flush()
        assert read_env(Path(file.name)) == env


def test_the_env_file_means_the_same_to_a_shell_and_to_the_settings(tmp_path: Path) -> None:
    url = "postgresql://me:a$b#c@127.0.0.1:5432/fly wheel?application_name=x%20y&ssl=~/x"
    path = tmp_path / "flywheel.env"
    path.write_text(render_env({"FLYWHEEL_POSTGRES": url}))
    script = f'set -a; . "{path}"; printf %s "$FLYWHEEL_POSTGRES"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == url
    assert Connections(_env_file=path).postgres == url  # type: ignore[call-arg]
    assert read_env(path) == {"FLYWHEEL_POSTGRES": url}


@pytest.mark.parametrize("value", ["a'b", "a\nb", "a\\b"])
def test_a_value_that_shell_and_settings_would_read_differently_is_refused(value: str) -> None:
    with pytest.raises(StackError, match="FLYWHEEL_X"):
        render_env({"FLYWHEEL_X": value})


def test_a_credential_is_random_and_stays(tmp_path: Path) -> None:
    files = StackFiles(tmp_path)
    secret = files.credential("s3")
    assert len(secret) == 40
    assert StackFiles(tmp_path).credential("s3") == secret
    assert files.credential("postgres") != secret


def test_only_one_stack_lives_in_a_folder(tmp_path: Path) -> None:
    one, other = StackFiles(tmp_path), StackFiles(tmp_path)
    one.acquire()
    assert other.is_locked()
    with pytest.raises(StackError, match="already running"):
        other.acquire()
    one.release()
    assert not other.is_locked()


# ---- what is started ---------------------------------------------------------------------------------------------


def test_the_broker_takes_the_largest_message_of_the_contract() -> None:
    text = broker.Broker(Path("/var/kafka"), 9092, 9093, "512m").properties()
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert int(properties["message.max.bytes"]) >= MAX_MESSAGE_BYTES
    assert int(properties["replica.fetch.max.bytes"]) >= MAX_MESSAGE_BYTES
    assert properties["auto.create.topics.enable"] == "false"
    assert all("127.0.0.1" in properties[name] for name in ("listeners", "advertised.listeners"))


def test_clients_that_take_the_detour_to_the_broker_are_told_to_stay_on_it() -> None:
    detour = broker.Detour(port=9094, advertised=9095)
    text = broker.Broker(Path("/var/kafka"), 9092, 9093, "512m", detour).properties()
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert "DETOUR://127.0.0.1:9094" in properties["listeners"].split(",")
    assert "DETOUR://127.0.0.1:9095" in properties["advertised.listeners"].split(",")
    assert properties["advertised.listeners"].startswith("PLAINTEXT://127.0.0.1:9092,")


def test_every_port_that_seaweedfs_would_fix_by_itself_is_given() -> None:
    ports = {name: 20_000 + i for i, name in enumerate(objects.SEAWEED_PORTS)}
    argv = objects.SeaweedFS(Path("/d"), ports, "secret", Path("weed")).spec({}, Path("log")).argv
    assert "-s3.port=20000" in argv
    assert "-admin.port.grpc=20009" in argv
    assert "-s3.port.iceberg=0" in argv
    assert "-master.telemetry=false" in argv
    assert not any("secret" in word for word in argv)


def test_missing_java_is_one_line_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"apt-get install .*openjdk-17") as raised:
        broker.find_java({"PATH": str(tmp_path)})
    assert "\n" not in str(raised.value)


def test_too_old_a_java_is_named(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    with pytest.raises(StackError, match=r"needs Java 17 or newer; .*java is 11"):
        broker.find_java({"PATH": f"{tmp_path}:/bin:/usr/bin"})


def test_missing_maven_is_one_line_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"apt-get install .*maven") as raised:
        broker.find_classpath({"PATH": str(tmp_path)}, tmp_path, print)
    assert "\n" not in str(raised.value)


def test_missing_go_is_one_line_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"apt-get install .*golang-go") as raised:
        objects.find_minio({"PATH": str(tmp_path)}, tmp_path, print)
    assert "\n" not in str(raised.value)


def test_kafka_home_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "libs").mkdir()
    with pytest.raises(StackError, match="KAFKA_HOME"):
        broker.find_classpath({"KAFKA_HOME": str(tmp_path)}, tmp_path, print)
    (tmp_path / "libs" / "kafka_2.13-4.3.0.jar").touch()
    assert broker.find_classpath({"KAFKA_HOME": str(tmp_path)}, tmp_path, print) == f"{tmp_path}/libs/*"


# ---- what a person is shown --------------------------------------------------------------------------------------


def test_an_address_is_shown_without_its_password() -> None:
    assert public("postgresql://postgres:secret@127.0.0.1:5432/f") == "postgresql://postgres@127.0.0.1:5432/f"
    assert public("127.0.0.1:9092") == "127.0.0.1:9092"
    assert public("http://127.0.0.1:9000") == "http://127.0.0.1:9000"


def test_a_setting_that_does_not_fit_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_LOCAL_KAFKA_PORT", "many")
    with pytest.raises(ValidationError) as raised:
        LocalSettings.load()
    line = describe(raised.value)
    assert line.startswith("FLYWHEEL_LOCAL_KAFKA_PORT: ")
    assert "'many'" in line
    assert "\n" not in line


def test_a_command_whose_libraries_are_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'psutil'")

    monkeypatch.setattr("flywheel.cli.app.build", lambda: broken)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "psutil" in (said := capsys.readouterr().err) and 'pip install "flywheel[local]"' in said
