import importlib
import json
import pathlib

import pytest
from ml_collections import config_dict

from configs import base
from rdjax.config import (
    AT_LEAST,
    CHOICES,
    DEFAULT_HIDDEN_WEIGHT,
    METHODS,
    check_config,
    differences,
    hidden_weight,
    plain_config,
)
from rdjax.errors import UserError

FOLDER = pathlib.Path(base.__file__).parent
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base", "rulebook"))

CONTRACT = {
    "": ("seed", "method"),
    "model": ("path", "adapter", "dtype"),
    "task": ("name", "root", "k", "template", "max_length", "demos", "responses"),
    "lora": ("rank", "alpha", "dropout", "targets"),
    "loss": ("logit", "temperature", "hidden_weight", "hidden_beta", "hidden_positions", "variant"),
    "optimizer": ("learning_rate", "warmup_steps", "schedule", "clip_norm"),
    "train": ("epochs", "batch_size", "accumulation", "valid_every"),
    "eval": ("systems", "max_new_tokens", "beams"),
    "mesh": ("data", "fsdp", "tensor"),
}


def set_field(config: config_dict.ConfigDict, path: str, value) -> None:
    *sections, name = path.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value


def fields(config: dict, prefix: str = "") -> set[str]:
    """The paths of all leaves of a plain configuration."""
    found = set()
    for name, value in config.items():
        found |= fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def test_the_base_config_passes():
    check_config(base.get_config())


