"""pytest tests/test_train_eval.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rig.cli import main
from rig.errors import RigError, WrongUse
from rig.model.reply_format import TAUGHT
from rig.runs import Run
from rig.server.client import ModelClient, RequestRefused
from support.fakes_model import FakeModel
from support.one_thread import one_thread  # noqa: F401
from support.scripted_http import Say, ScriptedServer
from train.data import dataset
from train.eval import scoring
from train.eval.models import CompletionOutput, LocalModel, SamplingParams, ServedModel
from train.eval.scoring import ScoredCompletion

TAUGHT_FORM = "<reasoning>\nI add.\n</reasoning>\n<answer>\n{}\n</answer>"
SHORT = SamplingParams(max_tokens=24)


def problems(count: int) -> list[dict[str, Any]]:
    return dataset.load_splits("generated:arithmetic", held_out=count, limit=1).held_out


def judged(*marks: str) -> list[ScoredCompletion]:
    """One row per mark: s(trict), l(enient only), f(orm only), w(rong)."""
    said = {"s": TAUGHT_FORM.format(4), "l": "It is 4.", "f": TAUGHT_FORM.format(5), "w": "5"}
    rows = [CompletionOutput(said[mark], 9, True) for mark in marks]
    return [scoring.score_completion(f"{at}?", "4", one, TAUGHT) for at, one in enumerate(rows)]


# ----------------------------------------------------------------------------------------------------------
# Judging


@pytest.mark.parametrize(
    ("text", "strict", "lenient", "form"),
    [
        (TAUGHT_FORM.format("4"), True, True, True),
        (TAUGHT_FORM.format("$4.00"), True, True, True),
        (TAUGHT_FORM.format("5"), False, False, True),
        ("<answer>4</answer>", False, True, False),  # right, but without a thought
        (TAUGHT_FORM.format("4") + " Anything else?", False, True, False),
        (TAUGHT_FORM.format("4 or 5"), False, False, True),  # a hedge
        ("The answer is 4.", False, True, False),
        ("<reasoning>2+2 is 4", False, False, False),  # cut off in the thought
        ("", False, False, False),
    ],
)
def test_strict_wants_the_form_and_lenient_any_clear_answer(
    text: str, strict: bool, lenient: bool, form: bool
) -> None:
    one = scoring.score_completion("2+2?", "4", CompletionOutput(text, 9, True), TAUGHT)
    assert (one.strict, one.lenient, one.format) == (strict, lenient, form)


def test_figures_carry_n_and_an_interval() -> None:
    found = scoring.summarise_scores(judged(*"ssslffww"))
    assert found["n"] == 8
    assert found["strict"] == {"count": 3, "share": 0.375, "interval": [0.1368, 0.6943]}
    assert (found["lenient"]["count"], found["format"]["count"]) == (4, 5)
    assert found["mean_tokens"] == 9


def test_a_comparison_is_paired() -> None:
    found = scoring.compare_scores(judged(*"wwwwwwls"), judged(*"ssssssww"))
    assert (found["strict"]["gained"], found["strict"]["lost"]) == (6, 1)
    assert found["strict"]["p"] == 0.125  # 2 * (1 + 7) / 2**7
    assert found["lenient"]["lost"] == 2
    assert found["agreement"] == {"answers": 0.0, "texts": 0.0}


def test_agreement_is_of_final_answers_and_of_texts() -> None:
    found = scoring.compare_scores(judged(*"sslw"), judged(*"slsf"))["agreement"]
    assert found == {"answers": 1.0, "texts": 0.25}  # 4 and 4, 4 and 4, 4 and 4, 5 and 5


def test_labels_of_different_problems_are_not_compared() -> None:
    with pytest.raises(RigError, match="judged on different problems"):
        scoring.compare_scores(judged(*"ss"), judged(*"sss"))


def test_rows_on_disk_come_back_as_they_were(tmp_path: Path) -> None:
    rows = judged(*"slfw")
    scoring.write_rows(tmp_path / "eval" / "after.jsonl", rows)
    assert scoring.read_rows(tmp_path / "eval" / "after.jsonl") == rows
    (tmp_path / "bad.jsonl").write_text('{"question": 1}\n', encoding="utf-8")
    with pytest.raises(RigError, match=r"bad\.jsonl is damaged .* evaluate that label again"):
        scoring.read_rows(tmp_path / "bad.jsonl")


# ----------------------------------------------------------------------------------------------------------
# Asking a PyTorch model: the toy one


@pytest.fixture(scope="module")
def loaded() -> Any:
    pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
    from train.model import backends

    return backends.load_for_inference("toy")


def test_batches_say_what_each_prompt_alone_is_answered(loaded: Any) -> None:
    prompts = [row["prompt"] for row in problems(12)]
    prompts[3] = dataset.build_prompt(
        "A much longer question about nothing. " * 6 + "What is 2+2?", ""
    )
    together = LocalModel(loaded[0], loaded[1], 12).generate_completions(prompts, SHORT)
    in_batches = LocalModel(loaded[0], loaded[1], 5).generate_completions(prompts, SHORT)
    alone = [LocalModel(*loaded).generate_completions([prompt], SHORT)[0] for prompt in prompts]
    assert together == in_batches == alone


def test_it_says_what_transformers_own_generate_says(loaded: Any) -> None:
    model, tokenizer = loaded
    for row in problems(4):
        text = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=24, do_sample=False)
        said = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert (
            LocalModel(model, tokenizer).generate_completions([row["prompt"]], SHORT)[0].text
            == said
        )


def test_a_reply_that_hits_the_limit_is_known_as_cut_off(loaded: Any) -> None:
    prompts = [problems(1)[0]["prompt"]]
    whole = LocalModel(*loaded).generate_completions(prompts, SHORT)[0]
    cut = LocalModel(*loaded).generate_completions(prompts, SamplingParams(max_tokens=1))[0]
    assert whole.finished
    assert (cut.finished, cut.tokens) == (False, 1)


def test_sampling_follows_its_seed(loaded: Any) -> None:
    prompts = [problems(1)[0]["prompt"]] * 8
    drawn = [
        LocalModel(*loaded).generate_completions(
            prompts, SamplingParams(24, temperature=1.5, seed=seed)
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_a_base_model_without_a_chat_template_is_named(loaded: Any, tmp_path: Path) -> None:
    import shutil

    from train.model import backends

    shutil.copytree(backends.TOY, tmp_path / "bare")
    template = tmp_path / "bare" / "chat_template.jinja"
    mine = template.rename(tmp_path / "mine.jinja")
    with pytest.raises(WrongUse, match="has no chat template"):
        backends.load_for_inference(str(tmp_path / "bare"))
    dressed = backends.load_for_inference(str(tmp_path / "bare"), chat_template=mine)
    said = [LocalModel(*pair).generate_completions([problems(1)[0]["prompt"]], SHORT)
            for pair in (loaded, dressed)]  # fmt: skip
    assert said[0] == said[1]


def test_pass_at_k_draws_more_attempts_and_saves_how(loaded: Any) -> None:
    verdict = scoring.score_model(LocalModel(*loaded), problems(3), TAUGHT, SHORT, pass_at=4)
    found = verdict.figures["pass_at"]
    assert list(found["lenient"]) == ["1", "2", "4"]
    assert found["lenient"]["1"] <= found["lenient"]["4"]
    assert found["sampling"]["temperature"] == 0.8
    assert verdict.figures["sampling"]["greedy"]


# ----------------------------------------------------------------------------------------------------------
# Asking a server


def echo_gold(body: dict[str, Any]) -> str:
    """The right answer to a generated problem, in the taught form."""
    gold = {row["question"]: row["answer"] for row in problems(200)}
    return TAUGHT_FORM.format(gold.get(body["messages"][-1]["content"], "9.9"))


def test_a_server_is_asked_raw_and_greedily_in_the_order_of_the_prompts() -> None:
    rows = problems(9)
    with FakeModel(echo_gold) as server, ModelClient(server.url) as client:
        verdict = scoring.score_model(ServedModel(client), rows, TAUGHT, SHORT)
    assert verdict.figures["strict"]["count"] == 9
    assert all(body["temperature"] == 0 for body in server.history)
    assert all(body["reasoning_format"] == "none" for body in server.history)
    assert all(body["max_tokens"] == 24 for body in server.history)


def whole(text: str) -> Say:
    """A finished chat completion."""
    message = {"role": "assistant", "content": text}
    return Say({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def refusal(status: int, message: str) -> Say:
    """An error in OpenAI's form."""
    return Say({"error": {"message": message}}, status, {"retry-after": "0.01"})


