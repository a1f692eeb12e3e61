"""The layer-streaming runtime: any `nn.Module`, training and inference, within a budget of device bytes.

Needs torch alone and knows nothing of jobs, Ray or Redis.
"""

from superpipe_cluster.streaming.devices.virtual_device import VirtualDevice
from superpipe_cluster.streaming.homes.homes import HomeName
from superpipe_cluster.streaming.homes.loading import Weights, check_weights, parameters_on_meta
from superpipe_cluster.streaming.homes.weight_files import WeightFiles
from superpipe_cluster.streaming.opening import stream
from superpipe_cluster.streaming.policies import PolicyName
from superpipe_cluster.streaming.streamer import Streamer, StreamStats
from superpipe_cluster.streaming.training.optimizer import StreamedOptimizer

__all__ = [
    "HomeName",
    "PolicyName",
    "StreamStats",
    "StreamedOptimizer",
    "Streamer",
    "VirtualDevice",
    "WeightFiles",
    "Weights",
    "check_weights",
    "parameters_on_meta",
    "stream",
]
