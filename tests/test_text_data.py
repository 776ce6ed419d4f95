"""Texts: tokenizers, GLUE, SQuAD, corpora, and the files that they are made of."""

import importlib
import io
import json
import lzma
import sys
import tarfile
import types
import unicodedata
import zipfile

import numpy as np
import pytest

from lottery_jax import data
from lottery_jax.data import prepare, prepared, text
from lottery_jax.data.text import corpora, files, glue, published, splits
from lottery_jax.data.text.squad_scores import overlap, words

pytest.importorskip("tokenizers")

squads = importlib.import_module("lottery_jax.data.text.squad")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = (
    "the a quick brown fox jump ##s ##ed over un ##believ ##able dog , . ! ? ' - ( ) @ "
    '" [ ] mask = 0 1 2 3 4 9 ##9 who what is cafe il 中 b ##c c s it do does not of in'
)
WORDS = _WORDS.split()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def _own_sizes(request, monkeypatch):
    """Files of a few lines have not as many as the published ones."""
    if request.node.get_closest_marker("data") is None:
        monkeypatch.setattr(glue, "SIZES", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    return folder


@pytest.fixture(scope="module")
def small(model):
    return text.tokenizer(model)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- tokenizers -----------------------------------------------------------------------


def punctuation(char):
    return (
        33 <= ord(char) <= 47 or 58 <= ord(char) <= 64 or 91 <= ord(char) <= 96
    ) or (123 <= ord(char) <= 126 or unicodedata.category(char).startswith("P"))


def word_piece(line, known, lower=True):
    """WordPiece, written out: the longest piece that is known, from the left."""
    if lower:
        line = unicodedata.normalize("NFD", line.lower())
        line = "".join(c for c in line if unicodedata.category(c) != "Mn")
    line = "".join(
        f" {c} " if punctuation(c) or "\u4e00" <= c <= "\u9fff" else c for c in line
    )
    found = []
    for word in line.split():
        start, pieces = 0, []
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in known:
                    pieces.append(known[piece])
                    start = end
                    break
            else:
                pieces = [known["[UNK]"]]
                break
        found += pieces
    return found


LINES = [
    "The quick brown fox jumps over the dog.",
    "Unbelievable! 'It' jumped,  did\tit not?",
    "Café «il» 中中 naïve",
    "bcs bcc [MASK] 99 x",
    "",
    "   ",
    "the-dog(s)",
]


def test_word_piece_is_the_longest_known_piece_from_the_left(small):
    known = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    assert [ids.tolist() for ids in small.plain(LINES)] == [
        word_piece(line, known) for line in LINES
    ]
    assert all(ids.dtype == np.int32 for ids in small.plain(LINES))
    assert small.vocabulary == text.Vocabulary(len(known), 0, 1, 2, 3, 4)


def test_a_vocabulary_of_cased_words_keeps_case_and_accents(tmp_path):
    vocabulary = [*SPECIAL, "The", "the", "café", "cafe"]
    write(tmp_path / "vocab.txt", "\n".join(vocabulary))
    write(tmp_path / "tokenizer_config.json", '{"do_lower_case": false}')
    cased = text.tokenizer(tmp_path)
    known = {word: number for number, word in enumerate(vocabulary)}
    lines = ["The the THE café Cafe cafe"]
    assert cased.plain(lines)[0].tolist() == word_piece(lines[0], known, lower=False)
    (tmp_path / "tokenizer_config.json").unlink()
    lowered = text.tokenizer(tmp_path / "vocab.txt")
    assert lowered.plain(lines)[0].tolist() == word_piece(lines[0], known)
    assert cased.digest != lowered.digest and cased != lowered


def test_the_file_of_the_library_gives_the_same_ids(small, tmp_path):
    rules = small._rules
    rules.enable_truncation(3)
    rules.enable_padding(length=20)
    rules.save(str(tmp_path / "tokenizer.json"))
    rules.no_truncation()
    rules.no_padding()
    # In a folder with both it is this file; how it cuts and pads is left to `encode`.
    write(tmp_path / "vocab.txt", "[UNK]\n")
    other = text.tokenizer(tmp_path)
    assert other.path.endswith("tokenizer.json") and other.digest != small.digest
    assert other.vocabulary == small.vocabulary
    for mine, theirs in zip(small.plain(LINES), other.plain(LINES), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_looks_like_a_special_token_is_text(small, tmp_path):
    import tokenizers

    small._rules.save(str(tmp_path / "tokenizer.json"))
    rules = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rules.add_special_tokens(SPECIAL)
    rules.save(str(tmp_path / "tokenizer.json"))
    for one in (small, text.tokenizer(tmp_path)):
        (ids,) = one.plain(["[MASK]"])
        assert ids.tolist() == [5 + WORDS.index(w) for w in ("[", "mask", "]")]


def test_special_tokens_may_be_called_otherwise(tmp_path):
    write(tmp_path / "vocab.txt", "<s>\n<pad>\n</s>\n<unk>\n<mask>\nthe")
    names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
    config = {f"{role}_token": name for role, name in names.items()}
    config["mask_token"] = {"content": "<mask>"}
    write(tmp_path / "tokenizer_config.json", json.dumps(config))
    one = text.tokenizer(tmp_path)
    assert one.vocabulary == text.Vocabulary(6, 1, 3, 0, 2, 4)
    assert one.encode(["the"], length=4)[0].tolist() == [[0, 5, 2, 1]]


def test_pieces_are_the_characters_of_the_text(small):
    for line, (ids, offsets) in zip(LINES, small.pieces(LINES), strict=True):
        np.testing.assert_array_equal(ids, small.plain([line])[0])
        assert offsets.shape == (len(ids), 2) and offsets.dtype == np.int32
    ((_, offsets),) = small.pieces(["Café jumped, no"])
    line = "Café jumped, no"
    assert [line[a:b] for a, b in offsets] == ["Café", "jump", "ed", ",", "no"]


def test_sequences_have_their_special_tokens_types_and_padding(small):
    the, fox, dog = (5 + WORDS.index(w) for w in ("the", "fox", "dog"))
    ids, kinds, cut = small.encode(["the fox", ""], ["dog", "the"], length=8)
    assert ids.tolist() == [[2, the, fox, 3, dog, 3, 0, 0], [2, 3, the, 3, 0, 0, 0, 0]]
    assert kinds.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]
    assert ids.dtype == kinds.dtype == np.int32 and cut.tolist() == [False, False]
    ids, kinds, cut = small.encode(["the fox dog", "dog", "the fox"], length=4)
    assert ids.tolist() == [[2, the, fox, 3], [2, dog, 3, 0], [2, the, fox, 3]]
    assert not kinds.any() and cut.tolist() == [True, False, False]


def test_the_longer_sentence_is_cut_a_token_at_a_time(small):
    def by_hand(a, b, room):
        while a + b > room:
            if a > b:
                a -= 1
            else:
                b -= 1
        return a, b

    cases = [(a, b, n) for a in range(9) for b in range(9) for n in range(2, 14)]
    shares = importlib.import_module("lottery_jax.data.text.tokenizer").shares
    assert [shares(*c) for c in cases] == [by_hand(*c) for c in cases]
    ids, kinds, cut = small.encode(["the " * 9], ["dog " * 2], length=9)
    assert (kinds.sum(), cut.tolist()) == (3, [True])
    assert (ids == 5 + WORDS.index("the")).sum() == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(["a"], length=2), "length=2; it must be 3 or more"),
        (lambda t: t.encode(["a"], ["a"], length=4), "length=4; it must be 5 or more"),
        (lambda t: t.encode(["a"], ["a", "a"], length=9), r"len\(second\)=2; .* 1, as"),
        (
            lambda t: t.encode(["a"], length="9"),
            "length='9'; it must be a whole number",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused(small, call, message):
    with pytest.raises(ValueError, match=message):
        call(small)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "[UNK]\nthe\nthe\n", "vocab.txt, line 3 has 'the' a second time"),
        ("vocab.txt", "[UNK]\n\nthe\n", "vocab.txt, line 2 is empty"),
        ("vocab.txt", "[PAD]\nthe\n", r"vocab.txt has no '\[UNK\]'"),
        ("vocab.txt", b"[UNK]\n\xff\n", "vocab.txt is no text in UTF-8"),
        ("tokenizer.json", '{"model": ', "tokenizer.json cannot be read"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        text.tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_there_or_lacks_tokens_is_named(tmp_path, model):
    with pytest.raises(
        FileNotFoundError, match=r"must be a tokenizer.json or vocab.txt"
    ):
        text.tokenizer(tmp_path)
    write(tmp_path / "vocab.txt", "[UNK]\nthe\n[CLS]\n[SEP]")
    bare = text.tokenizer(tmp_path)
    assert bare.plain(["the"])[0].tolist() == [1]
    with pytest.raises(ValueError, match=r"vocabulary.pad=None; .*vocab.txt has none"):
        bare.encode(["the"], length=5)
    write(tmp_path / "tokenizer_config.json", '{"do_lower_case": "no"}')
    with pytest.raises(
        ValueError, match="do_lower_case='no'; it must be True or False"
    ):
        text.tokenizer(tmp_path)
    write(tmp_path / "tokenizer_config.json", "{")
    with pytest.raises(ValueError, match="tokenizer_config.json is damaged"):
        text.tokenizer(tmp_path)


def test_the_extra_is_named_where_it_is_missing(model, monkeypatch):
    module = importlib.import_module("lottery_jax.data.text.tokenizer")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    module._library.cache_clear()
    with pytest.raises(ImportError, match=r"lottery-jax\[text\]"):
        text.tokenizer(model)


# --- splits ---------------------------------------------------------------------------


def test_groups_are_held_out_whole_and_rows_as_images_are():
    rest, held = splits.held_out(np.arange(50), 7, 3)
    order = data._random.random_state(3, "split").permutation(50)
    # The place of a row is what the permutation says of it.
    ranks = np.argsort(order)
    assert set(held) == set(np.flatnonzero(ranks < 7)) and len(held) == 7
    np.testing.assert_array_equal(np.concatenate([held, rest]), order)
    groups = np.array([0, 1, 1, 2, 0, 3, 3, 3, 4, 5] * 3)
    for number in range(len(groups)):
        rest, held = splits.held_out(groups, number, 1)
        assert sorted([*rest, *held]) == list(range(len(groups)))
        assert not set(groups[rest]) & set(groups[held])
        assert len(held) >= number
        if number:  # the fewest: without its last group it would be too few
            assert (groups[held] != groups[held[-1]]).sum() < number


class Records(list):
    """Records as TFDS's reader gives them."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


# --- GLUE -----------------------------------------------------------------------------

PAIRS = [("The fox", "a dog"), ('"The" fox\'s', '" dog'), ("it is", "not it")]
HEADERS = {
    "cola": None,
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "stsb": "index\tgenre\tfilename\tyear\told\ts1\ts2\tsentence1\tsentence2\tscore",
    "wnli": "index\tsentence1\tsentence2\tlabel",
    "qnli": "index\tquestion\tsentence\tlabel",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
}


def row(name, pair, label):
    a, b = pair
    return {
        "cola": f"gj04\t{label}\t*\t{a}",
        "sst2": f"{a}\t{label}",
        "mrpc": f"{label}\t1\t2\t{a}\t{b}",
        "stsb": f"0\tg\tf\ty\t1\tn\tn\t{a}\t{b}\t{label}",
        "qqp": f"1\t2\t3\t{a}\t{b}\t{label}",
        "mnli": f"0\tp\t{a}\t{b}\tx\t{label}",
    }.get(name, f"0\t{a}\t{b}\t{label}")


LABELS = {
    "stsb": ["0.0", "4.75", "5.000"],
    "rte": ["not_entailment", "entailment", "entailment"],
    "qnli": ["not_entailment", "entailment", "entailment"],
    "mnli": ["neutral", "contradiction", "entailment"],
}
NUMBERS = {
    "stsb": [0.0, 4.75, 5.0],
    "rte": [1, 0, 0],
    "qnli": [1, 0, 0],
    "mnli": [1, 2, 0],
}


def write_task(folder, name, end="\n", repeat=(4, 1)):
    """Both files of a task; the rows of PAIRS, so many times."""
    form = glue.FORMATS[name]
    rows = [row(name, p, v) for p, v in zip(PAIRS, LABELS.get(name, ["1", "0", "1"]))]
    for file, times in zip((form.train, form.test), repeat):
        lines = ([HEADERS[name]] if HEADERS[name] else []) + rows * times
        bom = "\ufeff" if name == "mrpc" else ""
        content = bom + end.join(lines) + end
        write(folder / "text" / "glue" / form.folder / file, content)


@pytest.mark.parametrize("name", list(glue.FORMATS))
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_tasks_of_glue_are_read_as_published(tmp_path, small, name, end):
    write_task(tmp_path, name, end)
    found = text.sentences(name, small, length=16, validation=0, data_dir=tmp_path)
    assert text.check(found, small.vocabulary.size) is found
    assert found.name == name and set(found.arrays) == {"train", "test"}
    first, second = zip(*PAIRS, strict=True)
    pairs = None if name in ("cola", "sst2") else second
    ids, kinds, _ = small.encode(first, pairs, length=16)
    test = found.arrays["test"]
    np.testing.assert_array_equal(test["ids"], ids)
    np.testing.assert_array_equal(test["types"], kinds)
    expected = NUMBERS.get(name, [1, 0, 1])
    assert test["label"].tolist() == expected
    assert len(found.arrays["train"]["label"]) == 12
    assert sorted(found.arrays["train"]["label"].tolist()) == sorted(expected * 4)
    metric = {"cola": "matthews", "stsb": "pearson"}.get(name, "error")
    assert found.metric == metric and found.note is None
    assert found.num_classes == {"stsb": None, "mnli": 3}.get(name, 2)


def test_validation_is_carved_from_training_and_subsets_are_nested(tmp_path, small):
    write_task(tmp_path, "rte", repeat=(10, 1))

    def load(**options):
        return text.sentences("rte", small, length=16, data_dir=tmp_path, **options)

    plain = load().arrays
    assert [len(plain[s]["ids"]) for s in plain] == [27, 3, 3]
    whole = load(validation=0).arrays
    order = data._random.random_state(0, "split").permutation(30)
    held, rest = order[:3], order[3:]
    file_rows = np.empty_like(whole["train"]["ids"])
    file_rows[order] = whole["train"]["ids"]
    np.testing.assert_array_equal(plain["train"]["ids"], file_rows[rest])
    np.testing.assert_array_equal(plain["validation"]["ids"], file_rows[held])
    fewer = load(subset=5).arrays
    for field in ("ids", "types", "label"):
        np.testing.assert_array_equal(fewer["train"][field], plain["train"][field][:5])
    np.testing.assert_array_equal(fewer["test"]["ids"], plain["test"]["ids"])
    other = load(seed=1).arrays
    assert not np.array_equal(other["train"]["ids"], plain["train"]["ids"])
    for options, message in (
        ({"validation": 30}, "validation=30; it must be between 0 and 29"),
        ({"subset": 28}, "subset=28; it must be between 1 and 27"),
        ({"subset": 0}, "subset=0; it must be between 1 and 27"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**options)
    with pytest.raises(ValueError, match="name='imdb'; it must be one of cola"):
        text.sentences("imdb", small, length=16, data_dir=tmp_path)
    with pytest.raises(ValueError, match="tokenizer='bert'; it must be from"):
        text.sentences("rte", "bert", length=16, data_dir=tmp_path)


def test_what_is_cut_is_noted_per_split(tmp_path, small):
    form = glue.FORMATS["sst2"]
    folder = tmp_path / "text" / "glue" / form.folder
    long = "the " * 20
    write(folder / form.train, f"sentence\tlabel\n{long}\t1\nthe fox\t0\n{long}\t1\n")
    write(folder / form.test, f"sentence\tlabel\nthe fox\t1\n{long}\t0\n")
    found = text.sentences("sst2", small, length=9, validation=0, data_dir=tmp_path)
    assert found.note == "sequences cut at length=9: 2 of 3 of train, 1 of 2 of test"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("cola", "gj04\t2\t\tthe fox", r"train.tsv, line 13: label='2'; it .* of 0, 1"),
        (
            "cola",
            "gj04\t1\tthe fox",
            "train.tsv, line 13 has 3 columns; it must have 4",
        ),
        ("rte", "0\ta\tb\tneutral", r"line 14: label='neutral'; .* entailment, not_"),
        ("rte", "0\ta\tb\tc\tentailment", "line 14 has 5 columns; it must have 4"),
        ("stsb", row("stsb", ("a", "b"), "5.1"), r"14: label='5.1'; .* in \[0, 5\]"),
        (
            "stsb",
            row("stsb", ("a", "b"), "nan"),
            "14: label='nan'; it must be a number",
        ),
        ("sst2", "", "line 14 has 1 columns; it must have 2"),
        ("qqp", "1\t2\t3\ta\tb\t1\tc", "line 14 has 7 columns; it must have 6"),
    ],
)
def test_a_line_that_is_not_as_published_is_named(tmp_path, small, name, line, message):
    write_task(tmp_path, name)
    form = glue.FORMATS[name]
    path = tmp_path / "text" / "glue" / form.folder / form.train
    path.write_text(path.read_text() + line + "\n", newline="")
    with pytest.raises(ValueError, match=message):
        text.sentences(name, small, length=16, data_dir=tmp_path)


def test_other_columns_and_empty_files_are_named(tmp_path, small):
    write_task(tmp_path, "rte")
    path = tmp_path / "text" / "glue" / "RTE" / "train.tsv"
    write(path, "index\tpremise\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(ValueError, match=r"train.tsv, line 1: .* one called sentence1"):
        text.sentences("rte", small, length=16, data_dir=tmp_path)
    write(path, HEADERS["rte"] + "\n")
    with pytest.raises(ValueError, match="train.tsv has no example"):
        text.sentences("rte", small, length=16, data_dir=tmp_path)
    write(path, b"index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\tentailment\n")
    with pytest.raises(ValueError, match="train.tsv is no text in UTF-8"):
        text.sentences("rte", small, length=16, data_dir=tmp_path)


def test_rows_of_qqp_that_lack_columns_are_left_out_and_counted(tmp_path, small):
    write_task(tmp_path, "qqp")
    path = tmp_path / "text" / "glue" / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "1\t2\t3\tthe fox\n")
    found = text.sentences("qqp", small, length=16, validation=0, data_dir=tmp_path)
    assert len(found.arrays["train"]["ids"]) == 12
    assert found.note == "rows of the train file that lack columns left out: 1"


def test_another_number_of_examples_than_published_is_noted(
    tmp_path, small, monkeypatch
):
    write_task(tmp_path, "rte")
    monkeypatch.setattr(glue, "SIZES", {"rte": (12, 4)})
    found = text.sentences("rte", small, length=16, data_dir=tmp_path)
    assert found.note == "the test file has 3 examples, published 4"


def test_the_development_set_of_qnli_alone_shares_no_question(tmp_path, small):
    lines = [
        f"0\twho {a} {b}\tit is {c}\tentailment"
        for a in range(3)
        for b in "1234"
        for c in range(1 + (a == 1))
    ]
    content = "\n".join([HEADERS["qnli"], *lines]) + "\n"
    write(tmp_path / "text" / "glue" / "QNLI" / "dev.tsv", content)
    found = text.sentences("qnli-dev", small, length=16, data_dir=tmp_path)
    text.check(found)
    assert "not comparable" in found.note and found.name == "qnli-dev"
    sizes = {split: len(part["ids"]) for split, part in found.arrays.items()}
    assert sum(sizes.values()) == 16 and sizes["test"] >= 3 and sizes["validation"] >= 1
    asked = {
        split: {tuple(r[: list(r).index(3)]) for r in part["ids"].tolist()}
        for split, part in found.arrays.items()
    }
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["test"]
    other = text.sentences("qnli-dev", small, length=16, data_dir=tmp_path, seed=1)
    assert not np.array_equal(other.arrays["test"]["ids"], found.arrays["test"]["ids"])
    with pytest.raises(
        FileNotFoundError, match=r"QNLI/train.tsv is not in(.|\n)*qnli-dev"
    ):
        text.sentences("qnli", small, length=16, data_dir=tmp_path)


def test_what_is_not_there_names_the_folder_and_the_command(tmp_path, small):
    command = (
        f"python -m lottery_jax.data.prepare {{}} --from FOLDER --data-dir {tmp_path}\n"
    )
    calls = {
        "glue": lambda: text.sentences("cola", small, length=8, data_dir=tmp_path),
        "squad": lambda: text.squad(small, length=8, data_dir=tmp_path),
        "wikitext2": lambda: text.windows(
            "wikitext2", small, length=8, data_dir=tmp_path
        ),
        "tiny_shakespeare": lambda: text.stream("tiny_shakespeare", data_dir=tmp_path),
    }
    for name, call in calls.items():
        with pytest.raises(FileNotFoundError) as error:
            call()
        assert str(files.folder(name, tmp_path)) in str(error.value)
        assert command.format(name) in str(error.value)


def test_a_set_is_tokenised_once_and_again_if_a_file_changes(
    tmp_path, small, model, monkeypatch
):
    write_task(tmp_path, "rte")
    load = lambda t=small, **o: text.sentences(  # noqa: E731
        "rte", t, **{"length": 16, "data_dir": tmp_path} | o
    )
    first = load()
    with monkeypatch.context() as patch:
        patch.setattr(text.Tokenizer, "encode", None)
        again = load()
        with pytest.raises(TypeError):
            load(length=15)
    np.testing.assert_array_equal(
        again.arrays["train"]["ids"], first.arrays["train"]["ids"]
    )
    path = tmp_path / "text" / "glue" / "RTE" / "dev.tsv"
    path.write_text(path.read_text() + "0\tthe fox\tthe dog\tentailment\n")
    assert len(load().arrays["test"]["ids"]) == 4
    write(tmp_path / "vocab.txt", "\n".join([*SPECIAL, *reversed(WORDS)]))
    other = load(text.tokenizer(tmp_path / "vocab.txt"))
    assert not np.array_equal(other.arrays["test"]["ids"], load().arrays["test"]["ids"])


def test_what_tfds_has_prepared_of_glue_is_read_in_the_order_of_the_file(
    tmp_path, small, monkeypatch
):
    def source(version_dir, split):
        assert version_dir == tmp_path / "glue" / "rte" / "2.0.0"
        numbers = {"train": [2, 0, 3, 1], "validation": [1, 0]}[split]
        fixed = {"sentence2": b"fox"}
        return Records(
            fixed | {"sentence1": f"the {i}".encode(), "label": i % 2, "idx": i}
            for i in numbers
        )

    info = {"fileFormat": "array_record", "name": "glue", "configName": "rte"}
    write(tmp_path / "glue" / "rte" / "2.0.0" / prepared.INFO, json.dumps(info))
    monkeypatch.setattr(prepared, "_source", source)
    found = text.sentences("rte", small, length=8, validation=0, data_dir=tmp_path)
    test = found.arrays["test"]
    np.testing.assert_array_equal(
        test["ids"], small.encode(["the 0", "the 1"], ["fox"] * 2, length=8)[0]
    )
    assert test["label"].tolist() == [0, 1] and test["label"].dtype == np.int32
    # The published files come first.
    write_task(tmp_path, "rte")
    found = text.sentences("rte", small, length=8, validation=0, data_dir=tmp_path)
    assert len(found.arrays["test"]["ids"]) == 3


def test_a_configuration_is_asked_of_tfds_by_its_full_name(tmp_path, monkeypatch):
    asked = []
    tfds = types.SimpleNamespace(data_source=lambda name, **o: asked.append((name, o)))
    monkeypatch.setattr(prepared, "_import_tfds", lambda name: tfds)
    info = json.dumps({"name": "glue", "configName": "cola"})
    own = write(tmp_path / "glue" / "cola" / "2.0.0" / prepared.INFO, info).parent
    prepared._source(own, "train")
    own = write(
        tmp_path / "mnist" / "3.0.1" / prepared.INFO, '{"name": "mnist"}'
    ).parent
    prepared._source(own, "test")
    assert [(name, o["data_dir"], o["split"]) for name, o in asked] == [
        ("glue/cola:2.0.0", str(tmp_path), "train"),
        ("mnist:3.0.1", str(tmp_path), "test"),
    ]


# --- SQuAD ----------------------------------------------------------------------------


def article(title, *paragraphs):
    """An article; a paragraph is a context and questions, each with its answers."""
    return {
        "title": title,
        "paragraphs": [
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{title}-{number}-{i}",
                        "question": question,
                        "answers": [
                            {"text": answer, "answer_start": context.index(answer)}
                            for answer in answers
                        ],
                    }
                    for i, (question, answers) in enumerate(asked)
                ],
            }
            for number, (context, asked) in enumerate(paragraphs)
        ],
    }


CONTEXT = 'The "Café" fox jumps over the quick brown dog. It is 1990s, not 2 3 4.'
ASKED = [
    ("What is the fox?", ["Café", '"Café" fox']),
    ("Who jumps over the dog?", ["fox", "fox"]),
    ("what is it", ["4", "brown dog", "2 3 4"]),
    ("what", ["2 3 4"]),
]


def write_squad(folder, name, articles):
    content = json.dumps({"version": "1.1", "data": articles})
    return write(folder / "text" / "squad" / name, content)


@pytest.fixture
def dev(tmp_path):
    """A development set of twelve articles, four questions each."""
    articles = [article(f"a{i}", (CONTEXT, ASKED)) for i in range(12)]
    write_squad(tmp_path, "dev-v1.1.json", articles)
    return tmp_path


def test_spans_are_the_tokens_of_the_answers(small, dev):
    found = text.squad(small, length=60, data_dir=dev)
    assert text.check(found) is found and found.metric == "f1"
    assert found.name == "squad-dev" and found.num_classes is None
    assert "not comparable" in found.note and "dropped" not in found.note
    sizes = {split: len(part["ids"]) for split, part in found.arrays.items()}
    assert sizes == {"train": 40, "validation": 4, "test": 4}
    chosen = squads.choose(small, 60, 64, None, None, dev, 0)
    questions = squads.read(dev / "text" / "squad" / "dev-v1.1.json")
    articles = {}
    for split, part in found.arrays.items():
        rows = chosen.parts[split]["row"]
        articles[split] = {questions[row].article for row in rows}
        for row, ids, spans in zip(rows, part["ids"], part["answers"], strict=True):
            one = questions[row]
            own = [tuple(span) for span in spans.tolist() if span[0] >= 0]
            # By their first place, once each, in the order of the file.
            wanted = list(dict.fromkeys(answer for answer, _ in one.answers))
            assert len(own) == len(wanted)
            for (first, last), answer in zip(own, wanted, strict=True):
                (expected,) = small.plain([answer])
                np.testing.assert_array_equal(ids[first : last + 1], expected)
    assert not articles["train"] & articles["test"]
    assert not articles["train"] & articles["validation"]
    assert not articles["validation"] & articles["test"]


def test_a_question_without_an_answer_in_its_window_is_dropped_and_counted(small, dev):
    whole = text.squad(small, length=60, data_dir=dev)
    # [CLS], two tokens of a question, [SEP], the context to its brown dog, [SEP].
    found = text.squad(small, length=17, question=2, data_dir=dev)
    text.check(found)
    number = {split: len(part["ids"]) for split, part in whole.arrays.items()}
    kept = {split: len(part["ids"]) for split, part in found.arrays.items()}
    # Of the third question one answer of three is inside, of the fourth none.
    assert kept == {split: n * 3 // 4 for split, n in number.items()}
    assert (
        "questions dropped, for no answer is within length=17: 10 of 40 of train, "
        "1 of 4 of validation, 1 of 4 of test; further accepted answers outside: 20 of "
        "train, 2 of validation, 2 of test; sequences cut at length=17: 30 of 30 of "
    ) in found.note
    # A question is in the same split at every length.
    longer = squads.choose(small, 60, 64, None, None, dev, 0)
    shorter = squads.choose(small, 17, 2, None, None, dev, 0)
    for split, part in shorter.parts.items():
        assert set(part["row"]) <= set(longer.parts[split]["row"])
        first = part["answers"][:, 0]
        assert (first[:, 0] > 0).all() and (first[:, 1] < 16).all()
    late = article("t", (CONTEXT, ASKED[3:]))
    write_squad(dev, "dev-v1.1.json", [late, late])
    with pytest.raises(ValueError, match=r"length=17; it must be more: no question"):
        text.squad(small, length=17, data_dir=dev)


def test_the_training_set_of_squad_is_split_by_article(small, dev):
    articles = [article(f"t{i}", (CONTEXT, ASKED[:1] * 3)) for i in range(5)]
    write_squad(dev, "train-v1.1.json", articles)
    found = text.squad(small, length=60, validation=4, data_dir=dev)
    sizes = {split: len(part["ids"]) for split, part in found.arrays.items()}
    assert sizes == {"train": 9, "validation": 6, "test": 48}
    assert found.name == "squad" and found.note is None
    arrays = text.squad(small, length=60, validation=0, subset=4, data_dir=dev).arrays
    assert set(arrays) == {"train", "test"} and len(arrays["train"]["ids"]) == 4
    for options, message in (
        ({"validation": 13}, "validation=13; it must be fewer: nothing of squad"),
        ({"validation": 15}, "validation=15; it must be between 0 and 14"),
        ({"subset": 100}, "subset=100; it must be between 1 and"),
        ({"question": 0}, "question=0; it must be 1 or more"),
        ({"length": 4}, "length=4; it must be 5 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            text.squad(small, **{"length": 60, "data_dir": dev} | options)


def test_files_that_are_not_squad_are_named(small, tmp_path):
    answers = [{"text": "fox", "answer_start": 3}]
    one = article("t", (CONTEXT, [("what", ["fox"])]))
    path = write_squad(tmp_path, "dev-v1.1.json", [one])

    def refuses(message):
        with pytest.raises(ValueError, match=message):
            text.squad(small, length=60, data_dir=tmp_path)

    one["paragraphs"][0]["qas"][0]["answers"] = answers
    write_squad(tmp_path, "dev-v1.1.json", [one])
    refuses("question t-0-0: 'fox' is not in the context at 3")
    one["paragraphs"][0]["qas"][0]["answers"] = []
    write_squad(tmp_path, "dev-v1.1.json", [one])
    refuses(r"question t-0-0 has no answer; that is SQuAD 2.0")
    del one["title"]
    write_squad(tmp_path, "dev-v1.1.json", [one])
    refuses("dev-v1.1.json is not SQuAD 1.1: KeyError")
    write_squad(tmp_path, "dev-v1.1.json", [])
    refuses("dev-v1.1.json has no question")
    write(path, '{"data": [')
    refuses("dev-v1.1.json is not SQuAD 1.1")


def test_scores_of_squad_compare_words():
    assert words('The "Café", an  a-fox.') == ["café", "afox"]
    assert overlap("the brown dog", "quick brown dog!") == 2 * 2 / (2 + 3)
    assert overlap("dog dog", "dog") == 2 * 1 / (2 + 1)
    assert overlap("fox", "dog") == 0 and overlap("", "dog") == 0


def test_predicted_spans_are_scored_by_their_texts(small, dev):
    found = text.squad(small, length=60, data_dir=dev)
    answers = found.arrays["test"]["answers"]
    given = {"tokenizer": small, "length": 60, "data_dir": dev}
    last = (answers[..., 0] >= 0).sum(1) - 1
    for which in (0 * last, last):
        scores = text.squad_scores(answers[np.arange(4), which], **given)
        assert scores == text.SquadScores(1.0, 1.0, 4, 0)
    # A token of the question, or an end before the beginning, is no piece of the context.
    for nothing in ([1, 2], [9, 8]):
        scores = text.squad_scores(np.array([nothing] * 4), **given)
        assert scores == text.SquadScores(0.0, 0.0, 4, 0)
    # `Café" fox` is an accepted answer but for its first quote; `fox jumps` for `fox`;
    # beyond the end of the context for `4`; `2 3` for `2 3 4`.
    spans = answers[:, 0] + [[0, 2], [0, 2], [0, 2], [0, -1]]
    scores = text.squad_scores(spans, **given)
    assert scores.exact == 1 / 4
    assert scores.f1 == pytest.approx((1 + 2 / 3 + 0 + 2 * 2 / (2 + 3)) / 4)
    # The published scores count what was dropped: so many there are.
    short = text.squad(small, length=17, question=2, data_dir=dev)
    spans = short.arrays["test"]["answers"][:, 0]
    scores = text.squad_scores(spans, small, length=17, question=2, data_dir=dev)
    assert scores == text.SquadScores(1.0, 1.0, 3, 1)
    for bad in (spans[:2], spans.astype(float), spans.ravel()):
        with pytest.raises(ValueError, match=r"spans=.*must be integers \[[34], 2\]"):
            text.squad_scores(bad, **given)
    with pytest.raises(ValueError, match="split='dev'; it must be one of train"):
        text.squad_scores(spans, split="dev", **given)


# --- corpora --------------------------------------------------------------------------

WIKI = {
    "train": " \n = The fox = \n \n A dog <unk> it , 1 @,@ 999 @-@ fox . \n the the\n",
    "valid": " \n = Dog = \n the <unk> quick \n",
    "test": " \n = Fox = \n a dog jumps 9 @.@ 9 \n",
}


@pytest.fixture
def wiki(tmp_path):
    for split, content in WIKI.items():
        write(tmp_path / "text" / "wikitext-2" / f"wiki.{split}.tokens", content)
    return tmp_path


PLAY = "the fox\njumps.\n\nA dog: not it!\n" * 30


@pytest.fixture
def play(tmp_path):
    write(tmp_path / "text" / "tiny_shakespeare" / "input.txt", PLAY)
    return tmp_path


def test_windows_are_the_text_cut_into_pieces(small, wiki):
    found = text.windows("wikitext2", small, length=6, data_dir=wiki)
    assert text.check(found) is found
    known = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        ids = found.arrays[split]["ids"]
        assert (ids[:, 0] == 2).all() and (ids[:, -1] == 3).all()
        # As a person would write it, and what the corpus left out is not known.
        line = WIKI[name].replace(" @,@ ", ",").replace(" @-@ ", "-")
        line = line.replace(" @.@ ", ".").split("<unk>")
        expected = word_piece(line[0], known)
        for piece in line[1:]:
            expected += [1, *word_piece(piece, known)]
        assert ids[:, 1:-1].ravel().tolist() == expected[: len(expected) // 4 * 4]
    assert found.vocabulary.unknown == 1
    fewer = text.windows(
        "wikitext2", small, length=6, subset=2, validation=1, data_dir=wiki
    )
    np.testing.assert_array_equal(
        fewer.arrays["train"]["ids"], found.arrays["train"]["ids"][:2]
    )
    assert len(fewer.arrays["validation"]["ids"]) == 1
    without = text.windows("wikitext2", small, length=6, validation=0, data_dir=wiki)
    assert set(without.arrays) == {"train", "test"}
    for options, message in (
        ({"length": 2}, "length=2; it must be 3 or more"),
        ({"length": 12}, r"length=12; it must be at most 8: validation .* 6 tokens"),
        ({"subset": 9}, "subset=9; it must be between 1 and 4"),
        ({"validation": 2}, "validation=2; it must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            text.windows(
                "wikitext2", small, **{"length": 6, "data_dir": wiki} | options
            )
    with pytest.raises(ValueError, match="name='c4'; it must be one of wikitext2"):
        text.windows("c4", small, length=6)


def test_the_unknown_words_of_wikitext_need_an_id(tmp_path, wiki):
    write(tmp_path / "vocab.txt", "[PAD]\n[CLS]\n[SEP]\nthe\n<u>")
    write(tmp_path / "tokenizer_config.json", '{"unk_token": "<u>"}')
    one = text.tokenizer(tmp_path)
    bare = text.Tokenizer(
        one.vocabulary._replace(unknown=None), "other", one.path, one._rules
    )
    with pytest.raises(ValueError, match="vocabulary.unknown=None; .* for <unk>"):
        text.windows("wikitext2", bare, length=6, data_dir=wiki)


def test_tiny_shakespeare_is_split_by_characters(small, play):
    stream = text.stream("tiny_shakespeare", data_dir=play)
    assert text.check(stream) is stream
    letters = sorted(set(PLAY))
    assert stream.vocabulary == text.Vocabulary(len(letters))
    parts = ["".join(letters[i] for i in v["ids"]) for v in stream.arrays.values()]
    assert "".join(parts) == PLAY
    first = int(len(PLAY) * 0.9)
    assert [len(p) for p in parts][:2] == [first, (len(PLAY) - first) // 2]
    tokens = text.stream("tiny_shakespeare", tokenizer=small, data_dir=play)
    assert tokens.vocabulary == small.vocabulary
    np.testing.assert_array_equal(
        tokens.arrays["test"]["ids"], small.plain([parts[2]])[0]
    )
    cut = text.windows("tiny_shakespeare", small, length=5, data_dir=play)
    ids = cut.arrays["train"]["ids"][:, 1:-1].ravel()
    np.testing.assert_array_equal(ids, tokens.arrays["train"]["ids"][: len(ids)])


def test_words_are_numbered_as_they_come_and_lines_end(wiki):
    found = text.stream("wikitext2", unit="word", data_dir=wiki)
    lines = {
        split: [w for line in content.splitlines() for w in [*line.split(), "<eos>"]]
        for split, content in WIKI.items()
    }
    known = {}
    for word in lines["train"]:
        known.setdefault(word, len(known))
    lines["validation"] = lines.pop("valid")
    expected = {
        split: [known.get(word, known["<unk>"]) for word in row]
        for split, row in lines.items()
    }
    assert found.vocabulary == text.Vocabulary(len(known), unknown=known["<unk>"])
    for split, row in expected.items():
        assert found.arrays[split]["ids"].tolist() == row
        assert found.arrays[split]["ids"].dtype == np.int32


def test_what_the_training_split_lacks_is_unknown(play):
    path = play / "text" / "tiny_shakespeare" / "input.txt"
    whole = PLAY + "zz zz\n"
    write(path, whole)
    found = text.stream("tiny_shakespeare", unit="word", data_dir=play)
    own = {*whole[: int(len(whole) * 0.9)].split(), "<eos>"}
    assert found.vocabulary == text.Vocabulary(len(own) + 1, unknown=len(own))
    # "the", "fox", the end of a line: the first three words of all.
    assert found.arrays["test"]["ids"][-3:].tolist() == [len(own), len(own), 2]
    letters = text.stream("tiny_shakespeare", data_dir=play)
    assert letters.vocabulary.unknown == letters.vocabulary.size - 1
    assert (letters.arrays["test"]["ids"] == letters.vocabulary.unknown).sum() == 4
    with pytest.raises(ValueError, match="unit='byte'; it must be one of character"):
        text.stream("tiny_shakespeare", unit="byte", data_dir=play)
    write(path, " \n")
    with pytest.raises(ValueError, match="input.txt is empty"):
        text.stream("tiny_shakespeare", data_dir=play)


def test_what_tfds_has_prepared_of_shakespeare_is_read(tmp_path, monkeypatch):
    own = tmp_path / "tiny_shakespeare" / "1.0.0"
    write(own / prepared.INFO, '{"fileFormat": "array_record"}')
    write(own / "tiny_shakespeare-train.array_record-00000-of-00001", "")
    texts = {"train": b"ab\n", "validation": b"b", "test": b"a"}
    monkeypatch.setattr(
        prepared, "_source", lambda _, split: Records([{"text": texts[split]}])
    )
    found = text.stream("tiny_shakespeare", data_dir=tmp_path)
    assert [v["ids"].tolist() for v in found.arrays.values()] == [[1, 2, 0], [2], [1]]


# --- files ----------------------------------------------------------------------------


def packed(path, members):
    """An archive of any kind; names of members as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    kind = {".tgz": "gz"}.get(path.suffix, path.suffix[1:])
    with tarfile.open(path, "w" if kind == "tar" else f"w:{kind}") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("where", "make"),
    [
        ("CoLA/dev.tsv", lambda p: write(p, b"mine")),
        ("glue/CoLA/dev.tsv.xz", lambda p: write(p, lzma.compress(b"mine"))),
        ("CoLA.zip", lambda p: packed(p, {"CoLA/dev.tsv": b"mine"})),
        ("glue/any.zip", lambda p: packed(p, {"data/CoLA/dev.tsv": b"mine"})),
        ("glue.tar.xz", lambda p: packed(p, {"./CoLA/dev.tsv": b"mine"})),
        ("glue/glue.tar", lambda p: packed(p, {"glue_data/CoLA/dev.tsv": b"mine"})),
    ],
)
def test_files_are_found_packed_or_not(tmp_path, capsys, where, make):
    make(write(tmp_path / "from" / where, b""))
    arguments = ["glue", "--from", f"{tmp_path}/from", "--data-dir", f"{tmp_path}/to"]
    with pytest.warns(UserWarning, match="CoLA/dev.tsv of .* is not the copy whose"):
        prepare.main(arguments)
    own = tmp_path / "to" / "text" / "glue"
    assert f"glue: prepared in {own}, without CoLA/train.tsv" in capsys.readouterr().out
    assert [p.read_bytes() for p in (tmp_path / "to").rglob("*") if p.is_file()] == [
        b"mine"
    ]
    # A file that is the same keeps its time: what was tokenised stays valid.
    before = (own / "CoLA" / "dev.tsv").stat().st_mtime_ns
    with pytest.warns(UserWarning):
        prepare.main(arguments)
    assert (own / "CoLA" / "dev.tsv").stat().st_mtime_ns == before


