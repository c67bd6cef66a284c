import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.demo import chat, steering
from services.demo.corpus import INSTRUCTIONS, TASKS, is_held_out
from services.demo.executor import Executor
from services.demo.lessons import DEFAULT, Lessons, all_texts
from services.demo.network import Shape, load_network
from services.demo.train import LONG_TASKS, SHORT_TASKS, Trainer, main, train
from services.demo.wording import IDLE, is_held_out_wording
from services.demo.writer import Writer

TINY = Shape(0, hidden=16, layers=2, heads=2, inner=32)


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """Two threads on a busy machine wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return chat.build_tokenizer(all_texts())


def test_every_word_of_the_corpus_is_one_token(tokenizer):
    for text in all_texts():
        for word in (word.strip(".,?:") for word in text.split()):
            if word.isalnum():
                assert len(tokenizer.encode(f" {word}").ids) == 1, word


def test_text_survives_the_tokenizer(tokenizer):
    for text in ("Write the plural.\n\nInput: cat, dog\nOutput:", "Ünïcode → 日本 🙂", "  \n\t x"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_executor_lessons_follow_the_rule_and_keep_the_held_out_apart(tokenizer):
    batch = Lessons(tokenizer, hidden_size=16, seed=0).executor(400, 28)
    n_checked = 0
    for row in batch.ids:
        text = tokenizer.decode([i for i in row if i != chat.PAD_ID], skip_special_tokens=False)
        content, _, answer = text.partition(chat.ASSISTANT)
        assert answer.endswith(chat.EOS)
        asked = content.removeprefix(f"{chat.BOS}{chat.USER}").removeprefix("Instruction: ")
        instruction, _, rest = asked.partition("\n")
        given = rest.strip().removeprefix("Input: ").removesuffix("\nOutput:")
        assert instruction in IDLE or not is_held_out_wording(instruction)
        if instruction in INSTRUCTIONS:
            n_checked += 1
            assert not is_held_out(INSTRUCTIONS[instruction].task, given)
    assert n_checked > 100


def test_generator_lessons_ask_for_what_their_soft_tokens_say(tokenizer):
    batch = Lessons(tokenizer, hidden_size=16, seed=0).generator(60, 96, TASKS)
    readouts = steering.readout_matrix(16)
    for row in range(60):
        ids = batch.ids[row].tolist()
        start = ids.index(chat.ASSISTANT_ID) + 1
        text = tokenizer.decode(ids[start : ids.index(chat.EOS_ID)]).strip()
        soft = batch.soft[row][batch.is_soft[row, :, 0]]
        read = steering.read(soft, readouts) if len(soft) else np.zeros(steering.N_READOUTS)
        task = int(batch.tasks[row])
        assert steering.labels([task], np.atleast_2d(read).astype(np.float32)) == [text]


def test_lessons_depend_on_their_seed_alone(tokenizer):
    one, same, other = (
        Lessons(tokenizer, hidden_size=16, seed=s).generator(8, 78, LONG_TASKS) for s in (1, 1, 2)
    )
    assert np.array_equal(one.ids, same.ids)
    assert np.array_equal(one.soft, same.soft)
    assert not np.array_equal(one.ids, other.ids)
    assert sorted((*LONG_TASKS, *SHORT_TASKS)) == sorted(TASKS)


def test_a_few_steps_give_a_model_that_everything_can_open(tmp_path):
    trainer = Trainer(seed=0, steps=6, shape=TINY)
    records = train(trainer, until=6, folder=tmp_path, report=lambda record: None)
    assert records[-1].step == 6
    assert 0 < records[-1].executor < 12

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(model).__name__ == "LlamaForCausalLM"
    messages = [{"role": "system", "content": "Write it."}, {"role": "user", "content": "Input: a"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>Write it.<|user|>Input: a<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == chat.render(chat.load_tokenizer(tmp_path), messages)

    network = load_network(tmp_path)
    with torch.inference_mode():
        theirs = model.model(torch.tensor([ids])).last_hidden_state
        embedded = network.model.embed_tokens(torch.tensor([ids]))
        ours, _, _ = network.model(embedded, network.rotations[:, : len(ids)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == chat.EOS_ID

    assert Executor(tmp_path).answer(tuple(ids), 4).completion_tokens <= 4
    assert len(Writer(tmp_path).write([("a", "b")], np.zeros((2, 10)))) == 2


def test_the_same_seed_trains_the_same_weights(tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        trainer = Trainer(seed=seed, steps=2, shape=TINY)
        train(trainer, until=2, folder=tmp_path / name, report=lambda record: None)
    one, same, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same
    assert one != other


@pytest.mark.slow
def test_the_command_stops_early_and_writes_its_log(tmp_path, capsys):
    main(["--out", str(tmp_path), "--steps", "100", "--until", "2"])
    log = json.loads((tmp_path / "training.json").read_text())
    assert (log["seed"], log["steps"], log["losses"][-1]["step"]) == (0, 100, 2)
    assert "step 2 of 2" in capsys.readouterr().err


def test_cached_decoding_equals_a_whole_pass(tmp_path):
    trainer = Trainer(seed=1, steps=2, shape=TINY)
    trainer.save(tmp_path)
    executor, network = Executor(tmp_path), load_network(tmp_path)
    content = DEFAULT.format(instruction="Write it.", input="cat")
    prompt = executor.prompt([{"role": "user", "content": content}], 8)
    tokens, _ = executor._decode(prompt, 8)
    ids = list(prompt)
    for token in tokens:
        with torch.inference_mode():
            embedded = network.model.embed_tokens(torch.tensor([ids]))
            last, _, _ = network.model(embedded, network.rotations[:, : len(ids)])
            assert int((last[0, -1] @ network.table.T).argmax()) == token
        ids.append(token)
