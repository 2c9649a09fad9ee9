"""Our LM against the harness's own HFLM, and a transplant through the harness against plain hooked forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from tests.equivalence.test_architectures import reference
from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import documents, write_tasks
from xtransplant import pairing
from xtransplant.config import LanguagePairConfig, ModelConfig, Split, TaskConfig
from xtransplant.engine import Decoder
from xtransplant.lm import Transplant, TransplantLM, load_decoder
from xtransplant.types import Component, Site, XTransplantError

PAIR = LanguagePairConfig("en", "sw")
KINDS = ["choice", "generate", "word", "contexts"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Decoder:
    return load_decoder(ModelConfig(name="tiny", path=str(checkpoint)))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def task_config(tasks: Path, kind: str, **values: Any) -> TaskConfig:
    return TaskConfig(
        name="colour", tasks=[f"colour_{kind}_{{lang}}"], include_path=[str(tasks)], key="id", gold="label", **values
    )


def answers(lm: Any, found: pairing.Pairing, **settings: Any) -> list[Any]:
    results = evaluator.evaluate(
        lm, {"tasks": {found.name: found.target}}, samples={found.name: found.rows}, bootstrap_iters=0, **settings
    )
    assert results is not None
    return [row["resps"] for row in results["samples"][found.name]]


def assert_alike(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        for [one], [two] in zip(mine, other, strict=True):
            if isinstance(one, str):
                assert one == two
            else:
                assert one[0] == pytest.approx(two[0], abs=1e-4) and one[1] == two[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("chat", [False, True])
def test_vanilla_equals_hflm(
    checkpoint: Path, decoder: Decoder, tasks: Path, kind: str, shots: int, chat: bool
) -> None:
    settings: dict[str, Any] = {}
    if chat:
        settings = {"apply_chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": True}
    config = task_config(tasks, kind, num_fewshot=shots)
    hflm = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=3)
    theirs = answers(hflm, pairing.load(config, PAIR, Split.all, None)[0], **settings)
    ours = answers(TransplantLM(decoder, batch_size=3), pairing.load(config, PAIR, Split.all, None)[0], **settings)
    assert_alike(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("component", Component)
def test_transplant_through_the_harness_equals_hooked_forwards(
    decoder: Decoder, tasks: Path, kind: str, component: Component
) -> None:
    lm = TransplantLM(decoder, Transplant(component, ["last", 1]), batch_size=4)
    found = pairing.load(task_config(tasks, kind, num_fewshot=1), PAIR, Split.all, 6)[0]
    answered = answers(lm, found)
    encode = decoder.tokenizer.encode
    checked = 0
    for doc_id, resps in enumerate(answered):
        requests = [request for request in found.target.instances if request.doc_id == doc_id]
        for request, [answer] in zip(requests, resps, strict=True):
            target = encode(request.args[0])
            source = encode(request.source_prompts[0])
            if isinstance(answer, str):
                tokens: list[int] = []
                for _ in range(9):
                    logprobs = reference(decoder, source, target, tokens, component, Site.module, (3, 1))
                    tokens.append(int(logprobs[-1].argmax()))
                text = decoder.tokenizer.decode(tokens, skip_special_tokens=True)
                assert answer == str(text).split("e")[0].split("\n")[0]
            else:
                choice = encode(request.args[0] + request.args[1])[len(target) :]
                logprobs = reference(decoder, source, target, choice, component, Site.module, (3, 1))
                expected = sum(float(logprobs[n, token]) for n, token in enumerate(choice))
                assert answer[0] == pytest.approx(expected, abs=5e-4)
            checked += 1
    assert checked == len(found.target.instances)
    assert lm.counts.transplants == lm.counts.prompts == (12 if kind == "contexts" else 6)
    assert lm.counts.checks["self_transplant"] == 0.0 and lm.counts.checks["padding_invariance"] < 1e-4


@pytest.mark.parametrize("kind", [*KINDS, "sampled"])
def test_batch_size_does_not_matter(decoder: Decoder, tasks: Path, kind: str) -> None:
    found = []
    for size in (1, 3, 16):
        lm = TransplantLM(decoder, Transplant(Component.ffn, [2, 0]), batch_size=size)
        found.append(answers(lm, pairing.load(task_config(tasks, kind), PAIR, Split.all, None)[0]))
    assert_alike(found[1], found[0])
    assert_alike(found[2], found[0])


def test_each_repeat_of_a_sampled_answer_is_drawn_anew(decoder: Decoder, tasks: Path) -> None:
    def drawn(seed: int) -> list[Any]:
        found = pairing.load(task_config(tasks, "sampled"), PAIR, Split.all, 3)[0]
        found.target.config.repeats = 3
        return answers(TransplantLM(decoder, seed=seed), found)

    first = drawn(1)
    assert all(len(set(resps)) > 1 for [resps] in first)
    assert drawn(1) == first and drawn(2) != first


def test_generation_ends_with_the_stop_sequence(decoder: Decoder, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only is the text cut there: no further token is computed."""
    found = pairing.load(task_config(tasks, "generate"), PAIR, Split.all, 1)[0]
    found.target.config.generation_kwargs = {"until": ["\x00"], "max_gen_toks": 9, "do_sample": False}
    [[[full]]] = answers(TransplantLM(decoder), found)
    steps = []
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs))  # type: ignore[func-returns-value]

    def count(until: list[str]) -> int:
        found.target.config.generation_kwargs = {"until": until, "max_gen_toks": 9, "do_sample": False}
        lm = TransplantLM(decoder)
        lm.counts.checks = {"made": 0.0}
        steps.clear()
        answers(lm, found)
        return len(steps)

    assert count(["\x00"]) == 9
    assert count([full[4]]) < 9
    assert count([full[4:7]]) < 9  # of several tokens