def test_a_busy_server_is_asked_again_and_a_broken_one_is_not() -> None:
    with ScriptedServer() as server, ModelClient(server.url) as client:
        server.will_say("/v1/models", Say({"data": [{"id": "one"}]}))
        server.will_chat(refusal(503, "full"), refusal(429, "full"), whole("4"))
        assert [
            said.text for said in ServedModel(client, 1).generate_completions([[], []], SHORT)
        ] == ["4", "4"]
        assert len(server.asked) == 4
        server.will_chat(refusal(500, "broken"), whole("4"))
        with pytest.raises(RequestRefused, match="broken"):
            ServedModel(client, 1).generate_completions([[]], SHORT)


def test_a_server_that_takes_no_unknown_field_is_asked_without_it() -> None:
    with ScriptedServer() as server, ModelClient(server.url) as client:
        server.will_say("/v1/models", Say({"data": [{"id": "one"}, {"id": "two"}]}))
        refusal = Say(
            {"error": {"message": "Unrecognized request argument: reasoning_format"}}, 400
        )
        message = {"role": "assistant", "content": "4"}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        server.will_say("/v1/chat/completions", refusal, Say(whole))
        served = ServedModel(client, 1, name="two")
        assert [said.text for said in served.generate_completions([[], []], SHORT)] == ["4", "4"]
        assert ["reasoning_format" in body for body in server.asked] == [True, False, False]
        assert {body["model"] for body in server.asked} == {"two"}


