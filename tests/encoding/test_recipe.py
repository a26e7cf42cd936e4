"""What a checkpoint's sentence-transformers files say, old form and new, and what is wrong with them."""

import json

import numpy as np
import pytest

from bertfast.encoding.after_pooling import Normalize
from bertfast.encoding.recipe import Recipe, RecipeError

OLD = {
    "word_embedding_dimension": 4,
    "pooling_mode_cls_token": True,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": True,
}


def write(folder, kinds=("Transformer", "Pooling", "Normalize"), **files):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": paths.get(kind, kind),
            "type": kind if "." in kind else f"sentence_transformers.models.{kind}",
        }
        for kind in kinds
    ]
    (folder / "1_Pooling").mkdir()
    content = {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        **{name.replace("__", "/") + ".json": value for name, value in files.items()},
    }
    for name, value in content.items():
        if value is not None:
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_without_the_files_it_is_the_mean_and_not_stated(tmp_path):
    recipe = Recipe.read(tmp_path)
    assert (recipe.pooling, recipe.normalize, recipe.stated) == (("mean",), False, False)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (OLD, ("cls", "max")),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"word_embedding_dimension": 4}, ("mean",)),
    ],
)
def test_pooling_in_every_form(tmp_path, pooling, expected):
    recipe = Recipe.read(write(tmp_path, **{"1_Pooling__config": pooling}))
    assert (recipe.pooling, recipe.normalize, recipe.stated) == (expected, True, True)


def test_lengths_letters_and_prompts(tmp_path):
    recipe = Recipe.read(
        write(
            tmp_path,
            ("Transformer", "Pooling"),
            sentence_bert_config={"max_seq_length": 128, "do_lower_case": True},
            config_sentence_transformers={"prompts": {"query": "q: "}, "default_prompt_name": None},
        )
    )
    assert (recipe.normalize, recipe.max_length, recipe.lower_case) == (False, 128, True)
    assert (recipe.prompt(), recipe.prompt("query"), recipe.prompt(text="other")) == ("", "q: ", "other")


def test_a_prompt_that_is_not_there():
    for prompts, there in (({}, "query, document"), ({"passage": "p: "}, "query, document, passage")):
        with pytest.raises(RecipeError, match=rf"no prompt 'code'; there are {there}: .*\(prompt=, --prompt\)"):
            Recipe(prompts=prompts).prompt("code")


def test_query_and_document_are_always_there():
    assert (Recipe().prompt("query"), Recipe(prompts={"query": "q: "}).prompt("document")) == ("", "")


def test_a_prompt_and_the_name_of_another():
    recipe = Recipe(prompts={"query": "q: "}, prompt_name="query")
    with pytest.raises(RecipeError, match=r"prompt_name and prompt are both given, .*: leave one out"):
        recipe.prompt("query", "other")
    with pytest.raises(RecipeError, match="prompt must be text, got 3"):
        recipe.prompt(text=3)
    assert recipe.prompt(text="") == "", "it switches the default off"


def test_a_prompt_of_no_text_is_empty(tmp_path):
    settings = {"prompts": {"q": None}, "default_prompt_name": "document"}
    recipe = Recipe.read(write(tmp_path, config_sentence_transformers=settings))
    assert (recipe.prompt(), recipe.prompt("q")) == ("", "")


def test_a_caller_may_ask_for_something_else():
    recipe = Recipe(normalize=True, max_length=9).changed("cls", normalize=False)
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == (("cls",), False, 9)
    assert Recipe().changed("mean, max").pooling == Recipe().changed(["mean", "max"]).pooling == ("mean", "max")
    assert type(Recipe().changed(truncate_dim=np.int64(4)).truncate_dim) is int  # which JSON takes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"truncate_dim": 0}, "truncate_dim must be a positive integer, got 0"),
        ({"truncate_dim": "8"}, "truncate_dim must be a positive integer, got '8'"),
        ({"max_length": 9.5}, r"max_length must be a positive integer, got 9\.5"),
        ({"max_length": True}, "max_length must be a positive integer, got True"),
        ({"normalize": "no"}, "normalize must be True, False or None, got 'no'"),
        ({"pooling": 3}, "pooling must be text or a list, got 3"),
        ({"pooling": []}, "pooling names none; it is one or more of mean"),
        ({"pooling": "mean,median"}, "pooling 'median' is unknown"),
    ],
)
def test_what_a_caller_cannot_ask_for(asked, said):
    with pytest.raises(RecipeError, match=said):
        Recipe().changed(**asked)


