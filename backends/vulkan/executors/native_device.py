"""Vulkan devices through the PyPI package ``vulkan``: the instance, what devices there are, and how one is opened.

The binding is thin and unmaintained; all of its words that we use stand in the ``native_*`` files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from aatc.backends.vulkan.executors.contract import Device, Limits
from aatc.ir.errors import DeviceError, DeviceLostError, DeviceMemoryError, NoDeviceError

_INSTALL = "pip install aatc[vulkan], and a Vulkan driver (Debian: apt-get install libvulkan1 mesa-vulkan-drivers)"


def why_not() -> str:
    """Why the binding cannot be used; empty if it can."""
    try:
        import vulkan  # noqa: F401
    except ImportError:
        return "the package vulkan is not installed"
    except Exception as error:  # it loads the loader as it is imported, and raises what it likes
        return f"there is no Vulkan loader: {error}"
    try:
        instance()
    except DeviceError as error:
        return error.message
    return ""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the binding as ours."""
    import vulkan as vk

    try:
        yield
    except vk.VkErrorDeviceLost as error:
        raise DeviceLostError(f"the device was lost while {what}", hint="the next call opens it anew") from error
    except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory) as error:
        raise DeviceMemoryError(f"the device has no memory left for {what}", hint="smaller batches") from error
    except vk.VkError as error:
        raise DeviceError(f"{what} failed: {type(error).__name__}") from error


@cache
def instance() -> Any:
    """The one instance of the process. Raises: NoDeviceError."""
    import vulkan as vk

    try:
        found = int(vk.vkEnumerateInstanceVersion())
        asked = min(found, vk.VK_MAKE_VERSION(1, 3, 0))
        about = vk.VkApplicationInfo(pApplicationName="aatc", applicationVersion=1, pEngineName="aatc", engineVersion=1,
                                     apiVersion=asked)  # fmt: skip
        extensions = [e.extensionName for e in vk.vkEnumerateInstanceExtensionProperties(None)]
        portable = "VK_KHR_portability_enumeration" in extensions
        return vk.vkCreateInstance(
            vk.VkInstanceCreateInfo(
                flags=1 if portable else 0,  # devices that are not fully conformant, as on macOS
                pApplicationInfo=about,
                ppEnabledExtensionNames=["VK_KHR_portability_enumeration"] if portable else [],
            ),
            None,
        )
    except vk.VkError as error:
        raise NoDeviceError(f"Vulkan cannot be used: {type(error).__name__}", hint=_INSTALL) from error


@cache
def physical_devices() -> tuple[Any, ...]:
    import vulkan as vk

    try:
        return tuple(vk.vkEnumeratePhysicalDevices(instance()))
    except vk.VkError:  # no driver is installed
        return ()


@cache
def devices() -> tuple[Device, ...]:
    """Those that can compute."""
    found = (_device(n, p) for n, p in enumerate(physical_devices()))
    return tuple(d for d in found if d is not None)


def queue_family(physical: Any) -> int | None:
    """The first family that computes; of those, one that does nothing else is no better for us."""
    import vulkan as vk

    for n, family in enumerate(vk.vkGetPhysicalDeviceQueueFamilyProperties(physical)):
        if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT:
            return n
    return None


@cache
def _device(index: int, physical: Any) -> Device | None:
    import vulkan as vk

    if queue_family(physical) is None:
        return None
    subgroup = vk.VkPhysicalDeviceSubgroupProperties()
    driver = vk.VkPhysicalDeviceDriverProperties(pNext=subgroup)
    properties = vk.VkPhysicalDeviceProperties2(pNext=driver)
    vk.vkGetPhysicalDeviceProperties2(physical, properties)
    p = properties.properties
    at = p.limits
    limits = Limits(
        storage_bytes=min(at.maxStorageBufferRange, 2**32 - 4),
        grid=tuple(at.maxComputeWorkGroupCount),
        local=tuple(at.maxComputeWorkGroupSize),
        threads=at.maxComputeWorkGroupInvocations,
        shared_bytes=at.maxComputeSharedMemorySize,
        push_bytes=at.maxPushConstantsSize,
        alignment=max(at.minStorageBufferOffsetAlignment, 16),
    )
    info = f"{vk.ffi.string(driver.driverName).decode()} {vk.ffi.string(driver.driverInfo).decode()}".strip()
    operations = subgroup.supportedOperations
    wanted = vk.VK_SUBGROUP_FEATURE_ARITHMETIC_BIT | vk.VK_SUBGROUP_FEATURE_SHUFFLE_BIT
    features = set(supported(physical)) - _OF_OURS
    if subgroup.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT and operations & wanted == wanted:
        features.add("subgroup")
    if at.timestampComputeAndGraphics:
        features.add("timestamps")
    kind = ("other", "integrated", "discrete", "virtual", "cpu")[p.deviceType if p.deviceType <= 4 else 0]
    name = p.deviceName if isinstance(p.deviceName, str) else vk.ffi.string(p.deviceName).decode()
    return Device("native", index, name, info, kind, limits, frozenset(features), subgroup.subgroupSize, trips(info))


