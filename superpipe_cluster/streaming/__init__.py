"""The layer-streaming runtime: any `nn.Module`, training and inference, within a budget of device bytes.

Needs torch alone and knows nothing of jobs, Ray or Redis.
"""

from superpipe_cluster.streaming.optimizer import StreamedOptimizer
from superpipe_cluster.streaming.schedule import PolicyName
from superpipe_cluster.streaming.streamer import Streamer, StreamStats, stream
from superpipe_cluster.streaming.virtual_device import VirtualDevice

__all__ = ["PolicyName", "StreamStats", "StreamedOptimizer", "Streamer", "VirtualDevice", "stream"]
