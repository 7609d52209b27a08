"""Every field of a run, with its default. An experiment file starts from here and overrides a few."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.seed = 0
    # rule_distill_base, rule_distill_enhanced, inst_tune_without_rule or inst_tune_with_rule
    config.method = "rule_distill_base"

    config.model = config_dict.ConfigDict()
    # A folder, a hub id, or an embedded model: "rulebook" follows arithmetic rules, "rulebook-language" also rules of
    # sentiment and refusal.
    config.model.path = "rulebook"
    # The fields of config.json, for rdjax.plan where there is no folder of the model. Empty: it reads the folder's.
    config.model.architecture = config_dict.ConfigDict()
    config.model.adapter = ""  # a PEFT adapter (folder or hub id) that teacher and student start from
    config.model.dtype = "auto"  # float32, bfloat16, or auto: float32 on CPU, bfloat16 on accelerators
    config.model.int8 = False  # hold the blocks' kernels as int8, a scale for each column; adapters stay float32
    # What the backward pass computes anew instead of keeping it: none; full: every layer (slower, far less memory);
    # dots: all of a layer but the products of its projections.
    config.model.remat = "none"

    config.task = config_dict.ConfigDict()
    config.task.name = "arithmetic"  # arithmetic, sentiment, safety, or rule: a user's own folder
    config.task.root = ""  # that task's own folder; the three of the paper generate their data without one
    config.task.k = 8  # training samples (a user's own folder: 0 takes all)
    config.task.template = "alpaca"  # alpaca, or chat: the tokenizer's own
    config.task.max_length = 1024  # tokens of prompt and response; longer is an error, never a cut
    config.task.demos = True  # keep the demos that published rule prompts carry
    config.task.one_wording = False  # give every row the first training row's rule (no wording gives a class away)
    config.task.responses = "gold"  # gold: the rows' outputs; teacher: written by the rule-conditioned teacher
    config.task.temperature = 0.0  # of the teacher's responses; 0: greedy, or by eval.beams
    config.task.top_k = 0  # the teacher draws from so many of the most likely tokens; 0: from all
    config.task.top_p = 1.0  # and of these from the fewest that have this probability together
    config.task.only_confirmed = False  # of the teacher's responses keep those that are the row's output
    config.task.valid_seed = 1234  # which published validation file
    # A task without a root: its sizes, and the rule and operands of arithmetic.
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
    config.lora.dropout = 0.05  # tokens that all samples of an update begin with share one mask
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")  # also gate_proj, up_proj, down_proj

    config.loss = config_dict.ConfigDict()
    config.loss.logit = "kl"  # kl, entropy (same gradient), none
    config.loss.temperature = 1.0
    # The weight of mean_l ||u_t - u_s||^2, free of the width; 2.44 where neither it nor hidden_beta is given.
    config.loss.hidden_weight = config_dict.placeholder(float)
    config.loss.hidden_beta = config_dict.placeholder(float)  # the authors' beta instead: hidden_weight = beta / D
    config.loss.hidden_positions = "response"  # response, or shared: everything after the rule
    config.loss.reduction = "token"  # token: mean over the batch's tokens; sample: mean of each sample's mean
    config.loss.terms = ()  # further terms, "<name>=<weight>", of those that rdjax/distill/losses.py registers
    config.loss.variant = "ours"  # published: unshifted positions, no end token, per-sample mean

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5
    config.optimizer.schedule = "cosine"  # cosine, linear, constant
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0: no clipping
    config.optimizer.weight_decay = 0.0

    config.train = config_dict.ConfigDict()
    config.train.epochs = 20
    config.train.batch_size = 4  # samples an update
    config.train.accumulation = 1  # micro-batches an update
    # cached: the teacher runs once for all epochs, and what it shows is kept where there is room: in the memory of the
    # device or the host, or on disk (which "device", "host" and "disk" ask for by name). online: it runs in every step.
    config.train.teacher_signals = "cached"
    config.train.valid_every = 1  # epochs between validations; 0: never, and the last epoch is kept
    config.train.checkpoint_every = 1  # epochs between checkpoints

    config.eval = config_dict.ConfigDict()
    # base, base_with_rule, student, student_with_rule, enhanced_with_rule, or a method: a baseline that the run
    # then trains too. Empty: no evaluation.
    config.eval.systems = ("base", "base_with_rule", "student", "student_with_rule")
    config.eval.max_new_tokens = 64
    config.eval.beams = 1  # 1: greedy; the paper decodes with 4 beams
    config.eval.batch_size = 32
    config.eval.limit = 0  # rows of each split; 0: all
    config.eval.gap_rows = 32  # prompts on which the gap to close is measured before training; 0: it is not
    # "<split>=<judge>": exact_match, negative, positive, refusal, answer, regex:<pattern>, classifier:<label>. Splits
    # that are not named keep the published tasks' judges, or exact match where every row has an output.
    config.eval.judges = ()
    config.eval.classifier = ""  # the sequence classifier (folder or hub id) that classifier:<label> asks

    # Rows of a batch are shared out over data and fsdp, weights over fsdp and tensor; tensor has to divide the
    # key-value heads. One axis can be -1: it takes what the others leave. Where there are several slices, data goes
    # across them.
    config.mesh = config_dict.ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    # The lengths that rdjax.plan reckons with, in tokens.
    config.plan = config_dict.ConfigDict()
    config.plan.rule_tokens = 256
    config.plan.prompt_tokens = 128  # of a student's prompt; the teacher's has the rule before it
    config.plan.response_tokens = 64
    return config.lock()  # a misspelt field is an error