def trips(driver: str) -> int:
    """How often the loops of one thread may go in all on this driver, 0 for any number: Mesa's software device before
    25.0 ends loops silently after 65,535 rounds."""
    if "llvmpipe" not in driver:
        return 0
    m = re.search(r"Mesa ([0-9]+)", driver)
    return 0 if m and int(m[1]) >= 25 else 65535


#: Our words for features, and where they stand in the structs of Vulkan.
_FEATURES = {
    "float16": ("VkPhysicalDeviceVulkan12Features", "shaderFloat16"),
    "storage16": ("VkPhysicalDeviceVulkan11Features", "storageBuffer16BitAccess"),
    "memory model": ("VkPhysicalDeviceVulkan12Features", "vulkanMemoryModel"),
    "local size": ("VkPhysicalDeviceVulkan13Features", "maintenance4"),
    "coopmat": ("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", "cooperativeMatrix"),
}
#: What only modules of newer versions need, and no kernel asks for by name.
_OF_OURS = {"memory model", "local size"}
_COOPERATIVE = "VK_KHR_cooperative_matrix"


@cache
def extensions(physical: Any) -> frozenset[str]:
    import vulkan as vk

    return frozenset(e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None))


@cache
def supported(physical: Any) -> tuple[str, ...]:
    """Words of `_FEATURES` that the device has."""
    import vulkan as vk

    version = vk.vkGetPhysicalDeviceProperties(physical).apiVersion
    if version < vk.VK_MAKE_VERSION(1, 2, 0):
        return ()
    chain, top = _chain(physical, version)
    vk.vkGetPhysicalDeviceFeatures2(physical, top)
    return tuple(word for word, (of, field) in _FEATURES.items() if of in chain and getattr(chain[of], field))


def _chain(physical: Any, version: int) -> tuple[dict[str, Any], Any]:
    """The structs that the device knows, each pointing to the one before, and the head of them. All must be kept."""
    import vulkan as vk

    chain: dict[str, Any] = {}
    last = None
    for name, since in (("11", (1, 2, 0)), ("12", (1, 2, 0)), ("13", (1, 3, 0))):
        if version >= vk.VK_MAKE_VERSION(*since):
            made = getattr(vk, f"VkPhysicalDeviceVulkan{name}Features")
            last = chain[f"VkPhysicalDeviceVulkan{name}Features"] = made(**({} if last is None else {"pNext": last}))
    if _COOPERATIVE in extensions(physical):
        last = chain["VkPhysicalDeviceCooperativeMatrixFeaturesKHR"] = vk.VkPhysicalDeviceCooperativeMatrixFeaturesKHR(
            pNext=last
        )
    return chain, vk.VkPhysicalDeviceFeatures2(**({} if last is None else {"pNext": last}))


def create(physical: Any, family: int) -> Any:
    """A logical device with one queue and every feature that we have a word for."""
    import vulkan as vk

    version = vk.vkGetPhysicalDeviceProperties(physical).apiVersion
    chain, top = _chain(physical, version)
    for word in supported(physical):
        of, field = _FEATURES[word]
        setattr(chain[of], field, 1)
    have = extensions(physical)
    queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=family, queueCount=1, pQueuePriorities=[1.0])
    info = vk.VkDeviceCreateInfo(
        pNext=top,
        pQueueCreateInfos=[queue],
        ppEnabledExtensionNames=[e for e in (_COOPERATIVE, "VK_KHR_portability_subset") if e in have],
    )
    with translated("opening the device"):
        return vk.vkCreateDevice(physical, info, None)


def memory_type(physical: Any, bits: int, wanted: int, liked: int = 0) -> int:
    """The kind of memory among ``bits`` with the properties ``wanted`` that has most of the ``liked`` ones, of several
    the first; -1 if there is none."""
    import vulkan as vk

    types = vk.vkGetPhysicalDeviceMemoryProperties(physical)
    flags = [types.memoryTypes[n].propertyFlags for n in range(types.memoryTypeCount)]
    fitting = [n for n, f in enumerate(flags) if bits >> n & 1 and f & wanted == wanted]
    return max(fitting, key=lambda n: ((flags[n] & liked).bit_count(), -n), default=-1)
