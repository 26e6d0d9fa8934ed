"""Khronos' validation layer over the tests: core and synchronisation checks of every call, in a log of the process.

It is switched on for the whole process, before anything asks for Vulkan. `messages` gives what was said since it was
asked last.
"""

import os
import re
from pathlib import Path

LAYER = "VK_LAYER_KHRONOS_validation"
_FOLDERS = ("/usr/share/vulkan", "/usr/local/share/vulkan", "/etc/vulkan")
_SETTINGS = """khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error,warn
khronos_validation.log_filename = {log}
khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
khronos_validation.syncval_shader_accesses_heuristic = true
"""
_SAID = re.compile(r".*(?:VUID-|SYNC-HAZARD|UNASSIGNED-).*")

_log: Path | None = None


def installed():
    return any(Path(f, "explicit_layer.d", "VkLayer_khronos_validation.json").exists() for f in _FOLDERS)


def activate(folder):
    """Has every Vulkan instance of this process checked, if the layer is installed."""
    global _log
    if installed() and "VK_INSTANCE_LAYERS" not in os.environ:
        _log = Path(folder) / f"validation-{os.getpid()}.log"
        settings = Path(folder) / f"validation-{os.getpid()}"
        settings.mkdir()
        (settings / "vk_layer_settings.txt").write_text(_SETTINGS.format(log=_log))
        os.environ["VK_INSTANCE_LAYERS"] = LAYER
        os.environ["VK_LAYER_SETTINGS_PATH"] = str(settings)


def active():
    """Whether an instance has been made under the layer."""
    return _log is not None and _log.exists()


def messages():
    """What the layer has said since this was called last. Every instance writes to the log from a place of its own, so
    that it is emptied and not only read on."""
    if not active():
        return []
    text = _log.read_text(errors="replace").replace("\0", "")
    os.truncate(_log, 0)
    return _SAID.findall(text)