def test_the_last_normalize_is_the_callers_to_change(tmp_path):
    """Behind it an embedding may be shortened; what is kept is then divided by its length only where that is asked for."""
    recipe = Recipe.read(write(tmp_path, ("Transformer", "Pooling", "Normalize", "Normalize")))
    assert (recipe.modules, recipe.normalize) == ((Normalize(),), True)
    short = recipe.changed(truncate_dim=4)
    assert (short.modules, short.truncate_dim, short.normalize) == ((Normalize(), Normalize()), 4, False)
    assert recipe.changed(truncate_dim=4, normalize=True).normalize
    assert Recipe(modules=(Normalize(),), truncate_dim=4).changed(normalize=False).modules == ()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules": "{"}, r"modules\.json cannot be read"),
        ({"modules": {}}, r"modules\.json holds dict instead of list"),
        ({"modules": [{"path": ""}]}, r"not every module has a type"),
        (
            {"kinds": ("Pooling", "Transformer")},
            r"a Transformer and then a Pooling are read: use sentence-transformers",
        ),
        ({"kinds": ("Transformer", "Pooling", "Dense")}, r"2_Dense/config\.json is missing"),
        (
            {"kinds": ("Transformer", "Pooling", "CNN", "Normalize")},
            r"only Dense, .* are computed here: use sentence-transformers",
        ),
        ({"kinds": ("Transformer", "Pooling", "Pooling")}, r"only Dense, LayerNorm, Dropout, Normalize are computed"),
        ({"kinds": ("Transformer", "Dense", "Pooling")}, r"a Transformer and then a Pooling are read"),
        (
            {"kinds": ("custom_st.Transformer", "Pooling")},
            r"custom_st\.Transformer is no module of sentence-transformers' own",
        ),
        (
            {"kinds": ("Transformer", "Pooling", "pylate.Dense")},
            r"pylate\.Dense is no module of sentence-transformers' own",
        ),
        (
            {
                "modules": [
                    {"path": "..", "type": "sentence_transformers.models.Transformer"},
                    {"path": "", "type": "sentence_transformers.models.Pooling"},
                ]
            },
            r"path '\.\.' is not inside the checkpoint",
        ),
        ({"1_Pooling__config": None}, r"1_Pooling/config\.json is missing"),
        ({"1_Pooling__config": {"pooling_mode": "median"}}, r"its pooling is 'median'"),
        (
            {"1_Pooling__config": {"pooling_mode_median_tokens": True}},
            r"pooling_mode_median_tokens is True, which is not computed",
        ),
        (
            {"sentence_bert_config": {"transformer_task": "fill-mask"}},
            r"transformer_task is 'fill-mask', which is not computed",
        ),
        (
            {"sentence_bert_config": {"processing_kwargs": {"text": {"max_length": 9}}}},
            r"processing_kwargs is .*use sentence-tr",
        ),
        (
            {"sentence_distilbert_config": {"tokenizer_args": {"padding_side": "left"}}},
            r"distilbert_config.json: tokenizer_args is",
        ),
        (
            {"config_sentence_transformers": {"model_type": "SparseEncoder"}},
            r"model_type is 'SparseEncoder', and one embedding",
        ),
        (
            {"config_sentence_transformers": {"truncate_dim": "4"}},
            r"truncate_dim is '4', and a positive integer is expected",
        ),
        ({"sentence_bert_config": {"max_seq_length": "long"}}, r"max_seq_length is 'long', and a positive integer is"),
        ({"config_sentence_transformers": {"prompts": [1]}}, r"its prompts are not texts by name|holds"),
        ({"config_sentence_transformers": {"default_prompt_name": "x"}}, r"default_prompt_name is 'x'"),
    ],
)
def test_damage_and_what_is_not_known_is_named(tmp_path, files, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.read(write(tmp_path, **files))
