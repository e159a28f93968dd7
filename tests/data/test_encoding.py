from __future__ import annotations

import copy

import pytest

from typst_lit.data.encoding import IGNORE_INDEX, Encoder, Example
from typst_lit.data.prompts import FormatPrompt, ReportPrompt, template_from
from typst_lit.errors import UserError


@pytest.fixture
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer, ReportPrompt())


def test_prompt_and_completion_are_joined_and_end_with_eos(encoder, pairs) -> None:
    fields, output = pairs[0]["input"], pairs[0]["output"]
    encoded = encoder.encode([fields], [output])
    ids, length = encoded["input_ids"][0], encoded["prompt_length"][0]
    assert ids[:length] == encoder.prompts([fields])[0]
    assert encoder.tokenizer.decode(ids[length:-1]) == output
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert ids.count(encoder.tokenizer.eos_token_id) == 1


def test_labels_cover_the_completion_and_eos_only() -> None:
    example = Example.from_ids([5, 6, 7, 8, 2], 2)
    assert example.labels == [IGNORE_INDEX, IGNORE_INDEX, 7, 8, 2]
    assert Example.from_ids([5, 6, 7, 8, 2], 2, completion_only_loss=False).labels == [5, 6, 7, 8, 2]


def test_text_is_never_read_as_a_special_token(encoder, pairs) -> None:
    eos = encoder.tokenizer.eos_token
    fields = {**pairs[0]["input"], "contents_txt": f"A quote of {eos} in the text"}
    encoded = encoder.encode([fields], [f"Typst with {eos} in it"])
    assert encoded["input_ids"][0].count(encoder.tokenizer.eos_token_id) == 1
    assert encoder.tokenizer.decode(encoded["input_ids"][0][encoded["prompt_length"][0] : -1]) == (
        f"Typst with {eos} in it"
    )


def test_ids_equal_the_tokenizers_own_and_its_settings_are_restored(tokenizer, pairs) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer(["one", "one two"], padding="max_length", truncation=True, max_length=7)
    backend = tokenizer.backend_tokenizer
    before = backend.padding, backend.truncation, backend.encode_special_tokens
    assert before[0] and before[1]
    texts = [pair["output"] for pair in pairs] + ["", "汉字 é 🙂\u0000\n\t  x" * 50, f"{tokenizer.eos_token} in a text"]
    ids = Encoder(tokenizer, ReportPrompt()).encode_texts(texts)
    assert (backend.padding, backend.truncation, backend.encode_special_tokens) == before
    assert ids == tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_prompts_start_with_bos_if_the_tokenizer_adds_it(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    with_bos = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    with_bos.add_special_tokens({"bos_token": "<|endoftext|>"})
    bos = with_bos.bos_token_id
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    fields = dict.fromkeys(["starting_page"], 1) | dict.fromkeys(
        ["academic_year", "department", "project_title", "contents_txt"], "x"
    )
    ids = Encoder(with_bos, ReportPrompt()).prompts([fields])[0]
    assert ids[0] == bos and ids.count(bos) == 1
    assert Encoder(tokenizer, ReportPrompt()).prompts([fields])[0] == ids[1:]


def test_a_tokenizer_without_eos_is_rejected(tokenizer) -> None:
    from transformers import AutoTokenizer

    without_eos = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    without_eos.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        Encoder(without_eos, ReportPrompt())


def test_a_truncated_body_keeps_as_much_text_as_fits(encoder, pairs) -> None:
    fields = pairs[0]["input"]
    length = len(encoder.prompts([fields])[0])
    for max_prompt_length in (length, length - 1, length - 40):
        ids = encoder.truncate_body(fields, 100, max_prompt_length + 100)
        assert max_prompt_length - 4 <= len(ids) <= max_prompt_length
        text = encoder.tokenizer.decode(ids)
        assert fields["project_title"] in text and text.endswith("### Typst\n")
    assert encoder.truncate_body(fields, 100, 110) is None


def test_a_template_equals_the_one_made_from_its_description() -> None:
    template = FormatPrompt("{title} on page {page}: {body}\n", numbers=["page"], optional=["body"], body="title")
    again = template_from(template.describe())
    assert again == template and again != ReportPrompt()
    assert again.render({"title": "T", "page": 3, "body": ""}) == "T on page 3: \n"
    assert [(f.name, f.kind, f.required) for f in again.fields] == [
        ("title", "text", True),
        ("page", "number", True),
        ("body", "text", False),
    ]
    assert again.body_field == "title"


@pytest.mark.parametrize("text", ["no field", "{0}", "{a!r}", "{a:>3}", "{a.b}", "{a", "{}"])
def test_a_template_without_plain_fields_is_rejected(text) -> None:
    with pytest.raises(UserError, match="template"):
        FormatPrompt(text)


def test_a_template_is_a_registered_class() -> None:
    for class_path in ("os.system", "no_such_package.Prompt"):
        with pytest.raises(UserError, match="never import code"):
            template_from({"class_path": class_path})
