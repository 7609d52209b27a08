"""Defines every field of a run and its default; an experiment file starts from here and overrides a few."""

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
    # Fields of the model's config.json, so that rdjax.plan needs no file of the model. Empty: it reads config.json.
    config.model.architecture = config_dict.ConfigDict()
    config.model.adapter = ""  # a PEFT adapter (folder or hub id) that teacher and student start from
    config.model.dtype = "auto"  # float32, bfloat16, or auto: float32 on CPU, bfloat16 on accelerators
    config.model.int8 = False  # store the layers' kernels as int8 with a scale a column; adapters stay float32
    # What the backward pass recomputes instead of storing it: none; full: every layer (slower, far less memory);
    # dots: everything in a layer except the outputs of its projections.
    config.model.remat = "none"

    config.task = config_dict.ConfigDict()
    config.task.name = "arithmetic"  # arithmetic, sentiment, safety, or rule: your own folder
    config.task.root = ""  # folder of the task's files; empty: the three tasks of the paper generate their data
    config.task.k = 8  # number of training samples (your own folder: 0 takes all)
    config.task.template = "alpaca"  # alpaca, or chat: the tokenizer's chat template
    # With template = chat. The rule stands in the system message, or in the user's where the template has no other
    # place; system or user asks for one.
    config.task.rule_place = ""
    config.task.template_args = ""  # arguments of the chat template as JSON: {"enable_thinking": true}
    config.task.chat_template = ""  # file of a chat template in place of the tokenizer's own
    config.task.max_length = 1024  # tokens of prompt and response; longer ones are an error and never cut
    config.task.demos = True  # keep the examples that the published rule prompts contain
    config.task.one_wording = False  # give every row the wording of the first training row's rule
    config.task.responses = "gold"  # gold: the rows' outputs; teacher: the teacher writes them with the rule
    config.task.temperature = 0.0  # of the teacher's responses; 0: greedy, or beam search with eval.beams
    config.task.top_k = 0  # the teacher samples from this number of the most likely tokens; 0: from all
    config.task.top_p = 1.0  # and among these from the smallest set with this total probability
    config.task.only_confirmed = False  # keep only those of the teacher's responses that equal the row's output
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
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")  # also gate_proj, up_proj, down_proj

    config.loss = config_dict.ConfigDict()
    config.loss.logit = "kl"  # kl; entropy: cross-entropy with the teacher (same gradient); none
    config.loss.temperature = 1.0
    # The weight of mean_l ||u_t - u_s||^2, independent of the width; 2.44 if neither it nor hidden_beta is set.
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
    # cached: the teacher runs once for all epochs, and its signals are stored in device memory, host memory or on disk,
    # the first of the three that is large enough; device, host, disk: store them there. online: it runs in every step.
    config.train.teacher_signals = "cached"
    config.train.valid_every = 1  # epochs between validations; 0: never, and the last epoch is the result
    config.train.checkpoint_every = 1  # epochs between checkpoints

    config.eval = config_dict.ConfigDict()
    # base, base_with_rule, student, student_with_rule, enhanced_with_rule, or the name of a method, which the run then
    # also trains as a baseline. Empty: no evaluation.
    config.eval.systems = ("base", "base_with_rule", "student", "student_with_rule")
    config.eval.max_new_tokens = 64
    config.eval.beams = 1  # 1: greedy; the paper decodes with 4 beams
    config.eval.batch_size = 32
    config.eval.limit = 0  # rows of each split; 0: all
    config.eval.gap_rows = 32  # prompts on which the gap to close is measured before training; 0: none
    # "<split>=<judge>": exact_match, negative, positive, refusal, answer, regex:<pattern>, classifier:<label>. Other
    # splits have the judge of the published task, or exact_match if every row has an output.
    config.eval.judges = ()
    config.eval.classifier = ""  # the sequence classifier (folder or hub id) of classifier:<label>

    # The rows of a batch are sharded over data and fsdp, the weights over fsdp and tensor, and tensor must divide the
    # number of key-value heads. One axis can be -1: all remaining devices. With several TPU slices, data spans them.
    config.mesh = config_dict.ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    # The lengths that rdjax.plan assumes, in tokens.
    config.plan = config_dict.ConfigDict()
    config.plan.rule_tokens = 256
    config.plan.prompt_tokens = 128  # of a student's prompt; the teacher's prompt has the rule in front
    config.plan.response_tokens = 64
    return config.lock()  # a misspelt field is an error