def test_a_member_says_nothing_of_where_it_is_written(tmp_path):
    members = {
        "../../../CoLA/dev.tsv": b"first",
        "/etc/CoLA/train.tsv": b"second",
        "../evil.tsv": b"no",
        "XCoLA/dev.tsv": b"no",
    }
    for name in ("glue.tar.xz", "glue.zip"):
        packed(tmp_path / "from" / name, members)
        with pytest.warns(UserWarning, match="is not the copy"):
            done = published.place("glue", tmp_path / "from", tmp_path / name / "to")
        assert done.there == ("CoLA/train.tsv", "CoLA/dev.tsv")
        written = {p.name: p.read_bytes() for p in done.folder.rglob("*.*")}
        assert written == {"dev.tsv": b"first", "train.tsv": b"second"}
        (tmp_path / "from" / name).unlink()
    inside = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert len(inside) == 4


@pytest.mark.parametrize("name", ["glue.tar.xz", "CoLA.zip", "CoLA/dev.tsv.xz"])
def test_a_damaged_archive_is_named(tmp_path, name):
    path = tmp_path / "from" / name
    if name.startswith("CoLA/"):
        write(path, lzma.compress(b"mine" * 99)[:-20])
    else:
        packed(path, {"CoLA/dev.tsv": b"mine" * 999})
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        published.place("glue", tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_lies_beside_an_archive_is_none_and_names_may_be_of_any_case(tmp_path):
    packed(tmp_path / "from" / "GLUE.ZIP", {"CoLA/dev.tsv": b"mine"})
    write(tmp_path / "from" / "GLUE.ZIP.sha256", b"0123")
    write(tmp_path / "from" / "glue.tar.gz.sha256", b"0123")
    with pytest.warns(UserWarning, match="is not the copy"):
        done = published.place("glue", tmp_path / "from", tmp_path / "to")
    assert done.there == ("CoLA/dev.tsv",)


@pytest.mark.parametrize(
    "name", ["glue.tar.xz", "glue.tar.gz", "glue.tgz", "glue.tar.bz2", "glue.zip"]
)
def test_no_flipped_bit_of_an_archive_changes_what_is_read(tmp_path, name):
    path = packed(tmp_path / name, {"CoLA/dev.tsv": b"mine, " * 30})
    whole = path.read_bytes()
    (right,) = published._members(path, ["CoLA/dev.tsv"])
    refused = 0
    for at in range(len(whole)):
        for bit in (1, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found = published._members(path, ["CoLA/dev.tsv"])
            except ValueError as error:
                assert f"{name} cannot be read" in str(error)
                refused += 1
            else:
                # The name of a member may have changed: then there is none.
                assert found in ([right], []), at
    assert refused > len(whole) / 3


def test_a_published_file_is_taken_without_a_word(tmp_path, recwarn, monkeypatch):
    import hashlib

    digest = hashlib.sha256(b"mine").hexdigest()
    monkeypatch.setitem(published.DIGESTS, "input.txt", digest)
    write(tmp_path / "from" / "input.txt", b"mine")
    done = published.place("tiny_shakespeare", tmp_path / "from", tmp_path)
    assert (done.there, done.missing) == (("input.txt",), ())
    assert not [w for w in recwarn if "SHA-256" in str(w.message)]
    # It is downloaded where no folder is named, and must be the published one.
    monkeypatch.setattr(published, "URL", f"{(tmp_path / 'from').as_uri()}/")
    done = published.place("tiny_shakespeare", None, tmp_path / "other")
    assert (done.folder / "input.txt").read_bytes() == b"mine"
    write(tmp_path / "from" / "input.txt", b"damaged")
    with pytest.raises(ValueError, match="input.txt is not the published file"):
        published.place("tiny_shakespeare", None, tmp_path / "third")


def test_what_cannot_be_placed_says_what_is_looked_for(tmp_path, capsys):
    with pytest.raises(
        FileNotFoundError, match=r"needs wiki.train.tokens(.|\n)*--from"
    ):
        published.place("wikitext2", None, tmp_path)
    (tmp_path / "from").mkdir()
    with pytest.raises(FileNotFoundError, match="there is none in .*to/text/squad or "):
        published.place("squad", tmp_path / "from", tmp_path / "to")
    with pytest.raises(FileNotFoundError, match="--from=.*; it must be a folder"):
        published.place("squad", tmp_path / "nowhere", tmp_path / "to")
    with pytest.raises(ValueError, match="name='imdb'; it must be one of glue"):
        published.place("imdb", tmp_path)
    with pytest.raises(SystemExit):
        prepare.main(["mnist", "--from", str(tmp_path)])
    assert "--from is for glue, squad" in capsys.readouterr().err


# --- check ----------------------------------------------------------------------------

VOCABULARY = text.Vocabulary(10, 0, 1, 2, 3, 4)
IDS = np.array([[2, 5, 3, 6, 3, 0], [2, 7, 3, 0, 0, 0]], np.int32)
TYPES = np.array([[0, 0, 0, 1, 1, 0], [0] * 6], np.int32)


def labelled(**changed):
    part = {"ids": IDS, "types": TYPES, "label": np.array([0, 1], np.int32)}
    return {split: part | changed for split in ("train", "test")}


def spanned(answers):
    part = {"ids": IDS, "types": TYPES, "answers": np.asarray(answers, np.int32)}
    return {"train": part}


def changed(array, at, value):
    array = array.copy()
    array[at] = value
    return array


ANSWERS = [[[3, 3], [1, 4]], [[1, 1], [-1, -1]]]


def test_sound_texts_pass():
    numbers = labelled(label=np.array([0.5, -3], np.float32))
    sound = [
        text.Texts(labelled(), VOCABULARY, "own", 2),
        text.Texts(numbers, VOCABULARY, "own", metric="pearson"),
        text.Texts(spanned(ANSWERS), VOCABULARY, "own"),
        text.Texts({"train": {"ids": IDS[:, :3]}}, VOCABULARY, "own"),
        text.Texts({"train": {"ids": IDS[0]}}, text.Vocabulary(7), "own"),
    ]
    for one in sound:
        assert text.check(one) is one and text.check(one, known=10) is one


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"test": labelled()["test"]}, r"arrays=\['test'\]; .* a split train"),
        (labelled() | {"dev": {}}, "arrays: split='dev'; it must be one of train"),
        (
            {"train": {"ids": IDS, "types": TYPES}},
            r"arrays\['train'\]=\['ids', 'types'\]",
        ),
        (
            labelled() | {"test": {"ids": IDS[:, :3]}},
            r"arrays\['test'\]=\['ids'\]; it must be as in train",
        ),
        (labelled(ids=IDS.tolist()), r"arrays\['train'\]\['ids'\]=.* a NumPy array"),
        (
            labelled(ids=IDS.astype(np.int64)),
            r"\['ids'\].dtype=int64; it must be int32",
        ),
        (labelled(ids=IDS[0]), r"\['ids'\].shape=\(6,\); .*\[sequences, length\]"),
        (
            labelled() | {"test": labelled(ids=IDS[:, :5])["test"]},
            r"arrays\['test'\]\['ids'\].shape=\(2, 5\); .* as in train",
        ),
        (labelled(ids=IDS[:0]), r"len\(arrays\['train'\]\['ids'\]\)=0; .* 1 or more"),
        (
            labelled() | {"test": labelled(ids=changed(IDS, (1, 2), 10))["test"]},
            r"arrays\['test'\]\['ids'\]\[1, 2\]=10; it must be in \[0, 10\)",
        ),
        (labelled(ids=changed(IDS, (0, 1), -1)), r"\['ids'\]\[0, 1\]=-1"),
        (labelled(ids=changed(IDS, 1, 0)), r"\['ids'\]\[1\]=padding alone"),
        (
            labelled(ids=changed(IDS, (0, 2), 0)),
            r"\[0, 2\]=0; .* padding is at the end",
        ),
        (labelled(types=TYPES[:1]), r"\['types'\].shape=\(1, 6\); it must be \(2, 6\)"),
        (labelled(types=TYPES + 1), r"\['types'\]\[0, 3\]=2; it must be 0 or 1"),
        (
            labelled(label=np.array([0, 2], np.int32)),
            r"\['label'\]\[1\]=2; .* \[0, 2\)",
        ),
        (labelled(label=np.array([0, 1.0])), r"\['label'\].dtype=float64; .* int32"),
        (labelled(label=np.zeros(3, np.int32)), r"\['label'\].shape=\(3,\); .* \(2,\)"),
        (
            spanned(changed(np.array(ANSWERS), (0, 1), [4, 1])),
            r"\['answers'\]\[0, 1\]=\[4",
        ),
        (
            spanned(changed(np.array(ANSWERS), (1, 0), [1, 3])),
            r"\[1, 0\]=.* in \[0, 3\)",
        ),
        (spanned(changed(np.array(ANSWERS), (1, 0), [-1, -1])), r"\[1, 0\]=\[-1, -1\]"),
        (spanned(np.array(ANSWERS)[:, 0]), r"\['answers'\].shape=\(2, 2\)"),
        (spanned(np.array(ANSWERS)[:, :0]), r"\(2, 0, 2\); it must be one answer"),
        ({"train": {"ids": IDS}}, r"\['ids'\]\[0, 5\]=0; .* windows are whole"),
        ({"train": {"ids": IDS[None]}}, r"\(1, 2, 6\); .* or \[tokens\]"),
    ],
)
def test_texts_that_make_no_sense_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        text.check(text.Texts(arrays, VOCABULARY, "own", 2))


