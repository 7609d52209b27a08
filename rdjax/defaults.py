"""Defines every field of a run and its default; a config file starts from here and overrides a few."""

from typing import Any

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the defaults."""
    config = config_dict.ConfigDict()
    config.seed = 0
    # rule_distill_base, rule_distill_enhanced, inst_tune_without_rule or inst_tune_with_rule
    config.method = "rule_distill_base"

    config.model = config_dict.ConfigDict()
    # A folder, a hub id, or an embedded model: "rulebook" follows arithmetic rules, "rulebook-language" also rules of
    # sentiment and refusal.
    config.model.path = "rulebook"
    # Fields of the model's config.json, so that rdjax.plan needs no file of the model. Empty: it reads config.json.
    config.model.architecture = config_dict.ConfigDict()
    config.model.adapter = ""  # a PEFT adapter (folder or hub id) that teacher and student start from
    # A PEFT adapter that the student alone starts from: of an earlier version of the rule, to move over to this one.
    config.model.student_adapter = ""
    config.model.dtype = "auto"  # float32, bfloat16, or auto: float32 on CPU, bfloat16 on accelerators
    config.model.int8 = False  # store the layers' kernels as int8 with a scale a column; adapters stay float32
    # What the backward pass recomputes instead of storing it: none; full: every layer (slower, far less memory);
    # dots: everything in a layer except the outputs of its projections.
    config.model.remat = "none"

    config.task = config_dict.ConfigDict()
    config.task.name = "arithmetic"  # arithmetic, sentiment, safety, or rule: your own folder
    config.task.root = ""  # folder of the task's files; empty: the three tasks of the paper generate their data
    config.task.rules = ()  # of a folder of several rules, the names of those to learn; empty: all
    # The student (model.student_adapter) is to unlearn the rule: its teacher reads none. The tests keep the rule.
    config.task.remove_rule = False
    config.task.k = 8  # number of training samples (your own folder: 0 takes all)
    # alpaca; chat: the tokenizer's chat template; auto: chat where the tokenizer has a template.
    config.task.template = "alpaca"
    # With template = chat. The rule stands in the system message, or in the user's where the template has no other
    # place; system or user asks for one.
    config.task.rule_place = ""
    config.task.template_args = ""  # arguments of the chat template as JSON: {"enable_thinking": true}
    config.task.chat_template = ""  # file of a chat template in place of the tokenizer's own
    config.task.max_length = 1024  # tokens of prompt and response; longer ones are an error and never cut
    config.task.demos = True  # keep the examples that the published rule prompts contain
    config.task.one_wording = False  # give every row the wording of the first training row's rule
    # gold: the rows' outputs; teacher: the teacher writes them with the rule; auto: gold where all rows have one.
    config.task.responses = "gold"
    # file: the rows of your own folder; written: the model writes inputs, from the rule and the rows of train.jsonl, if
    # there are any, as examples; auto: written where there is no train.jsonl.
    config.task.inputs = "file"
    config.task.written = config_dict.ConfigDict()
    config.task.written.on_rule = 96  # inputs written with the rule in context: for training, validation and test
    config.task.written.off_rule = 32  # inputs written without it; those that it hardly concerns are for retain
    config.task.written.temperature = 0.9
    config.task.written.max_tokens = 64  # of an input
    config.task.temperature = 0.0  # of the teacher's responses; 0: greedy, or beam search with eval.beams
    config.task.top_k = 0  # the teacher samples from this number of the most likely tokens; 0: from all
    config.task.top_p = 1.0  # and among these from the smallest set with this total probability
    # Responses that the teacher draws for a row; the first that the judge of "train" accepts is kept.
    config.task.draws = 1
    # Keep only those of the teacher's responses that the judge of "train" accepts, or that equal the row's output.
    config.task.only_confirmed = False
    # Share of the training rows that validate instead, at least two, if the task has no validation rows and at least 12
    # training rows.
    config.task.hold_out = 0.2
    config.task.valid_seed = 1234  # selects the published validation file
    # Used if task.root is empty: the rule and operands of arithmetic, and the number of test rows.
    config.task.generated = config_dict.ConfigDict()
    config.task.generated.value = "sum"  # sum, difference, larger, smaller, first, second
    config.task.generated.constant = 1
    config.task.generated.symbol = "@@@"
    config.task.generated.train_low = 1
    config.task.generated.train_high = 99
    config.task.generated.test_rows = 100  # of each test split and of retain

    config.lora = config_dict.ConfigDict()
    config.lora.rank = 16
    config.lora.alpha = 16.0
    config.lora.dropout = 0.05  # the prefix that all samples of an update share gets one mask
    # Also gate_proj, up_proj, down_proj; and of gated delta nets, which three of four layers of Qwen 3.5 have in place
    # of attention, in_proj_qkv, in_proj_z, in_proj_b, in_proj_a, out_proj.
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")

    config.loss = config_dict.ConfigDict()
    # kl: KL(teacher || student), exact over the whole vocabulary; entropy: cross-entropy with the teacher (same
    # gradient); reverse_kl: KL(student || teacher); jsd: the Jensen-Shannon divergence; none.
    config.loss.logit = "kl"
    config.loss.top_k = 0  # reverse_kl sums over this many of the student's most likely tokens; 0: over all
    config.loss.temperature = 1.0
    # The weight of mean_l ||u_t - u_s||^2, independent of the width; 2.44 if neither it nor hidden_beta is set.
    config.loss.hidden_weight = config_dict.placeholder(float)
    config.loss.hidden_beta = config_dict.placeholder(float)  # the authors' beta instead: hidden_weight = beta / D
    config.loss.hidden_layers = ()  # the layers whose inputs are compared, from 0; empty: all
    config.loss.hidden_positions = "response"  # response, or shared: everything after the rule
    config.loss.reduction = "token"  # token: mean over the batch's tokens; sample: mean of each sample's mean
    config.loss.terms = ()  # further terms, "<name>=<weight>", of those that rdjax/distillation/losses.py registers
    # The weight of inputs that the rule is not about: their teacher is the base without the rule. 0: not trained on.
    config.loss.retain_weight = 1.0
    config.loss.retain_hidden_weight = config_dict.placeholder(float)  # hidden_weight of these inputs, if another
    # The weight of the training inputs with the rule in the student's prompt too, a quarter of a batch at a time: there
    # it is to answer as its teacher does. 0: not trained on.
    config.loss.consistency_weight = 0.0
    config.loss.variant = "ours"  # published: unshifted positions, no end token, per-sample mean

    config.practice = config_dict.ConfigDict()
    # After training: rounds in which the student answers the training inputs without the rule, and learns what its
    # teacher, who reads the rule, makes of the same answers (on-policy distillation).
    config.practice.rounds = 0
    config.practice.updates = 25  # of a round, with a warm-up and a decay of their own
    config.practice.draws = 1  # answers to every input in a round
    config.practice.temperature = 1.0  # of the answers; 0: greedy
    config.practice.replay = False  # a round also has the training pairs themselves
    config.practice.logit = ""  # kl, reverse_kl, jsd, entropy or none; empty: that of loss
    config.practice.learning_rate = config_dict.placeholder(float)  # the peak of a round, if another than optimizer's

    config.optimizer = config_dict.ConfigDict()
    # The peak, or auto: 5e-4 * (2000 / D)^0.78 for a model of width D; where the validation loss does not fall at this
    # rate, short trials of three others choose one (docs/reference.md).
    config.optimizer.learning_rate = config_dict.FieldReference("auto", field_type=object)
    config.optimizer.warmup_steps = 5  # at most half of all updates
    config.optimizer.schedule = "cosine"  # cosine, linear, constant
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0: no clipping
    config.optimizer.weight_decay = 0.0

    config.train = config_dict.ConfigDict()
    # The most updates; the learning rate decays towards the last one. 0: the student learns by practice alone.
    config.train.updates = 200
    # A run ends before that when the validation loss has not fallen for `patience` validations (0: never), but not
    # before this number of updates. There are 20 validations; a fall is one of 2% of the loss before training or more.
    config.train.min_updates = 100
    config.train.patience = 4
    config.train.epochs = 0  # above 0: this many epochs instead of `updates`, all of them
    config.train.batch_size = 4  # samples an update; of each group
    config.train.accumulation = 1  # micro-batches an update
    # cached: the teacher runs once for all epochs, and its signals are stored in device memory, host memory or on disk,
    # the first of the three that is large enough; device, host, disk: store them there. online: it runs in every step.
    config.train.teacher_signals = "cached"
    # Validations and checkpoints: one in so many epochs, or in so many twentieths of `updates`. valid_every = 0: no
    # validation, and the last state is the result; else it is the one with the lowest validation loss.
    config.train.valid_every = 1
    config.train.checkpoint_every = 1
    # On validation rows. training: the loss that is minimised; gold: cross-entropy with the outputs, if all have one.
    config.train.valid_loss = "training"

    config.eval = config_dict.ConfigDict()
    # base, base_with_rule, student, student_with_rule, enhanced_with_rule, or the name of a method, which the run then
    # also trains as a baseline. Empty: no evaluation.
    config.eval.systems = ("base", "base_with_rule", "student", "student_with_rule")
    config.eval.max_new_tokens = 64
    config.eval.beams = 1  # 1: greedy; the paper decodes with 4 beams
    config.eval.batch_size = 32
    config.eval.limit = 0  # rows of each split; 0: all
    config.eval.gap_rows = 32  # prompts on which the gap to close is measured before training; 0: none
    # "<split>=<judge>", or a judge alone, which then judges the training rows and all tests: exact_match,
    # negative, positive, refusal, answer, json, regex:<pattern>, classifier:<label>, python:<file>.py:<function>,
    # ifeval:<instruction>, ifeval:<instruction>:{"<argument>": <value>}. Other splits have the judge of the published
    # task, or exact_match if every row has an output.
    config.eval.judges = ()
    config.eval.classifier = ""  # the sequence classifier (folder or hub id) of classifier:<label>

    # The rows of a batch are sharded over data and fsdp, the weights over fsdp and tensor, and tensor must divide the
    # number of key-value heads. One axis can be -1: all remaining devices. With several TPU slices, data spans them.
    config.mesh = config_dict.ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.log = config_dict.ConfigDict()
    # Where metrics go beside metrics.jsonl and TensorBoard: wandb, mlflow. Their packages must be installed; they read
    # their own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI).
    config.log.trackers = ()
    # Updates, from the tenth on, of which <workdir>/profile gets a trace for TensorBoard or Perfetto.
    config.log.profile = 0

    config.plan = config_dict.ConfigDict()
    config.plan.samples = 64  # that rdjax.plan assumes where task.k = 0
    config.plan.rule_tokens = 256  # tokens that it assumes of the rule
    config.plan.prompt_tokens = 128  # of a student's prompt; the teacher's prompt has the rule in front
    config.plan.response_tokens = 64
    return config.lock()  # a misspelt field is an error


def rule_config() -> config_dict.ConfigDict:
    """Returns the defaults for a rule of your own: what is `auto` follows from its folder and the model."""
    config = get_config()
    config.task.name = "rule"
    config.task.root = "my_rule"
    config.task.k = 0
    config.task.template = "auto"
    config.task.responses = "auto"
    config.task.inputs = "auto"
    # Of few inputs a small adapter learns more that holds for others, and so does a larger weight on hidden states than
    # the authors' (docs/study_defaults.md).
    config.lora.rank = 8
    config.lora.alpha = 8.0
    config.loss.hidden_weight = 30.0
    config.loss.hidden_positions = "shared"
    # A larger weight leaves the student less room to learn the rule (refusal), a smaller one lets it confuse inputs on
    # the rule with others (sentiment; docs/study_defaults.md).
    config.loss.retain_hidden_weight = 10.0
    # Without this the student is worse than the base where it reads the rule after all.
    config.loss.consistency_weight = 0.5
    return config


def large_rule_config(path: str, architecture: dict[str, Any]) -> config_dict.ConfigDict:
    """Returns the defaults for a rule of your own and a model for accelerators: its weights lie over all devices.

    Args:
      path: the model's hub id.
      architecture: fields of its config.json, which rdjax.plan reads; a run reads the file.
    """
    config = rule_config()
    config.model.path = path
    # The student would read the rule with gradients, which takes time and memory that `rdjax.plan` does not count.
    config.loss.consistency_weight = 0.0
    config.model.remat = "full"
    with config.unlocked():
        config.model.architecture = config_dict.ConfigDict(architecture)
    config.train.batch_size = 16
    config.mesh.fsdp = -1
    return config
