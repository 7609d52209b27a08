"""Checks resume.sh: a command runs to its end across preemptions and failures."""

import os
import pathlib
import subprocess

import pytest

from tests.tpu_scripts.cloud import SETTINGS, launched, named


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


def test_resume_launches_again_where_a_host_is_lost_and_jax_aborts_the_other(cloud, command):
    reset_once = """
        if [ -e "$CLOUD/ran$HOST" ]; then exit 0; fi
        touch "$CLOUD/ran$HOST"
        if [ "$HOST" = 1 ]; then sleep 0.3; kill -9 0; fi
        sleep 0.6
        exit 134
    """
    ended = cloud.run("resume", "--", *command(reset_once))
    assert ended.status == 0, ended
    assert launched(ended.calls) == 2


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


# What breaks off, and how often a slice is created and deleted until the command has run to its end.
BROKEN = {
    "quota": ({"quota": True}, 2, 0),
    "half a slice": ({"half": "FAILED"}, 2, 1),
    "a slice that is still being created": ({"half": "CREATING", "then": {"CREATING": "READY"}}, 1, 0),
    "ssh during the installation": ({"drops": "host/install.sh"}, 1, 0),
    "a preemption during the installation": ({"taken": "host/install.sh"}, 2, 1),
    "ssh during the launch": ({"drops": "host/launch.sh"}, 1, 0),
    "a preemption during the launch": ({"taken": "host/launch.sh"}, 2, 1),
}


@pytest.mark.parametrize(("marks", "creations", "deletions"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_off_is_begun_again(cloud, command, marks, creations, deletions):
    cloud.set(**marks)
    # As rdjax does: a host waits for the other one.
    both = """
        touch "$CLOUD/started$HOST"
        trap 'exit 75' TERM
        for _ in $(seq 1500); do
          if [ -e "$CLOUD/started0" ] && [ -e "$CLOUD/started1" ]; then exit 0; fi
          sleep 0.02 & wait
        done
        exit 2
    """
    ended = cloud.run("resume", "--", *command(both))
    assert ended.status == 0, ended
    assert (len(named(ended.calls, "create")), len(named(ended.calls, "delete"))) == (creations, deletions)


def test_a_launch_that_broke_off_is_stopped_before_the_next_one(cloud, command):
    cloud.set(drops="host/launch.sh")
    ended = cloud.run("resume", "--", *command('[ -e "$CLOUD/ran" ] && exit 0; touch "$CLOUD/ran"; sleep 60 & wait'))
    assert ended.status == 0, ended
    assert "runs on some hosts of slice alone; it is stopped and launched again" in ended.out


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


@pytest.mark.parametrize(("ending", "state"), [("echo 0 >$HOME/rdjax-run/status", "0"), ("true", "lost")])
def test_a_command_that_ends_while_its_state_is_read_is_not_lost(tmp_path, ending, state):
    """It writes its status and frees the lock after the status was looked for, and before the lock is tried."""
    folder, flock = tmp_path / "rdjax-run", tmp_path / "flock"
    folder.mkdir()
    (folder / "lock").touch()
    flock.write_text(f"#!/bin/sh\n{ending}\n")
    flock.chmod(0o755)
    done = subprocess.run(
        ["bash", pathlib.Path(__file__).parents[2] / "tpu_scripts" / "host" / "status.sh"],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == state
