"""The scripts for TPU slices, against a stub of gcloud that records its calls and runs the hosts' part for real."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "tpu_scripts"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if os.access(path, os.X_OK))
TOOLS = ("bash", "flock", "git", "setsid", "tar")
pytestmark = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}")

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

# The cloud is a folder. The files "node" and "request" hold a state each; what "then-<state>" holds takes a state's
# place after it has been told once. The folders "host0" and "host1" are the hosts' homes. "full": nothing can be
# created; "wait": a launch waits for the command's end; "strikes": the slice is preempted when a status has been read.
GCLOUD = r"""#!/usr/bin/env bash
cd "{cloud}" || exit
line='"gcloud"'
for word; do
  word=${{word//\\/\\\\}}
  line+=", \"${{word//\"/\\\"}}\""
done
echo "{{\"host\": \"${{HOST:-}}\", \"argv\": [$line]}}" >>calls

kind=$3 verb=$4 name=$5 worker=all text=
for word; do
  case $word in
    --worker=*) worker=${{word#*=}} ;;
    --command=*) text=${{word#*=}} ;;
  esac
done
[[ $worker == all ]] && workers=(0 1) || workers=("$worker")
[[ $kind == tpu-vm ]] && resource=node || resource=request

case $1/$verb in
  storage/*) ;;
  */describe)
    state=$(<$resource)
    case $state in
      GONE) echo "ERROR: (gcloud.compute.tpus.$kind.describe) NOT_FOUND: there is none" >&2 && exit 1 ;;
      DENIED) echo "ERROR: (gcloud.compute.tpus.$kind.describe) PERMISSION_DENIED: not found, or else" >&2 && exit 1 ;;
    esac
    echo "$state"
    if [[ -e then-$state ]]; then cp "then-$state" $resource; fi
    ;;
  */create)
    [[ ! -e full ]] || {{ echo "ERROR: no more capacity in the zone" >&2 && exit 1; }}
    rm -rf host0 host1
    mkdir host0 host1
    echo READY >node
    if [[ $resource == request ]]; then echo WAITING_FOR_RESOURCES >request; fi
    ;;
  */delete)
    for file in host*/rdjax-run/pid; do [[ ! -e $file ]] || kill -KILL -- "-$(<"$file")" 2>/dev/null; done
    echo GONE >node
    echo GONE >$resource
    ;;
  */scp) for worker in 0 1; do cp "$name" "host$worker/${{6#*:}}" || exit; done ;;
  */ssh)
    status=0
    for worker in "${{workers[@]}}"; do
      home="{cloud}/host$worker"
      environment=(HOME="$home" HOST="$worker" PATH="{host_path}" CLOUD="{cloud}")
      (cd "$home" && exec env -i "${{environment[@]}}" bash -c "$text" </dev/null) || status=$?
    done
    # A command that ends at once has ended when the next call looks.
    if [[ -e wait && $text == *launch.sh* ]]; then
      until [[ -e host0/rdjax-run/status && -e host1/rdjax-run/status ]]; do sleep 0.01; done
    fi
    if [[ -e strikes && $text == *status.sh* && -e host0/rdjax-run/status ]]; then
      rm strikes
      echo PREEMPTED >node
    fi
    exit "$status"
    ;;
esac
"""

# `python3` of a host: makes the virtual environment as uv would. Both it and the environment's record their calls.
PYTHON3 = """#!/usr/bin/env bash
echo "python3 $*" >>"$HOME/python-calls"
if [[ "$1 $2 $3" == "-m uv venv" ]]; then
  mkdir -p "${!#}/bin"
  cat >"${!#}/bin/python" <<'END'
#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 3.12; else echo "python $* in $PWD" >>"$HOME/python-calls"; fi
END
  chmod +x "${!#}/bin/python"
fi
"""

# `tail -F` would never end.
TAIL = '#!/usr/bin/env bash\nexec {tail} "${{@/-F/--}}"\n'

GIT = """#!/usr/bin/env bash
if [[ " $* " == *" archive "* ]]; then
  {python} -c 'import json, sys; print(json.dumps({{"argv": sys.argv[1:], "host": ""}}))' git "$@" >>{calls}
