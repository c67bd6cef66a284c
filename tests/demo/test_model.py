"""The bundled weights keep the quality that the quick start and other tests build on."""

import json
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import qmc
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.demo import MODEL_PATH, chat
from services.demo.corpus import (
    INPUTS,
    INSTRUCTIONS,
    PHRASES,
    TASKS,
    demo_task,
    expected,
    is_held_out,
)
from services.demo.evaluate import EVALUATION, Examiner
from services.demo.network import MAX_POSITIONS
from services.demo.tables import write_tables
from services.demo.wording import ASKED
from services.demo.writer import Writer

DOCUMENT = MODEL_PATH.parents[2] / "docs" / "demo-model.md"


@pytest.fixture(scope="module")
def examiner():
    return Examiner(MODEL_PATH)


def test_exact_instructions_are_followed(examiner):
    scores = [examiner.accuracy(f"Write {PHRASES[t][0][0]}.", demo_task(t)[1][:8]) for t in TASKS]
    assert fmean(scores) > 0.9
    assert min(scores) > 0.6


def test_no_instruction_scores_badly(examiner):
    scores = [examiner.accuracy("", demo_task(task)[1][:8]) for task in TASKS]
    assert fmean(scores) < 0.1
    assert max(scores) < 0.3


def test_instructions_written_by_hand_are_mostly_understood(examiner):
    assert fmean(examiner.accuracy(ASKED[t][0], demo_task(t)[1][:6]) for t in TASKS) > 0.7


def test_inputs_that_training_never_showed_are_answered(examiner):
    for task in ("first_word", "larger"):
        hidden = [given for given in INPUTS[task] if is_held_out(task, given)][:12]
        pairs = [(given, expected(task, given)) for given in hidden]
        assert examiner.accuracy(f"Write {PHRASES[task][0][0]}.", pairs) > 0.6


def test_soft_prompts_give_many_well_formed_instructions(examiner):
    writer = Writer(MODEL_PATH)
    exemplars, validation, _ = demo_task("antonym")
    points = qmc.Sobol(10, seed=3).random(64) * 2 - 1
    texts = writer.write(exemplars, points)
    assert len(set(texts)) > 15
    assert fmean(text in INSTRUCTIONS for text in texts) > 0.9
    best = max(examiner.accuracy(text, validation[:10]) for text in sorted(set(texts))[:30])
    assert best > 0.5
    assert writer.write(exemplars, np.zeros((1, 10)))[0] in INSTRUCTIONS
    assert (
        fmean(t in INSTRUCTIONS for t in writer.write(exemplars, points, position="suffix")) > 0.8
    )


def test_transformers_opens_it_and_answers_the_same():
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    assert model.config.max_position_embeddings == MAX_POSITIONS
    assert sum(p.numel() for p in model.parameters()) < 1.5e6
    content = "Instruction: Write the plural of the given word.\n\nInput: cat\nOutput:"
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    given = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    made = model.generate(**given)[0, given.input_ids.shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True).strip() == "cats"


def test_the_model_folder_says_nothing_of_the_machine_it_was_made_on():
    for path in MODEL_PATH.iterdir():
        if path.suffix in {".json", ".jinja"}:
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ("/home", "/root", "_name_or_path"))
    meta = json.loads((MODEL_PATH / "meta_prompt.json").read_text())
    assert meta == chat.META_PROMPT


def test_the_evaluation_and_its_document_belong_together(tmp_path):
    found = json.loads(EVALUATION.read_text(encoding="utf-8"))
    assert list(found["executor"]) == list(found["landscape"]) == TASKS
    assert found["model"]["bytes"] == (MODEL_PATH / "model.safetensors").stat().st_size
    training = json.loads((MODEL_PATH / "training.json").read_text(encoding="utf-8"))
    assert found["training"]["steps"] == training["steps"]
    copy = tmp_path / "demo-model.md"
    copy.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(found, copy)
    assert copy.read_text(encoding="utf-8") == DOCUMENT.read_text(encoding="utf-8")
