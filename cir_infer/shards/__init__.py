"""A gallery in several parts: each an ordinary gallery, together answered as one, exactly."""

from cir_infer.searching.found import Found, Held
from cir_infer.shards.following import FollowingSearcher, follow_folder
from cir_infer.shards.http import HttpShard
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.searcher import ShardedSearcher
from cir_infer.shards.shard import About, LocalShard, Shard
from cir_infer.shards.succession import rebalance, remove_old

__all__ = [
    "About",
    "FollowingSearcher",
    "Found",
    "Held",
    "HttpShard",
    "LocalShard",
    "Shard",
    "ShardedGallery",
    "ShardedSearcher",
    "follow_folder",
    "rebalance",
    "remove_old",
]
