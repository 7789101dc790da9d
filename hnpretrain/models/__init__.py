"""open_clip models: building from settings, loading from a run or an export, exporting."""

from hnpretrain.models.build import LoadedModel, ModelSettings, build
from hnpretrain.models.store import export, load

__all__ = ["LoadedModel", "ModelSettings", "build", "export", "load"]
