"""Checks launch.sh, status.sh, stop.sh, logs.sh and copy.sh: one command on all hosts."""

import os
import subprocess

import pytest

from tests.tpu_scripts.cloud import ENDLESS, launched


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
