"""Plots: functions of arrays that return matplotlib figures, and grids of images.  Independent of models."""

from .curves import curves_panel, schedule_panel, sweep_panel
from .fields import COLUMNS as FIELD_COLUMNS
from .fields import MOST as MOST_FIELDS
from .fields import field_film, field_limits, fields_panel
from .images import image_grid, pairs, save_image
from .points import field_panel, film_frames, forward_panel, samples_panel, trajectories_panel
from .spectra import ranks_panel, spectrum_panel
from .style import save, to_image

__all__ = [
    "FIELD_COLUMNS",
    "MOST_FIELDS",
    "curves_panel",
    "field_film",
    "field_limits",
    "field_panel",
    "fields_panel",
    "film_frames",
    "forward_panel",
    "image_grid",
    "pairs",
    "ranks_panel",
    "samples_panel",
    "save",
    "save_image",
    "schedule_panel",
    "spectrum_panel",
    "sweep_panel",
    "to_image",
    "trajectories_panel",
]
