"""Supervised fine-tuning with TRL's trainer and PEFT's adapters: from examples to an adapter or a model folder.

The loss is on the answers alone, in the tokens that the harness would score. The same config gives the same bytes on
the same machine, also where a training was killed and went on from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant import loading, record
from xtransplant.config import Method, Schedule, SftConfig, TooLong
from xtransplant.embedded import progress_bar, read_json
from xtransplant.lm import TransplantLM, tokenizing
from xtransplant.training_data import Chat, Example, TrainingData
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
    from trl.trainer.sft_trainer import SFTTrainer

log = logging.getLogger(__name__)

HISTORY = "training.jsonl"
# Below the run's folder while it trains.
CHECKPOINTS = "checkpoints"
# In there: what they are of.
_OF = "of.json"
_STATE = "trainer_state.json"
_IGNORED = -100  # as a label: not part of the loss


@dataclass
class Encoded:
    """Examples as the trainer takes them, and what did not fit.

    Attributes:
        rows: `input_ids`, and `labels` with `_IGNORED` in place of the prompt.
        cut, dropped: examples that were longer than `max_length`.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


@dataclass
class Trained:
    """What a training was: its history, its end, and what it cost.

    Attributes:
        history: a line a step with `loss` and `learning_rate`, or with `eval_loss`; `step` and `seconds` in all.
        steps: updates that were made.
        best_step: whose weights were kept; the last one's without `patience`.
        provenance: of the model that was trained.
        parameters, trainable: of the model without the adapter, and of what was trained.
        tokens: trained on, padding left out.
        flops: see `training_flops`, and the evaluations' forward passes.
    """

    history: list[dict[str, float]]
    steps: int
    best_step: int
    provenance: dict[str, Any]
    parameters: int
    trainable: int
    tokens: int
    seconds: float
    flops: float
    cut: int
    dropped: int

    def last(self, name: str) -> float | None:
        """The last value of the history; None where it has none."""
        return next((row[name] for row in reversed(self.history) if name in row), None)

    @property
    def eval_loss(self) -> float | None:
        """Of the weights that were kept."""
        found = [row["eval_loss"] for row in self.history if "eval_loss" in row and row["step"] == self.best_step]
        return found[-1] if found else self.last("eval_loss")


def chat_of(config: SftConfig) -> Chat | None:
    """What makes prompts of messages, where the config asks for chats.

    Raises:
        XTransplantError: the model's tokenizer has no template.
    """
    if not (config.task.apply_chat_template if config.trains_on_task else config.data.apply_chat_template):
        return None
    tokenizer = loading.load_tokenizer(config.model)
    loading.check_chat_template(tokenizer)
    harness: Chat = tokenizing(tokenizer).apply_chat_template

    def chat(messages: list[dict[str, str]], add_generation_prompt: bool = True, closed: bool = False) -> str:
        if closed:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return harness(messages, add_generation_prompt)

    return chat


def encode(examples: Sequence[Example], lm: TransplantLM, max_length: int, too_long: TooLong) -> Encoded:
    """Examples in the tokens in which the harness asks for them, at most `max_length` of them."""
    found = Encoded()
    for example in examples:
        prompt, answer = lm.encode(example.prompt, example.answer)
        if example.ends:
            answer = [*answer, lm.eot_token_id]
        if len(prompt) + len(answer) > max_length:
            if too_long is TooLong.drop:
                found.dropped += 1
                continue
            found.cut += 1
            answer = answer[: max_length - 1]
            prompt = prompt[-(max_length - len(answer)) :]
        found.rows.append({"input_ids": prompt + answer, "labels": [_IGNORED] * len(prompt) + answer})
    return found


def training_flops(multiplied: int, adapter: int, tokens: int) -> float:
    """Floating-point operations of training on so many tokens, a multiplication and an addition being two.

    Kaplan et al. (arXiv 2001.08361, section 2.1) count 2 N a token for the forward pass and twice that backwards, 4 N:
    one half for the gradients of the activations, the other for those of the weights. Weights that stay as they are
    have none of the latter: 2 N + 2 N, and 6 for each of the adapter's. Attention's own products, which grow with the
    square of the length, are left out, as there.

    Args:
        multiplied: parameters that a token is multiplied with (`multiplied_parameters`) and that stay as they are.
        adapter: parameters that are trained; with `method=full` all of them.
    """
    return (4.0 * multiplied + 6.0 * adapter) * tokens


