"""The Ethos-U backend of qcore: Arm's microNPUs, through ExecuTorch and Vela."""
