"""Pre-trained encoders: folders in Hugging Face's usual layout, and our trees.

    found = lj.pretrained.load("models/bert-tiny")          # or a hub's name
    model = lj.models.Bert(found.shape, head="masked_lm")
    task = lj.tasks.masked_lm(texts, model, batch_size=32)
    start = lj.pretrained.start(found, task, replicas=3)
    study = lj.imp.run(task, tx, plan, start=start, replicas=3, levels=5)

A folder holds `config.json` and `model.safetensors`, and the tokeniser's files beside
them. Nothing is unpickled. What does not fit is refused, by its names there and here.
"""

from lottery_jax.pretrained.config import config_of as config_of
from lottery_jax.pretrained.config import shape_of as shape_of
from lottery_jax.pretrained.folders import Pretrained as Pretrained
from lottery_jax.pretrained.folders import load as load
from lottery_jax.pretrained.folders import save as save
from lottery_jax.pretrained.starts import Fit as Fit
from lottery_jax.pretrained.starts import fit as fit
from lottery_jax.pretrained.starts import start as start