def test_numbers_must_be_finite_and_vocabularies_fit():
    numbers = labelled(label=np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"\['label'\]\[1\]=nan; it must be finite"):
        text.check(text.Texts(numbers, VOCABULARY, "own"))
    sound = text.Texts(labelled(), VOCABULARY, "own", 2)
    with pytest.raises(
        ValueError, match=r"vocabulary.size=10; it must be at most 9, .*"
    ):
        text.check(sound, known=9)
    beyond = sound._replace(vocabulary=VOCABULARY._replace(mask=10))
    with pytest.raises(
        ValueError, match="vocabulary.mask=10; it must be between 0 and 9"
    ):
        text.check(beyond)
    with pytest.raises(ValueError, match="num_classes=1; it must be 2 or more"):
        text.check(sound._replace(num_classes=1))
    with pytest.raises(
        ValueError, match="texts=.* must be a lottery_jax.data.text.Texts"
    ):
        text.check(labelled())


# --- real files -----------------------------------------------------------------------

_NOT_THERE = ("qnli", "qqp", "mnli")
"""Large training sets, which no test waits for."""


@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in glue.FORMATS if n not in _NOT_THERE])
def test_the_published_tasks_of_glue_have_their_examples(prepared_texts, name):
    folder, form = files.folder("glue", prepared_texts("glue")), glue.FORMATS[name]
    train = glue.read(folder / form.folder / form.train, form)
    test = glue.read(folder / form.folder / form.test, form)
    # A copy of MRPC that goes round lacks one row of 3,668.
    lacks = name == "mrpc" and len(train.label) == 3667
    assert (len(train.label) + lacks, len(test.label)) == glue.SIZES[name]
    shares = np.bincount(test.label.astype(int))
    # What guessing the larger class gets, as the tables of GLUE have it.
    majority = {
        "cola": 0.691,
        "mrpc": 0.684,
        "rte": 0.527,
        "wnli": 0.563,
        "sst2": 0.509,
    }
    if name in majority:
        assert shares.max() / shares.sum() == pytest.approx(majority[name], abs=5e-4)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mrpc", "qnli-dev"])
