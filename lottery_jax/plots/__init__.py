"""Figures from recorded arrays. Needs matplotlib (the extra `experiments`).

lines      over density, steps, paths or any quantity
maps       planes, differences, overlaps, answers, values by their names
pictures   masks and weights
tickets    one ticket at a glance
shown      masks and tickets that show themselves in notebooks; without matplotlib
pages      text below figures, and files
"""

from lottery_jax.plots._canvas import STYLES as STYLES
from lottery_jax.plots.lines import Panel as Panel
from lottery_jax.plots.lines import against as against
from lottery_jax.plots.lines import against_density as against_density
from lottery_jax.plots.lines import against_step as against_step
from lottery_jax.plots.lines import along_path as along_path
from lottery_jax.plots.lines import histogram as histogram
from lottery_jax.plots.lines import layer_densities as layer_densities
from lottery_jax.plots.lines import panels_against as panels_against
from lottery_jax.plots.lines import panels_against_density as panels_against_density
from lottery_jax.plots.lines import steps_against_density as steps_against_density
from lottery_jax.plots.maps import ANSWERS as ANSWERS
from lottery_jax.plots.maps import answers as answers
from lottery_jax.plots.maps import by_name as by_name
from lottery_jax.plots.maps import heat_maps as heat_maps
from lottery_jax.plots.maps import loss_plane as loss_plane
from lottery_jax.plots.maps import matrices as matrices
from lottery_jax.plots.maps import overlaps as overlaps
from lottery_jax.plots.pages import CAPTION_SIZE as CAPTION_SIZE
from lottery_jax.plots.pages import caption as caption
from lottery_jax.plots.pages import save as save
from lottery_jax.plots.pictures import masks as masks
from lottery_jax.plots.pictures import receptive_fields as receptive_fields
from lottery_jax.plots.shown import Leaf as Leaf
from lottery_jax.plots.shown import Shown as Shown
from lottery_jax.plots.shown import shown as shown
from lottery_jax.plots.shown import visualizer as visualizer
from lottery_jax.plots.tickets import overview as overview
