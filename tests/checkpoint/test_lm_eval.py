"""lm-evaluation-harness scores an exported V-scale model on a local task as our own model does."""

import json

import pytest
import sentencepiece
import torch

from megasink.checkpoint.convert import ConvertRequest, convert
from tests.checkpoint.test_hugging_face import make_run

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")

QUESTIONS = [
    {"text": f"the cat number {i} sat on", "right": i % 2, "choices": ["the mat", "the dogs"]} for i in range(12)
]
TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_scores_are_our_own(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"the cat number {i} sat on the mat and saw {i * i} dogs" for i in range(300)),
        model_prefix=str(tmp_path / "tok"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    _, ours = make_run(tmp_path / "run", v_scale="on", vocab_size=300)
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf"), tokenizer=str(tmp_path / "tok.model")))
    (tmp_path / "test.json").write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=tmp_path / "test.json"))
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'hf'},trust_remote_code=True,dtype=float32",
        tasks=["tiny_choices"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=4,
        log_samples=True,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tok.model"))
    right = 0
    for question, sample in zip(QUESTIONS, results["samples"]["tiny_choices"], strict=True):
        scores = [log_likelihood(ours, pieces, question["text"], choice) for choice in question["choices"]]
        theirs = [float(response[0][0]) for response in sample["resps"]]
        assert theirs == pytest.approx(scores, abs=1e-3)
        right += scores.index(max(scores)) == question["right"]
    assert results["results"]["tiny_choices"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


@torch.no_grad()
def log_likelihood(model, pieces, text: str, choice: str) -> float:
    """log P(choice | text), cut into tokens the way the harness does."""
    prompt = [pieces.bos_id(), *pieces.encode(text)]
    tokens = torch.tensor([[pieces.bos_id(), *pieces.encode(f"{text} {choice}")]])
    scores = model(tokens)[0, :-1, : pieces.vocab_size()].log_softmax(dim=-1)
    chosen = scores.gather(1, tokens[0, 1:, None]).squeeze(1)
    return float(chosen[len(prompt) - 1 :].sum())
