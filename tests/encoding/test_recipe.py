"""What a checkpoint's sentence-transformers files say, old form and new, and what is wrong with them."""

import json

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
    assert (recipe.prompt(), recipe.prompt("query"), recipe.prompt("query", "other")) == ("", "q: ", "other")


def test_a_prompt_that_is_not_there():
    with pytest.raises(RecipeError, match=r"no prompts, and 'query' is asked for; use --prompt TEXT"):
        Recipe().prompt("query")
    with pytest.raises(RecipeError, match=r"no prompt 'query'; it has passage: choose one"):
        Recipe(prompts={"passage": "p: "}).prompt("query")


def test_a_prompt_of_no_text_is_empty(tmp_path):
    settings = {"prompts": {"q": None}, "default_prompt_name": "document"}
    recipe = Recipe.read(write(tmp_path, config_sentence_transformers=settings))
    assert (recipe.prompt(), recipe.prompt("q")) == ("", "")


def test_a_caller_may_ask_for_something_else():
    recipe = Recipe(normalize=True, max_length=9).changed("cls", normalize=False)
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == (("cls",), False, 9)
    with pytest.raises(RecipeError, match="truncate_dim must be at least 1, got 0"):
        Recipe().changed(truncate_dim=0)


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
        ({"config_sentence_transformers": {"truncate_dim": "4"}}, r"truncate_dim is '4'"),
        ({"sentence_bert_config": {"max_seq_length": "long"}}, r"max_seq_length is 'long'"),
        ({"config_sentence_transformers": {"prompts": [1]}}, r"its prompts are not texts by name|holds"),
        ({"config_sentence_transformers": {"default_prompt_name": "x"}}, r"default_prompt_name is 'x'"),
    ],
)
def test_damage_and_what_is_not_known_is_named(tmp_path, files, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.read(write(tmp_path, **files))
