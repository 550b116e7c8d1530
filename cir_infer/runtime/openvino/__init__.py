"""Bundles on a processor through OpenVINO (Apache-2.0): Intel, AMD and Arm.

`api` is the one module that touches `openvino`.
"""