def test_few_shot_examples_are_the_same_on_both_sides(tasks: Path) -> None:
    found = pairing.load(task_config(tasks, "choice", num_fewshot=3), PAIR, Split.all, None)[0]
    found.target.build_all_requests(samples=found.rows)
    english = {row["id"]: row["question"] for row in documents("en")}
    swahili = {row["id"]: row["question"] for row in documents("sw")}
    drawn = set()
    for request in found.target.instances:
        target_shots = str(request.args[0]).split("\n\n")
        source_shots = str(request.source_prompts[0]).split("\n\n")
        assert len(target_shots) == len(source_shots) == 4
        for ours, theirs in zip(target_shots, source_shots, strict=True):
            # Longest first: a question may begin another one.
            key = max((k for k, text in swahili.items() if ours.startswith(text)), key=lambda k: len(swahili[k]))
            assert theirs.startswith(english[key])
        drawn.add(tuple(target_shots[:3]))
    assert len(drawn) > 1, "every document has the same examples: nothing was compared"


def test_both_sides_have_the_chat_template_and_system_instruction(decoder: Decoder, tasks: Path) -> None:
    found = pairing.load(task_config(tasks, "choice", num_fewshot=1), PAIR, Split.all, 2)[0]
    lm = TransplantLM(decoder, Transplant(Component.ffn, [1, 1]))
    answers(lm, found, apply_chat_template=True, system_instruction="Be brief.", fewshot_as_multiturn=True)
    for request in found.target.instances:
        for prompt in (str(request.args[0]), str(request.source_prompts[0])):
            assert prompt.startswith("<s>system: Be brief.</s><s>user: ")
            assert prompt.endswith("</s><s>assistant: ") and prompt.count("<s>user: ") == 2
        assert "The colour" in request.source_prompts[0] and "Rangi" in request.args[0]


def test_documents_are_found_by_content_not_by_number(decoder: Decoder, tasks: Path) -> None:
    found = pairing.load(task_config(tasks, "choice"), PAIR, Split.all, None)[0]
    found.rows = [3, 7]  # the harness numbers these 0 and 1
    answers(TransplantLM(decoder, Transplant(Component.ffn, [1, 1])), found)
    assert {request.source_key for request in found.target.instances} == {"doc-3", "doc-7"}
    assert {request.source_prompts[0] for request in found.target.instances} == {
        documents("en")[3]["question"],
        documents("en")[7]["question"],
    }


def test_empty_prompts_are_an_error_or_counted(decoder: Decoder, tasks: Path) -> None:
    transplant = Transplant(Component.ffn, [1, 1])

    def loaded(lm: TransplantLM) -> list[Any]:
        return answers(lm, pairing.load(task_config(tasks, "empty"), PAIR, Split.all, None)[0])

    def never() -> Decoder:
        raise AssertionError("the model was loaded before the prompts were checked")

    with pytest.raises(XTransplantError, match=r"30 of 30 requests have an empty prompt, e\.g\. document doc-0"):
        loaded(TransplantLM(never, transplant))
    lm = TransplantLM(decoder, transplant, promptless="vanilla")
    assert_alike(loaded(lm), loaded(TransplantLM(decoder)))
    assert (lm.counts.promptless, lm.counts.transplants) == (30, 0)


