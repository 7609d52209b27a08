"""Checks install.sh: the last commit and an environment on every host."""


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