@pytest.mark.parametrize("section", CONTRACT)
def test_the_fields_of_the_contract_are_there(section):
    config = base.get_config()
    assert set(CONTRACT[section]) <= set((config[section] if section else config).keys())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_passes_and_adds_no_field(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    check_config(config)
    own = {path for path in fields(plain_config(config)) if not path.startswith("model.architecture.")}
    assert own == fields(plain_config(base.get_config()))
    assert f"--config=configs/{name}.py" in module.__doc__


def test_experiments_are_found():
    assert {"quickstart", "arithmetic", "sentiment", "safety", "rule", "llama2_7b", "llama3_70b"} <= set(EXPERIMENTS)


def test_every_call_gives_a_fresh_config():
    base.get_config().train.epochs = 7
    assert base.get_config().train.epochs == 0


@pytest.mark.parametrize("path", CHOICES)
def test_an_unknown_choice_names_what_is_accepted(path):
    config = base.get_config()
    set_field(config, path, "nonsense")
    with pytest.raises(UserError, match=rf"config\.{path} = 'nonsense' is unknown; accepted: {CHOICES[path][0]}"):
        check_config(config)


@pytest.mark.parametrize("path", AT_LEAST)
def test_a_number_below_its_least_is_an_error(path):
    config = base.get_config()
    set_field(config, path, AT_LEAST[path] - 1)
    with pytest.raises(UserError, match=rf"config\.{path} = .*; accepted: a finite number, {AT_LEAST[path]} or more"):
        check_config(config)


@pytest.mark.parametrize("path", ["lora.dropout", "optimizer.weight_decay", "loss.retain_weight", "loss.temperature"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_an_error(path, value):
    config = base.get_config()
    set_field(config, path, value)
    with pytest.raises(UserError, match=rf"config\.{path} = {value}"):
        check_config(config)


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf"), "quick", None])
def test_a_learning_rate_is_auto_or_a_positive_number(rate):
    config = base.get_config()
    check_config(config)
    config.optimizer.learning_rate = 1e-3
    check_config(config)
    config.optimizer.learning_rate = rate
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate = .*; accepted: auto, or a number above 0"):
        check_config(config)


@pytest.mark.parametrize("path", ["loss.temperature", "lora.alpha", "task.written.temperature"])
def test_a_rate_must_be_positive(path):
    config = base.get_config()
    set_field(config, path, 0.0)
    with pytest.raises(UserError, match=rf"config\.{path} = 0\.0 must be positive"):
        check_config(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("lora.targets", ("q_proj", "w_proj"), r"config\.lora\.targets: 'w_proj' is unknown; accepted: q_proj"),
        ("lora.targets", (), r"config\.lora\.targets is empty; accepted: any of q_proj"),
        ("mesh.tensor", 0, r"config\.mesh\.tensor = 0; accepted: 1 or more, or -1"),
        ("lora.dropout", 1.0, r"config\.lora\.dropout = 1\.0"),
        ("eval.systems", ("base", "nobody"), r"config\.eval\.systems: 'nobody' is unknown; accepted: base, "),
        (
            "train.accumulation",
            3,
            r"batch_size = 4 is not a multiple of config\.train\.accumulation = 3",
        ),
    ],
)
def test_values_that_do_not_go(path, value, message):
    config = base.get_config()
    set_field(config, path, value)
    with pytest.raises(UserError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loss.hidden_weight", -1.0),
        ("loss.retain_hidden_weight", -1.0),
        ("loss.hidden_beta", -1.0),
        ("optimizer.weight_decay", -1.0),
        ("optimizer.learning_rate", float("nan")),
    ],
)
def test_numbers_without_meaning_are_errors(path, value):
    config = base.get_config()
    set_field(config, path, value)
    with pytest.raises(UserError, match=rf"config\.{path}"):
        check_config(config)


def test_distillation_of_nothing_is_an_error():
    config = base.get_config()
    config.loss.retain_hidden_weight, config.loss.hidden_weight = 1.0, 0.0
    with pytest.raises(
        UserError, match=r"config\.loss\.retain_hidden_weight = .* goes with config\.loss\.hidden_weight"
    ):
        check_config(config)
    config.loss.retain_hidden_weight = None
    config.loss.logit, config.loss.hidden_weight = "none", 0.0
    with pytest.raises(UserError, match=r"config\.loss\.logit .*config\.loss\.hidden_weight"):
        check_config(config)


def test_no_evaluation_and_baselines_are_accepted():
    for systems in ((), METHODS):
        config = base.get_config()
        config.eval.systems = systems
        check_config(config)


def test_weight_and_beta_are_alternatives():
    config = base.get_config()
    config.loss.hidden_weight, config.loss.hidden_beta = 2.44, 10000.0
    with pytest.raises(UserError, match=r"hidden_weight and config\.loss\.hidden_beta are both set; accepted: one"):
        check_config(config)


def test_the_default_weight_is_the_authors_beta_at_their_width():
    loss = base.get_config().loss
    assert hidden_weight(loss, 192) == hidden_weight(loss, 4096) == DEFAULT_HIDDEN_WEIGHT == 2.44
    loss.hidden_beta = 10000.0
    assert hidden_weight(loss, 4096) == pytest.approx(2.44, abs=0.002)
    assert hidden_weight(loss, 2048) == pytest.approx(2 * hidden_weight(loss, 4096))


def test_a_weight_is_free_of_the_width_and_may_be_zero():
    loss = base.get_config().loss
    for weight in (100.0, 0.0):
        loss.hidden_weight = weight
        assert hidden_weight(loss, 64) == hidden_weight(loss, 4096) == weight
    loss.hidden_weight = None
    loss.hidden_beta = 0.0
    assert hidden_weight(loss, 64) == 0


def test_the_plain_form_is_what_json_gives_back():
    config = plain_config(base.get_config())
    assert json.loads(json.dumps(config)) == config
    assert config["lora"]["targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert config["loss"]["hidden_weight"] is None


def test_differences_name_every_changed_field():
    ours, theirs = (plain_config(base.get_config()) for _ in range(2))
    assert differences(ours, theirs) == []
    theirs["train"]["epochs"], theirs["seed"] = 3, 1
    del theirs["mesh"]["fsdp"]
    assert differences(ours, theirs) == [
        "mesh.fsdp: None there, 1 here",
        "seed: 1 there, 0 here",
        "train.epochs: 3 there, 0 here",
    ]


def test_a_section_that_an_earlier_version_did_not_have_counts_as_the_default():
    ours = plain_config(base.get_config())
    theirs = {name: value for name, value in ours.items() if name != "practice"}
    assert differences(ours, theirs) == []
    assert differences({**ours, "practice": {**ours["practice"], "rounds": 2}}, theirs) == [
        "practice.rounds: 0 there, 2 here"
    ]


def test_a_field_that_an_earlier_version_did_not_have_counts_as_empty():
    ours = plain_config(base.get_config())
    theirs = {**ours, "task": {name: value for name, value in ours["task"].items() if name != "rule_place"}}
    assert differences(ours, theirs) == []
    assert differences({**ours, "task": {**ours["task"], "rule_place": "user"}}, theirs) == [
        "task.rule_place: None there, 'user' here"
    ]


def test_fields_that_the_method_does_not_read_are_refused():
    config = base.get_config()
    config.loss.top_k = 8
    with pytest.raises(UserError, match=r"loss\.top_k = 8 needs config\.loss\.logit"):
        check_config(config)
    config.loss.top_k, config.loss.terms, config.method = 0, ("hidden=1",), "inst_tune_without_rule"
    with pytest.raises(UserError, match=r"loss\.terms = \('hidden=1',\): config\.method = inst_tune_without_rule"):
        check_config(config)