def multiplied_parameters(model: PreTrainedModel) -> int:
    """All but the input embedding, which is looked up; it counts where it is the output head too."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    looked_up = 0 if head is not None and head.weight is embedding.weight else embedding.weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - looked_up


def train(config: SftConfig, data: TrainingData, folder: Path) -> Trained:
    """Train, and save the adapter or the model in a folder; goes on from the last checkpoint that is in it.

    Raises:
        XTransplantError: `max_length` is more than the model reads, it has no such modules, or no example fits, or with
            `patience` none that is held out; the loss diverges; as `loading.load`.
    """
    loaded = loading.load_anew(config.model)
    model, lm = loaded.model, tokenizing(loaded.tokenizer)
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and config.max_length > room:
        raise XTransplantError(f"max_length={config.max_length}: {config.model.path} reads at most {room} tokens.")
    unknown = [] if isinstance(config.lora.targets, str) else sorted({*config.lora.targets} - {*linear_modules(model)})
    if config.method is Method.lora and unknown:
        raise XTransplantError(
            f"lora.targets: {config.model.path} has no linear module {', '.join(unknown)}. It has: "
            f"{', '.join(linear_modules(model))}; or all-linear."
        )
    training = encode(data.training, lm, config.max_length, config.too_long)
    held_out = encode(data.held_out, lm, config.max_length, config.too_long)
    if not training.rows:
        raise XTransplantError(
            f"max_length={config.max_length}: all {training.dropped} examples are longer, and too_long=drop. Raise it, "
            "or cut them with too_long=cut."
        )
    if config.patience is not None and not held_out.rows:
        raise XTransplantError(
            f"max_length={config.max_length}: all {held_out.dropped} examples held out are longer, and too_long=drop; "
            f"so patience={config.patience} has nothing to look at. Raise it, cut them with too_long=cut, or give "
            "patience=null."
        )
    for what, count in (("cut", training.cut + held_out.cut), ("dropped", training.dropped + held_out.dropped)):
        if count:
            log.warning("%d examples were longer than max_length=%d, and %s.", count, config.max_length, what)
    checkpoints = folder / CHECKPOINTS
    start = _checkpoint(checkpoints, {"examples": data.sha256, "weights": loaded.provenance["files"]})
    parameters, multiplied = sum(each.numel() for each in model.parameters()), multiplied_parameters(model)
    with _quiet_libraries():
        trainer = _trainer(config, model, loaded.tokenizer, training, held_out, checkpoints)
        progress = _progress(config, folder / HISTORY)
        trainer.add_callback(progress)
        if start is not None:
            log.info("Going on from step %s.", start.name.rpartition("-")[2])
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trained: Any = trainer.model
        trainable = sum(int(each.numel()) for each in trained.parameters() if each.requires_grad)
        _save(config, trainer, folder)
    state = trainer.state
    history = lines(state.log_history)
    _write_history(folder / HISTORY, history)
    evaluations = sum("eval_loss" in row for row in history)
    tokens = int(state.num_input_tokens_seen)
    lora = config.method is Method.lora
    flops = training_flops(multiplied, trainable, tokens) if lora else training_flops(0, multiplied, tokens)
    forward = 2.0 * (multiplied + (trainable if lora else 0))
    return Trained(
        history,
        steps=state.global_step,
        best_step=int(state.best_global_step or state.global_step) if config.patience else state.global_step,
        provenance=loaded.provenance,
        parameters=parameters,
        trainable=trainable,
        tokens=tokens,
        seconds=history[-1]["seconds"],
        flops=flops + forward * held_out.tokens * evaluations,
        cut=training.cut + held_out.cut,
        dropped=training.dropped + held_out.dropped,
    )


def lines(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The trainer's own history, of which the steps and evaluations are kept."""
    kept = ("step", "loss", "eval_loss", "learning_rate", "seconds")
    return [
        {name: row[name] for name in kept if name in row} for row in log_history if "loss" in row or "eval_loss" in row
    ]


