"""Runs the scripts for TPU slices against stubs of the cloud's commands, which are the files in `stub/`."""

import os
import pathlib
import shlex
import shutil
import subprocess
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parents[2] / "tpu_scripts"
STUBS = pathlib.Path(__file__).parent / "stub"
SOURCED = ("common.sh", "settings.example.sh")  # the others are commands
COMMANDS = sorted(path.stem for path in FOLDER.glob("*.sh") if path.name not in SOURCED)
TOOLS = ("bash", "flock", "git", "setsid", "tar")

SETTINGS = {
    "TPU_NAME": "slice",
    "TPU_ZONE": "us-west4-a",
    "TPU_PROJECT": "project",
    "TPU_TYPE": "v5litepod-16",
    "TPU_RUNTIME": "v2-alpha-tpuv5-lite",
    "TPU_BUCKET": "gs://bucket/runs",
    "TPU_POLL": "0",
    "TPU_ATTEMPTS": "2",
    "TPU_PATIENCE": "3",
}
PLACE = ["--zone=us-west4-a", "--project=project"]
NODE = ["gcloud", "compute", "tpus", "tpu-vm"]
REQUEST = ["gcloud", "compute", "tpus", "queued-resources"]
MARKS = ("full", "quota", "half", "drops", "taken", "wait", "strikes")  # of stub/bin/gcloud
ENDLESS = "trap 'exit 75' TERM; sleep 60 & wait"  # a command that ends with 75 on SIGTERM, as rdjax does


class Ended(NamedTuple):
    """Describes how a script ended, and the calls of `gcloud` and `git archive` that were made meanwhile."""

    status: int
    out: str
    errors: list[str]
    calls: list[list[str]]  # on this machine
    on_hosts: list[list[str]]


def git(folder: pathlib.Path, *arguments: str) -> None:
    """Runs git in a folder, under a made-up name."""
    name = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True)


def named(calls: list[list[str]], verb: str) -> list[list[str]]:
    """Returns the calls of gcloud that have this verb."""
    return [call for call in calls if call[0] == "gcloud" and call[4] == verb]


def launched(calls: list[list[str]]) -> int:
    """Counts the launches of a command."""
    return sum("host/launch.sh" in call[-1] for call in calls)


class Cloud:
    """Holds a cloud that is a folder, and a checkout whose scripts run against it."""

    def __init__(self, folder: pathlib.Path, checkout: pathlib.Path):
        self.folder, self.checkout = folder / "cloud", checkout
        self.hosts = (self.folder / "host0", self.folder / "host1")
        for path in self.hosts:
            path.mkdir(parents=True)
        shutil.copytree(STUBS, folder, dirs_exist_ok=True)
        shutil.copy(folder / "bin" / "gcloud", folder / "host-bin")
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.set()

    def commit(self, text: str) -> None:
        """Commits another content of the tracked file."""
        (self.checkout / "tracked").write_text(text)
        git(self.checkout, "commit", "-q", "-a", "-m", "m")

    def set(self, node="GONE", request="GONE", then: dict[str, str] | None = None, **marks: bool | str) -> None:
        """Sets the states of slice and request, those that follow them, and the marks that stub/bin/gcloud lists."""
        for path in (*self.folder.glob("then-*"), *(self.folder / mark for mark in MARKS)):
            path.unlink(missing_ok=True)
        later = {f"then-{state}": following for state, following in (then or {}).items()}
        files = {
            "node": node,
            "request": request,
            **later,
            **{mark: "" if on is True else on for mark, on in marks.items() if on},
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def state(self, resource: str) -> str:
        """Reads the state of the "node" or the "request"."""
        return (self.folder / resource).read_text().strip()

    def run(self, script: str, *arguments: str, **settings: str) -> Ended:
        """Runs a script to its end; a setting that is empty is unset."""
        environment = {**SETTINGS, "PATH": self.path, "HOME": str(self.folder), **settings}
        environment = {name: value for name, value in environment.items() if value}
        (self.folder / "calls").unlink(missing_ok=True)
        command = [self.checkout / "tpu_scripts" / f"{script}.sh", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        calls = self._calls()
        here, on_hosts = ([words for host, words in calls if bool(host) is there] for there in (False, True))
        return Ended(ended.returncode, ended.stdout, ended.stderr.splitlines(), here, on_hosts)

    def _calls(self) -> list[tuple[str, list[str]]]:
        """Reads the recorded calls: the host ("" for this machine) and the words."""
        path = self.folder / "calls"
        records = path.read_text().split("\036")[:-1] if path.exists() else []
        fields = [record.split("\037")[:-1] for record in records]
        return [(host, words) for host, *words in fields]

    def run_both_ways(self, script: str, *arguments: str, **settings: str) -> Ended:
        """Runs a script, and checks that a dry run before it runs nothing and prints the same commands."""
        dry = self.run(script, "--dry-run", *arguments, **settings)
        assert (dry.status, dry.calls, dry.on_hosts) == (0, [], [])
        ended = self.run(script, *arguments, **settings)
        assert [shlex.split(line) for line in dry.out.splitlines()] == ended.calls != []
        return ended

    def install(self) -> None:
        """Puts what install.sh would on the hosts, without running it."""
        self.set("READY")
        for host in self.hosts:
            shutil.copytree(FOLDER, host / "rdjax" / "tpu_scripts")

    def status(self) -> list[str]:
        """Returns how the command stands on each host, as status.sh prints it."""
        lines = self.run("status").out.splitlines()
        return [line.split()[2] for line in lines if line.startswith("rdjax-status")]

    def wait_for(self, states: list[str]) -> None:
        """Waits until the command stands like this on the hosts."""
        for _ in range(100):
            if self.status() == states:
                return
        raise AssertionError(f"{self.status()}, not {states}")