# ----------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, loaded: Any) -> Path:
    """A run folder with a real adapter of random weights: enough to speak differently."""
    import torch
    from peft import LoraConfig, get_peft_model

    from train import recipe
    from train.model import backends

    path: Path = tmp_path_factory.mktemp("runs") / "one"
    chosen = recipe.load_recipe(
        "toy-arithmetic", ["data.held_out=20", "grpo.max_completion_length=24"]
    )
    run = Run.create(path, recipe=recipe.to_toml(chosen), base="toy")
    model, tokenizer = backends.load_for_inference("toy")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(run.adapter_folder))
    tokenizer.save_pretrained(str(run.adapter_folder))
    TAUGHT.save_to(run.adapter_folder)
    run.update_record("trained")
    return path


def rig(*arguments: str) -> dict[str, Any]:
    """Run a command in this process and return the object it printed."""
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_is_judged_before_and_after_and_the_file_by_the_same_rod(trained: Path) -> None:
    found = rig("eval", str(trained), "--n", "12")
    assert list(found["labels"]) == ["before", "after"]
    assert found["problems"]["n"] == 12
    assert found["labels"]["before"]["n"] == found["labels"]["after"]["n"] == 12
    assert found["comparisons"][0]["agreement"] == found["agreement"]
    assert [len(one["replies"]) for one in found["samples"]] == [2] * 6
    assert found["samples"][-1]["question"] == "Which is bigger, 9.11 or 9.9?"
    kept = json.loads((trained / "run.json").read_text("utf-8"))["eval"]
    assert kept["after"]["strict"] == found["labels"]["after"]["strict"]
    rows = [
        json.loads(line)
        for line in (trained / "eval" / "after.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(rows) == 12
    assert set(rows[0]) >= {"question", "gold", "text", "strict", "lenient", "format"}

    said = {row["question"]: row["text"] for row in rows}
    wrong = rows[4]["question"]

    def like_after(body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        return "It is 123456." if asked == wrong else str(said.get(asked, ""))

    with FakeModel(like_after) as server:
        served = rig("eval", str(trained), "--n", "12", "--url", server.url)
        other = rig("eval", str(trained), "--n", "5", "--url", server.url, "--label", "box")
    assert list(served["labels"]) == ["after", "served"]
    assert served["agreement"] == {"answers": round(11 / 12, 4), "texts": round(11 / 12, 4)}
    assert other["agreement"] is None  # five problems are not the twelve
    assert "nothing is compared" in other["notes"][0]
    assert set(Run.open(trained).record["eval"]) == {"before", "after", "served", "box"}


@pytest.fixture
def loud(trained: Path) -> Iterator[Path]:
    """The run with its adapter a hundred times as strong: two steps alone change no word."""
    from safetensors.torch import load_file, save_file

    file = trained / "adapter" / "adapter_model.safetensors"
    kept = file.read_bytes()
    weights = load_file(file)
    save_file({n: w * (100 if "lora_B" in n else 1) for n, w in weights.items()}, file)
    yield trained
    file.write_bytes(kept)


def test_the_base_with_the_adapter_switched_off_is_the_base(loud: Path) -> None:
    both = rig("eval", str(loud), "--n", "4")
    alone = rig("eval", str(loud), "--n", "4", "--only", "before")
    assert list(alone["labels"]) == ["before"]
    for measure in scoring.MEASURES:
        assert alone["labels"]["before"][measure] == both["labels"]["before"][measure]
    assert both["agreement"]["texts"] < 1  # and the adapter speaks differently


def test_data_that_changed_since_the_run_is_noticed(trained: Path) -> None:
    Run.open(trained).update_record(held_out_fingerprint="what it was then")
    found = rig("eval", str(trained), "--n", "2", "--only", "before")
    assert "not the problems that the run kept apart" in found["notes"][0]
    whole = dataset.load_splits("generated:arithmetic", held_out=20, limit=2000)
    Run.open(trained).update_record(held_out_fingerprint=whole.held_out_fingerprint)
    assert rig("eval", str(trained), "--n", "2", "--only", "before")["notes"] == []


def test_a_model_without_a_run_is_judged_on_a_recipes_problems(
    loaded: Any, elsewhere: Path
) -> None:
    found = rig("eval", "toy", "--n", "4", "--max-tokens", "8")
    assert (found["run"], list(found["labels"])) == (None, ["model"])
    assert found["labels"]["model"]["sampling"]["max_tokens"] == 8
    assert list(elsewhere.iterdir()) == []


def test_a_person_sees_figures_and_replies_side_by_side(trained: Path) -> None:
    done = CliRunner().invoke(main, ["eval", str(trained), "--n", "4", "--pass-at", "2"])
    assert done.exit_code == 0
    for words in (
        "before to after",
        "kept the form",
        "pass@2",
        "same final answer",
        "bigger, 9.11",
    ):
        assert words in " ".join(done.stdout.split())
    assert "after: 12 of 12 asked" in done.stderr  # progress stays off stdout


def test_a_run_without_an_adapter_says_what_can_be_done(trained: Path, tmp_path: Path) -> None:
    text = (trained / "recipe.toml").read_text("utf-8")
    Run.create(tmp_path / "half", recipe=text, base="toy")
    done = CliRunner().invoke(main, ["eval", str(tmp_path / "half")])
    assert done.exit_code == 2
    assert "has no finished adapter (state: planned)" in done.stderr
    assert "--only before" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval"], "Name a run folder or a model, or give --url."),
        (
            ["eval", "some/model"],
            "some/model is no run folder, so say whose held-out problems to put",
        ),
        (["eval", "toy", "--recipe", "no-such"], "There is no recipe called 'no-such'"),
        (
            ["eval", "--url", "http://127.0.0.1:9", "--recipe", "toy-arithmetic"],
            "Nothing answers at",
        ),
        (["eval", "toy", "--n", "0"], "0 is not in the range"),
    ],
)
def test_wrong_use_is_a_sentence(arguments: list[str], sentence: str, elsewhere: Path) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (1, 2)
    assert sentence in " ".join(done.stderr.split())
    assert not done.stdout


def test_unknown_generated_tasks_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    from train.eval import problems

    table = {"source": "generated:algebra", "seed": 1}
    with pytest.raises(WrongUse, match="no generated tasks 'algebra'"):
        problems.select_problems(table, 10, reply_format=TAUGHT, sampling=SHORT)