# --- The trainer -----------------------------------------------------------------------------------------------------


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """TRL tells its makers of each trainer, over the network, unless told not to; it and PEFT use older names."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        yield


def _trainer(
    config: SftConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    training: Encoded,
    held_out: Encoded,
    checkpoints: Path,
) -> SFTTrainer:
    import datasets
    import peft
    import transformers
    from transformers import EarlyStoppingCallback, PrinterCallback
    from trl.trainer.sft_config import SFTConfig as Arguments
    from trl.trainer.sft_trainer import SFTTrainer

    adapter = None
    if config.method is Method.lora:
        adapter = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # PEFT divides it
            lora_dropout=config.lora.dropout,
            target_modules=config.lora.targets,
        )
    else:
        model.requires_grad_(True)
    schedules = {Schedule.constant: "constant_with_warmup", Schedule.linear: "linear", Schedule.cosine: "cosine"}
    stops_early = config.patience is not None
    arguments = Arguments(
        output_dir=str(checkpoints),
        max_steps=config.steps if config.steps is not None else -1,
        num_train_epochs=config.epochs if config.epochs is not None else 1.0,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules[config.schedule],
        # A share of few steps is none: the library would round up to one, whose rate is 0.
        warmup_steps=config.warmup if config.steps is None else int(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if held_out.rows else "no",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        # The weights of an evaluation are to be had again, if it proves the best.
        save_steps=config.eval_steps if stops_early else config.checkpoint_steps,
        save_total_limit=1,
        load_best_model_at_end=stops_early,
        metric_for_best_model="eval_loss" if stops_early else None,
        greater_is_better=False if stops_early else None,
        restore_callback_states_from_checkpoint=stops_early,
        include_num_input_tokens_seen="non_padding",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # else the batch is spread over all that there are
    transformers.set_seed(config.seed)  # an adapter's first weights are drawn before the trainer says so
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(training.rows),
        eval_dataset=datasets.Dataset.from_list(held_out.rows) if held_out.rows else None,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[EarlyStoppingCallback(config.patience)] if config.patience is not None else None,
    )
    trainer.remove_callback(PrinterCallback)  # prints to the standard output
    return trainer


def _progress(config: SftConfig, path: Path) -> Any:
    """A callback: a bar for who watches, a line of log at each evaluation, and the history on the disk."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            # Of steps that were given, `checks` says so.
            if config.patience is not None and config.patience >= math.ceil(state.max_steps / config.eval_steps):
                raise XTransplantError(
                    f"patience={config.patience}: it would never end the training. epochs={config.epochs:g} are "
                    f"{state.max_steps} steps here, evaluated every eval_steps={config.eval_steps}: give smaller ones."
                )
            # Of what was done before a kill, the time counts too.
            before = lines(state.log_history)
            self.started = time.perf_counter() - (before[-1]["seconds"] if before else 0.0)
            self.bar = progress_bar(desc="training", total=state.max_steps, initial=state.global_step, unit="step")
            self.loss = float("nan")

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            row = state.log_history[-1]
            row["seconds"] = round(time.perf_counter() - self.started, 3)
            # Where the best weights are kept, there may be some from before.
            kept = config.patience is not None and state.best_metric is not None
            for name in ("loss", "eval_loss"):
                if not kept and not math.isfinite(row.get(name, 0.0)):
                    raise XTransplantError(
                        f"learning_rate={config.learning_rate:g}: at step {state.global_step} the loss is {row[name]}, "
                        "no number to go on from. Give a smaller one, or a longer warmup."
                    )
            if "loss" in row:
                self.loss = row["loss"]
                self.bar.set_postfix_str(f"loss {self.loss:.3f}", refresh=False)
                self.bar.update(state.global_step - self.bar.n)
            if "eval_loss" in row:
                facts = {"event": "held_out", **{name: row[name] for name in ("step", "eval_loss", "seconds")}}
                said = "step %d of %d: loss %.4f, held out %.4f, %.1f s"
                numbers = (state.global_step, state.max_steps, self.loss, row["eval_loss"], row["seconds"])
                log.info(said, *numbers, extra={"event": facts})
            if "loss" in row or "eval_loss" in row:
                _write_history(path, lines(state.log_history))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.bar.close()
            if state.global_step < state.max_steps:
                log.info(
                    "Ended at step %d: %d evaluations without a better loss than that of step %s.",
                    *(state.global_step, config.patience, state.best_global_step),
                )

    return Progress()


def _write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    record.write(path, "".join(record.as_json(row, indent=None) for row in history))


def _checkpoint(folder: Path, of: dict[str, Any]) -> Path | None:
    """The last whole checkpoint of the same examples and weights; all others are removed."""
    if folder.is_dir() and read_json(folder / _OF) != json.loads(json.dumps(of)):
        log.warning("The checkpoints are of other data or weights: beginning anew.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write(folder / _OF, record.as_json(of))
    found = sorted(folder.glob("checkpoint-*"), key=lambda each: int(each.name.rpartition("-")[2]))
    whole = [each for each in found if read_json(each / _STATE) is not None]  # it is written last
    for each in found:
        if each not in whole:
            shutil.rmtree(each)
    return whole[-1] if whole else None


def _save(config: SftConfig, trainer: SFTTrainer, folder: Path) -> None:
    """The adapter, or the model with its tokenizer, at the top of a folder."""
    model: Any = trainer.model
    before = set(folder.iterdir())
    if config.method is Method.full:
        model.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
    else:
        _save_adapter(config, model, folder)
    for path in {*folder.iterdir()} - before:
        path.chmod((folder / record.CONFIG).stat().st_mode)  # weights are written for the owner alone


def _save_adapter(config: SftConfig, model: Any, folder: Path) -> None:
    described = model.peft_config["default"]
    described.base_model_name_or_path = config.model.path
    described.inference_mode = True
    # The embedding is not trained; to find that out, PEFT would ask the hub for the base model.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form for the hub, not filled in
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["target_modules"] = sorted(content["target_modules"])  # a set, whose order differs between processes
    record.write(path, record.as_json(content))


def linear_modules(model: nn.Module) -> list[str]:
    """Last parts of the names of all linear modules, which lora.targets may name."""
    from torch.nn import Linear

    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)})
