"""Every preset of every experiment: the networks, the recipes, and what is done with them.

A preset is a line for `--help` and the fields in which it differs from the defaults of the
experiment's configuration. What several have in common stands once, in `shared`.
"""

from experiments.presets.beyond import ADVERSARIAL as ADVERSARIAL
from experiments.presets.beyond import PRETRAINING as PRETRAINING
from experiments.presets.beyond import REINFORCEMENT as REINFORCEMENT
from experiments.presets.frozen import EDGE_POPUP as EDGE_POPUP
from experiments.presets.frozen import STRONG_LTH as STRONG_LTH
from experiments.presets.frozen import SUPERMASK as SUPERMASK
from experiments.presets.language import BERT_TICKETS as BERT_TICKETS
from experiments.presets.language import LANGUAGE as LANGUAGE
from experiments.presets.paths import ALIGNMENT as ALIGNMENT
from experiments.presets.paths import CURVES as CURVES
from experiments.presets.paths import INSTABILITY as INSTABILITY
from experiments.presets.paths import REWINDING as REWINDING
from experiments.presets.preset import Fields as Fields
from experiments.presets.preset import Preset as Preset
from experiments.presets.preset import Table as Table
from experiments.presets.preset import make as make
from experiments.presets.pruning import AT_INIT as AT_INIT
from experiments.presets.pruning import DECONSTRUCT as DECONSTRUCT
from experiments.presets.pruning import IMP as IMP
from experiments.presets.pruning import MA as MA
from experiments.presets.training import EARLY_BIRD as EARLY_BIRD
from experiments.presets.training import GALE as GALE
from experiments.presets.training import LIU as LIU
from experiments.presets.transfer import TRANSFER as TRANSFER
