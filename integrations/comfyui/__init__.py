"""ComfyUI nodes that make clips through the ovi_jax service.

Put this folder, or a link to it, into ComfyUI's `custom_nodes`. Nothing but the
standard library is imported until a node runs.
"""

from .nodes import NODE_CLASS_MAPPINGS
from .nodes import NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
