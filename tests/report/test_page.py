"""Tests what the report shows, in what order, and that model text cannot become part of the page."""

import html.parser
import json
import pathlib
import shutil
import xml.etree.ElementTree

import pytest

from rdjax.config import METHODS
from rdjax.errors import UserError
from rdjax.report.figures import colours_of, spread
from rdjax.report.page import write_page
from rdjax.report.run_page import side_by_side
from rdjax.report.sweep_data import score_frame
from rdjax.report.sweep_page import ceiling_figure
from rdjax.report.sweep_table import sweep_table

EVIL = "<script>alert('x')</script> & \"quoted\""


class Links(html.parser.HTMLParser):
    """Collects everything that a page would fetch, and all scripts."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object"):
            self.found.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.found.append(value)


def prediction(response: str, correct: bool | None, prompt: str) -> dict:
    record = {"input": EVIL, "gold": "2.", "response": response, "ids": [1, 2], "ended": True}
    return {**record, "correct": correct, "prompt": prompt}


def write_run(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True)
    config = {"method": "rule_distill_base", "seed": 3, "model": {"path": "m"}, "task": {"name": "rule", "k": 0}}
    record = {"config": config, "command": "python -m rdjax.train", "versions": {"jax": "1"}, "devices": "1 x cpu"}
    (folder / "config.json").write_text(json.dumps(record))
    # The metric is named, so it need not come first.
    scores = {"gap_closed": None, "kl": 0.1, "n": 2, "mean_response_tokens": 2.0, "exact_match": 0.5}
    systems = ("base", "base_with_rule", "student")
    splits = {"test": {system: scores for system in systems}}
    splits["retain"] = {system: {**scores, "kl_from_base": 0.25} for system in systems}
    hidden = {split: {system: [0.0, 0.1] for system in systems} for split in splits}
    metric = dict.fromkeys(splits, "exact_match")
    results = {"splits": splits, "metric": metric, "hidden_distance": hidden, "judge_errors": {}}
    (folder / "eval.json").write_text(json.dumps(results))
    (folder / "predictions").mkdir()
    for split in splits:
        for system in systems:
            prompt = f"Below.{EVIL if system == 'base_with_rule' else ''}\nask"
            records = [prediction("right", True, prompt), prediction(EVIL, False, prompt)]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "predictions" / f"{split}.{system}.jsonl").write_text(lines)
    points = [{"stage": "student", "step": step, "loss": 1 / step, "valid_loss": 2 / step} for step in (1, 2)]
    lines = [{"stage": "gap", "step": 0, "kl": 0.5}, *points]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    sweep = {"methods": ["rule_distill_base", "mine"], "ks": [4, 8], "seeds": [0, 1]}
    config = {"model": {"path": "m"}, "task": {"name": "arithmetic"}, "sweep": sweep}
    record = {"config": config, "command": "python -m rdjax.sweep", "versions": {"jax": "1"}, "devices": "1 x cpu"}
    (folder / "config.json").write_text(json.dumps(record))
    cells = []
    for method in sweep["methods"]:
        for k in sweep["ks"]:
            for seed in sweep["seeds"]:
                scores = {
                    system: {"mean_response_tokens": 3.5, "exact_match": k / 10 + seed / 100}
                    for system in ("base", "base_with_rule", "student")
                }
                cell = {"method": method, "k": k, "seed": seed, "splits": {"test_id": scores, "retain": scores}}
                cell["metric"] = {"test_id": "exact_match", "retain": "exact_match"}
                cell["hidden_distance"] = {"test_id": {"base": [0.0, 0.5], "student": [0.0, 0.1]}}
                cells.append(cell)
    failed = [{"method": "mine", "k": 16, "seed": 1, "error": EVIL}]
    (folder / "sweep.json").write_text(json.dumps({"cells": cells, "failed": failed}))
    return folder


def test_what_a_page_would_fetch_is_found():
    links = Links()
    links.feed('<script src="a.js"></script><img src="data:image/png;base64,"><a href="#top"><a href="https://b.org">')
    assert links.found == ["script", "a.js", "https://b.org"]


@pytest.fixture(params=["run", "sweep"])
def page(request, tmp_path) -> str:
    folder = {"run": write_run, "sweep": write_sweep}[request.param](tmp_path / request.param)
    return write_page(folder).read_text(encoding="utf-8")


def test_the_page_needs_no_network_and_holds_no_script(page):
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "@import" not in page and page.count("<svg") >= 1


def test_text_of_models_and_errors_is_escaped(page):
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp;" in page


def test_a_run_says_what_it_is_and_how_to_do_it_again(tmp_path):
    page = write_page(write_run(tmp_path / "run")).read_text()
    for text in (
        "python -m rdjax.train",
        "gap to close",
        "0.500 nats",
        "What did the student forget?",
        "0.250",
        "base with rule",
    ):
        assert text in page
    assert page.count("<svg") == 4


def test_a_run_without_a_test_split_has_its_curves(tmp_path):
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "predictions")
    (folder / "eval.json").write_text(json.dumps({"splits": {}}))
    assert write_page(folder).read_text().count("<svg") == 1


def test_a_sweep_without_a_test_split_has_a_page(tmp_path):
    folder = write_sweep(tmp_path / "sweep")
    cells = [{"method": "mine", "k": 4, "seed": 0, "splits": {}, "hidden_distance": {}}]
    (folder / "sweep.json").write_text(json.dumps({"cells": cells, "failed": []}))
    page = write_page(folder).read_text()
    assert "<svg" not in page and "Score against k" not in page
    run = folder / "cells" / "mine_k4" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "student", "step": 1, "loss": 0.5}) + "\n")
    assert write_page(folder).read_text().count("<svg") == 1, "its curves"


def test_methods_are_lines_where_there_is_one_k(tmp_path):
    folder = write_sweep(tmp_path / "sweep")
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    for cell in cells:
        cell["splits"]["test_id"]["student_with_rule"] = {"exact_match": 0.7}
    (folder / "sweep.json").write_text(json.dumps({"cells": [cell for cell in cells if cell["k"] == 4]}))
    write_page(folder, tmp_path / "figures")
    svg = (tmp_path / "figures" / "sweep.svg").read_text()
    assert all(f">{name}<" in svg for name in ("rule distill base", "mine", "test id: exact match"))
    assert "k (training samples)" not in svg


def test_figures_are_files_of_their_own_where_wanted(tmp_path):
    write_page(write_sweep(tmp_path / "sweep"), tmp_path / "made" / "figures")
    made = {path.name: path.read_text() for path in (tmp_path / "made" / "figures").iterdir()}
    assert made.keys() == {"sweep.svg", "hidden.svg"}
    for svg in made.values():
        assert xml.etree.ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_results_give_the_same_page(tmp_path):
    folder = write_run(tmp_path / "run")
    assert write_page(folder).read_text() == write_page(folder).read_text()


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_results_of_an_earlier_version_are_read(tmp_path, kind):
    """They name no metric: it is the first score of each system."""
    folder = {"run": write_run, "sweep": write_sweep}[kind](tmp_path / kind)
    page = write_page(folder).read_text()
    path = folder / {"run": "eval.json", "sweep": "sweep.json"}[kind]
    content = json.loads(path.read_text())
    for results in content.get("cells", [content]):
        del results["metric"]
        for systems in results["splits"].values():
            for name, scores in systems.items():
                systems[name] = {"exact_match": scores["exact_match"], **scores}
    path.write_text(json.dumps(content))
    assert write_page(folder).read_text() == page


def test_without_a_judge_nothing_is_called_a_failure():
    (part,) = side_by_side({"test": {"student": [prediction("a", None, "")]}}, 9)
    assert part["failures"] is None


def test_failures_come_first():
    predictions = {
        "test": {"student": [prediction("a", True, ""), prediction("b", False, ""), prediction("c", True, "")]}
    }
    (part,) = side_by_side(predictions, 9)
    assert [row["answers"][0]["text"] for row in part["rows"]] == ["b", "a", "c"]
    assert (part["failures"], part["total"], part["systems"]) == (1, 3, ["student"])


def ceiling_of(cells) -> str:
    return ceiling_figure(score_frame(cells), colours_of(cell["method"] for cell in cells))


@pytest.fixture
def cells(tmp_path):
    return json.loads((write_sweep(tmp_path / "sweep") / "sweep.json").read_text())["cells"]


def test_rows_of_a_sweep_are_means_over_seeds(cells):
    table = sweep_table(cells)
    assert table.head[:5] == ["k", "system", "seeds", "test id: exact match", "retain: exact match"]
    (row,) = [row for row in table.rows if row[:2] == ["8", "student, mine"]]
    assert row[2:5] == ["2", "0.81 (0.80-0.81)", "0.81 (0.80-0.81)"]
    assert all(len(row) == len(table.head) for row in table.rows)


def test_systems_on_which_methods_agree_have_one_row(cells):
    names = [row[1] for row in sweep_table(cells).rows if row[0] == "4"]
    students = ["student, rule distill base", "student, mine"]
    assert names == ["base", "base with rule", *students]
    for cell in cells:
        if cell["method"] == "mine":
            cell["splits"]["test_id"]["base_with_rule"]["exact_match"] = 0.9
    names = [row[1] for row in sweep_table(cells).rows if row[0] == "4"]
    assert names == ["base", "base with rule, rule distill base", "base with rule, mine", *students]


def test_a_failed_seed_changes_no_row_but_its_own(cells):
    kept = [cell for cell in cells if (cell["method"], cell["seed"]) != ("mine", 1)]
    whole, table = (sweep_table(some).rows for some in (cells, kept))
    assert [row for row in table if "mine" not in row[1]] == [row for row in whole if "mine" not in row[1]]
    assert {row[2] for row in table if "mine" in row[1]} == {"1"}
    assert ceiling_of(kept) == ""


def test_a_system_of_one_method_has_a_row(cells):
    for cell in cells:
        if cell["method"] == "mine":
            cell["splits"]["test_id"]["enhanced_with_rule"] = {"exact_match": 1.0, "mean_response_tokens": 3.0}
    row = next(row for row in sweep_table(cells).rows if row[1] == "enhanced with rule")
    assert row[2:5] == ["2", "1.00 (1.00-1.00)", "-"]
    assert "ceiling" in ceiling_of(cells), "its ceiling is its own"


def test_a_split_without_a_judge_has_its_gap_once(cells):
    for cell in cells:
        cell["splits"] = {"test": {system: {"gap_closed": 0.5} for system in ("base", "student")}}
        cell["metric"] = {"test": "gap_closed"}
    head = sweep_table(cells).head
    assert head.count("test: gap closed") == 1 and not any("retain" in name for name in head)


def test_students_stand_against_their_ceilings_where_these_differ(cells):
    assert ceiling_of(cells) == ""
    for cell in cells:
        if cell["method"] == "mine":
            cell["splits"]["test_id"]["base_with_rule"]["exact_match"] = 0.9
    assert "ceiling" in ceiling_of(cells)


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.5], "0.50"), ([0.25, 0.75], "0.50 (0.25-0.75)"), ([None], "-"), ([], "-"), ([None, 0.5], "0.50")],
)
def test_spread(values, text):
    assert spread(values) == text


def test_every_name_has_a_colour_of_its_own():
    colours = colours_of([*METHODS, *map(str, range(18)), "0"])
    assert len(set(colours.values())) == len(colours) == 22


def test_a_folder_of_neither_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"neither eval\.json"):
        write_page(tmp_path)