fi
exec {git} "$@"
"""


class Ended(NamedTuple):
    status: int
    out: str
    errors: list[str]
    calls: list[list[str]]  # made here
    on_hosts: list[list[str]]  # made on the hosts


def git(folder: pathlib.Path, *arguments: str) -> None:
    name = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True)


class Cloud:
    """The stub's folder, and a checkout whose scripts run against it."""

    def __init__(self, folder: pathlib.Path, checkout: pathlib.Path):
        self.folder, self.checkout = folder / "cloud", checkout
        self.hosts = (self.folder / "host0", self.folder / "host1")
        for path in (*self.hosts, folder / "bin", folder / "host-bin"):
            path.mkdir(parents=True)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        host_path = f"{folder / 'host-bin'}{os.pathsep}{os.environ['PATH']}"
        gcloud = GCLOUD.format(cloud=self.folder, host_path=host_path)
        calls = self.folder / "calls"
        git = GIT.format(python=sys.executable, calls=calls, git=shutil.which("git"))
        tail = TAIL.format(tail=shutil.which("tail"))
        self._write(folder / "bin" / "gcloud", gcloud)
        self._write(folder / "host-bin" / "gcloud", gcloud)
        self._write(folder / "bin" / "git", git)
        self._write(folder / "host-bin" / "python3", PYTHON3)
        self._write(folder / "host-bin" / "tail", tail)
        self.set()

    def _write(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def commit(self, text: str) -> None:
        (self.checkout / "tracked").write_text(text)
        git(self.checkout, "commit", "-q", "-a", "-m", "m")

    def set(self, node="GONE", request="GONE", then: dict[str, str] | None = None, **marks: bool) -> None:
        for path in (*self.folder.glob("then-*"), *(self.folder / mark for mark in ("full", "wait", "strikes"))):
            path.unlink(missing_ok=True)
        later = {f"then-{state}": following for state, following in (then or {}).items()}
        files = {"node": node, "request": request, **later, **{mark: "" for mark, on in marks.items() if on}}
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def state(self, resource: str) -> str:
        return (self.folder / resource).read_text().strip()

    def run(self, script: str, *arguments: str, **settings: str) -> Ended:
        environment = {**SETTINGS, "PATH": self.path, "HOME": str(self.folder), **settings}
        environment = {name: value for name, value in environment.items() if value}
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        command = [self.checkout / "tpu_scripts" / f"{script}.sh", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        lines = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        here = [line["argv"] for line in lines if not line["host"]]
        there = [line["argv"] for line in lines if line["host"]]
        return Ended(ended.returncode, ended.stdout, ended.stderr.splitlines(), here, there)

    def run_both_ways(self, script: str, *arguments: str, **settings: str) -> Ended:
        """Runs it, and checks that a dry run before it runs nothing and prints the same commands."""
        dry = self.run(script, "--dry-run", *arguments, **settings)
        assert (dry.status, dry.calls, dry.on_hosts) == (0, [], [])
        ended = self.run(script, *arguments, **settings)
        assert [shlex.split(line) for line in dry.out.splitlines()] == ended.calls
        return ended

    def install(self) -> None:
        """Puts what install.sh would on the hosts, without running it."""
        self.set("READY")
        for host in self.hosts:
            shutil.copytree(FOLDER, host / "rdjax" / "tpu_scripts")

    def status(self) -> list[str]:
        """How the command stands on each host."""
        lines = self.run("status").out.splitlines()
        return [line.split()[2] for line in lines if line.startswith("rdjax-status")]

    def wait_for(self, states: list[str]) -> None:
        for _ in range(100):
            if self.status() == states:
                return
        raise AssertionError(f"{self.status()}, not {states}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    """A repository with the scripts and a file."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    shutil.copytree(FOLDER, folder / "tpu_scripts")
    (folder / "tracked").write_text("first")
    git(folder, "init", "-q", "--template=")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "m")
    return folder


@pytest.fixture
def own_checkout(checkout, tmp_path) -> pathlib.Path:
    """A copy of the repository, to be changed."""
    return shutil.copytree(checkout, tmp_path / "own")


@pytest.fixture
def cloud(tmp_path, checkout) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for host in cloud.hosts:
        stop = host / "rdjax" / "tpu_scripts" / "host" / "stop.sh"
        if stop.exists():
            subprocess.run(["bash", stop], env={"HOME": str(host), "PATH": os.environ["PATH"]}, capture_output=True)


@pytest.fixture
def command(tmp_path) -> Callable[[str], list[str]]:
    """Makes a command of lines of shell; `$HOST` is the host's number, `$CLOUD` the stub's folder."""

    def make(text: str) -> list[str]:
        path = tmp_path / "command.sh"
        path.write_text(textwrap.dedent(text))
        return ["bash", str(path)]

    return make


# It ends as rdjax does when it is stopped.
ENDLESS = "trap 'exit 75' TERM; sleep 60 & wait"


def named(calls: list[list[str]], verb: str) -> list[list[str]]:
    return [call for call in calls if call[0] == "gcloud" and call[4] == verb]


def launched(calls: list[list[str]]) -> int:
    return sum("host/launch.sh" in call[-1] for call in calls)


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_help_needs_no_settings(script):
    text = (FOLDER / f"{script}.sh").read_text()
    environment = {"PATH": os.environ["PATH"]}
    ended = subprocess.run([FOLDER / f"{script}.sh", "--help"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == text.splitlines()[1].removeprefix("# ")
    assert f"  {script}.sh [" in ended.stdout


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_what_is_missing_or_misspelt_ends_with_one_line(script, cloud):
    words = {"launch": ["--", "true"], "resume": ["--", "true"], "copy": ["runs/a"]}.get(script, [])
    missing = cloud.run(script, *words, TPU_NAME="", TPU_ZONE="")
    assert (missing.status, missing.out, missing.calls) == (2, "", [])
    assert missing.errors == [
        "error: not set: TPU_NAME TPU_ZONE; set it in the environment or in the file that TPU_SETTINGS names"
    ]
    misspelt = cloud.run(script, "--spt", *words)
    assert (misspelt.status, misspelt.calls) == (2, [])
    assert misspelt.errors == [f"error: the argument '--spt' is not understood; see {script}.sh --help"]


@pytest.mark.parametrize(
    ("script", "words", "settings", "error"),
    [
        ("create", [], {"TPU_TYPE": ""}, "not set: TPU_TYPE"),
        ("create", ["word"], {}, "the argument 'word' is not understood"),
        ("create", [], {"TPU_WAIT": "1h"}, "TPU_WAIT: '1h' is not a whole number"),
        ("create", [], {"TPU_SETTINGS": "/not/there"}, "TPU_SETTINGS: /not/there cannot be read"),
        ("launch", [], {}, "a command is wanted behind --"),
        ("launch", ["true"], {}, "the argument 'true' is not understood"),
        ("resume", ["--"], {}, "a command is wanted behind --"),
        ("logs", ["--worker=all"], {}, "--worker=all: the number of one host is wanted"),
        ("copy", [], {}, "a folder is wanted"),
        ("copy", ["runs/a"], {"TPU_BUCKET": ""}, "not set: TPU_BUCKET"),
        ("copy", ["runs/a", "/tmp/a"], {}, "/tmp/a is not in a bucket"),
    ],
)
def test_mistakes(script, words, settings, error, cloud):
    ended = cloud.run(script, *words, **settings)
    assert (ended.status, ended.calls, len(ended.errors)) == (2, [], 1)
    assert ended.errors[0].startswith(f"error: {error}")


def test_settings_come_from_a_file_and_the_environment_goes_first(cloud, tmp_path):
    (tmp_path / "my tpu.sh").write_text(': "${TPU_NAME:=mine}"\n: "${TPU_ZONE:=elsewhere}"\n')
    ended = cloud.run("delete", TPU_SETTINGS=str(tmp_path / "my tpu.sh"), TPU_NAME="")
    assert ended.calls[0][4:7] == ["describe", "mine", "--zone=us-west4-a"]


def test_the_example_settings_are_all_that_is_needed(cloud):
    names = dict.fromkeys(SETTINGS, "")
    ended = cloud.run("create", "--dry-run", TPU_SETTINGS=str(FOLDER / "settings.example.sh"), **names)
    assert (ended.status, ended.errors) == (0, [])
    assert "--accelerator-type=v5litepod-16" in ended.out


@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_create_waits_for_the_slice_and_creates_it_once(spot, cloud):
    ended = cloud.run_both_ways("create", *spot)
    kind = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
    assert named(ended.calls, "create") == [[*NODE, "create", "slice", *PLACE, *kind, *spot]]
    assert (ended.status, ended.out) == (0, "slice is READY\n")
    again = cloud.run("create", *spot)
    assert (again.status, again.out) == (0, "slice is READY\n")
    assert again.calls == [[*NODE, "describe", "slice", *PLACE, "--format=value(state)"]]


def test_create_waits_for_a_slice_that_is_being_created(cloud):
    cloud.set("CREATING", then={"CREATING": "READY"})
    ended = cloud.run("create")
    assert (ended.status, named(ended.calls, "create")) == (0, [])


def test_create_queued_waits_until_active_and_asks_once(cloud):
    cloud.set(then={"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"})
    ended = cloud.run("create", "--queued", "--spot", TPU_WAIT="600", TPU_CREATE_FLAGS="--network=n --internal-ips")
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    last = ["--valid-until-duration=600s", "--spot", "--network=n", "--internal-ips"]
    request = [*REQUEST, "create", "slice", "--node-id=slice", *PLACE, *kind, *last]
    assert named(ended.calls, "create") == [request]
    assert (ended.status, ended.out, cloud.state("request")) == (0, "slice is ACTIVE\n", "ACTIVE")


def test_create_queued_prints_what_it_runs(cloud):
    cloud.set(then={"GONE": "GONE"})
    dry = cloud.run("create", "--queued", "--dry-run")
    cloud.set(then={"WAITING_FOR_RESOURCES": "ACTIVE"})
    ended = cloud.run("create", "--queued")
    waiting = [call for call in ended.calls if call[3] == "queued-resources"][-1]
    # The real request waits once before it is ACTIVE.
    assert [shlex.split(line) for line in dry.out.splitlines()] == ended.calls[:-1]
    assert ended.calls[-1] == waiting == ended.calls[-2]


def test_create_goes_on_waiting_for_a_request_and_gives_up_in_time(cloud):
    cloud.set(request="WAITING_FOR_RESOURCES")
    ended = cloud.run("create", "--queued", TPU_WAIT="0")
    assert (ended.status, named(ended.calls, "create")) == (1, [])
    assert ended.errors == ["error: slice is still WAITING_FOR_RESOURCES after 0 seconds; delete.sh gives it up"]


@pytest.mark.parametrize(
    ("flags", "node", "request_"), [([], "PREEMPTED", "GONE"), (["--queued"], "GONE", "SUSPENDED")]
)
def test_create_leaves_what_is_broken(flags, node, request_, cloud):
    cloud.set(node, request_)
    ended = cloud.run("create", *flags)
    state = node if node != "GONE" else request_
    assert (ended.status, ended.errors) == (1, [f"error: slice is {state}; delete.sh removes it"])
    assert named(ended.calls, "create") == []


def test_an_answer_other_than_not_found_is_an_error(cloud):
    cloud.set("DENIED")
    for script in ("create", "delete"):
        ended = cloud.run(script)
        assert ended.status == 1
        assert "PERMISSION_DENIED" in ended.errors[-1]
        assert named(ended.calls, "create") == named(ended.calls, "delete") == []


def test_delete_takes_the_slice_and_its_request_and_twice_is_fine(cloud):
    cloud.set("READY", "ACTIVE")
    ended = cloud.run("delete")
    assert named(ended.calls, "delete") == [[*REQUEST, "delete", "slice", *PLACE, "--force", "--quiet"]]
    assert (cloud.state("node"), cloud.state("request")) == ("GONE", "GONE")
    again = cloud.run("delete")
    assert (again.status, named(again.calls, "delete"), again.out) == (0, [], "slice is gone\n")
    cloud.set("READY")
    assert named(cloud.run("delete").calls, "delete") == [[*NODE, "delete", "slice", *PLACE, "--quiet"]]


def test_delete_prints_all_that_it_may_run(cloud):
    dry = cloud.run("delete", "--dry-run")
    assert dry.calls == []
    cloud.set("READY", "ACTIVE")
    request = cloud.run("delete").calls
    cloud.set("READY")
    node = cloud.run("delete").calls
    assert [shlex.split(line) for line in dry.out.splitlines()] == [*request[:2], *node[1:]]


def test_install_puts_the_last_commit_and_an_environment_on_all_hosts(cloud, own_checkout):
    cloud.checkout = own_checkout
    cloud.set("READY")
    (cloud.checkout / "untracked").write_text("")
    ended = cloud.run_both_ways("install")
    assert (ended.status, ended.errors) == (0, [])
    for host in cloud.hosts:
        assert (host / "rdjax" / "tracked").read_text() == "first"
        assert not (host / "rdjax" / "untracked").exists()
        venv = host / "rdjax-venv"
        assert (host / "python-calls").read_text().splitlines() == [
            "python3 -m pip install --quiet --user uv",
            f"python3 -m uv venv --quiet --seed --python 3.12 {venv}",
            f"python -m pip install --quiet -e .[tpu] in {host / 'rdjax'}",
        ]


def test_install_again_updates_and_keeps_runs_and_the_environment(cloud, own_checkout):
    cloud.checkout = own_checkout
    cloud.set("READY")
    cloud.run("install")
    (cloud.hosts[0] / "rdjax" / "runs").mkdir()
    (cloud.checkout / "tracked").write_text("second")
    dirty = cloud.run("install")
    assert dirty.errors == ["note: changes that are not committed are left out"]
    assert (cloud.hosts[0] / "rdjax" / "tracked").read_text() == "first"
    cloud.commit("second")
    assert cloud.run("install").status == 0
    assert (cloud.hosts[0] / "rdjax" / "tracked").read_text() == "second"
    assert (cloud.hosts[0] / "rdjax" / "runs").is_dir()
    calls = (cloud.hosts[0] / "python-calls").read_text()
    assert (calls.count("uv venv"), calls.count("pip install --quiet -e")) == (1, 3)
    cloud.run("install", TPU_PYTHON="3.13")  # another version: the environment is made anew
    assert "uv venv --quiet --seed --python 3.13" in (cloud.hosts[0] / "python-calls").read_text()


def test_install_from_a_git_url_also_over_a_copy(cloud, own_checkout):
    cloud.checkout = own_checkout
    cloud.set("READY")
    assert cloud.run("install").status == 0
    cloud.commit("second")
    ended = cloud.run_both_ways("install", TPU_GIT_URL=f"file://{cloud.checkout}", TPU_GIT_REF="HEAD")
    assert (ended.status, len(ended.calls)) == (0, 1)
    assert [(host / "rdjax" / "tracked").read_text() for host in cloud.hosts] == ["second", "second"]


def test_launch_runs_on_all_hosts_with_its_words_whole(cloud):
    cloud.set("READY")
    cloud.run("install")
    cloud.set("READY", wait=True)
    words = ["python", "-m", "rdjax.train", "--config.x=('a  b', \"$HOME\")", ""]
    ended = cloud.run_both_ways("launch", "--", *words)
    assert ended.status == 0
    assert cloud.status() == ["0", "0"]
    for host in cloud.hosts:
        line = (host / "python-calls").read_text().splitlines()[-1]
        assert line == f"python {' '.join(words[1:])} in {host / 'rdjax'}"
        log = (host / "rdjax-run" / "log").read_text().splitlines()
        assert log[0].startswith("== ")
        assert log[-1].endswith("status 0")


def test_a_second_command_is_refused_until_the_first_is_stopped(cloud, command):
    cloud.install()
    assert cloud.run("launch", "--", *command(ENDLESS)).status == 0
    cloud.wait_for(["running", "running"])
    second = cloud.run("launch", "--", "true")
    assert (second.status, launched(second.calls)) == (1, 0)
    assert second.errors == ["error: a command still runs on slice; see logs.sh, stop.sh"]
    # The host refuses too, where two launches cross.
    launch = cloud.hosts[0] / "rdjax" / "tpu_scripts" / "host" / "launch.sh"
    environment = {"HOME": str(cloud.hosts[0]), "PATH": os.environ["PATH"]}
    crossed = subprocess.run(["bash", launch, "true"], env=environment, capture_output=True, text=True)
    assert crossed.returncode == 1
    assert "a command still runs: bash" in crossed.stderr
    assert cloud.run_both_ways("stop").status == 0
    cloud.wait_for(["75", "75"])
    assert cloud.run("stop").status == 0  # nothing runs: fine
    cloud.set("READY", wait=True)
    assert cloud.run("launch", "--", "true").status == 0
    assert cloud.status() == ["0", "0"]


def test_one_running_host_is_enough_to_refuse(cloud, command):
    cloud.install()
    cloud.run("launch", "--", *command(f'if [ "$HOST" = 1 ]; then exit 3; fi\n{ENDLESS}'))
    cloud.wait_for(["running", "3"])
    assert cloud.run("launch", "--", "true").status == 1
    assert cloud.status() == ["running", "3"]


def test_a_command_that_was_killed_with_its_host_is_lost(cloud, command):
    cloud.install()
    assert cloud.status() == ["none", "none"]
    cloud.run("launch", "--", *command(ENDLESS))
    cloud.wait_for(["running", "running"])
    subprocess.run(
        ["kill", "-KILL", "--", f"-{(cloud.hosts[1] / 'rdjax-run' / 'pid').read_text().strip()}"], check=True
    )
    cloud.wait_for(["running", "lost"])


def test_launch_before_install_is_an_error(cloud):
    cloud.set("READY")
    ended = cloud.run("launch", "--", "true")
    assert (ended.status, launched(ended.calls)) == (1, 0)
    assert ended.errors[-1] == "error: not all hosts of slice tell what runs; has install.sh been run?"


@pytest.mark.parametrize(("flags", "worker"), [([], 0), (["--worker=1"], 1)])
def test_logs_show_the_chosen_host(flags, worker, cloud, command):
    cloud.install()
    cloud.set("READY", wait=True)
    cloud.run("launch", "--", *command('echo "host $HOST"; echo trouble >&2'))
    ended = cloud.run_both_ways("logs", *flags)
    assert [f"host {worker}", "trouble"] == ended.out.splitlines()[1:3]


def test_status_tells_of_a_slice_that_is_not_ready(cloud):
    cloud.set("PREEMPTED")
    assert cloud.run("status").out == "slice is PREEMPTED\n"
    cloud.install()
    assert cloud.run_both_ways("status").out.startswith("slice is READY\nrdjax-status ")


def test_copy_goes_from_host_0_to_the_bucket(cloud):
    cloud.install()
    ended = cloud.run_both_ways("copy", "runs/my run/")
    assert ended.on_hosts == [["gcloud", "storage", "rsync", "--recursive", "runs/my run", "gs://bucket/runs/my run"]]
    named_target = cloud.run("copy", "runs/a", "gs://other/b", TPU_BUCKET="")
    assert named_target.on_hosts[0][-2:] == ["runs/a", "gs://other/b"]


def test_resume_runs_a_command_to_its_end(cloud, command):
    cloud.set(wait=True)
    ended = cloud.run_both_ways("resume", "--spot", "--", *command("echo done"))
    assert ended.status == 0
    assert len(named(ended.calls, "create")) == launched(ended.calls) == 1
    assert named(ended.calls, "create")[0][-1] == "--spot"
    assert named(ended.calls, "delete") == []


def test_resume_creates_and_launches_again_after_a_preemption(cloud, command):
    preempted_once = """
        if [ -e "$CLOUD/second" ]; then exit 0; fi
        if [ "$HOST" = 1 ]; then
          touch "$CLOUD/second"
          echo PREEMPTED >"$CLOUD/node"
        fi
        sleep 60 & wait
    """
    ended = cloud.run("resume", "--", *command(preempted_once))
    assert ended.status == 0, ended
    assert len(named(ended.calls, "create")) == launched(ended.calls) == 2
    assert len(named(ended.calls, "delete")) == 1
    assert "slice is PREEMPTED" in ended.out


def test_resume_looks_twice_where_a_host_fails_before_the_preemption_shows(cloud, command):
    cloud.set(wait=True, strikes=True)
    fails_once = '[ -e "$CLOUD/ran$HOST" ] && exit 0; touch "$CLOUD/ran$HOST"; exit 134'
    ended = cloud.run("resume", "--", *command(fails_once))
    assert ended.status == 0, ended
    assert len(named(ended.calls, "create")) == launched(ended.calls) == 2


def test_resume_deletes_a_suspended_request_and_queues_anew(cloud):
    cloud.set(request="SUSPENDED", then={"WAITING_FOR_RESOURCES": "ACTIVE"}, wait=True)
    ended = cloud.run("resume", "--queued", "--", "true")
    assert ended.status == 0
    verbs = [call[4] for call in ended.calls if call[0] == "gcloud" and call[4] in ("create", "delete")]
    assert verbs == ["delete", "create"]
    assert named(ended.calls, "create")[0][3] == "queued-resources"


def test_resume_launches_again_on_the_same_slice_after_75(cloud, command):
    cloud.set(wait=True)
    ended = cloud.run("resume", "--", *command('[ -e "$HOME/ran" ] && exit 0; touch "$HOME/ran"; exit 75'))
    assert ended.status == 0
    assert (len(named(ended.calls, "create")), launched(ended.calls)) == (1, 2)


@pytest.mark.parametrize("status", [2, 1])
def test_resume_does_not_repeat_a_failure(status, cloud, command):
    cloud.set(wait=True)
    ended = cloud.run("resume", "--", *command(f'if [ "$HOST" = 1 ]; then exit {status}; fi'))
    assert (ended.status, launched(ended.calls)) == (status, 1)
    assert f"error: the command ended with status {status}" in ended.errors[-1]


def test_resume_gives_up_after_its_attempts(cloud):
    cloud.set(wait=True)
    ended = cloud.run("resume", "--", "bash", "-c", "exit 75")
    assert (ended.status, launched(ended.calls)) == (75, 2)
    assert ended.errors[-1].startswith("error: not finished after 2 attempts")


def test_a_creation_that_fails_is_an_attempt(cloud):
    cloud.set(full=True)
    ended = cloud.run("resume", "--", "true")
    assert (ended.status, len(named(ended.calls, "create")), launched(ended.calls)) == (75, 2, 0)


def test_resume_watches_a_command_that_runs_already(cloud, command):
    cloud.install()
    wait = command('while [ ! -e "$CLOUD/go" ]; do sleep 0.02; done')
    cloud.run("launch", "--", *wait)
    cloud.wait_for(["running", "running"])
    process = subprocess.Popen(
        [cloud.checkout / "tpu_scripts" / "resume.sh", "--", *wait],
        env={**SETTINGS, "PATH": cloud.path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    (cloud.folder / "go").touch()
    out, _ = process.communicate(timeout=30)
    assert lines[1] == "a command runs already on slice and is watched\n"
    assert (process.returncode, out) == (0, "the command has finished; delete.sh ends the costs\n")


def test_resume_gives_up_on_hosts_that_do_not_answer(cloud, command):
    repairing = """
        if [ "$HOST" = 1 ]; then echo REPAIRING >"$CLOUD/node"; fi
        sleep 60 & wait
    """
    ended = cloud.run("resume", "--", *command(repairing))
    assert (ended.status, launched(ended.calls)) == (1, 1)
    assert ended.errors == ["error: slice is REPAIRING and its hosts have not answered 3 times"]


def test_every_script_is_bash():
    for path in FOLDER.rglob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    ended = subprocess.run(["shellcheck", "-x", *FOLDER.rglob("*.sh")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
