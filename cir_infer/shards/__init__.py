"""A gallery in several parts: each an ordinary gallery, together answered as one, exactly."""

from cir_infer.searching.found import Found, Held
from cir_infer.shards.http import HttpShard
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.searcher import ShardedSearcher
from cir_infer.shards.shard import About, LocalShard, Shard

__all__ = ["About", "Found", "Held", "HttpShard", "LocalShard", "Shard", "ShardedGallery", "ShardedSearcher"]