def test_published_sentences_are_tokenised(prepared_texts, real_model, name):
    tokenizer = text.tokenizer(real_model)
    assert tokenizer.vocabulary == text.Vocabulary(30522, 0, 100, 101, 102, 103)
    folder = prepared_texts("glue")
    found = text.sentences(name, tokenizer, length=48, data_dir=folder)
    text.check(found, known=30522)
    sizes = {split: len(part["ids"]) for split, part in found.arrays.items()}
    if name == "qnli-dev":
        assert sum(sizes.values()) == 5463
        return
    number = sizes["train"] + sizes["validation"]
    assert (number != 3668) == ("published 3668" in found.note)
    names = {number: word for word, number in tokenizer._rules.get_vocab().items()}
    first = [names[i] for i in found.arrays["test"]["ids"][0][:8].tolist()]
    assert " ".join(first) == "[CLS] he said the foods ##er ##vic ##e"


@pytest.mark.data
def test_the_published_wikitext_has_its_words(prepared_texts, real_model):
    folder = prepared_texts("wikitext2")
    found = text.stream("wikitext2", unit="word", data_dir=folder)
    sizes = [len(part["ids"]) for part in found.arrays.values()]
    assert sizes == [2_088_628, 217_646, 245_569]
    assert found.vocabulary.size == 33_278
    tokenizer = text.tokenizer(real_model)
    corpus = corpora.read("wikitext2", folder)
    module = importlib.import_module("lottery_jax.data.text.windows")
    ids = module._ids(corpus.texts["train"][:200], corpus.unknown, tokenizer)
    names = {number: word for word, number in tokenizer._rules.get_vocab().items()}
    assert " ".join(names[i] for i in ids[:16].tolist()) == (
        "= val ##ky ##ria chronicles iii = sen ##jo no val ##ky ##ria 3 : [UNK]"
    )


@pytest.mark.data
def test_the_published_shakespeare_has_its_characters(prepared_texts):
    folder = prepared_texts("tiny_shakespeare")
    found = text.stream("tiny_shakespeare", data_dir=folder)
    sizes = [len(part["ids"]) for part in found.arrays.values()]
    assert sizes == [1_003_854, 55_770, 55_770]
    assert found.vocabulary == text.Vocabulary(65)


@pytest.mark.data
def test_the_published_squad_has_its_questions(prepared_texts, real_model):
    tokenizer = text.tokenizer(real_model)
    folder = prepared_texts("squad")
    path = folder / "text" / "squad" / "dev-v1.1.json"
    questions = squads.read(path)
    assert len(questions) == 10_570
    assert len({one.article for one in questions}) == 48
    found = text.squad(tokenizer, length=384, data_dir=folder)
    text.check(found)
    spans = found.arrays["test"]["answers"][:, 0]
    scores = text.squad_scores(spans, tokenizer, length=384, data_dir=folder)
    # A few annotated answers are parts of words.
    assert scores.exact > 0.995 and scores.f1 > 0.998
