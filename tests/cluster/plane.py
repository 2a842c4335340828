"""A control plane on this machine, on free ports; each of its processes is stopped by its own id however a run ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.parts import StackError
from deploy.local.ports import LOOPBACK, PortBook
from deploy.local.supervisor import die_with_parent
from deploy.local.waiting import end_of
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.nodes import kwok_arguments
from tests.cluster.programs import Programs
from tests.manifests.tools import needed

#: Seconds that only a failing start waits.
_READY_S = 120.0
_STOP_S = 10.0

#: Who comes to the API server, and their groups. The first may do all, the others what Kubernetes gives their names.
_USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}


class ControlPlane:
    """etcd, API server, controller manager, scheduler and kwok, in ``folder``. Use it as a context manager.

    ``kubectl`` speaks to it as somebody who may do everything.
    """

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._ports = PortBook()
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._certificate = folder / "certificates" / "apiserver.crt"
        self.address = ""

    @property
    def kubeconfig(self) -> Path:
        """The file by which kubectl finds it."""
        return self._folder / "admin.kubeconfig"

    @property
    def kubectl(self) -> Kubectl:
        """A way in for somebody who may do everything."""
        return Kubectl(self._programs["kubectl"], self.kubeconfig, self._folder / "kubectl")

    @property
    def logs(self) -> Path:
        """The folder with a log of each process."""
        return self._folder / "log"

    def __enter__(self) -> Self:
        """Start all, and wait for the API server. Raises StackError with the end of the log of what does not start."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop all."""
        self.stop()

    def stop(self) -> None:
        """Stop what runs, last started first; what does not end by itself is killed."""
        while self._running:
            _, process = self._running.pop()
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ports.release()

    def check(self) -> None:
        """Raise StackError when one of its processes has ended."""
        for name, process in self._running:
            if process.poll() is not None:
                raise StackError(f"{name} ended with {process.returncode}{end_of(self.logs / f'{name}.log')}")

    def _start(self) -> None:
        self.logs.mkdir(parents=True)
        etcd, peers, api, kwok = (self._ports.choose(name) for name in ("etcd", "etcd-peers", "kube-apiserver", "kwok"))
        self.address = f"https://{LOOPBACK}:{api}"
        self._write_access()
        self._run("etcd", self._programs.etcd, *self._etcd(etcd, peers))
        self._run("kube-apiserver", self._programs["kube-apiserver"], *self._api_server(etcd, api))
        self._wait(self._is_ready, "the API server")
        self._run("kube-controller-manager", self._programs["kube-controller-manager"], *self._controllers())
        self._run("kube-scheduler", self._programs["kube-scheduler"], *self._scheduler())
        self._run("kwok", self._programs["kwok"], *kwok_arguments(self._programs, self._folder, self.kubeconfig, kwok))

    def _run(self, name: str, *argv: str) -> None:
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                argv, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(self._folder)},
                start_new_session=True,  # Ctrl-C is ours to handle, in order
                preexec_fn=die_with_parent(signal.SIGKILL),
            )  # fmt: skip
        self._running.append((name, process))

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _READY_S
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{what} is not ready after {_READY_S:.0f} s; see {self.logs}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        if not self._certificate.exists():
            return False
        try:
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        except KubectlError:
            return False

    def _etcd(self, clients: int, peers: int) -> Sequence[str]:
        at, between = f"http://{LOOPBACK}:{clients}", f"http://{LOOPBACK}:{peers}"
        return (
            f"--data-dir={self._folder / 'etcd'}", "--unsafe-no-fsync",  # nothing here outlives the run
            f"--listen-client-urls={at}", f"--advertise-client-urls={at}",
            f"--listen-peer-urls={between}", f"--initial-advertise-peer-urls={between}",
            f"--initial-cluster=default={between}",
        )  # fmt: skip

    def _api_server(self, etcd: int, port: int) -> Sequence[str]:
        key = self._folder / "service-accounts.key"
        return (
            f"--etcd-servers=http://{LOOPBACK}:{etcd}",
            f"--bind-address={LOOPBACK}", f"--advertise-address={LOOPBACK}", f"--secure-port={port}",
            f"--cert-dir={self._certificate.parent}",
            "--endpoint-reconciler-type=none",  # nobody comes by the service kubernetes
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",  # for Pod Security admission to refuse
            "--authorization-mode=Node,RBAC", "--anonymous-auth=false",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        )  # fmt: skip

    def _controllers(self) -> Sequence[str]:
        return (
            f"--kubeconfig={self._kubeconfig('system:kube-controller-manager')}",
            "--secure-port=0", "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self._folder / 'service-accounts.key'}",
            f"--root-ca-file={self._certificate}",
            # A minute of a cluster's life in a second or two.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--resource-quota-sync-period=5s",
            "--pvclaimbinder-sync-period=2s",
            "--kube-api-qps=300", "--kube-api-burst=500",
        )  # fmt: skip

    def _scheduler(self) -> Sequence[str]:
        return (f"--kubeconfig={self._kubeconfig('system:kube-scheduler')}", "--secure-port=0", "--leader-elect=false")

    def _write_access(self) -> None:
        """Make a token for each user, the kubeconfig that holds it, and the key that signs service accounts' tokens."""
        lines: list[str] = []
        for number, (user, groups) in enumerate(_USERS.items()):
            token = secrets.token_urlsafe(24)
            lines.append(f'{token},{user},{number},"{groups}"')
            _private(self._kubeconfig(user), _KUBECONFIG.format(self.address, self._certificate, user, token))
        _private(self._folder / "tokens.csv", "\n".join(lines) + "\n")
        _private(self._folder / "service-accounts.key", _key())

    def _kubeconfig(self, user: str) -> Path:
        return self._folder / f"{user.replace(':', '-')}.kubeconfig"


_KUBECONFIG = """apiVersion: v1
kind: Config
current-context: plane
clusters: [{{name: plane, cluster: {{server: "{0}", certificate-authority: "{1}"}}}}]
contexts: [{{name: plane, context: {{cluster: plane, user: "{2}"}}}}]
users: [{{name: "{2}", user: {{token: "{3}"}}}}]
"""


def _key() -> str:
    argv = (
        needed("openssl", "openssl", os.environ),
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
    )
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
