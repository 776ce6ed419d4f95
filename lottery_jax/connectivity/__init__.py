"""Linear mode connectivity: paths between networks, and from when on they are flat."""

from lottery_jax.connectivity import analysis as analysis
from lottery_jax.connectivity import branches as branches
from lottery_jax.connectivity.analysis import Analysis as Analysis
from lottery_jax.connectivity.analysis import Plan as Plan
from lottery_jax.connectivity.analysis import Progress as Progress
from lottery_jax.connectivity.analysis import check as check
from lottery_jax.connectivity.analysis import check_task as check_task
from lottery_jax.connectivity.analysis import run as run
from lottery_jax.connectivity.distances import angle as angle
from lottery_jax.connectivity.distances import disagreement as disagreement
from lottery_jax.connectivity.distances import l2 as l2
from lottery_jax.connectivity.distances import predictions as predictions
from lottery_jax.connectivity.linear import Path as Path
from lottery_jax.connectivity.linear import barrier as barrier
from lottery_jax.connectivity.linear import barrier_matrix as barrier_matrix
from lottery_jax.connectivity.linear import error_along_path as error_along_path
from lottery_jax.connectivity.linear import instability as instability
from lottery_jax.connectivity.linear import is_stable as is_stable
from lottery_jax.connectivity.linear import paths as paths
from lottery_jax.connectivity.linear import project as project
from lottery_jax.connectivity.linear import same_mask as same_mask
from lottery_jax.connectivity.points import combine as combine
from lottery_jax.connectivity.points import evaluate_many as evaluate_many
from lottery_jax.connectivity.points import interpolate as interpolate
