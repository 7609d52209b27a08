"""Checks create.sh and delete.sh: a slice is created and deleted once, queued or not."""

import shlex

import pytest

from tests.tpu_scripts.cloud import NODE, PLACE, REQUEST, named


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
