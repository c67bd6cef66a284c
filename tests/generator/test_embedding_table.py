from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from instructzero.errors import InvalidRequest
from services.generator.checkpoint import read_config
from services.generator.embedding_table import load_table
from services.generator.soft_prompt import table_spread
from tests.generator.conftest import found
from tests.generator.models import FAMILIES


@pytest.fixture
def folder(tmp_path, model_folder) -> Path:
    return Path(shutil.copytree(model_folder("gemma"), tmp_path / "model"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_table_alone_gives_the_rows_of_the_whole_model(family, model_folder, make_engine):
    engine = make_engine(family)
    rows = engine._model.get_input_embeddings().num_embeddings
    ids = list(range(min(rows, len(engine.tokenizer))))
    before = torch.random.get_rng_state()
    location = found(model_folder(family))
    table = load_table(location, read_config(location), torch.float32, len(engine.tokenizer))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(table.rows(ids), engine.embed(ids))
    assert table_spread(table.chunks()) == engine.facts.spread


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model."])
def test_a_table_is_found_under_the_names_that_checkpoints_give_it(folder, prefix):
    tensors = load_file(folder / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    table = load_table(found(folder), read_config(found(folder)), torch.float32, 10)
    expected = tensors["model.embed_tokens.weight"][:10] * 32**0.5
    torch.testing.assert_close(table.rows(range(10)), expected)


def refusal(folder: Path, config) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        load_table(found(folder), config, torch.float32, 10)
    return caught.value


def test_a_table_of_another_width_is_refused(folder):
    config = read_config(found(folder))
    config.hidden_size = 16
    assert "(16" not in refusal(folder, config).detail.split("config.json")[0]
    assert refusal(folder, config).reason == "no_embeddings"


def test_weights_without_a_table_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    problem = refusal(folder, read_config(found(folder)))
    assert "embed_tokens" in problem.detail
    assert "--engine transformers" in problem.detail


def test_damaged_weights_are_refused(folder):
    config = read_config(found(folder))
    (folder / "model.safetensors").write_bytes(b"nothing that can be read")
    assert refusal(folder, config).reason == "invalid_model"