def test_a_response_cache_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    with pytest.raises(XTransplantError, match="no layer pair"):
        CachingLM(TransplantLM(decoder), str(tmp_path / "cache.db"))


def test_long_prompts_are_cut_as_hflm_cuts_them(checkpoint: Path, decoder: Decoder, tmp_path: Path) -> None:
    rows = {language: documents(language)[:3] for language in ("en", "sw")}
    for language, docs in rows.items():
        for doc in docs:
            doc["question"] = " ".join([doc["question"]] * 60)
        assert len(decoder.tokenizer.encode(docs[0]["question"])) > 512, language
    tasks = write_tasks(tmp_path / "long", **rows)
    for kind in ("choice", "generate"):
        config = task_config(tasks, kind)
        hflm = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=2)
        theirs = answers(hflm, pairing.load(config, PAIR, Split.all, None)[0])
        assert_alike(answers(TransplantLM(decoder), pairing.load(config, PAIR, Split.all, None)[0]), theirs)


def test_a_broken_model_is_not_evaluated(decoder: Decoder, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtransplant import engine

    monkeypatch.setattr(engine, "self_transplant_error", lambda *_: 0.02)
    lm = TransplantLM(decoder, Transplant(Component.ffn, [1, 1]))
    with pytest.raises(XTransplantError, match="self_transplant check failed"):
        answers(lm, pairing.load(task_config(tasks, "choice"), PAIR, Split.all, None)[0])


def test_generation_arguments_that_are_not_supported_are_named(decoder: Decoder, tasks: Path) -> None:
    found = pairing.load(task_config(tasks, "generate"), PAIR, Split.all, 2)[0]
    found.target.config.generation_kwargs = {"until": ["\n"], "num_beams": 4}
    with pytest.raises(XTransplantError, match="num_beams=4"):
        answers(TransplantLM(decoder), found)


def test_rolling_requests_are_scored_vanilla_only(checkpoint: Path, decoder: Decoder) -> None:
    from lm_eval.api.instance import Instance

    text = "the answer is one of the choices: " * 40
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    [ours] = TransplantLM(decoder).loglikelihood_rolling([request])
    [theirs] = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32").loglikelihood_rolling([request])
    assert ours == pytest.approx(theirs, rel=1e-4)
    with pytest.raises(XTransplantError, match="no prompt"):
        TransplantLM(decoder, Transplant(Component.ffn, [1, 1])).loglikelihood_rolling([request])


def test_half_precision_keeps_its_answers(decoder: Decoder, tasks: Path) -> None:
    """Coarse, but the same code path: log-probabilities within bfloat16's resolution."""
    config = task_config(tasks, "choice")
    exact = answers(TransplantLM(decoder), pairing.load(config, PAIR, Split.all, None)[0])
    half = Decoder(decoder.model.to(torch.bfloat16), decoder.tokenizer)
    try:
        coarse = answers(TransplantLM(half), pairing.load(config, PAIR, Split.all, None)[0])
    finally:
        decoder.model.to(torch.float32)
    for mine, other in zip(coarse, exact, strict=True):
        for [one], [two] in zip(mine, other, strict=True):
            assert one[0] == pytest.approx(two[0], abs=0.5)


@pytest.mark.parametrize("layers", [None, [1, 0]])
def test_a_language_pair_that_does_not_fit_the_harness_task(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused when the tasks are loaded, before the model is, with a transplant and without."""
    from importlib.resources import files

    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(TaskManager, "load", TaskManager.load)  # put back afterwards

    def load(name: str, **given: Any) -> None:
        lm = TransplantLM.create_from_arg_obj({"model": "gemma3_270m", **given, "transplant.layers": layers})
        folder = str(files("xtransplant.tasks") / "cldr")
        TaskManager(include_path=folder, include_defaults=False).load([name])
        assert callable(lm._decoder)

    family = {"task": "cldr_language", "language_pair": "en-de"}
    load("cldr_language_de", **family)
    with pytest.raises(XTransplantError, match=r"No source prompts for cldr_language_sw: .* language_pair= that name"):
        load("cldr_language_sw", **family)
    if layers is None:
        load("cldr_language_sw")  # any task, where no family is named
    else:
        with pytest.raises(XTransplantError, match="No source prompts for cldr_language_sw"):
            load("cldr_language_sw")


def test_a_harness_task_whose_data_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    def load(*_: object) -> None:
        raise ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(TaskManager, "load", load)
    TransplantLM.create_from_arg_obj({})
    with pytest.raises(XTransplantError, match=r"data could not be loaded: ConnectionError: .*hellaswag.*network"):
        TaskManager(include_defaults=False).load(["hellaswag"])
