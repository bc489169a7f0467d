"""Prints what Vulkan has here, as JSON; a script of its own, because drivers may crash.

It imports nothing but the standard library and is started by ``qcore_vgf.vulkan``, which sets the
environment that the loader reads.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, byref, c_char, c_char_p, c_uint32, c_void_p
from typing import Any

_APPLICATION_INFO = 0  # VK_STRUCTURE_TYPE_APPLICATION_INFO
_INSTANCE_CREATE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
_PROPERTIES_2 = 1000059001  # VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
_DRIVER_PROPERTIES = 1000196000  # VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES
_API_1_3 = (1 << 22) | (3 << 12)


class _ApplicationInfo(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("pApplicationName", c_char_p),
        ("applicationVersion", c_uint32),
        ("pEngineName", c_char_p),
        ("engineVersion", c_uint32),
        ("apiVersion", c_uint32),
    ]


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("flags", c_uint32),
        ("pApplicationInfo", POINTER(_ApplicationInfo)),
        ("enabledLayerCount", c_uint32),
        ("ppEnabledLayerNames", c_void_p),
        ("enabledExtensionCount", c_uint32),
        ("ppEnabledExtensionNames", c_void_p),
    ]


class _DriverProperties(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("driverID", c_uint32),
        ("driverName", c_char * 256),
        ("driverInfo", c_char * 256),
        ("conformanceVersion", c_uint32),
    ]


class _DeviceProperties(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("apiVersion", c_uint32),
        ("driverVersion", c_uint32),
        ("vendorID", c_uint32),
        ("deviceID", c_uint32),
        ("deviceType", c_uint32),
        ("deviceName", c_char * 256),
        ("rest", c_char * 1024),  # limits and sparse properties, which nobody reads here
    ]


class _Extension(ctypes.Structure):
    _fields_ = [("name", c_char * 256), ("version", c_uint32)]


def _handles(enumerate_: Any, owner: Any) -> list[Any]:
    count = c_uint32()
    enumerate_(owner, byref(count), None)
    found = (c_void_p * count.value)()
    enumerate_(owner, byref(count), found)
    return list(found)


def _device(vulkan: Any, handle: Any) -> dict[str, Any]:
    driver = _DriverProperties(sType=_DRIVER_PROPERTIES)
    properties = _DeviceProperties(
        sType=_PROPERTIES_2, pNext=ctypes.cast(ctypes.pointer(driver), c_void_p)
    )
    vulkan.vkGetPhysicalDeviceProperties2(c_void_p(handle), byref(properties))
    count = c_uint32()
    enumerate_ = vulkan.vkEnumerateDeviceExtensionProperties
    enumerate_(c_void_p(handle), None, byref(count), None)
    extensions = (_Extension * count.value)()
    enumerate_(c_void_p(handle), None, byref(count), extensions)
    return {
        "name": properties.deviceName.decode(errors="replace"),
        "driver": driver.driverInfo.decode(errors="replace"),
        "extensions": sorted(extension.name.decode() for extension in extensions),
    }


def probe() -> dict[str, Any]:
    """Return the Vulkan devices in the loader's order, or why there are none."""
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError as error:
        return {"loader": False, "error": str(error), "devices": []}
    application = _ApplicationInfo(sType=_APPLICATION_INFO, apiVersion=_API_1_3)
    create = _InstanceCreateInfo(
        sType=_INSTANCE_CREATE_INFO, pApplicationInfo=ctypes.pointer(application)
    )
    instance = c_void_p()
    status = vulkan.vkCreateInstance(byref(create), None, byref(instance))
    if status != 0:
        return {"loader": True, "error": f"vkCreateInstance returned {status}", "devices": []}
    handles = _handles(vulkan.vkEnumeratePhysicalDevices, instance)
    return {"loader": True, "error": "", "devices": [_device(vulkan, h) for h in handles]}


if __name__ == "__main__":
    print(json.dumps(probe()))
