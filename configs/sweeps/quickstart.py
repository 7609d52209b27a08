"""The README's table: the quickstart over seeds, with more samples, with other rules, and against instruction tuning.

python -m rdjax.sweep --config=configs/sweeps/quickstart.py --workdir=runs/quickstart_table
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    config.sweep.methods = ("rule_distill_base", "inst_tune_without_rule", "plus3", "first7", "larger7")
    config.sweep.ks = (8, 32)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.settings.plus3 = {"task": {"generated": {"constant": 3, "symbol": "&&"}}}
    config.sweep.settings.first7 = {"task": {"generated": {"value": "first", "constant": 7, "symbol": "%%"}}}
    config.sweep.settings.larger7 = {"task": {"generated": {"value": "larger", "constant": 7, "symbol": "%%"}}}
    return config
