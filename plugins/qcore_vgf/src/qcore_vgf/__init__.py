"""The VGF backend of qcore: Arm's ML extensions for Vulkan, through ExecuTorch."""
